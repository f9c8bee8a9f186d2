"""A save and a resume at 100 M parameters, against DeepSpeed's own, on the very same engine of 2 ranks.

Ours returns once its spans are copied, and a thread writes, flushes and re-reads them while steps go on; what those
steps lose to it is counted too, against as many steps before and after. Where the ranks keep all cores busy, that loss
is the CPU time of the writing, and noise; so the CPU time of a save is told as well: of the process, without what the
kernel does later for pages that were not flushed. DeepSpeed's `save_checkpoint` holds the step for the whole save and
flushes nothing: its files may be gone after a power cut. Flushing them is timed apart. `ds_to_universal` is what
DeepSpeed needs before another number of ranks can load them, given both cores here.

Ours resumes at 2 ranks of the same stage and, without a conversion, on one rank of another stage; both include the
check of every byte that each start of a run makes. DeepSpeed resumes on one rank of the same stage from the converted
files; it checks nothing.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from data import settings
from tests.bench.resident import peak_growth, resident
from tests.bench.rounds import median
from tests.ranks import launch
from trainer import checkpoint
from trainer.checkpoint import Checkpoint, folder_name
from trainer.engine import Engine
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.optimizer import parameter_groups
from trainer.place import Folder
from trainer.recipe import Recipe
from trainer.saver import Saver
from trainer.world import World

VOCAB, CONTEXT, STEPS, ROUNDS = 65536, 64, 4, 3
MODEL = (
    "model.hidden_size=512", "model.num_hidden_layers=10", "model.num_attention_heads=8", "model.num_key_value_heads=8",
    "model.tie_word_embeddings=false", f"model.context={CONTEXT}", "train.batch_rows=2", "schedule.kind=constant",
)  # fmt: skip
TAG, UNIVERSAL = "theirs", "universal"
CLIENT = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.4}}  # without it nothing can be converted
NAME = folder_name(1, 1)
OTHER_STAGE = {1: 3, 2: 1, 3: 2}
MB = 1e6


def new_engine(world: World, stage: int) -> tuple[Engine, Callable[[], None]]:
    """An engine of a 99 M parameter decoder, and its step, with the loop's agreement in it."""
    recipe = settings.load(Recipe, None, [*MODEL, f"engine.zero_stage={stage}"])
    model = Decoder(recipe.model, VOCAB)
    initialize(model, 1)
    rows = 2 // world.size
    engine = Engine(
        model, parameter_groups(model.named_parameters(), 0.1), recipe, world, micro_batch=rows, accumulation=1,
        bf16=False,
    )  # fmt: skip
    inputs = torch.randint(0, VOCAB, (rows, CONTEXT), generator=torch.Generator().manual_seed(world.rank))

    def step() -> None:
        engine.backward(engine.model(inputs, inputs, None), 2 * CONTEXT, last=True)
        float(engine.step(1e-4).grad_norm)

    return engine, step


def said(engine: Engine) -> dict[str, Any]:
    """What `state.json` is to hold."""
    return {"step": 1, "attempt": 1, "zero_stage": engine.stage, "adam_step": engine.adam_step()}


def timed(world: World, action: Callable[[], object]) -> float:
    """Seconds until every rank is done."""
    world.total([0])
    began = time.perf_counter()
    action()
    world.total([0])
    return time.perf_counter() - began


def cpu_of(action: Callable[[], object]) -> float:
    """Seconds of the CPU that this process takes for it."""
    began = time.process_time()
    action()
    return time.process_time() - began


def timed_growth(world: World, action: Callable[[], object]) -> tuple[float, int]:
    """Seconds until every rank is done, and bytes by which this one grew meanwhile."""
    grown: list[int] = []
    return timed(world, lambda: grown.append(peak_growth(action))), grown[0]


def behind(world: World, saver: Saver, begin: Callable[..., None], step: Callable[[], None]) -> dict[str, float]:
    """A save with the training going on: seconds of the stall, until it is published, and what the steps lost."""
    ordinary = [timed(world, step) for _ in range(STEPS // 2)]
    out = threading.Event()
    began = time.perf_counter()
    stall = timed(world, lambda: begin(lambda manifest, size: out.set()))
    steps: list[float] = []
    total = 0.0
    while not total or len(steps) < STEPS:
        steps.append(timed(world, step))
        written, published = world.total([saver.written, out.is_set()])
        if published:
            total = total or time.perf_counter() - began
        elif written == world.size:
            saver.collect()
    saver.finish()
    ordinary += [timed(world, step) for _ in range(STEPS // 2)]
    mean = sum(ordinary) / len(ordinary)
    return {"stall": stall, "total": total, "lost": sum(steps) - len(steps) * mean, "step": mean}


def save(world: World, stage: int, root: Path, rounds: int) -> list[dict[str, float]]:
    """Each round's figures: ours behind the steps, ours at rest, DeepSpeed's; in turns."""
    engine, step = new_engine(world, stage)
    step()
    spans = engine.spans()
    before = resident()
    saver = Saver(Folder(root), world, spans)
    buffer = resident() - before
    theirs: Any = engine._engine

    def begin(published: Callable[..., None] = lambda manifest, size: None) -> None:
        saver.begin(NAME, said(engine), engine.spans(), None, published)

    def whole() -> None:
        begin()
        saver.finish()

    def native() -> None:
        theirs.save_checkpoint(str(root), tag=TAG, client_state=CLIENT)

    told = []
    for number in range(rounds + 1):
        figures = behind(world, saver, begin, step)
        clear(world, root / checkpoint.FOLDER)
        figures["at rest"], grown = timed_growth(world, whole)
        clear(world, root / checkpoint.FOLDER)
        figures["cpu"] = cpu_of(whole)
        figures |= {"planned": saver.host_bytes, "buffer": buffer, "grown": grown}
        clear(world, root / TAG)
        figures["theirs"], figures["theirs grown"] = timed_growth(world, native)
        clear(world, root / TAG)
        figures["their cpu"] = cpu_of(native)
        figures["their flush"] = timed(world, lambda: flush(root / TAG) if world.rank == 0 else None)
        if number:  # the first is not counted
            told.append(figures)
    return told


def clear(world: World, folder: Path) -> None:
    """Remove what the round before left."""
    if world.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    world.total([0])


def flush(folder: Path) -> None:
    """Make a folder's files durable."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def resume(world: World, stage: int, root: Path, rounds: int, tag: str) -> dict[str, list[float]]:
    """Seconds to load into a ready engine, ours and DeepSpeed's, in turns; and what loading ours grew by."""
    engine, _ = new_engine(world, stage)
    elements = sum(span.count for span in engine.spans())
    told: dict[str, list[float]] = {"ours": [], "theirs": [], "grown": [], "share": [12.0 * elements]}
    theirs: Any = engine._engine
    theirs._config.load_universal_checkpoint = tag == UNIVERSAL

    def ours() -> None:
        found = Checkpoint(root / checkpoint.FOLDER / NAME)
        assert not any(world.gather(found.problems(world.rank, world.size)))
        engine.load(found.read, found.state["adam_step"])

    for _ in range(rounds + 1):
        seconds, grown = timed_growth(world, ours)
        told["ours"].append(seconds)
        told["grown"].append(grown)
        if tag:
            told["theirs"].append(timed(world, lambda: theirs.load_checkpoint(str(root), tag=tag)))
    return {key: values[1:] or values for key, values in told.items()}


def convert(world: World, root: Path) -> float:
    """Seconds of the offline conversion, on both cores."""
    from deepspeed.checkpoint.ds_to_universal import main as ds_to_universal

    options = argparse.Namespace(
        input_folder=str(root / TAG), output_folder=str(root / UNIVERSAL), num_extract_workers=2, num_merge_workers=2,
        keep_temp_folder=False, strict=True, inject_missing_state=False,
    )  # fmt: skip
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        return timed(world, lambda: ds_to_universal(options))


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def report(stage: int, root: Path, rounds: int) -> None:
    """Measure one stage, and print it."""

    def ranks(function: Callable[..., Any], size: int, *args: Any) -> Any:
        return launch(function, size, *args, folder=root, timeout_s=1800)[0]

    each = ranks(save, 2, stage, root, rounds)
    held = {key: median([figures[key] for figures in each]) for key in each[0]}

    def against(*parts: str) -> float:
        return median([sum(figures[part] for part in parts) / figures["theirs"] for figures in each])

    ours, theirs = size_of(root / checkpoint.FOLDER / NAME), size_of(root / TAG)
    print(
        f"stage {stage}: a step takes {held['step']:.2f} s\n"
        f"  DeepSpeed's save {held['theirs']:.2f} s (unflushed; flushing takes {held['their flush']:.2f} s more)\n"
        f"  stall {held['stall']:.3f} s, {against('stall'):.2f}x of DeepSpeed's save\n"
        f"  published after {held['total']:.2f} s; {STEPS} steps or more beside it lost {held['lost']:.2f} s; "
        f"stall and loss {against('stall', 'lost'):.2f}x\n"
        f"  the whole save with nothing beside it {held['at rest']:.2f} s, {against('at rest'):.2f}x\n"
        f"  CPU of a rank {held['cpu']:.2f} s, DeepSpeed's {held['their cpu']:.2f} s\n"
        f"  bytes {ours / MB:.1f} MB, DeepSpeed {theirs / MB:.1f} MB: {ours / theirs:.4f}x\n"
        f"  memory: buffer {held['planned'] / MB:.0f} MB planned, {held['buffer'] / MB:.0f} MB taken, a save grows by "
        f"{held['grown'] / MB:.0f} MB, DeepSpeed's by {held['theirs grown'] / MB:.0f} MB",
        flush=True,
    )
    same = ranks(resume, 2, stage, root, rounds, TAG)
    conversion = ranks(convert, 1, root)
    universal = size_of(root / UNIVERSAL)
    other = ranks(resume, 1, OTHER_STAGE[stage], root, rounds, "")
    converted = ranks(resume, 1, stage, root, 1, UNIVERSAL)
    print(
        f"  resume, 2 ranks, stage {stage}: {median(same['ours']):.2f} s, each byte checked; "
        f"DeepSpeed {median(same['theirs']):.2f} s, unchecked\n"
        f"  resume, 1 rank, stage {OTHER_STAGE[stage]}: {median(other['ours']):.2f} s; DeepSpeed's conversion "
        f"{conversion:.2f} s and {universal / MB:.0f} MB, loading it on 1 rank, stage {stage}: "
        f"{median(converted['theirs']):.2f} s\n"
        f"  memory: loading grows by {median(same['grown']) / MB:.0f} MB of a share of {same['share'][0] / MB:.0f} MB; "
        f"on 1 rank {median(other['grown']) / MB:.0f} MB of {other['share'][0] / MB:.0f} MB",
        flush=True,
    )


def main() -> None:
    """`save [ROUNDS] [STAGE ...]`: print each stage's figures. Needs 8 GB of memory and 6 GB of disk."""
    rounds, *stages = map(int, sys.argv[1:] or [ROUNDS])
    for stage in stages or (1, 2, 3):
        with tempfile.TemporaryDirectory() as folder:
            report(stage, Path(folder), rounds)


if __name__ == "__main__":
    main()
