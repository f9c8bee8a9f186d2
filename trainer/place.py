"""Where a checkpoint's files lie: a folder of a POSIX file system, or any fsspec URL. One protocol for both.

`write` returns only when the file is durable and has been read back equal to what is still in memory: from the disk,
or over the network for a store. `publish` makes a small file appear whole or not at all: by a rename in a folder; a
store writes an object in one request, and whoever reads it checks the digest inside.

What a writer takes from the training on the same cores is what counts here, so a folder is written and re-read with
O_DIRECT, and digested with XXH3-128: 0.08 s of a core for 595 MB in all, where copies through the page cache, its
flush, SHA-256 and a comparison took 0.7 s or more, SHA-256 (1.7 GB/s) half of them. A 128-bit digest that isn't
cryptographic finds what disks, networks and memories do to a file; it is no proof against a person who edits one on
purpose, but neither is a SHA-256 in a manifest that the same person can write anew. A file system that refuses O_DIRECT
gets the same bytes through the page cache (`disk.py` says so).
"""

import errno
import fcntl
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import xxhash

from data.errors import UserError
from data.publish import sync

CHUNK = 1 << 24  # bytes of one request to a store
BLOCK = 1 << 23  # the same in a folder: each asks for the GIL anew, which the training may hold for 5 ms
PAGE = 4096  # O_DIRECT takes memory, offsets and lengths that are multiples of it
DIGEST = "xxh3_128"
REFUSED = {errno.EINVAL, errno.EFAULT, errno.EOPNOTSUPP}  # by which a file system or a memory says no to O_DIRECT
TRIES, BACKOFF_S = 4, 0.5  # of one request to a store
T = TypeVar("T")


class Place(Protocol):
    """A folder of files, wherever it is. What fails raises OSError."""

    @property
    def name(self) -> str:
        """Last part of its path."""
        ...

    def child(self, name: str) -> "Place":
        """A folder inside."""
        ...

    def sibling(self, name: str) -> "Place":
        """A folder beside its parent: `base/` of a checkpoint's run."""
        ...

    def write(self, name: str, parts: Sequence[np.ndarray]) -> dict[str, Any]:
        """Write `parts` (contiguous uint8) one after the other, durably, and read them back; {"bytes", "xxh3_128"}."""
        ...

    def publish(self, name: str, data: bytes) -> None:
        """Make `data` appear under `name`, whole and durable."""
        ...

    def content(self, name: str) -> bytes:
        """A whole small file."""
        ...

    def read_into(self, name: str, offset: int, out: np.ndarray) -> None:
        """Fill `out` (contiguous) with the bytes of a file from `offset` on. Raises OSError where there are fewer."""
        ...

    def digest(self, name: str, past_cache: bool = False) -> tuple[int, str]:
        """(size in bytes, XXH3-128 in hex) of a file, read anew; `past_cache`: from the disk, where a folder can."""
        ...

    def holds(self, name: str) -> int | None:
        """Size of a file in bytes; None where there is none."""
        ...

    def list(self) -> list[str]:
        """Names of what is inside; none where it doesn't exist."""
        ...

    def remove(self, first: str) -> None:
        """Remove the folder with all it holds, the file `first` before the others."""
        ...


class Folder:
    """A place on a POSIX file system."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.name

    def __str__(self) -> str:
        return str(self.path)

    def child(self, name: str) -> "Folder":
        return Folder(self.path / name)

    def sibling(self, name: str) -> "Folder":
        return Folder(self.path.parent.parent / name)

    def write(self, name: str, parts: Sequence[np.ndarray]) -> dict[str, Any]:
        self.path.mkdir(parents=True, exist_ok=True)
        digest, size = xxhash.xxh3_128(), 0
        with (self.path / name).open("wb", buffering=0) as file:
            direct = _Direct(file)
            for chunk in pages(parts):
                written = 0
                while written < len(chunk):
                    rest = chunk[written:]
                    written += direct(size + written, rest, lambda rest=rest: file.write(rest.data) or 0)
                digest.update(chunk.data)
                size += len(chunk)
            os.fsync(file.fileno())
        if self.digest(name, past_cache=True) != (size, digest.hexdigest()):
            raise OSError(errno.EIO, f"{name} reads back with other bytes than were written")
        return {"bytes": size, DIGEST: digest.hexdigest()}

    def publish(self, name: str, data: bytes) -> None:
        draft = f"{name}.{secrets.token_hex(4)}.draft"  # its own: in `base/` a fenced attempt may be at the same file
        try:
            self.write(draft, [np.frombuffer(data, np.uint8)])
        except OSError:
            (self.path / draft).unlink(missing_ok=True)
            raise
        sync(self.path)
        (self.path / draft).rename(self.path / name)
        for folder in (self.path, self.path.parent, self.path.parent.parent):
            sync(folder)

    def content(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def read_into(self, name: str, offset: int, out: np.ndarray) -> None:
        with (self.path / name).open("rb", buffering=0) as file:
            _fill(file.fileno(), offset, out.view(np.uint8).reshape(-1), name)

    def digest(self, name: str, past_cache: bool = False) -> tuple[int, str]:
        digest, size, block = xxhash.xxh3_128(), 0, page_aligned(BLOCK)
        with (self.path / name).open("rb", buffering=0) as file:

            def read() -> int:
                return os.readv(file.fileno(), [block.data])

            if past_cache:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            direct = _Direct(file)
            while got := direct(size, block, read) if past_cache else read():
                digest.update(block[:got].data)
                size += got
        return size, digest.hexdigest()

    def holds(self, name: str) -> int | None:
        try:
            return (self.path / name).stat().st_size
        except FileNotFoundError:
            return None

    def list(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []

    def remove(self, first: str) -> None:
        (self.path / first).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


class Store:
    """A place behind an fsspec URL. A request that fails is tried again, with back-off, before it counts as failed."""

    def __init__(self, files: Any, path: str):
        self._fs, self.path = files, path.rstrip("/")
        self.name = self.path.rpartition("/")[2]

    def __str__(self) -> str:
        return self._fs.unstrip_protocol(self.path)

    def child(self, name: str) -> "Store":
        return Store(self._fs, f"{self.path}/{name}")

    def sibling(self, name: str) -> "Store":
        return Store(self._fs, f"{self.path.rpartition('/')[0].rpartition('/')[0]}/{name}")

    def write(self, name: str, parts: Sequence[np.ndarray]) -> dict[str, Any]:
        def put() -> dict[str, Any]:
            digest, size = xxhash.xxh3_128(), 0
            self._fs.makedirs(self.path, exist_ok=True)
            with self._fs.open(f"{self.path}/{name}", "wb") as file:
                for chunk in chunks(parts, CHUNK):
                    file.write(chunk.data)
                    digest.update(chunk.data)
                    size += len(chunk)
                mounted = _flushed(file)
            if mounted:
                for folder in (Path(self.path), *Path(self.path).parents[:2]):
                    sync(folder)
            at = 0
            for chunk in chunks(parts, CHUNK):
                again = np.frombuffer(self._fs.cat_file(f"{self.path}/{name}", at, at + len(chunk)), np.uint8)
                if not np.array_equal(again, chunk):
                    raise OSError(errno.EIO, f"{name} reads back from {self} with other bytes than were written")
                at += len(chunk)
            return {"bytes": size, DIGEST: digest.hexdigest()}

        return self._tried(put)

    def publish(self, name: str, data: bytes) -> None:
        self.write(name, [np.frombuffer(data, np.uint8)])

    def content(self, name: str) -> bytes:
        return self._tried(lambda: self._fs.cat_file(f"{self.path}/{name}"))

    def read_into(self, name: str, offset: int, out: np.ndarray) -> None:
        flat = out.view(np.uint8).reshape(-1)
        for start in range(0, len(flat), CHUNK):
            stop = min(start + CHUNK, len(flat))
            path, first, last = f"{self.path}/{name}", offset + start, offset + stop
            data = self._tried(lambda path=path, first=first, last=last: self._fs.cat_file(path, first, last))
            if len(data) != stop - start:
                raise OSError(errno.EIO, f"{name} ends too early in {self}")
            flat[start:stop] = np.frombuffer(data, np.uint8)

    def digest(self, name: str, past_cache: bool = False) -> tuple[int, str]:
        size = self.holds(name)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        digest = xxhash.xxh3_128()
        buffer = np.empty(min(size, CHUNK), np.uint8)
        for start in range(0, size, CHUNK):
            piece = buffer[: min(CHUNK, size - start)]
            self.read_into(name, start, piece)
            digest.update(piece.data)
        return size, digest.hexdigest()

    def holds(self, name: str) -> int | None:
        def ask() -> int | None:
            self._fs.invalidate_cache()
            try:
                return int(self._fs.info(f"{self.path}/{name}")["size"])
            except FileNotFoundError:
                return None

        return self._tried(ask)

    def list(self) -> list[str]:
        def ask() -> list[str]:
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self.path, detail=False)
            except FileNotFoundError:
                return []
            return sorted(str(each).rstrip("/").rpartition("/")[2] for each in found)

        return self._tried(ask)

    def remove(self, first: str) -> None:
        for name in [first, *(name for name in self.list() if name != first)]:
            if self.holds(name) is not None:
                self._tried(lambda path=f"{self.path}/{name}": self._fs.rm_file(path))
        if self._tried(lambda: self._fs.exists(self.path)):  # object stores have no folders of their own
            self._tried(lambda: self._fs.rm(self.path, recursive=True))

    def _tried(self, ask: Callable[[], T]) -> T:
        """What `ask` returns. Raises OSError when it has failed TRIES times; a missing file fails at once."""
        for attempt in range(TRIES):
            try:
                return ask()
            except FileNotFoundError:
                raise
            except Exception as error:  # each store's library has exceptions of its own
                if attempt == TRIES - 1:
                    raise OSError(errno.EIO, f"{self}: {type(error).__name__}: {error}") from error
                time.sleep(BACKOFF_S * 2**attempt)
        raise AssertionError


def _flushed(file: Any) -> bool:
    """Make the file of a mounted folder durable; False where it is a store's, which has it when it is closed."""
    try:
        handle = file.fileno()
    except (AttributeError, OSError):  # io.UnsupportedOperation is one
        return False
    file.flush()
    os.fsync(handle)  # an error that a network's file system has kept until now must not be passed over
    return True


def open_store(url: str) -> Store:
    """The place that an fsspec URL names.

    Raises:
        UserError: it is no URL, no library for its protocol is installed, or it is refused.
    """
    import fsspec

    if "://" not in url:
        raise UserError(f"checkpoint.store {url!r} is no URL: a folder is file:///path, a bucket s3://bucket/path")
    if url.partition("://")[0] in ("file", "local") and not url.partition("://")[2].strip("/"):
        raise UserError(f"checkpoint.store {url} names no folder: take one such as file:///backup/luban")
    try:
        files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(
            f"checkpoint.store {url} can't be opened ({error}): take a URL that fsspec knows, such as file:///path, or "
            "install the package that it names"
        ) from None
    return Store(files, path)


def chunks(parts: Sequence[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Pieces of at most `size` bytes of `parts`, in order, without a copy."""
    for part in parts:
        for start in range(0, len(part), size):
            yield part[start : start + size]


def pages(parts: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """The same, in pieces of a BLOCK, what is left of whole pages, and the rest."""
    for chunk in chunks(parts, BLOCK):
        whole = len(chunk) - len(chunk) % PAGE
        yield from (piece for piece in (chunk[:whole], chunk[whole:]) if len(piece))


def page_aligned(size: int) -> np.ndarray:
    """Memory that O_DIRECT can read into, uint8; a child process gets no copy, whose making could tear the reading."""
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_DONTFORK)
    return np.frombuffer(memory, np.uint8)


class _Direct:
    """Reads or writes of an open file, past the page cache where memory, offset and file system allow it."""

    def __init__(self, file: FileIO):
        self._file, self._flags = file, fcntl.fcntl(file, fcntl.F_GETFL)
        self._on = self._refused = False

    def __call__(self, offset: int, memory: np.ndarray, call: Callable[[], int]) -> int:
        """What `call` returns, which reads or writes `memory` at `offset`."""
        wanted = not self._refused and not (offset | memory.ctypes.data | len(memory)) % PAGE
        try:
            self._switch(wanted)
            return call()
        except OSError as error:
            if not wanted or error.errno not in REFUSED:
                raise
            self._refused = True
        self._switch(False)
        return call()

    def _switch(self, on: bool) -> None:
        if on != self._on:
            fcntl.fcntl(self._file, fcntl.F_SETFL, self._flags | (os.O_DIRECT if on else 0))
            self._on = on


def _fill(file: int, offset: int, out: np.ndarray, name: str) -> None:
    view, at = out.data, 0
    while at < len(out):
        got = os.preadv(file, [view[at:]], offset + at)
        if not got:
            raise OSError(errno.EIO, f"{name} ends too early")
        at += got
