"""Forward and backward without padding against the same of padded rows: `python -m tests.bench.padding RUN...`.

Each run's last weights and first rows, a micro-batch as it trained with. `make bench-tasks` leaves such runs under
`LUBAN_BENCH/tasks/runs`; without words it takes the first of each task whose model reads padding. One thread, fp32.
"""

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from tests.bench.rounds import median, ratio, turns
from tests.bench.tasks import TASKS, place
from tests.trainer.families import in_rows
from trainer.feed import read_batch
from trainer.objectives.base import Batch
from trainer.scores import Loaded, load_model

BATCHES, ROUNDS = 4, 5


def padded(batch: Batch) -> Batch:
    """The batch whose padding is computed, too."""
    paddings = {"padding": batch.padding, "decoder_padding": batch.decoder_padding}
    return replace(batch, **{name: each and in_rows(each) for name, each in paddings.items()})


def update(loaded: Loaded, batches: list[Batch]) -> None:
    """Gradients of all batches."""
    loaded.model.zero_grad()
    for batch in batches:
        loaded.objective.loss(loaded.model, batch).backward()


def real(batches: list[Batch]) -> float:
    """Which part of what the rows hold is no padding."""
    held = [each.real for batch in batches for each in (batch.padding, batch.decoder_padding) if each is not None]
    return sum(float(each.sum()) for each in held) / sum(each.numel() for each in held)


def main(runs: list[str]) -> None:
    """Print a line a run."""
    torch.set_num_threads(1)
    named = [place() / "runs" / f"{task.name}-1" for task in TASKS]
    for run in runs or [str(folder) for folder in named if folder.exists()]:
        loaded = load_model(run)
        loaded.model.train()
        reader, rows = loaded.inputs.reader(), loaded.recipe.train.batch_rows
        positions = np.arange(BATCHES * rows).reshape(BATCHES, rows)
        batches = [read_batch(reader, loaded.objective, each, torch.device("cpu"))[1] for each in positions]
        if all(batch.padding is None for batch in batches):
            print(f"{run}: its model reads no padding", flush=True)
            continue
        with_it = [padded(batch) for batch in batches]
        contenders = {"without": partial(update, loaded, batches), "padded": partial(update, loaded, with_it)}
        seconds = turns(contenders, ROUNDS)
        per_batch = {name: 1000 * median(each) / BATCHES for name, each in seconds.items()}
        print(
            f"{run}: {real(batches):.0%} real; {per_batch['without']:.0f} ms without padding, "
            f"{per_batch['padded']:.0f} ms with it: {ratio(seconds['without'], seconds['padded']):.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
