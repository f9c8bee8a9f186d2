"""The order of samples: position -> row and back, as a pure function.

`position` counts rows over the whole run: 0, 1, 2 ... A row is where its tokens lie: (source, epoch, shard, row in the
shard). The function depends on the shards' row counts, the stages and the seed, and on nothing that happens while
training, so the state of the data is one integer, equal on every rank, and any number of ranks reads the same sequence.

    position -> stage -> lane, row of the lane -> (`mixture.py`) source, row of the source -> (`walk.py`) shard, row

A run goes through stages. In each, position p belongs to lane p mod lanes, each lane mixes the sources by weight in
exact counts, and each source is read lane by lane, epoch after epoch, shuffled in windows of shards. A stage begins
where the one before left each source, so appending one moves no earlier position. In another row length, or window, a
source goes on at its next window, so that no token comes twice in an epoch.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np

from data.errors import UserError
from data.order.layout import Layout
from data.order.mixture import BLOCK, Mixture
from data.order.permutation import key
from data.order.walk import Walk, Window

FORMAT, VERSION = "luban-order", 2
SOURCE, MIX = 4, 5  # what a key is for


@dataclass(frozen=True)
class Source:
    """A dataset's split, as stages name it."""

    name: str
    fingerprint: str
    """Digest of its shards: with the seed it keys their shuffle."""
    max_epochs: float | None = None
    """How often it is read at most, over the whole run; None: without end."""


@dataclass(frozen=True)
class Stage:
    """A stretch of the run, up to the start of the next stage."""

    start: int
    """Its first position."""
    weights: Mapping[str, float]
    """Of its sources, each above 0; only their proportions matter."""
    layouts: Mapping[str, Layout]
    """How each of them becomes rows."""
    window: int
    """Shards of a source that are shuffled together."""


@dataclass(frozen=True)
class Places:
    """Where rows lie: equally long int64 arrays, one entry a row."""

    epoch: np.ndarray
    """Of the source, in the row's lane."""
    shard: np.ndarray
    row: np.ndarray
    start: np.ndarray
    """First token in the shard; for rows that are documents or of a plan, its number."""
    source: np.ndarray
    """Number of the source in `Order.sources`."""
    walk: np.ndarray
    """Number of the walk in `Order.walks`, whose layout says how long the row is."""


@dataclass(frozen=True)
class _Part:
    """What a stage reads of one source."""

    walk: int
    first: np.ndarray
    """Number of each lane's first row (int64)."""


@dataclass(frozen=True)
class _Run:
    """A stage with all that is known before its first row."""

    stage: Stage
    stop: int | None
    """Where the next one starts."""
    parts: tuple[_Part, ...]
    mixture: Mixture
    unread: tuple[int, ...]
    """Rows, as they were, that each part's source leaves unread because the row length or window changes here."""


class Order:
    """position -> row and back. Immutable; safe to share between threads."""

    def __init__(self, layout: Layout, seed: int, window: int, lanes: int = 1):
        """One source in one stage."""
        stage = Stage(0, {"data": 1.0}, {"data": layout}, window)
        self._plan((Source("data", layout.fingerprint),), (stage,), seed, lanes)

    @classmethod
    def staged(cls, sources: Sequence[Source], stages: Sequence[Stage], seed: int, lanes: int = 1) -> "Order":
        """Any number of sources and stages; the first stage starts at 0.

        Raises:
            UserError: stages that don't ascend or don't start at a whole round of the lanes, sources that end before
                the next stage, a lane without a row.
        """
        order = cls.__new__(cls)
        order._plan(tuple(sources), tuple(stages), seed, lanes)
        return order

    def _plan(self, sources: tuple[Source, ...], stages: tuple[Stage, ...], seed: int, lanes: int) -> None:
        self.sources, self.stages, self.seed, self.lanes = sources, stages, seed, lanes
        self.end: int | None = None
        """One past the last position, where every source has been read as often as it may; None: there is none."""
        _check(stages, lanes)
        numbers = {source.name: number for number, source in enumerate(sources)}
        stands: dict[str, tuple[int, np.ndarray]] = {}  # walk and next row of each lane, of the sources begun
        known: dict[tuple[str, int, Layout], int] = {}
        walks: list[Walk] = []
        runs = []
        for at, stage in enumerate(stages):
            stop = stages[at + 1].start if at + 1 < len(stages) else None
            parts, unread, limits = [], [], []
            inside = sorted(stage.weights, key=lambda name: sources[numbers[name]].fingerprint)
            for name in inside:
                layout, number = stage.layouts[name], numbers[name]
                source = sources[number]
                identity = (name, stage.window, layout)
                if identity not in known:
                    secret = key(seed, SOURCE, _word(source.fingerprint))
                    known[identity] = len(walks)
                    walks.append(Walk(name, number, layout, stage.window, secret, lanes))
                walk = known[identity]
                before, first = stands.get(name, (walk, np.zeros(lanes, np.int64)))
                left = 0
                if before != walk:
                    first, left = walks[walk].go_on(walks[before], first)
                parts.append(_Part(walk, first))
                unread.append(left)
                limits.append(_limit(source, walks[walk], first))
            mixture = Mixture([stage.weights[name] for name in inside], limits, key(seed, MIX, at), lanes)
            ends = None if mixture.end is None else stage.start + mixture.end * lanes
            if stop is not None and ends is not None and ends < stop:
                raise UserError(
                    f"the sources of the stage from {stage.start:,} ({', '.join(sorted(stage.weights))}) are read as "
                    f"often as their max_epochs let them at position {ends:,}, before the next stage at {stop:,}: "
                    "raise max_epochs, add a source, or let the next stage start earlier"
                )
            runs.append(_Run(stage, stop, tuple(parts), mixture, tuple(unread)))
            if stop is None:
                self.end = ends
                break
            held = [mixture.counts(lane, (stop - stage.start) // lanes) for lane in range(lanes)]
            for part, counts in zip(parts, np.array(held, np.int64).T, strict=True):
                stands[walks[part.walk].name] = (part.walk, part.first + counts)
        self.walks = tuple(walks)
        """Each source in each of its row lengths and windows."""
        self._runs = tuple(runs)
        self._starts = np.array([stage.start for stage in stages], np.int64)
        self._sources = np.array([walk.source for walk in self.walks], np.int64)

    @property
    def layout(self) -> Layout:
        """How the first source becomes rows, at first."""
        return self.walks[0].layout

    @property
    def rows_per_epoch(self) -> int:
        """Rows of one epoch of all sources, each as it is first read."""
        first = {walk.source: walk.layout.total for walk in reversed(self.walks)}
        return sum(first.values())

    @property
    def fingerprint(self) -> str:
        """Digest of all sources' shards; of one source, its own."""
        said = sorted(source.fingerprint for source in self.sources)
        return said[0] if len(said) == 1 else hashlib.sha256(" ".join(said).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What fixes the order, for a checkpoint; `departure.py` tells whether a run may go on with another."""
        capped = {source.name: source.max_epochs for source in self.sources}
        return {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "lanes": self.lanes,
            "block": BLOCK,
            "stages": [
                {
                    "start": stage.start,
                    "window": stage.window,
                    "sources": {
                        name: {
                            "weight": stage.weights[name],
                            "max_epochs": capped[name],
                            "shards": self.sources[[source.name for source in self.sources].index(name)].fingerprint,
                            **stage.layouts[name].describe(),
                        }
                        for name in sorted(stage.weights)
                    },
                }
                for stage in self.stages
            ],
        }

    def stage(self, position: int) -> Stage:
        """The one that a position belongs to."""
        return self.stages[int(np.searchsorted(self._starts, position, side="right")) - 1]

    def places(self, positions: np.ndarray) -> Places:
        """Where the rows at `positions` (int64, each >= 0) lie.

        Raises:
            UserError: a position behind the `end`.
        """
        if self.end is not None and positions.size and int(positions.max()) >= self.end:
            raise UserError(
                f"position {int(positions.max()):,} is asked for, and at {self.end:,} every source has been read as "
                "often as its max_epochs lets it: raise max_epochs, or append a stage with another source"
            )
        walk, epoch, shard, row, start = (np.empty(positions.shape, np.int64) for _ in range(5))
        for walking, here, lane, number in self._numbers(positions):
            walk[here] = walking
            epoch[here], shard[here], row[here], start[here] = self.walks[walking].locate(lane, number)
        return Places(epoch, shard, row, start, self._sources[walk], walk)

    def positions(
        self, epoch: int | np.ndarray, shard: np.ndarray, row: np.ndarray, walk: int = 0, stop: int | None = None
    ) -> np.ndarray:
        """The inverse: at which position the given rows of the given shards (int64 arrays) are read in an epoch.

        Args:
            walk: the number of the walk that the shards and rows are of.
            stop: positions from here on don't count.

        Returns:
            int64; -1 for a row that isn't read in that epoch.
        """
        walking = self.walks[walk]
        numbers = walking.numbers(np.broadcast_to(epoch, shard.shape), shard, row)
        out = np.full(shard.shape, -1, np.int64)
        for run in self._runs:
            if stop is not None and run.stage.start >= stop:
                break
            for place, part in enumerate(run.parts):
                if part.walk != walk:
                    continue
                for slot, (number, lane) in enumerate(
                    zip(numbers.tolist(), (shard % self.lanes).tolist(), strict=True)
                ):
                    found = self._position(run, place, lane, number - int(part.first[lane]))
                    if found is not None and (stop is None or found < stop):
                        out[slot] = found
        return out

    def epochs(self, walk: int, shard: int, stop: int) -> range:
        """The epochs in which rows of a shard may be read in a walk before position `stop`."""
        lane = shard % self.lanes
        touched = []
        for run in self._runs:
            rows = self._lane_rows(run, lane, stop)
            for place, part in enumerate(run.parts):
                count = run.mixture.counts(lane, rows)[place] if part.walk == walk and rows > 0 else 0
                if count:
                    first, each = int(part.first[lane]), int(self.walks[walk].rows[lane])
                    touched += [first // each, (first + count - 1) // each]
        return range(min(touched), max(touched) + 1) if touched else range(0)

    def windows(self, start: int, stop: int, lanes: Collection[int] | None = None) -> Iterator[Window]:
        """The windows that positions [start, stop) need, in the order of the first position that needs them.

        For read-ahead: it costs some 0.2 ms a window, however many rows that has.

        Args:
            lanes: only of these; None: of all.
        """
        stop = stop if self.end is None else min(stop, self.end)
        for run in self._runs:
            low = max(start, run.stage.start)
            high = stop if run.stop is None else min(stop, run.stop)
            if low >= high:
                continue
            waiting: list[tuple[int, int, int, int]] = []  # position, lane, part, number of the row
            for lane in range(self.lanes) if lanes is None else lanes:
                row = max(0, -(-(low - run.stage.start - lane) // self.lanes))
                for place, (part, had) in enumerate(zip(run.parts, run.mixture.counts(lane, row), strict=True)):
                    self._await(waiting, run, place, lane, int(part.first[lane]) + had, high)
            while waiting:
                position, lane, place, number = heappop(waiting)
                walk = self.walks[run.parts[place].walk]
                epoch, window, shards, behind = walk.window_at(lane, number)
                yield Window(walk.source, lane, epoch, window, shards, position)
                self._await(waiting, run, place, lane, behind, high)

    def unread(self) -> int:
        """Tokens that one epoch leaves out, as labels; other epochs leave out others. Of all walks together."""
        return sum(walk.unread() for walk in self.walks)

    def read(self, stop: int) -> dict[str, float]:
        """How many epochs of each source positions [0, stop) hold, by name; over all lanes."""
        read = dict.fromkeys((source.name for source in self.sources), 0.0)
        for run in self._runs:
            counts = [
                run.mixture.counts(lane, rows)
                for lane in range(self.lanes)
                if (rows := self._lane_rows(run, lane, stop)) > 0
            ]
            for part, each in zip(run.parts, zip(*counts, strict=True), strict=False):
                walk = self.walks[part.walk]
                read[walk.name] += sum(each) / walk.layout.total
        return read

    def notes(self, stop: int) -> list[str]:
        """What a run of positions [0, stop) should be told beforehand: where sources end, and what stays unread."""
        said = []
        for run in self._runs:
            if run.stage.start >= stop:
                break
            for row, place in run.mixture.limited:
                position = run.stage.start + row * self.lanes
                if position < (stop if run.stop is None else min(stop, run.stop)):
                    walk = self.walks[run.parts[place].walk]
                    said.append(
                        f"source {walk.name} reaches its max_epochs {self.sources[walk.source].max_epochs:g} within "
                        f"the {BLOCK * self.lanes:,} rows from position {position:,}; the others share its weight then"
                    )
            said += [
                f"source {self.walks[part.walk].name} has another row length or window from position "
                f"{run.stage.start:,}: it goes on with its next window, and {left:,} rows of the one begun stay "
                "unread in that epoch"
                for part, left in zip(run.parts, run.unread, strict=True)
                if left
            ]
        return said

    def _numbers(self, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """(walk, which of the positions, their lanes, the numbers of their rows in the lanes)."""
        stages = np.searchsorted(self._starts, positions, side="right") - 1
        for at in np.unique(stages).tolist():
            here, run = np.flatnonzero(stages == at), self._runs[at]
            row, lane = np.divmod(positions[here] - run.stage.start, self.lanes)
            which, number = run.mixture.resolve(lane, row)
            for place, part in enumerate(run.parts):
                mine = np.flatnonzero(which == place) if len(run.parts) > 1 else slice(None)
                if here[mine].size:
                    yield part.walk, here[mine], lane[mine], number[mine] + part.first[lane[mine]]

    def _position(self, run: _Run, place: int, lane: int, number: int) -> int | None:
        """Where a stage reads the row of that number, counted from the first of the stage; None: nowhere."""
        row = run.mixture.row(lane, place, number)
        if row is None:
            return None
        position = run.stage.start + row * self.lanes + lane
        return position if run.stop is None or position < run.stop else None

    def _lane_rows(self, run: _Run, lane: int, stop: int) -> int:
        """Rows of a lane that a stage reads before position `stop`."""
        stop = stop if run.stop is None else min(stop, run.stop)
        return max(0, -(-(stop - run.stage.start - lane) // self.lanes))

    def _await(self, waiting: list[tuple[int, int, int, int]], run: _Run, place: int, lane: int, number: int,
               stop: int) -> None:  # fmt: skip
        position = self._position(run, place, lane, number - int(run.parts[place].first[lane]))
        if position is not None and position < stop:
            heappush(waiting, (position, lane, place, number))


def _check(stages: Sequence[Stage], lanes: int) -> None:
    starts = [stage.start for stage in stages]
    if not starts or starts[0] != 0 or starts != sorted(set(starts)):
        raise UserError(f"stages start at {starts}: the first must start at 0, and each later than the one before")
    for start in starts:
        if start % lanes:
            raise UserError(
                f"a stage starts at position {start}, in the middle of a round of the {lanes} lanes (data.lanes): "
                f"take {start // lanes * lanes} or {-(-start // lanes) * lanes}"
            )


def _limit(source: Source, walk: Walk, first: np.ndarray) -> int | None:
    """Rows that a lane may still read of a source: as many as the lane with the fewest."""
    if source.max_epochs is None:
        return None
    return max(0, int(np.min(np.floor(source.max_epochs * walk.rows).astype(np.int64) - first)))


def _word(fingerprint: str) -> int:
    return int.from_bytes(hashlib.sha256(fingerprint.encode()).digest()[:8], "little")
