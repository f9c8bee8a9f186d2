"""Sources by weight: which source each row of a lane comes from, as a pure function.

A lane's rows are counted in blocks. A block holds an exact number of rows of each source, the difference of what the
sources are due after it and before it, in an order drawn by sorting keyed random numbers; after every block each
source is within a row or two of its share (levanter's block mixture). A source's k-th row in the order of positions is
its k-th row, so what was read of a source is a prefix at any moment, also in the middle of a block.

A source with a limit stops exactly there: in the block that would pass it, it gives what it has left, and the others
share the rest, and all blocks after it, by their weights. A lane's blocks hold the same counts whatever the lane; only
their order differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np

from data.order.permutation import keys

BLOCK = 512
"""Rows of a block, in one lane. A table costs 0.15 us a row; a smaller block keeps each batch nearer to the weights."""


@dataclass(frozen=True)
class _Segment:
    """Consecutive blocks that divide by the same rule; or one in which a source reaches its limit, with no other."""

    block: int
    """Its first."""
    before: tuple[int, ...]
    """Rows of each source before it."""
    weights: tuple[int, ...]
    """Of each source; 0 for one that has reached its limit."""


@dataclass(frozen=True)
class _Table:
    """One block of one lane."""

    source: np.ndarray
    """Of each row."""
    rank: np.ndarray
    """Of each row among its source's rows in the block."""
    rows: np.ndarray
    """All rows, by source and rank."""
    first: np.ndarray
    """Where each source begins in `rows`."""


class Mixture:
    """(lane, row of the lane) -> (source, row of the source), and back. Immutable; safe to share between threads."""

    def __init__(self, weights: Sequence[float], limits: Sequence[int | None], secret: int, lanes: int = 1):
        """
        Args:
            weights: of each source, each above 0; only their proportions matter.
            limits: rows that each source has in a lane; None: no end.
            secret: keys the order inside blocks.
            lanes: how many there are; what is remembered grows with them.
        """
        exact = [Fraction(repr(float(weight))) for weight in weights]
        scale = lcm(*(weight.denominator for weight in exact))
        self._weights = tuple(int(weight * scale) for weight in exact)
        self._limits = tuple(limits)
        self._secret = secret
        self.end: int | None = None
        """Rows of a lane until every source has reached its limit; None: never."""
        self.limited: list[tuple[int, int]] = []
        """(row of a lane, source): from the block that this row begins, the source gives what it has left, then none.
        """
        self._segments = self._divide()
        self.before = lru_cache(maxsize=4096)(self._before)
        self._table = lru_cache(maxsize=4 * lanes + 64)(self._draw)

    def resolve(self, lane: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row of its lane (int64 arrays), and which of the source's rows in that lane it is.

        Raises:
            IndexError: a row at or behind `end`.
        """
        if len(self._weights) == 1 and self.end is None:
            return np.zeros(row.shape, np.int64), row
        if self.end is not None and row.size and int(row.max()) >= self.end:
            raise IndexError(f"row {int(row.max())} of a mixture whose lanes have {self.end}")
        source, number = np.empty(row.shape, np.int64), np.empty(row.shape, np.int64)
        codes, inverse = np.unique(row // BLOCK * (1 << 20) + lane, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        edges = np.searchsorted(inverse[order], np.arange(len(codes) + 1))
        for slot, code in enumerate(codes.tolist()):
            mine = order[edges[slot] : edges[slot + 1]]
            block, within = code >> 20, row[mine] % BLOCK
            table = self._table(block, code & 0xFFFFF)
            source[mine] = table.source[within]
            number[mine] = table.rank[within] + np.array(self.before(block), np.int64)[source[mine]]
        return source, number

    def row(self, lane: int, source: int, number: int) -> int | None:
        """The inverse: at which row of a lane a source's row is read; None: never."""
        limit = self._limits[source]
        if number < 0 or (limit is not None and number >= limit):
            return None
        if len(self._weights) == 1 and self.end is None:
            return number
        low, high = 0, 1
        while self.before(high)[source] <= number:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.before(middle)[source] <= number else (low, middle)
        table = self._table(low, lane)
        return low * BLOCK + int(table.rows[table.first[source] + number - self.before(low)[source]])

    def counts(self, lane: int, row: int) -> tuple[int, ...]:
        """Rows of each source before `row` of a lane."""
        if self.end is not None:
            row = min(row, self.end)
        block, within = divmod(row, BLOCK)
        before = self.before(block)
        if not within:
            return before
        inside = np.bincount(self._table(block, lane).source[:within], minlength=len(before))
        return tuple(a + int(b) for a, b in zip(before, inside, strict=True))

    def _before(self, block: int) -> tuple[int, ...]:
        """Rows of each source in the blocks before `block`."""
        segment = next(each for each in reversed(self._segments) if each.block <= block)
        if block == segment.block:
            return segment.before
        if not any(segment.weights):
            return segment.before
        due = divided((block - segment.block) * BLOCK, segment.weights)
        return tuple(a + b for a, b in zip(segment.before, due, strict=True))

    def _draw(self, block: int, lane: int) -> _Table:
        low, high = self.before(block), self.before(block + 1)
        counts = np.array([b - a for a, b in zip(low, high, strict=True)], np.int64)
        size = int(counts.sum())
        first = np.concatenate(([0], np.cumsum(counts)))
        drawn = np.argsort(keys(self._secret, lane, block, np.arange(size)), kind="stable")
        source = np.searchsorted(first, drawn, side="right") - 1
        rows = np.argsort(source, kind="stable")
        rank = np.empty(size, np.int64)
        rank[rows] = np.arange(size) - first[source[rows]]
        return _Table(source, rank, rows, first)

    def _divide(self) -> list[_Segment]:
        """The stretches between the limits: at most two for each source."""
        block, before = 0, [0] * len(self._weights)
        segments: list[_Segment] = []
        while True:
            left = [None if limit is None else limit - had for limit, had in zip(self._limits, before, strict=True)]
            weights = tuple(0 if room == 0 else weight for weight, room in zip(self._weights, left, strict=True))
            if not any(weights):
                self.end = sum(before)
                return [*segments, _Segment(block, tuple(before), weights)]
            length = min((_blocks(number, room, weights) for number, room in enumerate(left) if room), default=None)
            if length is None or length:
                segments.append(_Segment(block, tuple(before), weights))
            if length is None:
                return segments
            held = divided(length * BLOCK, weights)
            before = [a + b for a, b in zip(before, held, strict=True)]
            block += length
            left = [None if room is None else room - took for room, took in zip(left, held, strict=True)]
            after = divided((length + 1) * BLOCK, weights)
            counts = _within(left, [b - a for a, b in zip(held, after, strict=True)], weights)
            self.limited += [(block * BLOCK, n) for n, room in enumerate(left) if weights[n] and room == counts[n]]
            segments.append(_Segment(block, tuple(before), weights))
            before = [a + b for a, b in zip(before, counts, strict=True)]
            block += 1


def divided(rows: int, weights: Sequence[int]) -> list[int]:
    """`rows` shared out by weight: what each source is due of the first so many rows.

    Each source in turn takes the whole part of its share of what those before it left. So each count only grows with
    `rows`, and their sum is exact; differences of cumulative floors, the usual way, can be negative.
    """
    due, rest, total = [], rows, sum(weights)
    for weight in weights:
        due.append(rest * weight // total if weight else 0)
        rest, total = rest - due[-1], total - weight
    return due


def _blocks(source: int, room: int, weights: Sequence[int]) -> int:
    """The most blocks that hold no more than `room` rows of a source."""
    low, high = 0, 1
    while divided(high * BLOCK, weights)[source] <= room:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if divided(middle * BLOCK, weights)[source] <= room else (low, middle)
    return low


def _within(left: Sequence[int | None], wanted: list[int], weights: Sequence[int]) -> list[int]:
    """The counts of a block in which sources reach their limits: the others share what those can't give."""
    size, open_weights = sum(wanted), list(weights)
    counts = list(wanted)
    while True:
        for number, room in enumerate(left):
            if room is not None and counts[number] >= room:
                counts[number], open_weights[number] = room, 0
        missing = size - sum(counts)
        if not missing or not any(open_weights):
            return counts
        counts = [a + b for a, b in zip(counts, divided(missing, open_weights), strict=True)]
