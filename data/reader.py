"""Positions -> rows of tokens, from shards on a local disk.

The shards are mapped, not read: a row is a view until it is copied into its place in the batch. There are no worker
processes, because handing 8 x 2048 tokens between processes costs 20 times more than reading them (115-140 Mtok/s in
one process against 3.5-5 with two workers, measured); one thread reads ahead. Rows carry their own positions, so
nothing asks a reader where it is.
"""

import queue
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from data.order import Layout, Order
from data.shards import Index, MappedShard

T = TypeVar("T")
RESOLVED = 8192  # positions resolved at once: the order costs 0.2 us a row in chunks, 8 times more row by row


@dataclass(frozen=True)
class Rows:
    """Rows of one micro-batch, with what says where they came from."""

    tokens: np.ndarray
    """(rows, length) int64; zeros after a row's end."""
    lengths: np.ndarray
    """(rows,) int64: real tokens of each row; 0 for a filler row."""
    starts: tuple[np.ndarray, ...]
    """Where documents start inside each row, ascending, the first at 0; empty for a filler row."""
    use: np.ndarray | None
    """(rows, length) uint8 for examples: bit 0, the token is in the loss; the rest, its field. None for text."""
    positions: np.ndarray
    """(rows,) int64; -1 for a filler row."""
    targets: np.ndarray | None = None
    """(documents, columns) int32 or float32: what each document that `starts` tells of is to predict beside tokens,
    row after row; None where the dataset has no targets."""


def layout(index: Index, context: int) -> Layout:
    """How the rows of a split lie in its shards: chopped text, or one example a row."""
    if index.kind == "examples":
        return Layout.documents(index.fingerprint, (shard.documents for shard in index.shards))
    return Layout.chopped(index.fingerprint, (shard.tokens for shard in index.shards), context)


def longest_document(index: Index) -> int:
    """Tokens of the longest document of a split, EOS included; 0 for an empty one."""
    longest = 0
    for shard in index.shards:
        starts = MappedShard(index.folder, shard, index.dtype).document_starts()
        longest = max(longest, int(np.diff(starts, append=shard.tokens).max(initial=0)))
    return longest


class LocalReader:
    """Reads rows by position from mapped shards. One per thread that reads.

    An example longer than the context and one is cut there; `longest_document` tells beforehand.
    """

    def __init__(self, index: Index, order: Order, context: int):
        self.index, self.order = index, order
        self.length = context + 1
        self._opened: dict[int, tuple[MappedShard, list[int]]] = {}
        self._targets: dict[int, np.ndarray] = {}
        self._chunk: tuple[int, np.ndarray, np.ndarray] | None = None

    def rows(self, positions: np.ndarray) -> Rows:
        """The rows at `positions` (int64; -1 gives a filler row)."""
        tokens = np.empty((len(positions), self.length), np.int64)
        lengths = np.zeros(len(positions), np.int64)
        use = np.zeros(tokens.shape, np.uint8) if self.index.kind == "examples" else None
        starts = []
        shards, firsts = self._places(positions)
        for slot, (position, shard, start) in enumerate(
            zip(positions.tolist(), shards.tolist(), firsts.tolist(), strict=True)
        ):
            if position < 0:
                tokens[slot] = 0
                starts.append(np.empty(0, np.int64))
                continue
            mapped, documents = self._open(shard)
            if use is None:
                begin, end = start, start + self.length
                inside = documents[bisect_right(documents, begin) : bisect_left(documents, end)]
                starts.append(np.array([0, *(document - begin for document in inside)], np.int64))
            else:
                begin = documents[start]
                end = documents[start + 1] if start + 1 < len(documents) else self.index.shards[shard].tokens
                end = min(end, begin + self.length)
                use[slot, : end - begin] = mapped.uses(begin, end)
                starts.append(np.zeros(1, np.int64))
                tokens[slot, end - begin :] = 0
            tokens[slot, : end - begin] = mapped.tokens(begin, end)
            lengths[slot] = end - begin
        real = positions >= 0
        return Rows(tokens, lengths, tuple(starts), use, positions, self._targets_of(shards[real], firsts[real]))

    def _targets_of(self, shards: np.ndarray, documents: np.ndarray) -> np.ndarray | None:
        """The targets of documents, given by shard and number in it."""
        if self.index.targets is None:
            return None
        for shard in set(shards.tolist()) - self._targets.keys():
            self._targets[shard] = self._open(shard)[0].targets(self.index.targets)
        found = [self._targets[shard][document] for shard, document in zip(shards.tolist(), documents, strict=True)]
        width = len(self.index.targets.names)
        return np.array(found, self.index.targets.dtype).reshape(-1, width)

    def _places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, start) of each position, from a resolved chunk where they fall in one; zeros for fillers."""
        shard, start = np.zeros(len(positions), np.int64), np.zeros(len(positions), np.int64)
        real = positions >= 0
        for number in np.unique(positions[real] // RESOLVED):
            if self._chunk is None or self._chunk[0] != number:
                found = self.order.places(np.arange(number * RESOLVED, (number + 1) * RESOLVED))
                self._chunk = (int(number), found.shard, found.start)
            mine = real & (positions // RESOLVED == number)
            offset = positions[mine] - number * RESOLVED
            shard[mine], start[mine] = self._chunk[1][offset], self._chunk[2][offset]
        return shard, start

    def _open(self, shard: int) -> tuple[MappedShard, list[int]]:
        """A shard's map and where its documents start, as a list: bisecting an array costs five times as much."""
        if shard not in self._opened:
            mapped = MappedShard(self.index.folder, self.index.shards[shard], self.index.dtype)
            self._opened[shard] = (mapped, mapped.document_starts().tolist())
        return self._opened[shard]


class Prefetch(Generic[T]):
    """Runs `produce(0), produce(1), ...` in one thread, at most `ahead` results before they are asked for.

    An error in the thread is raised by the `next()` that would have returned its result. `close()` ends the thread.
    """

    def __init__(self, produce: Callable[[int], T], count: int, ahead: int):
        self._made: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._room = threading.Semaphore(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(produce, count), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        result, error = self._made.get()
        self._room.release()
        if error is not None:
            self._made.put((None, error))  # the thread has ended; whoever asks again hears it again
            raise error
        return result  # type: ignore[return-value]

    def close(self) -> None:
        """Stop reading; results not yet taken are dropped."""
        self._closed.set()
        self._room.release()
        self._thread.join()

    def _run(self, produce: Callable[[int], T], count: int) -> None:
        for number in range(count):
            self._room.acquire()
            if self._closed.is_set():
                return
            try:
                self._made.put((produce(number), None))
            except BaseException as error:  # handed to the thread that asks
                self._made.put((None, error))
                return
        self._made.put((None, StopIteration()))
