"""A bounded count of what one rule did: sums, and the few examples whose ids have the smallest hashes."""

from dataclasses import dataclass, field
from typing import Any

from data.clean.excerpt import excerpt

SHOWN = 3


@dataclass
class Tally:
    """Documents a rule met, places in them, bytes; tallies of parts merge into the tally of the whole, in any order."""

    documents: int = 0
    items: int = 0
    bytes: int = 0
    examples: list[tuple[int, str, str]] = field(default_factory=list)
    """(hash of the id, id, excerpt), the smallest few, in order."""

    def add(self, id: str, items: int, bytes: int, text: str) -> None:
        """Count one document; of `text` an excerpt is kept, where the document is one of the few."""
        import xxhash

        self.documents += 1
        self.items += items
        self.bytes += bytes
        place = xxhash.xxh3_64_intdigest(id.encode())
        if len(self.examples) < SHOWN or (place, id) < self.examples[-1][:2]:
            self._show([(place, id, excerpt(text))])

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
        self.examples = sorted([*self.examples, *more])[:SHOWN]
