"""What went into each stage of a build, what came out, and why the rest did not: the dataset's own account."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from data.chunks import Drop

_IDS_SHOWN = 3


@dataclass
class Stage:
    """One stage: documents (or examples) and their UTF-8 bytes on both sides."""

    name: str
    documents_in: int
    bytes_in: int
    documents_out: int
    bytes_out: int
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By rule: documents, bytes, and the smallest ids."""


class Ledger:
    """The stages in their order."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def add(self, name: str, came_in: tuple[int, int], went_out: tuple[int, int], drops: Iterable[Drop]) -> None:
        """Book a stage: (documents, bytes) in and out, and each drop."""
        rules: dict[str, list[Drop]] = {}
        for drop in drops:
            rules.setdefault(drop.rule, []).append(drop)
        dropped = {
            rule: {
                "documents": len(held),
                "bytes": sum(drop.bytes for drop in held),
                "ids": sorted(drop.id for drop in held)[:_IDS_SHOWN],
            }
            for rule, held in sorted(rules.items())
        }
        self.stages.append(Stage(name, *came_in, *went_out, dropped))

    def to_json(self) -> list[dict[str, Any]]:
        """The stages as `dataset.json` holds them."""
        return [vars(stage) for stage in self.stages]

    def lines(self) -> list[str]:
        """One line for each rule that dropped something."""
        return drop_lines(self.to_json())


def drop_lines(stages: list[dict[str, Any]]) -> list[str]:
    """One line for each rule that dropped something, from the stages of a `dataset.json`."""
    lines = []
    for stage in stages:
        for rule, held in stage["dropped"].items():
            share = held["documents"] / max(1, stage["documents_in"])
            lines.append(
                f"  {stage['name']:<11} {rule:<26} {held['documents']:>9,} ({share:6.2%}) {held['bytes']:>14,} bytes"
                f"  such as {', '.join(held['ids'])}"
            )
    return lines
