"""Shards on a node's own disk: each downloaded once for all processes of the node, bounded, never a half one.

    CACHE/web-3f2a.../train-000004.tar              whole, and checked before it got this name
    CACHE/web-3f2a.../.train-000004.tar.SIZE.part   on its way; SIZE is what it will have

The folder of a dataset is named by the digest of its `dataset.json`, so what lies in it never changes, and is a
dataset that any process may open. Locks are flocks on the files themselves, so a killed process leaves none behind:
who downloads holds its part exclusively, who reads holds its shard shared, and only what nobody holds is evicted,
the longest unused first. A flock works between the processes of one machine: the cache belongs on a local disk.
"""

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from data.shards import ShardEntry

_PART = re.compile(r"\.(.+)\.(\d+)\.part$")


def default_cache() -> Path:
    """Under LUBAN_HOME where that is set, else in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    if home := os.environ.get("LUBAN_HOME"):
        return Path(home) / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luban"


class NoRoom(UserError):
    """Everything in the cache is in use."""


class Held:
    """An open file with a lock on it; the lock goes with `release`, or with the process."""

    def __init__(self, path: Path, descriptor: int):
        self.path, self.descriptor = path, descriptor

    def release(self) -> None:
        """From now on it may be evicted; as the most recently used."""
        if self.descriptor >= 0:
            with suppress(OSError):
                os.utime(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(frozen=True)
class _File:
    path: Path
    bytes: int
    used: float


class ShardCache:
    """The shards below a folder, of any number of datasets, `limit` bytes of them at most."""

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit

    def hold(self, dataset: Path, entry: ShardEntry) -> Held | None:
        """A whole shard, locked against eviction; None where it isn't here."""
        return _locked(dataset / entry.url, os.O_RDONLY, fcntl.LOCK_SH)

    def begin(self, dataset: Path, entry: ShardEntry) -> Held | None:
        """The part of a shard that this process is going to download, with what a killed one left of it.

        None where another process is at it.

        Raises:
            NoRoom: all that lies here is in use.
            UserError: the cache can't be written to.
        """
        part = part_of(dataset, entry)
        try:
            with self._alone():
                dataset.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it since it was opened
                if not part.exists() and not self._make_room(entry.file_size):
                    raise NoRoom(
                        f"the cache {self.folder} may hold {self.limit / 1e9:.2f} GB, and all of it is in use: raise "
                        "data.cache_gb"
                    )
                return _locked(part, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        except PermissionError as error:
            raise UserError(f"cannot write to the cache {self.folder}: {error.strerror}: set data.cache") from None

    def publish(self, part: Held, dataset: Path, entry: ShardEntry) -> Held:
        """Give a whole, checked part its name, and go on holding it, shared."""
        path = dataset / entry.url
        with self._alone():  # who counts the cache just now would find neither name, and admit one shard too many
            part.path.replace(path)
        fcntl.flock(part.descriptor, fcntl.LOCK_SH)
        return Held(path, part.descriptor)

    def evict_one(self) -> bool:
        """Make some room, because the disk is full; False where everything is in use."""
        with self._alone():
            return any(_removed(file.path) for file in sorted(self._files(), key=lambda file: file.used))

    def _make_room(self, wanted: int) -> bool:
        """Whether `wanted` more bytes fit, after evicting what must go. Under the lock of the whole cache."""
        files = sorted(self._files(), key=lambda file: file.used)
        excess = sum(file.bytes for file in files) + wanted - self.limit
        for file in files:
            if excess <= 0:
                break
            if _removed(file.path):
                excess -= file.bytes
        return excess <= 0

    def _files(self) -> Iterator[_File]:
        for dataset in self.folder.iterdir():
            if not dataset.is_dir():
                continue
            for found in os.scandir(dataset):
                part = _PART.match(found.name)
                if (found.name.endswith(".tar") or part) and found.is_file():
                    with suppress(FileNotFoundError):
                        stat = found.stat()
                        yield _File(Path(found.path), int(part[2]) if part else stat.st_size, stat.st_mtime)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Decisions about room are taken by one process at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def part_of(dataset: Path, entry: ShardEntry) -> Path:
    """Where a shard lies while it is on its way. It only grows, and each 64 KiB of it was checked."""
    return dataset / f".{entry.url}.{entry.file_size}.part"


def _locked(path: Path, flags: int, lock: int) -> Held | None:
    """`path` opened and locked without waiting; None where it isn't there or somebody else holds it.

    Raises:
        UserError: it is a folder.
    """
    while True:
        if path.is_dir():
            raise UserError(
                f"{path} is a folder, and in the cache that name is a shard's: remove it, or set data.cache"
            )
        try:
            descriptor = os.open(path, flags, 0o644)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
            here, there = os.fstat(descriptor), path.stat()
            if (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev):
                return Held(path, descriptor)
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
        os.close(descriptor)  # it was renamed or evicted between the two: look again


def _removed(path: Path) -> bool:
    """Whether a file that nobody holds could be removed."""
    held = _locked(path, os.O_RDONLY, fcntl.LOCK_EX)
    if held is None:
        return False
    path.unlink(missing_ok=True)
    os.close(held.descriptor)
    return True
