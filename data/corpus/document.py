"""What every reader of a source yields."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Page:
    """HTML as it was read."""

    content: bytes
    charset: str | None
    """What the server said of it."""
    encoding: str
    """Where neither server nor page say any."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document as it was read."""

    id: str
    source: str
    """Name of its source."""
    text: str | None
    """None: it is a row for a task, or can't be used."""
    size: int = 0
    """Bytes that were read for it, for a document that can't be used."""
    fault: str | None = None
    """Why it can't be used: not_text, bad_row, too_large or not_sampled (see `data/source.py`)."""
    fields: Mapping[str, Any] | None = None
    """A row for a task: what its columns hold, without those that the row lacks."""
    where: str = ""
    """A row's file and line, for messages."""
    problem: tuple[str, str] | None = None
    """Why a task can't use the row, if it can't: the rule it breaks, and what is wrong."""
    group: str = ""
    """What a row belongs to, if to anything: documents of one group go to the same split."""
    page: Page | None = None
    """What its text is still to be taken from: `web.ready` does."""

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of its text or of a row's texts, or its size where it has none."""
        if self.page is not None:
            return len(self.page.content)
        if self.fields is not None:
            return sum(map(utf8_length, self.texts()))
        return self.size if self.text is None else utf8_length(self.text)

    def texts(self) -> Iterator[str]:
        """Its text, or all that a row's fields hold."""
        return strings(self.text if self.fields is None else self.fields)


def utf8_length(text: str) -> int:
    """Bytes of its UTF-8; of ASCII, and so of most code and English, without a copy."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def strings(value: Any) -> Iterator[str]:
    """The texts in what a row's field holds, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for held in value.values() if isinstance(value, Mapping) else value:
            yield from strings(held)
