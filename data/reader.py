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
from typing import Generic, Literal, TypeVar

import numpy as np

from data.order import Layout, Order
from data.packing import Plan, load_packing
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
    packed: bool = False
    """Whether neighbours in a row have nothing to do with each other: a document's first token is then no label."""


def layout(index: Index, context: int, packing: Literal["chop", "best_fit"] = "chop") -> Layout:
    """How the rows of a split lie in its shards: chopped text or one example a row, or those of a packing plan.

    Raises:
        UserError: no row, or no packing plans for this context.
    """
    if packing == "best_fit":
        return load_packing(index, context + 1).layout()
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
        self._packing = load_packing(index, self.length) if order.layout.plan else None
        self._opened: dict[int, tuple[MappedShard, list[int], Plan | None]] = {}
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
            mapped, documents, plan = self._open(shard)
            if plan is not None:
                spans = plan.spans(start)
            elif use is None:
                spans = [(start, start + self.length)]
            else:
                end = documents[start + 1] if start + 1 < len(documents) else self.index.shards[shard].tokens
                spans = [(documents[start], min(end, documents[start] + self.length))]
            at, begins = 0, []
            for begin, end in spans:
                begins.append(at)
                upto = at + end - begin
                tokens[slot, at:upto] = mapped.tokens(begin, end)
                if use is not None:
                    use[slot, at:upto] = mapped.uses(begin, end)
                at = upto
            tokens[slot, at:] = 0
            lengths[slot] = at
            if use is None and plan is None:
                inside = documents[bisect_right(documents, start) : bisect_left(documents, start + at)]
                begins += [document - start for document in inside]
            starts.append(np.array(begins, np.int64))
        return Rows(tokens, lengths, tuple(starts), use, positions, self._packing is not None)

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

    def _open(self, shard: int) -> tuple[MappedShard, list[int], Plan | None]:
        """A shard's map, where its documents start, as a list (bisecting an array costs five times as much), its plan.

        A plan says where documents start by itself.
        """
        if shard not in self._opened:
            mapped = MappedShard(self.index.folder, self.index.shards[shard], self.index.dtype)
            plan = self._packing.plan(shard) if self._packing else None
            self._opened[shard] = (mapped, [] if plan else mapped.document_starts().tolist(), plan)
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
