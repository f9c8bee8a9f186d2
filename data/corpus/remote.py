"""A source's file behind a URL, as a stream that can be trusted: whole, the same from start to end, or an error.

Bytes come from an origin (`data/remote/origin.py`), a request that fails is tried again as `data/remote/patience.py`
says, from where it broke. The length that was announced must arrive, and a file that changes meanwhile (ETag, else
date) is an error.
Seeking works, so that Parquet's footer can be read first.
"""

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import unquote

from data.errors import UserError
from data.remote.origin import About, Incoming, Origin, open_origin
from data.remote.patience import Damaged, Patience, Unreachable

T = TypeVar("T")


def look(url: str, patience: Patience) -> About:
    """The size and version of a file.

    Raises:
        Unreachable: it isn't there, access is denied, or its server doesn't answer.
    """
    origin, file = _place(url, patience)
    return _insist(url, patience, lambda: origin.about(file))


class Stream(io.RawIOBase):
    """A remote file, read from front to back or by seeking. Raises as `look`, also if the file is cut or changes."""

    def __init__(self, url: str, patience: Patience):
        self._url, self._patience = url, patience
        self._origin, self._file = _place(url, patience)
        self._about = look(url, patience)
        self._at = 0
        self._incoming: Incoming | None = None
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            if self._about.size is None:
                raise io.UnsupportedOperation(f"{self._url}: the server doesn't say how long it is")
            offset += self._about.size
        elif whence == io.SEEK_CUR:
            offset += self._at
        if offset != self._at:
            self._drop()
            self._at = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        if not self._held:
            if self._at == self._about.size:
                return 0
            self._held = memoryview(_insist(self._url, self._patience, self._piece))
        taken = min(len(buffer), len(self._held))
        buffer[:taken], self._held = self._held[:taken], self._held[taken:]
        self._at += taken
        return taken

    def close(self) -> None:
        self._drop()
        super().close()

    def _piece(self) -> bytes:
        try:
            if self._incoming is None:
                self._incoming = self._origin.open(self._file, self._at)
                self._refuse_change(self._incoming)
            piece = self._incoming.read()
            size = self._about.size
            if not piece and size is not None and self._at < size:
                raise OSError(f"it ended after {self._at:,} of {size:,} bytes")
        except (OSError, UserError):
            self._drop()
            raise
        return piece

    def _refuse_change(self, incoming: Incoming) -> None:
        """The file is still the one that reading began with."""
        for was, now in ((self._about.size, incoming.size), (self._about.version, incoming.version)):
            if was and now and was != now:
                raise Damaged(f"{self._url} changed while it was read: {was} before, {now} now")

    def _drop(self) -> None:
        incoming, self._incoming, self._held = self._incoming, None, memoryview(b"")
        if incoming is not None:
            incoming.close()


def _insist(url: str, patience: Patience, ask: Callable[[], T]) -> T:
    """`ask()`, patiently; whatever ends it is Unreachable: whoever knows the source says whose file it is."""
    try:
        return patience.insist(url, lambda _: ask())
    except UserError as error:
        raise Unreachable(str(error)) from None


def _place(url: str, patience: Patience) -> tuple[Origin, str]:
    """The folder of a file, a query kept, and its name there."""
    web = url.startswith(("http://", "https://"))
    path, mark, query = url.partition("?") if web else (url, "", "")
    folder, _, name = path.rpartition("/")
    return _origin(folder + mark + query, patience), unquote(name) if web else name


@lru_cache(maxsize=64)
def _origin(folder: str, patience: Patience) -> Origin:
    """One an origin, so that files of a folder come over one connection."""
    return open_origin(folder, patience)
