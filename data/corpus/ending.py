"""A stream that remembers how it ended, for formats that end in a mark which their readers don't ask for."""

import io

_PIECE = 1 << 20


class Ending:
    """Reads forward; answers what readers ask of a file's position without moving it."""

    closed = False

    def __init__(self, stream: io.BufferedReader, kept: int):
        """`kept`: how many of the last bytes are remembered."""
        self._stream, self._kept = stream, kept
        self.size = 0
        """Bytes so far."""
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self.size += len(piece)
        self.last = (self.last + piece[-self._kept :])[-self._kept :]
        return piece

    def finish(self) -> None:
        """Read what is left."""
        while self.read(_PIECE):
            pass

    def tell(self) -> int:
        return self.size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if (offset, whence) not in ((0, io.SEEK_CUR), (self.size, io.SEEK_SET)):
            raise io.UnsupportedOperation("a stream only goes forward")
        return self.size

    def close(self) -> None:
        """The stream is its opener's to close."""
