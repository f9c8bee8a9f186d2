"""What `dataset.json` says of a dataset of examples: the task, its classes and their balance, what was cut, windows.

Counts add up: each part of a build counts its own rows, by split.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.shards import FIELDS, SPLITS, Targets
from data.tasks.encode import Encoded
from data.tasks.part import control_id
from data.tasks.task import Task
from data.tasks.template import controls, is_causal
from data.tokenizer.tokenizer import Tokenizer

Counts = dict[str, dict[str, int]]
"""By split, then by what was counted."""


def counted(encoded: Encoded, splits: Sequence[int]) -> Counts:
    """The notes on encoded examples, by split.

    Args:
        splits: position in SPLITS of each example of the batch.
    """
    found: dict[str, Counter[str]] = {}
    for number, notes in encoded.notes.items():
        found.setdefault(SPLITS[splits[number]], Counter()).update(notes)
    return {split: dict(counts) for split, counts in found.items()}


def added(parts: Iterable[Counts]) -> Counts:
    """The sum of counts."""
    total: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for part in parts:
        for split, counts in part.items():
            total[split].update(counts)
    return {split: dict(counts) for split, counts in total.items()}


def summary(
    task: Task, classes: Sequence[str], targets: Targets | None, tokenizer: Tokenizer, counts: Counts
) -> dict[str, Any]:
    """The section `task` of `dataset.json`."""
    return {
        "kind": task.kind,
        "template": task.layout,
        "causal": is_causal(task),
        "fields": list(FIELDS),
        "controls": {role: control_id(tokenizer, role) for role in controls(task)},
        "classes": list(classes),
        "targets": targets and targets.to_json(),
        "splits": {split: _split(held, classes) for split, held in counts.items()},
    }


def _split(counts: Mapping[str, int], classes: Sequence[str]) -> dict[str, Any]:
    said: dict[str, Any] = {name: count for name, count in sorted(counts.items()) if not name.startswith("label=")}
    if classes:
        said["classes"] = {name: counts.get(f"label={name}", 0) for name in classes}
    return said


def task_lines(said: Mapping[str, Any]) -> list[str]:
    """The section `task` of a `dataset.json` as lines for people."""
    lines = [
        f"task {said['kind']}, template {said['template']}"
        + (f", {len(said['classes'])} classes" if said["classes"] else "")
    ]
    for split, held in said["splits"].items():
        if not held.get("examples"):
            continue
        counts = [f"{count:,} {name.replace('_', ' ')}" for name, count in held.items() if name != "classes"]
        lines.append(f"  {split:<8} {', '.join(counts)}")
        total = max(1, sum(held.get("classes", {}).values()))
        for name, count in held.get("classes", {}).items():
            lines.append(f"    {name:<24}{count:>10,}{count / total:>8.1%}")
    return lines
