"""Where the driver of a Ray job and the workers of Ray Train meet: one small actor beside the driver.

The driver lays one life at a time on the desk. A group of workers takes it; a life is taken once, so a group that Ray
Train puts in the place of another gets the next life, never the same. Requests to stop travel from the driver to all
workers, and what became of each rank travels back. Workers wait here for word (one pending call each) instead of
asking again and again: a desk of a thousand ranks has nothing to do while they train.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LifeOrder:
    """What a group needs to know to begin a life."""

    name: str
    logs: str
    """The folder of the ranks' logs; the file `life` in it holds the life's name."""
    words: tuple[str, ...]
    """Added to the argv of each rank."""


@dataclass(frozen=True)
class End:
    """How a rank ended."""

    code: int
    """As of `subprocess`: negative, the signal that killed it."""
    mistake: str | None = None
    """The user's mistake that kept it from beginning."""


@dataclass
class Sight:
    """What the driver sees of the life that lies on the desk."""

    size: int = 0
    """Ranks of the group that has it; 0: nobody has it yet."""
    nodes: set[str] = field(default_factory=set)
    """Addresses of the nodes that its ranks are on."""
    ends: dict[int, End] = field(default_factory=dict)
    lost: str | None = None
    """Why the group is no more."""
    moving: str | None = None
    """Why its ranks were asked to save and stop, to go on elsewhere."""


class Desk:
    """The actor; its methods are for `ranks.py` (driver), `worker.py` (workers) and `train.py` (controller)."""

    def __init__(self) -> None:
        self._life: LifeOrder | None = None
        self._group: str | None = None  # that has the life
        self._newest: str | None = None  # that asked for one
        self._sight = Sight()
        self._orders: list[tuple[str, int]] = []
        self._leaving: set[str] = set()
        self._closed = False
        self._changed = asyncio.Event()

    async def begin(self, life: LifeOrder) -> None:
        """The driver begins a life; the one before is over."""
        self._life, self._group, self._sight, self._orders = life, None, Sight(), []
        self._tell()

    async def look(self) -> Sight:
        """What became of it so far."""
        return self._sight

    async def order(self, what: str, number: int = 0) -> None:
        """To all workers of the life: "signal" their rank with a number, or "end" it."""
        self._orders.append((what, number))
        self._tell()

    async def lose(self, why: str) -> None:
        """Ray Train has given the group up."""
        self._sight.lost = self._sight.lost or why
        self._tell()

    async def replace(self) -> None:
        """The newest group is replaced by another: what is left of it takes no life any more, and loses its own."""
        if self._newest:
            self._leaving.add(self._newest)
        if self._group is not None and not self._ended:
            await self.lose("a worker died, and Ray Train replaced the group")

    async def close(self) -> None:
        """There will be no further life: workers return."""
        self._closed = True
        self._tell()

    async def take(self, group: str, size: int) -> LifeOrder | str:
        """A group asks for its next life, and waits for it.

        Returns:
            The life; or "leave", where the group is to be replaced by another; or "over".
        """
        if self._newest not in (None, group):
            await self.replace()
        self._newest = group
        while not (self._closed or group in self._leaving or (self._life and self._group is None and not self._ended)):
            await self._wait()
        if self._closed:
            return "over"
        if group in self._leaving or self._life is None:
            return "leave"
        self._group, self._sight.size = group, size
        return self._life

    async def orders(self, life: str, node: str, seen: int) -> list[tuple[str, int]]:
        """Orders to a life after the first `seen`, as soon as there are any; an "end" where it is over.

        Args:
            node: the address of who asks.
        """
        if self._life and self._life.name == life:
            self._sight.nodes.add(node)
        while self._life and self._life.name == life and not self._closed and len(self._orders) <= seen:
            await self._wait()
        mine = self._life is not None and self._life.name == life and not self._closed
        return self._orders[seen:] if mine else [("end", 0)]

    async def ended(self, life: str, rank: int, end: End) -> None:
        """A worker's rank has ended."""
        if self._life and self._life.name == life:
            self._sight.ends[rank] = end
            self._tell()

    async def move(self, group: str | None, why: str, number: int, patience_s: float) -> bool:
        """A group is to go: its ranks are signalled to save and stop, and this returns when they have.

        Args:
            group: None: whichever has a life now.
            patience_s: returns after this long in any case.

        Returns:
            Whether nothing of it runs any more.
        """
        group = group or self._group
        if group is None or self._life is None:
            return True
        if group not in self._leaving:
            self._leaving.add(group)
            if group == self._group and not self._ended:
                self._sight.moving = why
                self._orders.append(("signal", number))
            self._tell()
        life = self._life
        deadline = asyncio.get_running_loop().time() + patience_s
        while self._life is life and self._group == group and not self._ended and not self._closed:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            await self._wait(left)
        return True

    @property
    def _ended(self) -> bool:
        return bool(self._sight.lost) or 0 < self._sight.size <= len(self._sight.ends)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, seconds: float | None = None) -> None:
        changed = self._changed  # of this moment: whatever happens after the caller's look wakes it
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), seconds)


def open_desk(ranks: int) -> Any:
    """The desk of this job, on this node; it ends with the process that calls. Its calls wait side by side."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here, max_concurrency=2 * ranks + 16).remote()
