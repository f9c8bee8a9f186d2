"""The order of samples: position -> row and back, as a pure function.

`position` counts rows over the whole run: 0, 1, 2 ... A row is where its tokens lie: (epoch, shard, row in the shard).
The function depends on the shards' row counts, the seed and the window, and on nothing that happens while training,
so the state of the data is one integer, equal on every rank, and any number of ranks reads the same sequence.

Within an epoch the shards are permuted, `window` consecutive ones form a window, and a Feistel permutation keyed by
(seed, epoch, window) shuffles the rows of a window. A window is what a streaming reader must hold, so both readers
agree; with documents shuffled when the shards were written, 16 shards are as good as a full shuffle (source mix
1.01x, same-document pairs 0.85 % against 0.01 %, simulated on 1.8 B tokens). The permutation needs no table:
O(shards) memory, 0.1-0.3 us a row in chunks.

Permutation: a balanced Feistel network of 4 rounds over the next power of four, walked until it lands inside
(Luby and Rackoff 1988; cycle walking: Black and Rogaway 2002). Keys: splitmix64 (Steele, Lea and Flood 2014).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.errors import UserError

FORMAT, VERSION = "luban-order", 1
ROUNDS = 4
WORD = (1 << 64) - 1
SHARDS, ROWS, PHASE = 1, 2, 3  # what a key is for


def key(*parts: int) -> int:
    """A 64-bit key from integers, the same on every machine and for ever: splitmix64 chained over them."""
    state = 0
    for part in parts:
        state = (state ^ (part & WORD)) + 0x9E3779B97F4A7C15 & WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB & WORD
        state ^= state >> 31
    return state


def permute(values: np.ndarray, size: int, seed: int, inverse: bool = False) -> np.ndarray:
    """A keyed permutation of [0, size) applied to each of `values` (int64), or its inverse."""
    if size <= 1:
        return np.zeros(values.shape, np.int64)
    half = np.uint64(((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(key(seed, number)) for number in range(ROUNDS)]
    walking = values.astype(np.uint64)
    outside = np.arange(walking.size)
    while outside.size:
        left, right = walking[outside] >> half, walking[outside] & mask
        for round_key in reversed(keys) if inverse else keys:
            if inverse:
                left, right = right ^ _scramble(left, round_key) & mask, left
            else:
                left, right = right, left ^ _scramble(right, round_key) & mask
        landed = left << half | right
        walking[outside] = landed
        outside = outside[landed >= size]
    return walking.astype(np.int64)


def _scramble(values: np.ndarray, round_key: np.uint64) -> np.ndarray:
    with np.errstate(over="ignore"):
        mixed = values * np.uint64(0x9E3779B97F4A7C15) + round_key
        mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)
        return mixed ^ mixed >> np.uint64(32)


@dataclass(frozen=True)
class Layout:
    """How the tokens of a split's shards become rows; arrays have one entry a shard.

    Text is chopped: row j of a shard starts at phase + j * stride and holds stride + 1 tokens, so that each token is
    a label once. Examples are one row each (`stride` 0). Packed rows are those of a plan (`data/packing.py`).
    """

    fingerprint: str
    """Digest of the shards it describes."""
    stride: int
    """Tokens from one row to the next; 0: a row is a document, or one of a plan."""
    rows: tuple[int, ...]
    """Rows of each shard, the same in every epoch."""
    tail: tuple[int, ...]
    """Tokens of each shard that an epoch leaves unread; the phase moves over them from epoch to epoch."""
    plan: str = ""
    """Digest of the packing plans whose rows these are; empty: none."""

    @property
    def total(self) -> int:
        """Rows of one epoch."""
        return sum(self.rows)

    @classmethod
    def chopped(cls, fingerprint: str, tokens: Iterable[int], context: int) -> "Layout":
        """Rows of context + 1 tokens, overlapping by one; a row never straddles two shards.

        Raises:
            UserError: no shard holds a whole row.
        """
        held = tuple(tokens)
        rows = tuple(max(0, count - 1) // context for count in held)
        if not sum(rows):
            raise UserError(
                f"a context of {context} tokens needs shards of at least {context + 1}, and the longest of "
                f"{len(held)} has {max(held, default=0)}: lower model.context or add text"
            )
        tail = tuple(max(0, count - 1) - mine * context for count, mine in zip(held, rows, strict=True))
        return cls(fingerprint, context, rows, tail)

    @classmethod
    def documents(cls, fingerprint: str, documents: Iterable[int]) -> "Layout":
        """One row a document. Raises UserError where there is none."""
        rows = tuple(documents)
        if not sum(rows):
            raise UserError("the split holds no examples")
        return cls(fingerprint, 0, rows, (0,) * len(rows))

    @classmethod
    def packed(cls, fingerprint: str, rows: Iterable[int], plan: str) -> "Layout":
        """The rows of packing plans, so many a shard; `plan` is their digest. Raises UserError where there is none."""
        held = tuple(rows)
        if not sum(held):
            raise UserError("the split holds nothing to pack")
        return cls(fingerprint, 0, held, (0,) * len(held), plan)


@dataclass(frozen=True)
class Places:
    """Where rows lie: equally long int64 arrays, one entry a row."""

    epoch: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    start: np.ndarray
    """First token in the shard; for rows that are documents or planned, its number."""


@dataclass(frozen=True)
class _Epoch:
    """One epoch's shuffle of the shards, O(shards)."""

    shards: np.ndarray  # shard at each place of the epoch
    place: np.ndarray  # place of each shard
    first: np.ndarray  # rows before each place, one longer than shards
    windows: np.ndarray  # rows before each window, one longer than the windows
    phase: np.ndarray  # first token of each shard's first row


class Order:
    """position -> row and back for one source of shards. Immutable; safe to share between threads."""

    def __init__(self, layout: Layout, seed: int, window: int):
        self.layout, self.seed, self.window = layout, seed, window
        self.rows_per_epoch = layout.total
        self._rows = np.array(layout.rows, np.int64)
        self._tail = np.array(layout.tail, np.int64)
        self._epoch = lru_cache(maxsize=4)(self._shuffle_shards)

    def describe(self) -> dict[str, object]:
        """What fixes the order, for a checkpoint; a run may go on only where this is equal."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.layout.fingerprint,
            "plan": self.layout.plan,
            "seed": self.seed,
            "stages": [{"start": 0, "stride": self.layout.stride, "window": self.window}],
        }

    def places(self, positions: np.ndarray) -> Places:
        """Where the rows at `positions` (int64, each >= 0) lie."""
        epochs, within = np.divmod(positions, self.rows_per_epoch)
        shard, row, start = (np.empty(positions.shape, np.int64) for _ in range(3))
        for epoch in np.unique(epochs):
            plan = self._epoch(int(epoch))
            here = np.flatnonzero(epochs == epoch)
            window_of = np.searchsorted(plan.windows, within[here], side="right") - 1
            for window in np.unique(window_of):
                mine = here[window_of == window]
                low, high = plan.windows[window], plan.windows[window + 1]
                shuffled = permute(within[mine] - low, int(high - low), self._key(ROWS, int(epoch), int(window)))
                place = np.searchsorted(plan.first, shuffled + low, side="right") - 1
                shard[mine] = plan.shards[place]
                row[mine] = shuffled + low - plan.first[place]
                start[mine] = row[mine] * (self.layout.stride or 1) + plan.phase[shard[mine]]
        return Places(epochs, shard, row, start)

    def positions(self, epoch: int, shard: np.ndarray, row: np.ndarray) -> np.ndarray:
        """The inverse: at which positions of `epoch` the given rows of the given shards (int64 arrays) are read."""
        plan = self._epoch(epoch)
        index = plan.first[plan.place[shard]] + row
        window_of = np.searchsorted(plan.windows, index, side="right") - 1
        out = np.empty(index.shape, np.int64)
        for window in np.unique(window_of):
            mine = np.flatnonzero(window_of == window)
            low, high = plan.windows[window], plan.windows[window + 1]
            secret = self._key(ROWS, epoch, int(window))
            out[mine] = permute(index[mine] - low, int(high - low), secret, inverse=True) + low
        return out + epoch * self.rows_per_epoch

    def unread(self) -> int:
        """Tokens that one epoch leaves out, as labels; other epochs leave out others."""
        return int(self._tail.sum())

    def _shuffle_shards(self, epoch: int) -> _Epoch:
        count = len(self._rows)
        shards = permute(np.arange(count), count, self._key(SHARDS, epoch))
        place = np.empty(count, np.int64)
        place[shards] = np.arange(count)
        first = np.concatenate(([0], np.cumsum(self._rows[shards])))
        edges = np.minimum(np.arange(0, count + self.window, self.window), count)
        phase = np.array(
            [key(self._key(PHASE, epoch), shard) % (int(tail) + 1) for shard, tail in enumerate(self._tail)]
        )
        return _Epoch(shards, place, first, first[edges], phase.astype(np.int64))

    def _key(self, purpose: int, *parts: int) -> int:
        return key(self.seed, purpose, *parts)


def deal(start: int, stop: int, micro_batch: int, rank: int, world: int) -> np.ndarray:
    """The positions of one rank's micro-batches of the global batch [start, stop): (accumulation, micro_batch) int64.

    Consecutive runs of `micro_batch` positions go round the ranks in turn, so what a micro-batch holds doesn't depend
    on how many ranks there are. Every rank gets equally many; -1 marks a filler row, which has no weight.
    """
    rows = stop - start
    rounds = -(-rows // (micro_batch * world))
    slots = (np.arange(rounds) * world + rank)[:, None] * micro_batch + np.arange(micro_batch)
    return np.where(slots < rows, slots + start, -1)
