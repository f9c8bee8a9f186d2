"""What went into each stage of a build, what came out, and why the rest did not: the dataset's own account.

A rule is told with a few examples. Those with the smallest hash of their id are shown: any number of workers and any
cut into chunks choose the same, spread over the sources, and a tally stays small however much it counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.build.account import account_lines
from data.build.parts import Drop
from data.build.tally import Tally


@dataclass
class Stage:
    """One stage: documents (or examples) and their UTF-8 bytes on both sides."""

    name: str
    documents_in: int
    bytes_in: int
    documents_out: int
    bytes_out: int
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By rule: documents, bytes, examples (id, excerpt)."""
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By rule: documents that were changed and kept, places in them, bytes fewer, examples (id, excerpt)."""


class Ledger:
    """The stages in their order."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def add(
        self,
        name: str,
        came_in: tuple[int, int],
        went_out: tuple[int, int],
        drops: Iterable[Drop],
        changes: Mapping[str, Tally] | None = None,
    ) -> None:
        """Book a stage: (documents, bytes) in and out, each drop, and the changes by rule."""
        rules: dict[str, Tally] = {}
        for drop in drops:
            rules.setdefault(drop.rule, Tally()).add(drop.id, 1, drop.bytes, drop.sample)
        dropped = {rule: tally.to_json(items=False) for rule, tally in sorted(rules.items())}
        changed = {rule: tally.to_json(items=True) for rule, tally in (changes or {}).items()}
        self.stages.append(Stage(name, *came_in, *went_out, dropped, changed))

    def to_json(self) -> list[dict[str, Any]]:
        """The stages as `dataset.json` holds them."""
        return [vars(stage) for stage in self.stages]

    def lines(self) -> list[str]:
        """What `account_lines` says of the stages so far."""
        return account_lines(self.to_json())
