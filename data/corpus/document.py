"""What every reader of a source yields."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One document as it was read."""

    id: str
    source: str
    """Name of its source."""
    text: str | None
    """None: it can't be used; `fault` says why."""
    completion: str | None = None
    """The second field of a prompt_completion row."""
    size: int = 0
    """Bytes that were read for it, for a document without text."""
    fault: str | None = None
    """Without text: not_text, bad_row, too_large or not_sampled (see `data/source.py`)."""

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of its text, or its size where it has none."""
        return self.size if self.text is None else utf8_length(self.text) + utf8_length(self.completion or "")


def utf8_length(text: str) -> int:
    """Bytes of its UTF-8; of ASCII, and so of most code and English, without a copy."""
    return len(text) if text.isascii() else len(text.encode())
