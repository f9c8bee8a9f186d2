"""Positions -> rows of tokens, from shards on a local disk.

The shards are mapped, not read: a row is a view until it is copied into its place in the batch. There are no worker
processes, because handing 8 x 2048 tokens between processes costs 20 times more than reading them (115-140 Mtok/s in
one process against 3.5-5 with two workers, measured); one thread reads ahead. Rows carry their own positions, so
nothing asks a reader where it is.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np

from data.errors import UserError
from data.order.layout import Layout
from data.order.order import Order
from data.order.packing import Packing, Plan, load_packing
from data.shards import Index, MappedShard, Targets

T = TypeVar("T")
RESOLVED = 8192  # positions resolved at once: the order costs 0.2 us a row in chunks, 8 times more row by row
PLANS = 4096  # packing plans kept mapped: some 60 KB of address space each, of 65,530 maps that Linux grants a process


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
    packed: bool = False
    """Whether neighbours in a row have nothing to do with each other: a document's first token is then no label."""


def layout(index: Index, context: int, packing: Literal["chop", "best_fit"] = "chop", here: bool = True,
           overlap: int = 1) -> Layout:  # fmt: skip
    """How the rows of a split lie in its shards: chopped text or one example a row, or those of a packing plan.

    Args:
        context: tokens from one row of chopped text to the next.
        here: plans lie beside the index; else they come when they are read.
        overlap: tokens of chopped text that a row shares with the next.

    Raises:
        UserError: no row, or no packing plans for this context.
    """
    if packing == "best_fit":
        return load_packing(index, context + 1, None if here else index.folder.joinpath).layout()
    if index.kind == "examples":
        return Layout.documents(index.fingerprint, (shard.documents for shard in index.shards))
    return Layout.chopped(index.fingerprint, (shard.tokens for shard in index.shards), context, overlap)


def longest_document(index: Index) -> int:
    """Tokens of the longest document of a split, EOS included; 0 for an empty one."""
    return max((shard.longest for shard in index.shards), default=0)


class OpenShard(Protocol):
    """What a reader needs of a shard, wherever its bytes are; token numbers count from the shard's first token."""

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop), of the shard's dtype."""
        ...

    def uses(self, start: int, stop: int) -> np.ndarray:
        """Their use bytes (uint8)."""
        ...

    def starts_between(self, begin: int, end: int) -> list[int]:
        """First tokens of the documents that start behind token `begin` and before `end`, ascending."""
        ...

    def document(self, number: int) -> tuple[int, int]:
        """(first token, one past the last) of the shard's document of that number."""
        ...

    def document_at(self, token: int) -> int:
        """The number of the shard's document that a token belongs to."""
        ...

    def target(self, number: int, targets: Targets) -> np.ndarray:
        """What the shard's document of that number is to predict beside tokens."""
        ...


def mapped(index: Index, shard: int) -> OpenShard:
    """A shard on a local disk, memory-mapped. Raises UserError where it is missing or of another size."""
    return MappedShard(index.folder, index.shards[shard], index.dtype)


class LocalReader:
    """Reads rows by position from shards that `open_shard` gives random access to. One per thread that reads.

    An example longer than the context and one is cut there; `longest_document` tells beforehand. The rows read together
    are as wide as the longest of their stages' row lengths.
    """

    def __init__(self, indexes: Index | Sequence[Index], order: Order, context: int,
                 open_shard: Callable[[Index, int], OpenShard] = mapped,
                 find: Callable[[Index, str], Path] | None = None):  # fmt: skip
        """
        Args:
            indexes: of the order's sources, in their order.
            context: of the model; a row has one token more, unless its stage has shorter ones.
            open_shard: opens the shard of that number; each is opened once.
            find: gives a shard's packing plan by its name, where plans don't lie beside the indexes.
        """
        self.indexes = (indexes,) if isinstance(indexes, Index) else tuple(indexes)
        self.order = order
        self.length = context + 1
        self._alike = len(order.walks) == 1 and order.walks[0].layout.stride > 0
        self._lengths = [walk.layout.row_length(self.length) for walk in order.walks]
        self._packings: list[Packing | None] = [
            self._load_packing(walk.source, walk.layout.plan_length, find) if walk.layout.plan else None
            for walk in order.walks
        ]
        self._open_shard = open_shard
        self._targets = self.indexes[0].targets
        if any(index.targets != self._targets for index in self.indexes):
            raise UserError("the run's datasets of examples predict different things, such as a class and a number")
        self._opened: dict[tuple[int, int], OpenShard] = {}
        self._plan = lru_cache(maxsize=PLANS)(self._map_plan)
        self._chunk: tuple[int, list[int], list[int], list[int]] | None = None

    def rows(self, positions: np.ndarray) -> Rows:
        """The rows at `positions` (int64; -1 gives a filler row)."""
        asked = positions.tolist()
        walks, shards, firsts = self._places(asked)
        if self._alike and min(asked, default=-1) >= 0:
            return self._chopped(positions, shards, firsts)
        real = [self._lengths[walk] for position, walk in zip(asked, walks, strict=True) if position >= 0]
        width = max(real, default=min(self._lengths))
        tokens = np.empty((len(positions), width), np.int64)
        lengths = np.zeros(len(positions), np.int64)
        use = np.zeros(tokens.shape, np.uint8) if self.indexes[0].kind == "examples" else None
        starts: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        for slot, (position, walk, shard, start) in enumerate(zip(asked, walks, shards, firsts, strict=True)):
            if position < 0:
                tokens[slot] = 0
                starts.append(np.empty(0, np.int64))
                continue
            source = self.order.walks[walk].source
            opened = self._open(source, shard)
            if self._packings[walk] is not None:
                spans = self._plan(walk, shard).spans(start)
            elif use is None:
                spans = [(start, start + self._lengths[walk])]
            else:
                begin, end = opened.document(start)
                spans = [(begin, min(end, begin + self.length))]
            at, begins = 0, []
            for begin, end in spans:
                begins.append(at)
                upto = at + end - begin
                tokens[slot, at:upto] = opened.tokens(begin, end)
                if use is not None:
                    use[slot, at:upto] = opened.uses(begin, end)
                if self._targets is not None:
                    number = start if self._packings[walk] is None else opened.document_at(begin)
                    targets.append(opened.target(number, self._targets))
                at = upto
            tokens[slot, at:] = 0
            lengths[slot] = at
            if use is None and self._packings[walk] is None:
                begins += [document - start for document in opened.starts_between(start, start + at)]
            starts.append(np.array(begins, np.int64))
        packed = any(each is not None for each in self._packings)
        return Rows(tokens, lengths, tuple(starts), use, positions, self._stacked(targets), packed)

    def _stacked(self, targets: list[np.ndarray]) -> np.ndarray | None:
        if self._targets is None:
            return None
        return np.array(targets, self._targets.dtype).reshape(-1, len(self._targets.names))

    def _chopped(self, positions: np.ndarray, shards: list[int], firsts: list[int]) -> Rows:
        """Rows of text where all of the order are alike: the way of most runs, 1.2 times as fast as the general one."""
        width = self._lengths[0]
        tokens = np.empty((len(positions), width), np.int64)
        inside: list[int] = []  # made an array once: a small array costs as much as forty numbers of a list
        cuts = [0]
        for slot, (shard, first) in enumerate(zip(shards, firsts, strict=True)):
            opened = self._opened.get((0, shard)) or self._open(0, shard)
            tokens[slot] = opened.tokens(first, first + width)
            inside.append(0)
            inside += [start - first for start in opened.starts_between(first, first + width)]
            cuts.append(len(inside))
        begins = np.array(inside, np.int64)
        starts = tuple([begins[low:high] for low, high in pairwise(cuts)])
        return Rows(tokens, np.full(len(positions), width), starts, None, positions)

    def _places(self, positions: list[int]) -> tuple[list[int], list[int], list[int]]:
        """(walk, shard, start) of each position; zeros for fillers.

        They come from resolved chunks, as lists: of the few numbers of a batch, numpy would make its slowest calls.
        """
        if self._chunk is not None and positions:
            number, walks, shards, starts = self._chunk
            base = number * RESOLVED
            if min(positions) >= base and max(positions) < base + len(walks):
                offsets = [position - base for position in positions]
                return [walks[at] for at in offsets], [shards[at] for at in offsets], [starts[at] for at in offsets]
        found = [(0, 0, 0)] * len(positions)
        for number in sorted({position // RESOLVED for position in positions if position >= 0}):
            base = number * RESOLVED
            mine = [slot for slot, position in enumerate(positions) if 0 <= position - base < RESOLVED]
            last = max(positions[slot] for slot in mine)
            if self._chunk is None or self._chunk[0] != number or last - base >= len(self._chunk[1]):
                stop = base + RESOLVED
                if self.order.end is not None:  # what lies behind it can't be resolved, unless it is asked for
                    stop = max(min(stop, self.order.end), last + 1)
                held = self.order.places(np.arange(base, stop))
                self._chunk = (number, held.walk.tolist(), held.shard.tolist(), held.start.tolist())
            _, walks, shards, starts = self._chunk
            for slot in mine:
                at = positions[slot] - base
                found[slot] = walks[at], shards[at], starts[at]
        return [each[0] for each in found], [each[1] for each in found], [each[2] for each in found]

    def cancel(self) -> None:
        """Nobody waits any more for the rows that another thread may be reading."""

    def close(self) -> None:
        """Let go of what the reader has open; it reads no more."""
        self._opened.clear()

    def _open(self, source: int, shard: int) -> OpenShard:
        if (source, shard) not in self._opened:
            self._opened[source, shard] = self._open_shard(self.indexes[source], shard)
        return self._opened[source, shard]

    def _load_packing(self, source: int, length: int, find: Callable[[Index, str], Path] | None) -> Packing:
        index = self.indexes[source]
        return load_packing(index, length, None if find is None else partial(find, index))

    def _map_plan(self, walk: int, shard: int) -> Plan:
        packing = self._packings[walk]
        assert packing is not None
        return packing.plan(shard)


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
