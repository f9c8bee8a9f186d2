"""What watching a run costs: seconds inside the record, the guard, the meters and the tracker, against a step's.

The calls that the loop makes for each update, on rank 0 and in its order, with the shipped recipe's settings: whether a
newer attempt has begun, the step into the record, the guard, the meter, and each Nth step a line of figures. The step
they are divided by is the shipped recipe's model on one rank, in the same process a moment later.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import settings
from tests.bench.rounds import median
from tests.bench.step import ROUNDS, contend
from tests.ranks import launch
from trainer.claim import Writer
from trainer.clock import Clock
from trainer.guard import Guard
from trainer.meters import Meter, flops_per_token
from trainer.recipe import RECIPES, Recipe
from trainer.tracker import Tracker

STEPS, ROWS, LABELS = 5000, 16, 4096


class Clocked:
    """Calls by name, with the seconds spent in each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, call: Callable[..., Any], *args: Any, **more: Any) -> Any:
        began = time.perf_counter()
        result = call(*args, **more)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        return result


def watch(folder: Path, recipe: Recipe) -> dict[str, float]:
    """Seconds in each kind of call over STEPS updates."""
    writer = Writer(folder)
    writer.start(adopts=None, step=0, consumed=0, world=1)
    tracker = Tracker(folder, 1, recipe)
    clock = Clock()
    clock.enter("compute")
    flops = flops_per_token(recipe.model, 1_300_000, 4096)
    meter = Meter(steps=STEPS, ranks=1, tokens_per_byte=0.3, epoch_tokens=10**7, flops=flops, clock=clock)
    guard = Guard(recipe.guard)
    clocked = Clocked()
    for step in range(1, STEPS + 1):
        positions = ((step - 1) * ROWS, step * ROWS)
        loss, norm = 2 + 6 / step + 0.01 * (step % 7), 0.5 + 0.01 * (step % 5)
        clocked("record: fenced", writer.fenced)
        clocked(
            "record: step", writer.append, "step", step=step, positions=list(positions), labels=LABELS,
            rows=f"{step * 0x9E3779B97F4A7C15 % 2**64:016x}", verdict="applied", reason=None, lr=1e-3, loss=loss,
            grad_norm=norm,
        )  # fmt: skip
        clocked("guard", guard.observe, step, positions, loss, norm, True)
        for category in ("data_wait", "compute"):
            clocked("clock", clock.enter, category)
        clocked("meter: step", meter.step, LABELS)
        if step % recipe.log.every_steps == 0:
            line = clocked(
                "meter: line", meter.line, step=step, labels=step * LABELS, loss=loss, grad_norm=norm, lr=1e-3,
                applied=step, skipped=0,
            )  # fmt: skip
            clocked("tracker: line", tracker.log, line)
    tracker.finish(0)
    writer.close()
    return clocked.seconds


def main() -> None:
    """Print microseconds a step and the share of one."""
    recipe = settings.load(Recipe, RECIPES / "stdlib.yaml", ["log.wandb=off"])
    with tempfile.TemporaryDirectory() as folder:
        seconds = watch(Path(folder) / "run", recipe)
        taken = launch(contend, 1, recipe.engine.zero_stage, ROUNDS, folder=Path(folder), timeout_s=900)[0]
    step = median(taken["ours"])
    for name, spent in (*seconds.items(), ("all of it", sum(seconds.values()))):
        print(f"{name:<15} {1e6 * spent / STEPS:7.1f} us a step, {spent / STEPS / step:8.4%} of {1000 * step:.0f} ms")


if __name__ == "__main__":
    main()
