"""Compressed files as streams, by suffix: .gz .zst .bz2 .xz, of one member or frame or of many.

Never more than a piece is in memory, and a stream that ends inside a member is an error. For gzip, bz2 and xz the
standard library sees to both. zstandard's own stream reader takes a cut frame for the end of the file, so frames are
counted here.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

_BUFFER = 1 << 18
_ZSTD_PIECE = 1 << 10  # compressed bytes a step: its output, 32 MB at the very most, is in memory
_ZSTD_WINDOW = 1 << 31  # as far as `zstd --long=31` looks back

BROKEN: tuple[type[Exception], ...] = (EOFError, OSError, lzma.LZMAError, zlib.error)
"""What reading a cut or damaged file raises."""


def decompressed(stream: BinaryIO, name: str) -> io.BufferedReader:
    """What the file called `name` holds; its own bytes where the suffix says nothing of compression.

    The stream itself remains the caller's to close.
    """
    lower = name.lower()
    opener = next((opener for suffix, opener in _OPENERS.items() if lower.endswith(suffix)), None)
    return io.BufferedReader(opener(stream) if opener else stream, _BUFFER)  # pyright: ignore[reportArgumentType]


class _Zstandard(io.RawIOBase):
    """Frames one after another; EOFError if the last one is cut."""

    def __init__(self, stream: BinaryIO):
        import zstandard

        self._stream = stream
        self._error = zstandard.ZstdError
        self._begin: Callable[[], Any] = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj
        self._frame: Any = None
        self._held = b""
        self._left = memoryview(b"")
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._left:
                self._held = self._stream.read(_BUFFER)
                self._left = memoryview(self._held)
            piece, self._left = self._left[:_ZSTD_PIECE], self._left[_ZSTD_PIECE:]
            if not piece:
                if self._frame is not None:
                    raise EOFError("compressed file ended before the end of its frame")
                return 0
            if self._frame is None:
                self._frame = self._begin()
            try:
                self._ready = memoryview(self._frame.decompress(piece))
            except self._error as error:
                raise OSError(f"not a whole Zstandard frame: {error}") from None
            if self._frame.eof:
                unused = len(self._frame.unused_data)
                self._left = memoryview(self._held)[len(self._held) - len(self._left) - unused :]
                self._frame = None
        taken = min(len(buffer), len(self._ready))
        buffer[:taken], self._ready = self._ready[:taken], self._ready[taken:]
        return taken


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"),
    ".tgz": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"),
    ".zst": _Zstandard,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
SUFFIXES = ("", ".gz", ".zst", ".bz2", ".xz")
