"""Bytes to text, strictly: what doesn't decode is no text, and nothing is replaced.

A byte order mark says more than a recipe does. UTF-16 and UTF-32 streams are turned into UTF-8 on the way in, so that
whoever looks for the ends of lines may look for bytes: in every other encoding that Python knows a line feed is one.
"""

import codecs
import io
from typing import Any

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LONGEST_BOM = 4
_PIECE = 1 << 16
_BROKEN = b"\xff"  # never in UTF-8


def marked(head: bytes, otherwise: str) -> tuple[str, int]:
    """The encoding of what begins with `head`, and the bytes of its mark (0: none, so `otherwise`)."""
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding, len(mark)
    return otherwise, 0


def decode(content: bytes, otherwise: str = "utf-8") -> str | None:
    """The text of a whole file, its mark removed; none if it doesn't decode or holds NUL."""
    encoding, begin = marked(content[:_LONGEST_BOM], otherwise)
    return decode_exactly(memoryview(content)[begin:] if begin else content, encoding)


def decode_exactly(content: bytes | memoryview, encoding: str) -> str | None:
    """The text of bytes without a mark; none if they don't decode or hold NUL."""
    try:
        text = str(content, encoding)
    except UnicodeError:
        return None
    return None if "\0" in text else text


def is_text(text: str) -> bool:
    """JSON can escape NUL and halves of surrogate pairs, which no text holds."""
    if text.isascii():
        return "\0" not in text
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def by_lines(stream: io.BufferedReader, otherwise: str) -> tuple[io.BufferedReader, str]:
    """The stream without its mark, in an encoding in which lines end with the byte 0x0A; and that encoding."""
    encoding, begin = marked(stream.peek(_LONGEST_BOM)[:_LONGEST_BOM], otherwise)
    stream.read(begin)
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        return io.BufferedReader(_InUtf8(stream, encoding), _PIECE), "utf-8"
    return stream, encoding


class _InUtf8(io.RawIOBase):
    """UTF-16 or UTF-32 as UTF-8; where it is broken, so is the UTF-8, and a strict reader finds it there."""

    def __init__(self, stream: io.BufferedReader, encoding: str):
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._ready = b""
        self._over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._over:
            piece = self._stream.read(_PIECE)
            self._over = not piece
            try:
                text = self._decoder.decode(piece, not piece)
                self._ready = text.encode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                self._ready, self._over = _BROKEN, True
        taken = min(len(buffer), len(self._ready))
        buffer[:taken], self._ready = self._ready[:taken], self._ready[taken:]
        return taken
