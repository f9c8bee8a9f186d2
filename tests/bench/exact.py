"""What `exact: any` costs: one update of it against one of `exact: topology`, the same engine, kernels and rows.

The shipped recipe's model in fp32, whole-row attention, clipping on, 8 rows a forward, one or two forwards a rank; one
thread a rank. The price is told by the clock, and in seconds of rank 0's own work, which a busy machine moves less.
The memory is what the mode holds beside ZeRO's own; the bytes are what a rank sends in one update.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from data import settings
from tests.bench.rounds import median, ratio, turns
from tests.ranks import launch
from trainer.engine import Engine
from trainer.exact import addable
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.optimizer import parameter_groups
from trainer.recipe import RECIPES, Recipe
from trainer.world import World

ROWS, VOCAB, ROUNDS = 8, 4096, 9


def contend(world: World, stage: int, forwards: int, rounds: int) -> Any:
    """Seconds of both modes' updates by round, by the clock and of work, and (memory, sent) in bytes of the dearer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    extra, work = (0, 0), dict[str, list[float]](topology=[], any=[])

    def contender(mode: str) -> Any:
        nonlocal extra
        chosen = [f"engine.zero_stage={stage}", f"engine.exact={mode}", "model.attention=full", "optimizer.lr=1e-4"]
        recipe = settings.load(Recipe, RECIPES / "stdlib.yaml", chosen)
        context = recipe.model.context
        generator = torch.Generator().manual_seed(world.rank)
        inputs, labels = (torch.randint(0, VOCAB, (ROWS, context), generator=generator) for _ in range(2))
        tokens = ROWS * context * world.size * forwards
        model = Decoder(recipe.model, VOCAB)
        initialize(model, 1)
        groups = parameter_groups(model.named_parameters(), recipe.optimizer.weight_decay)
        engine = Engine(model, groups, recipe, world, ROWS, forwards, bf16=False)
        if engine.extra is not None:
            extra = engine.extra
        linear = torch.nn.functional.linear  # DeepSpeed and this mode put another one there, for the whole process

        def update() -> None:
            torch.nn.functional.linear = linear
            began = time.process_time()
            total = torch.zeros((), dtype=torch.float64)
            world.total([tokens // world.size, 0, 0, 0, 12345])
            for number in range(1, forwards + 1):
                loss = engine.model(inputs, labels, None)
                engine.backward(loss, tokens, last=number == forwards)
                total += addable(loss)
            verdict = engine.step(1e-4)
            world.total_floats([float(total)])
            float(verdict.grad_norm)
            work[mode].append(time.process_time() - began)

        return update

    seconds = turns({mode: contender(mode) for mode in work}, rounds)
    return seconds, {mode: spent[1:] for mode, spent in work.items()}, extra


def main() -> None:
    """Print milliseconds, the price in percent, and bytes."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    print("ranks forwards ZeRO  topology       any   dearer  in work    memory      sent")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            for forwards in (1, 2):
                for stage in (1, 2, 3):
                    seconds, work, (memory, sent) = launch(
                        contend, ranks, stage, forwards, rounds, folder=Path(folder), timeout_s=900
                    )[0]
                    price, worked = (ratio(held["topology"], held["any"]) - 1 for held in (seconds, work))
                    print(
                        f"{ranks:5} {forwards:8} {stage:4} {1000 * median(seconds['topology']):6.0f} ms "
                        f"{1000 * median(seconds['any']):6.0f} ms {price:8.0%} {worked:8.0%} {memory / 1e6:6.1f} MB "
                        f"{sent / 1e6:6.1f} MB",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
