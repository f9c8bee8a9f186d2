"""An example before it is tokens: ordered texts, each with the field it belongs to, and a target that isn't text.

A build carries it from cleaning to tokenizing as one line of JSON in a chunk's text file, so that documents and
examples take the same road.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from data.corpus import Document


class BadRow(Exception):
    """A row that is no example: the rule it breaks, and what is wrong with which value, and the mend."""

    def __init__(self, rule: str, why: str):
        super().__init__(why)
        self.rule = rule


@dataclass(frozen=True)
class Example:
    """One example, cleaned."""

    id: str
    origin: str
    """What it was made from: examples of one origin go to the same split."""
    source: str
    texts: tuple[tuple[str, str], ...]
    """(field, text) in the order in which a template takes them; fields are among `data.shards.FIELDS`."""
    target: Any = None
    """A class's value in the file, a number, or the answer's [first character, characters] (null: no answer)."""
    about: dict[str, Any] = field(default_factory=dict)
    """What an evaluation needs beside the tokens; goes to the document table."""
    fault: str | None = None
    """Why it is dropped, if it is."""

    @property
    def text(self) -> str:
        """All its text; copies are found, and a tokenizer learns, by it."""
        return "\n".join(text for _, text in self.texts)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of its texts."""
        return sum(len(text.encode()) for _, text in self.texts)

    def line(self) -> bytes:
        """What the text file holds of it (UTF-8 JSON)."""
        return json.dumps([self.texts, self.target, self.about], ensure_ascii=False, separators=(",", ":")).encode()


def read_line(line: bytes) -> Example:
    """The inverse of `Example.line`; id, origin and source, which travel apart, are empty."""
    texts, target, about = json.loads(line)
    return Example("", "", "", tuple((name, text) for name, text in texts), target, about)


def example_of(
    document: Document, texts: list[tuple[str, str]], target: Any = None, about: dict[str, Any] | None = None
) -> Example:
    """The one example that a document is."""
    return Example(document.id, document.group or document.id, document.source, tuple(texts), target, about or {})
