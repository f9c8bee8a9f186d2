"""Whether a run is what it would have been without any fault."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.chaos.play import ROWS, SHAPES, STEPS, expected
from trainer import checkpoint, record
from trainer.checkpoint import MOMENTS, WEIGHT, Checkpoint

known = cache(expected)


@dataclass
class Verdict:
    """What was found."""

    lost: int = 0
    """Rows of [0, consumed) that are in no update of the lineage."""
    repeated: int = 0
    """Rows that are in two."""
    redone: int = 0
    """Updates whose weights a fault has taken, applied anew."""
    problems: list[str] = field(default_factory=list)


def judge(
    run: Path, steps: int = STEPS, flushed_metrics: bool = False, kept: int | None = 2, damaged: str = ""
) -> Verdict:
    """Compare a run that has ended with the uninterrupted one.

    Args:
        flushed_metrics: power was lost: of metrics.jsonl only that its lines are numbered without a gap can be asked.
        kept: checkpoints that retention leaves (one more if it was the last removal that a fault prevented); None: any.
        damaged: a checkpoint that was damaged, and may still be there as it was left.
    """
    found, history = Verdict(), record.load(run)
    names = [name for name in history.checkpoints() if name != damaged]
    if not names:
        found.problems.append("there is no checkpoint")
        return found
    held = [Checkpoint(run / checkpoint.FOLDER / name) for name in names]
    found.problems += [problem for each in held for problem in each.problems()]
    if kept is not None and len(names) not in (kept, kept + 1):
        found.problems.append(f"{names} instead of {kept} checkpoints")
    state, story = known(steps)
    newest = held[-1]
    progress = newest.state["progress"]
    lineage = history.lineage(progress["consumed"])
    times = [0] * (progress["consumed"] // ROWS)
    for event in lineage:
        times[event["positions"][0] // ROWS] += 1
    found.lost, found.repeated = ROWS * times.count(0), ROWS * sum(each > 1 for each in times)
    found.redone = sum(last - first + 1 for _, first, last in history.lost)
    told = [(event["positions"][0], event["verdict"]) for event in lineage]
    if told != story:
        found.problems.append(f"the lineage is {told}")
    if newest.step != steps or not _same(newest, state):
        found.problems.append(f"{newest.name} has other weights than the uninterrupted run at step {steps}")
    found.problems += _metrics(history, lineage, flushed_metrics)
    return found


def _same(found: Checkpoint, state: dict[str, torch.Tensor]) -> bool:
    at = 0
    for name, shape in SHAPES.items():
        size = torch.Size(shape).numel()
        held = found.read(name, shape, 0, size)
        if not all(torch.equal(held[part], state[part][at : at + size]) for part in (WEIGHT, *MOMENTS)):
            return False
        at += size
    return True


def _metrics(history: record.History, lineage: list[dict[str, Any]], flushed: bool) -> list[str]:
    lines = history.metrics()
    numbers = [line["line"] for line in lines]
    if numbers != list(range(len(numbers))):
        return [f"metrics.jsonl has lines {numbers}"]
    if flushed:
        return []
    author = {id(event): attempt.number for attempt in history.attempts for event in attempt.events}
    written = [(line["attempt"], line["train/step"], line["train/loss"]) for line in lines if line["kind"] == "train"]
    wanted = [(author[id(event)], event["step"], event["loss"]) for event in lineage if event["verdict"] == "applied"]
    return [f"metrics.jsonl has {written.count(line)} lines of {line}" for line in wanted if written.count(line) != 1]
