"""A bounded count of what one rule did: sums, and the few examples whose ids have the smallest hashes."""

from dataclasses import dataclass, field
from typing import Any

SHOWN = 3


@dataclass
class Tally:
    """Documents a rule met, places in them, bytes; tallies of parts merge into the tally of the whole, in any order."""

    documents: int = 0
    items: int = 0
    bytes: int = 0
    examples: list[tuple[int, str, str]] = field(default_factory=list)
    """(hash of the id, id, excerpt), the smallest few, in order."""

    def add(self, id: str, items: int, bytes: int, excerpt: str) -> None:
        """Count one document."""
        import xxhash

        self.documents += 1
        self.items += items
        self.bytes += bytes
        self._show([(xxhash.xxh3_64_intdigest(id.encode()), id, excerpt)])

    def merge(self, other: "Tally") -> None:
        """Count what another has counted."""
        self.documents += other.documents
        self.items += other.items
        self.bytes += other.bytes
        self._show(other.examples)

    def to_json(self, items: bool) -> dict[str, Any]:
        """As `dataset.json` holds it, with or without the number of places."""
        shown = [{"id": id_, "excerpt": excerpt} for _, id_, excerpt in self.examples]
        counted = {"documents": self.documents} | ({"items": self.items} if items else {})
        return counted | {"bytes": self.bytes, "examples": shown}

    def _show(self, more: list[tuple[int, str, str]]) -> None:
        if len(self.examples) == SHOWN and all(each > self.examples[-1] for each in more):
            return
        self.examples = sorted([*self.examples, *more])[:SHOWN]
