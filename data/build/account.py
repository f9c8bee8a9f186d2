"""The account in a `dataset.json` as its readers show it: every rule that did something, with its examples."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One rule of one stage, as a report shows it."""

    stage: str
    rule: str
    what: str
    """What it did, in words."""
    documents: int
    share: float
    """Of the documents that came into the stage."""
    bytes: int
    examples: list[str]
    """Each an id and, where there is one, what was there."""


def entries(stages: list[dict[str, Any]]) -> Iterator[Entry]:
    """Every rule that did something, from the stages of a `dataset.json`: changes before drops in each stage."""
    for stage in stages:
        for kind in ("changed", "dropped"):
            for rule, held in stage.get(kind, {}).items():
                what = kind if kind == "dropped" else f"changed in {held['items']:,} places"
                share = held["documents"] / max(1, stage["documents_in"])
                examples = [
                    f"{each['id']}: {each['excerpt']}" if each["excerpt"] else each["id"] for each in held["examples"]
                ]
                yield Entry(stage["name"], rule, what, held["documents"], share, held["bytes"], examples)


def account_lines(stages: list[dict[str, Any]]) -> list[str]:
    """A line for each rule that did something, and one for each of its examples."""
    lines = []
    for entry in entries(stages):
        lines.append(
            f"  {entry.stage:<11} {entry.rule:<26} {entry.documents:>9,} ({entry.share:6.2%}) {entry.bytes:>14,} bytes"
            f"  {entry.what}"
        )
        lines += [f"      {example}" for example in entry.examples]
    return lines
