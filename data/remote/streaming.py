"""Positions -> rows from shards that are somewhere else: the same reader and order, only the bytes come differently.

The windows that the next positions need are downloaded whole into the node's cache, several shards at once, in the
order in which they are needed, while the rows of the current window are read from maps of those that are there. A row
of a shard that isn't there yet is read by ranges (`PartialShard`): a run that begins anywhere waits for the bytes of
its first batch only, and never reads what lies before. Every byte was checked against the shard's sums before a row is
made of it, so a row is either the one the local reader gives or an error that names shard and URL.

Threads, not processes: they wait for the network, and digests and disk writes release the GIL.
"""

import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.order.order import Order
from data.reader import LocalReader, OpenShard, Rows, mapped
from data.remote.daemons import Daemons
from data.remote.origin import NoRanges
from data.remote.partial_shard import PartialShard
from data.remote.patience import Damaged, Stopped, to_stderr
from data.remote.remote import NO_ROOM_S, POLL_S, Remote
from data.remote.shard_cache import Held, NoRoom
from data.shards import Index, MappedShard

RANGES = 16  # requests for ranges at a time
PART_S = 0.01  # between two looks at how far a shard has come
RETRY_S = 10.0  # between downloads of a shard that failed before anybody needed it
WAIT_S = 0.2  # for a shard that is coming in anyway, before a range of it is asked for: a request costs 1 ms of CPU
CLOSE_S = 2.0
LATER = 4  # windows looked at behind the open one of a lane; a small dataset comes round again and again

Key = tuple[int, int]
"""(source, shard)"""


class Downloads:
    """Keeps the shards that are wanted coming in, first wanted first, and holds them in the cache while they are."""

    def __init__(self, remotes: Sequence[Remote | None], indexes: Sequence[Index], streams: int):
        self._remotes, self._indexes = remotes, indexes
        self._state = threading.Condition()
        self._wanted: list[Key] = []
        self._urgent: set[Key] = set()
        self._busy: dict[Key, threading.Event] = {}
        self._held: dict[Key, Held] = {}
        self._failed: dict[Key, Exception] = {}
        self._later: dict[Key, float] = {}
        self._no_room: dict[Key, float] = {}
        self._closed, self._paused = False, True
        self._threads = [
            threading.Thread(target=self._work, name=f"stream-{number}", daemon=True) for number in range(streams)
        ]
        for thread in self._threads:
            thread.start()

    def want(self, keys: Sequence[Key]) -> None:
        """From now on these, in this order, and no others: the rest may be evicted."""
        with self._state:
            self._wanted = list(keys)
            wanted = set(keys)
            self._urgent &= wanted
            for key in [key for key in self._held if key not in wanted]:
                self._held.pop(key).release()
            for key, stop in self._busy.items():
                if key not in wanted:
                    stop.set()
            self._failed = {key: error for key, error in self._failed.items() if key in wanted}
            self._state.notify_all()

    def go(self) -> None:
        """Begin: until the first rows have come, their ranges have the network for themselves."""
        if self._paused:
            with self._state:
                self._paused = False
                self._state.notify_all()

    def here(self, key: Key) -> bool:
        """Whether the shard is whole in the cache and held there."""
        return key in self._held

    def lost(self, key: Key) -> None:
        """Somebody deleted the shard from the cache: it is downloaded again."""
        with self._state:
            if held := self._held.pop(key, None):
                held.release()
            self._state.notify_all()

    def coming(self, key: Key) -> bool:
        """Whether this process is downloading the shard at the moment."""
        return key in self._busy

    def need(self, key: Key) -> None:
        """A row is read from this shard now. Raises what its download failed with for good."""
        with self._state:
            if key in self._failed:
                raise self._failed[key]
            if key not in self._urgent:
                self._urgent.add(key)
                self._later.pop(key, None)  # it failed while it was only read ahead: at once again
                self._state.notify_all()

    def wait(self, seconds: float) -> None:
        """Until something has changed, at most so long."""
        with self._state:
            self._state.wait(seconds)

    def close(self) -> None:
        """Stop downloading and let go of all shards; what came of one stays for the next start."""
        with self._state:
            self._closed = True
            for stop in self._busy.values():
                stop.set()
            self._state.notify_all()
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._state:
            while self._held:
                self._held.popitem()[1].release()

    def _work(self) -> None:
        while True:
            with self._state:
                key = self._next()
                while key is None and not self._closed:
                    self._state.wait(POLL_S if self._later else None)
                    key = self._next()
                if key is None:
                    return
                stop = self._busy[key] = threading.Event()
            self._bring(key, stop)

    def _next(self) -> Key | None:
        if self._closed or self._paused:
            return None
        now = time.monotonic()
        self._later = {key: when for key, when in self._later.items() if when > now}
        for key in self._wanted:
            if key not in self._held and key not in self._busy and key not in self._failed and key not in self._later:
                return key
        return None

    def _out_of_room(self, key: Key, error: NoRoom) -> Exception | None:
        """What is said, or raised, of a shard that rows are waiting for and that finds no room."""
        remote, now = self._remotes[key[0]], time.monotonic()
        if key not in self._urgent or remote is None:
            return None
        since = self._no_room.setdefault(key, now)
        if not remote.origin.ranges:
            return error if now - since > NO_ROOM_S else None
        if since == now:
            to_stderr(f"{error}; rows of {self._indexes[key[0]].shards[key[1]].url} come by ranges until then")
        return None

    def _bring(self, key: Key, stop: threading.Event) -> None:
        remote, entry = self._remotes[key[0]], self._indexes[key[0]].shards[key[1]]
        assert remote is not None
        held, failed, later = None, None, 0.0
        try:
            held = remote.held(entry) or remote.download(entry, stop)
            if held is None:
                later = POLL_S  # another process of this node is at it
        except NoRoom as error:
            later = 10 * POLL_S
            failed = self._out_of_room(key, error)
        except Stopped:
            pass
        except OSError as error:
            failed = error
            if key not in self._urgent:
                failed, later = None, RETRY_S
                to_stderr(f"{error}; it isn't needed yet: again in {RETRY_S:g} s")
        except Exception as error:
            failed = error
        with self._state:
            del self._busy[key]
            if held is not None and (self._closed or key not in self._wanted):
                held.release()
            elif held is not None:
                self._held[key] = held
            if failed is not None:
                self._failed[key] = failed
            if later:
                self._later[key] = time.monotonic() + later
            self._state.notify_all()


@dataclass(frozen=True)
class _Range:
    """A range of a shard that a row waits for."""

    key: Key
    shard: PartialShard
    start: int
    stop: int


class StreamingReader(LocalReader):
    """Reads rows by position from shards of local and remote datasets, the remote ones through the node's cache."""

    def __init__(self, indexes: Sequence[Index], order: Order, context: int, remotes: Sequence[Remote | None],
                 lanes: Collection[int] | None = None, ahead: bool = True):  # fmt: skip
        """
        Args:
            indexes: of the order's sources.
            remotes: where each source's shards come from; None: from its folder.
            lanes: that this node reads; None: all.
            ahead: download the windows after the current ones too.
        """
        super().__init__(indexes, order, context, self._open_streamed, self._find)
        self._remotes = tuple(remotes)
        access = next(remote.access for remote in self._remotes if remote is not None)
        self._lanes, self._ahead = lanes, ahead
        self._cache_bytes = access.cache_bytes
        self._source = {id(index): source for source, index in enumerate(self.indexes)}
        self._downloads = Downloads(self._remotes, self.indexes, access.streams)
        self._ranges = Daemons(RANGES, "range")
        self._partial: dict[Key, PartialShard] = {}
        self._from, self._until = 0, -1
        self._range_bytes = 0
        self._cancelled = threading.Event()

    @property
    def fetched(self) -> int:
        """Bytes that came over the network so far: whole shards and ranges."""
        return self._range_bytes + sum(remote.fetched for remote in self._remotes if remote is not None)

    def rows(self, positions: np.ndarray) -> Rows:
        """The rows at `positions` (int64; -1 gives a filler row), as the local reader gives them.

        Raises:
            UserError: a shard of one of them is missing, or isn't the one that was written.
            Unreachable: a shard's server can't be reached.
        """
        real = positions[positions >= 0]
        if len(real):
            self._look_ahead(int(real.min()), int(real.max()))
        for key in [key for key in self._partial if self._downloads.here(key)]:
            del self._partial[key], self._opened[key]  # whole by now: opened anew as a map
        while True:
            rows = super().rows(positions)
            missing = [
                _Range(key, shard, start, stop)
                for key, shard in self._partial.items()
                for start, stop in shard.missing()
            ]
            if not missing:
                self._downloads.go()
                return rows
            self._fetch(missing)

    def cancel(self) -> None:
        """Let a thread that waits for rows end soon, with an error that nobody hears."""
        self._cancelled.set()

    def close(self) -> None:
        """Stop downloading, and let go of the shards."""
        super().close()
        self.cancel()
        self._downloads.close()
        self._ranges.close()

    def _look_ahead(self, low: int, high: int) -> None:
        """Want the windows that rows from `low` to `high` need and, as far as the cache holds them, those after."""
        if self._from <= low and high < self._until:
            return
        wanted: dict[Key, int] = {}
        open_now, opened, later, until = set(), 0, 0, 2**62
        for window in self.order.windows(low, 2**62, self._lanes):
            index, lane = self.indexes[window.source], (window.source, window.lane)
            keys = [(window.source, shard) for shard in window.shards] if self._remotes[window.source] else []
            fresh = {key: index.shards[key[1]].file_size for key in keys if key not in wanted}
            if lane not in open_now or window.first <= high:  # each lane of a source has one window open
                open_now.add(lane)
                opened += sum(fresh.values())
            else:
                until, later = min(until, window.first), later + 1
                full = sum(wanted.values()) + sum(fresh.values()) > min(self._cache_bytes, 2 * opened)
                if full or not self._ahead or later > LATER * len(open_now):
                    break
            wanted |= fresh
        self._from, self._until = low, until
        for key in [key for key in self._opened if self._remotes[key[0]] is not None and key not in wanted]:
            del self._opened[key]
            self._partial.pop(key, None)
        self._downloads.want(list(wanted))

    def _open_streamed(self, index: Index, number: int) -> OpenShard:
        source = self._source[id(index)]
        remote, entry = self._remotes[source], index.shards[number]
        if remote is None:
            return mapped(index, number)
        key = (source, number)
        if self._downloads.here(key):
            if (remote.folder / entry.url).exists():
                return MappedShard(remote.folder, entry, index.dtype)
            self._downloads.lost(key)
        if key not in self._partial:
            self._partial[key] = PartialShard(remote.folder, entry, index.dtype, lambda: remote.sums(entry))
        return self._partial[key]

    def _find(self, index: Index, name: str) -> Path:
        """A file that belongs to one shard, such as its packing plan."""
        remote = self._remotes[self._source[id(index)]]
        return remote.file(name) if remote else index.folder / name

    def _fetch(self, missing: Sequence[_Range]) -> None:
        """Bring all these ranges, those of many shards at a time."""
        for key in {each.key for each in missing}:
            self._downloads.need(key)
        patience = time.monotonic() + WAIT_S
        coming = [self._ranges.submit(self._bring, each, patience) for each in missing]
        try:
            for each in coming:
                while not wait([each], POLL_S).done:  # a request that hangs must not hold up whoever cancels
                    if self._cancelled.is_set():
                        raise Stopped("the reader is closed")
                each.result()
        finally:
            for each in coming:
                each.cancel()

    def _bring(self, wanted: _Range, patience: float) -> None:
        """One range: of the whole shard, of what has come of it (waiting until `patience`), or from its origin."""
        remote = self._remotes[wanted.key[0]]
        assert remote is not None
        entry = wanted.shard.entry
        while not self._cancelled.is_set():
            data = remote.near(entry, wanted.start, wanted.stop)
            if data is not None and wanted.shard.put(wanted.start, data) is None:
                return
            if self._downloads.coming(wanted.key) and time.monotonic() < patience:
                self._downloads.wait(PART_S)
                continue
            if remote.origin.ranges:
                try:
                    self._ask(remote, wanted)
                    return
                except NoRanges:
                    pass
            self._downloads.go()
            self._downloads.need(wanted.key)
            self._downloads.wait(POLL_S)
        raise Stopped(wanted.shard.entry.url)

    def _ask(self, remote: Remote, wanted: _Range) -> None:
        what = f"{wanted.shard.entry.url} from {remote.origin.name}"

        def attempt(_: int) -> None:
            data = remote.origin.read(wanted.shard.entry.url, wanted.start, wanted.stop)
            wrong = wanted.shard.put(wanted.start, data)
            if wrong is not None:
                raise Damaged(
                    f"{what} is not the shard that was written: it differs from byte {wrong:,} on. Copy it again from "
                    "where the dataset was built"
                )
            self._range_bytes += len(data)

        remote.access.patience.insist(what, attempt, self._cancelled)


def refuse_small_cache(order: Order, indexes: Sequence[Index], remotes: Sequence[Remote | None],
                       lanes: Collection[int] | None = None) -> None:  # fmt: skip
    """Raise UserError where the cache can't hold the windows that are open at once, with the figure it would take."""
    access = next((remote.access for remote in remotes if remote is not None), None)
    if access is None:
        return
    needed = 0
    count = order.lanes if lanes is None else len(lanes)
    for source, (index, remote) in enumerate(zip(indexes, remotes, strict=True)):
        windows = [walk.window for walk in order.walks if walk.source == source]
        if remote is not None and windows:
            sizes = sorted((shard.file_size for shard in index.shards), reverse=True)
            # Without ranges a row waits for its shard, and a batch may have rows of two windows of a lane.
            needed += sum(sizes[: max(windows) * count * (1 if remote.origin.ranges else 2)])
    if needed > access.cache_bytes:
        raise UserError(
            f"data.cache_gb is {access.cache_bytes / 1e9:.3g}, and the windows that this node reads at once take up to "
            f"{needed / 1e9:.3g} GB: set it to {2 * needed / 1e9:.3g}, so that the next ones fit too, or lower "
            "data.window"
        )


def reader_of(indexes: Sequence[Index], order: Order, context: int, remotes: Sequence[Remote | None],
              lanes: Collection[int] | None = None, ahead: bool = True) -> LocalReader:  # fmt: skip
    """A reader of the order's sources, wherever each of them is; arguments as of `StreamingReader`."""
    if all(remote is None for remote in remotes):
        return LocalReader(indexes, order, context)
    return StreamingReader(indexes, order, context, remotes, lanes, ahead)
