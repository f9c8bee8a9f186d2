"""A dataset somewhere else, opened: its small files come at once, what belongs to one shard when it is asked for.

The folder in the cache is a dataset's folder, partly filled: `dataset.json` is fetched each time, and its digest names
the folder; it vouches for every other file (sha256), the indexes for the shards. A file there under its name is whole.
"""

import errno
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.publish import write_bytes
from data.remote.fetching import fetch
from data.remote.origin import Origin, open_origin
from data.remote.patience import Damaged, Patience, to_stderr
from data.remote.shard_cache import Held, NoRoom, ShardCache, default_cache, part_of
from data.shards import ShardEntry
from data.sums import CHUNK, Sums, sums_name

FILE = "dataset.json"
ORIGINS = "origins"
POLL_S = 0.05
MOST = 1 << 30  # bytes of a file that isn't a shard: the index of 100,000 shards has 70 MB
NO_ROOM_S = 60.0  # for somebody to let go of a shard
_OF_A_SHARD = re.compile(r"(?:train|valid|heldout)-\d+\.")
_PLAIN = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Access:
    """How remote datasets are fetched, and kept on this node."""

    cache: Path = field(default_factory=default_cache)
    cache_bytes: int = 50 * 10**9
    streams: int = 4
    """Shards that a process downloads at a time."""
    patience: Patience = field(default_factory=Patience)


class Remote:
    """The files of one dataset, at its origin and in the cache. Safe to use from several threads."""

    def __init__(self, origin: Origin, folder: Path, files: dict[str, str], access: Access):
        self.origin, self.folder, self.access = origin, folder, access
        self.shards = ShardCache(access.cache, access.cache_bytes)
        self._files = files
        self._checked: dict[str, int] = {}  # inode of each shard of the cache that this process has read whole
        self.fetched = 0
        """Bytes of whole shards that this process downloaded."""

    def file(self, name: str) -> Path:
        """A file other than a shard, in the cache.

        Raises:
            UserError: the dataset has none of that name, or another than it was written with.
            Unreachable: it can't be had for now.
        """
        path = self.folder / name
        if name not in self._files:
            raise UserError(f"{name} is missing from {self.origin.name}")
        if not path.exists():
            _keep(path, self._content(name))
        return path

    def small_files(self) -> list[str]:
        """Names of all files that don't belong to one shard."""
        return [name for name in self._files if not _OF_A_SHARD.match(name)]

    def sums(self, entry: ShardEntry) -> Sums:
        """The digests of a shard's chunks."""
        try:
            return Sums.load(self.file(sums_name(entry.url)), entry.file_size)
        except ValueError as error:
            raise UserError(f"{sums_name(entry.url)} of {self.origin.name} doesn't fit its shard: {error}") from None

    def held(self, entry: ShardEntry) -> Held | None:
        """A whole shard of the cache, locked against eviction and read once against its sums; None: it isn't there.

        One that the disk has changed is said, and removed.
        """
        held = self.shards.hold(self.folder, entry)
        if held is None:
            return None
        inode = os.fstat(held.descriptor).st_ino
        if self._checked.get(entry.url) != inode:
            if not self._is_whole(held, entry):
                to_stderr(f"{held.path} has other bytes than when it was fetched: it is fetched again")
                held.path.unlink(missing_ok=True)
                held.release()
                return None
            self._checked[entry.url] = inode
        return held

    def download(self, entry: ShardEntry, stop: threading.Event | None = None) -> Held | None:
        """Fetch a whole shard into the cache; None where another process is at it.

        Raises:
            NoRoom: all that the cache holds is in use.
            UserError: the shard isn't there or isn't what was written, or the disk is full.
            Unreachable: it can't be had for now; what came stays for the next try.
            Stopped: `stop` was set.
        """
        part = self.shards.begin(self.folder, entry)
        if part is None:
            return None
        try:
            if (self.folder / entry.url).exists():  # another process was faster
                part.path.unlink(missing_ok=True)
                part.release()
                return self.held(entry)
            self._fill(part, entry, stop)
            held = self.shards.publish(part, self.folder, entry)
            self._checked[entry.url] = os.fstat(held.descriptor).st_ino
            return held
        except BaseException as error:
            if isinstance(error, UserError):
                part.path.unlink(missing_ok=True)
            part.release()
            raise

    def whole(self, entry: ShardEntry) -> Held:
        """A shard, from the cache or through it; waits for it. Raises as `download`."""
        patience = time.monotonic() + NO_ROOM_S
        while True:
            held = self.held(entry)
            if held is not None:
                return held
            try:
                held = self.download(entry)
                if held is not None:
                    return held
                patience = time.monotonic() + NO_ROOM_S
            except NoRoom:
                if time.monotonic() > patience:
                    raise
            time.sleep(POLL_S)

    def problem(self, entry: ShardEntry) -> str | None:
        """Read a shard whole, from the cache or else from its origin without keeping it; what is wrong with it."""
        try:
            held = self.shards.hold(self.folder, entry)
            if held is None:
                fetch(self.origin, entry, self.sums(entry), self.access.patience)
                return None
            try:
                return None if self._is_whole(held, entry) else f"{held.path} has other bytes than when it was fetched"
            finally:
                held.release()
        except (UserError, OSError) as error:
            return str(error)

    def damaged_file(self, name: str) -> str | None:
        """Fetch or re-read a file other than a shard; what is wrong with it."""
        try:
            path = self.file(name)
        except (UserError, OSError) as error:
            return str(error)
        good = hashlib.sha256(path.read_bytes()).hexdigest() == self._files[name]
        return None if good else f"{path} is not the file that was fetched"

    def near(self, entry: ShardEntry, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) of a shard that lies in the cache, whole or on its way; None: they aren't here.

        Whoever takes them holds them against the shard's sums.
        """
        for path in (self.folder / entry.url, part_of(self.folder, entry)):
            try:
                with path.open("rb", buffering=0) as file:
                    data = os.pread(file.fileno(), stop - start, start)
            except (FileNotFoundError, IsADirectoryError):
                continue
            if len(data) == stop - start:
                return data
        return None

    def _fill(self, part: Held, entry: ShardEntry, stop: threading.Event | None) -> None:
        while True:
            try:
                self.fetched += fetch(self.origin, entry, self.sums(entry), self.access.patience, part.descriptor, stop)
                return
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if not self.shards.evict_one():
                    raise UserError(
                        f"the disk of the cache {self.access.cache} is full, and {entry.url} takes "
                        f"{entry.file_size / 1e9:.2f} GB: make room, or set data.cache"
                    ) from None

    def _is_whole(self, held: Held, entry: ShardEntry) -> bool:
        sums, at = self.sums(entry), 0
        if os.fstat(held.descriptor).st_size != entry.file_size:
            return False
        while at < entry.file_size:
            data = os.pread(held.descriptor, 16 * CHUNK, at)
            if not data or sums.wrong(at, data) is not None:
                return False
            at += len(data)
        return True

    def _content(self, name: str) -> bytes:
        def attempt(_: int) -> bytes:
            data = read_whole(self.origin, name)
            if hashlib.sha256(data).hexdigest() != self._files[name]:
                raise Damaged(
                    f"{name} from {self.origin.name} is not the file that was written (its sha256 differs): copy the "
                    "dataset again from where it was built"
                )
            return data

        return self.access.patience.insist(f"{name} from {self.origin.name}", attempt)


def open_remote(url: str, access: Access) -> tuple[dict[str, Any], Remote]:
    """Fetch what describes a dataset: (content of its `dataset.json`, its files). Whether it fits is not looked at.

    Raises:
        UserError: there is no dataset at that URL, or a file of it is another than was written.
        Unreachable: it can't be had for now.
    """
    origin = open_origin(url, access.patience)

    def attempt(_: int) -> tuple[bytes, dict[str, Any]]:
        data = read_whole(origin, FILE)
        try:
            info = json.loads(data)
        except ValueError as error:
            raise Damaged(f"{FILE} from {origin.name} is not JSON: {error}") from None
        if not isinstance(info, dict) or not isinstance(info.get("files", {}), dict):
            raise UserError(f"{FILE} from {origin.name} doesn't describe a dataset")
        return data, info

    data, info = access.patience.insist(f"{FILE} from {origin.name}", attempt)
    name = re.sub(r"[^\w.-]", "_", str(info.get("name", "dataset")))[:40]
    folder = access.cache / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
    try:
        _keep(folder / FILE, data)
        _keep(_remembered(url, access.cache), folder.name.encode())
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {access.cache}: {error.strerror or error}: set data.cache"
        ) from None
    refuse_paths(info.get("files", {}), origin.name)
    remote = Remote(origin, folder, info.get("files", {}), access)
    for file in remote.small_files():
        remote.file(file)
    return info, remote


def refuse_paths(names: Iterable[str], where: str) -> None:
    """Raise UserError where a name that came from afar could lead out of the dataset's folder."""
    for name in names:
        if not _PLAIN.fullmatch(name):
            raise UserError(f"{where} names a file {name!r}: a dataset's files lie in one folder, so it isn't used")


def known_info(url: str, cache: Path) -> dict[str, Any] | None:
    """The `dataset.json` of a URL that was opened on this node before, without asking the network."""
    try:
        folder = cache / _remembered(url, cache).read_text("utf-8")
        return json.loads((folder / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def read_whole(origin: Origin, name: str) -> bytes:
    """A whole file of an origin, other than a shard. Raises UserError where it is larger than any such file can be."""
    incoming, parts, held = origin.open(name), [], 0
    try:
        while held <= MOST and (incoming.size or 0) <= MOST and (piece := incoming.read()):
            parts.append(piece)
            held += len(piece)
        if held > MOST or (incoming.size or 0) > MOST:
            raise UserError(
                f"{name} from {origin.name} has {incoming.size or held:,} bytes and goes on: it isn't the file of a "
                f"dataset, which has {MOST:,} at most. Look at the URL"
            )
    finally:
        incoming.close()
    return b"".join(parts)


def _keep(path: Path, content: bytes) -> None:
    """Put a file into the cache; several processes may do the same at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)


def _remembered(url: str, cache: Path) -> Path:
    return cache / ORIGINS / hashlib.sha256(url.encode()).hexdigest()[:32]
