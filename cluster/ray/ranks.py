"""The ranks of one life at a time on Ray, as the supervisor in the driver sees them: over the desk."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from cluster import fate
from cluster.job import USER_ERROR, Job
from cluster.ray.desk import End, LifeOrder, Sight, open_desk
from cluster.supervisor import Life
from trainer.signals import requested

LOOK_S = 0.2
TELL_S = 60.0  # between two lines about a life that waits for room
LEAVE_S = 20.0  # what Ray Train gets to end its workers well; what is left goes with the driver
NO_ROOM = "there was no room for its ranks yet"
END_S = 20.0  # workers that have not ended their ranks by then are taken for lost
logger = logging.getLogger(__name__)


class RayRanks:
    """Lives of a job in workers of Ray Train. A controller that dies is replaced with the next life."""

    def __init__(self, job: Job, say: Callable[[str], None]):
        """
        Args:
            say: takes a line for the person, while a life waits for room.
        """
        self._job, self._say = job, say
        self._desk = open_desk(job.ranks)
        self._life: Life | None = None
        self._sight, self._looked = Sight(), 0.0
        self._fit: threading.Thread | None = None
        self._fallen: str | None = None
        self._ended, self._tell_at = True, 0.0

    def start(self, life: Life) -> None:
        """Lay the life on the desk; workers take it as soon as there are enough."""
        import ray

        (life.logs / "life").write_text(life.name)
        order = LifeOrder(life.name, str(life.logs.absolute()), life.words)
        ray.get(self._desk.begin.remote(order))
        self._life, self._fallen, self._ended = life, None, False
        self._tell_at = time.monotonic() + TELL_S
        self._look(now=True)
        if self._fit is None or not self._fit.is_alive():
            self._fit = threading.Thread(target=self._run, name="ray-train", daemon=True)
            self._fit.start()

    def running(self) -> bool:
        """Whether the life goes on; also while it waits for room."""
        sight = self._look()
        if self._ended or sight.lost or (sight.size and len(sight.ends) == sight.size):
            return False
        if not sight.size and self._life and requested(self._job.run, self._life.first, self._life.first):
            self._give_up(NO_ROOM)  # none is there to heed the request
            return False
        if not sight.size and time.monotonic() > self._tell_at:
            self._tell_at = time.monotonic() + TELL_S
            self._say(f"waiting for room for {self._job.min_ranks} ranks")
        return True

    def ending(self) -> bool:
        """Whether any of them has ended."""
        return bool(self._look().ends) or not self.running()

    def fallen(self) -> str | None:
        """Who fell first and why: a node or a worker, else a rank, whose log tells."""
        sight = self._look()
        if sight.lost and not self._ended:
            gone = sorted(sight.nodes - _addresses())
            return f"{'node ' + ', '.join(gone) + ' is gone: ' if gone else ''}{sight.lost}"
        if self._fallen is None and self._life and any(end.code for end in sight.ends.values()):
            ranks = [_Rank(sight.ends.get(rank)) for rank in range(sight.size)]
            rank, what = fate.cause(ranks, self._life.logs)
            self._fallen = f"rank {rank} {what} (see {self._life.logs / f'rank-{rank}.log'})"
        return self._fallen

    def mistake(self) -> str | None:
        """The user's mistake that one of them ended with."""
        for rank, end in sorted(self._look().ends.items()):
            if end.code == USER_ERROR and self._life:
                log = self._life.logs / f"rank-{rank}.log"
                return end.mistake or fate.mistake(log) or f"see {log}"
        return None

    def moved(self) -> str | None:
        """Why Ray had them save and stop: a node goes, or another came."""
        return self._look(now=True).moving

    def unmeant(self, message: str) -> str | None:
        """Never: Ray sends a rank nothing; what stops one came from its driver, or from somebody who meant it."""
        return None

    def signal(self, number: int) -> None:
        """Send it to all of them; where none has begun there is nothing to wait for."""
        if self._life and not self._ended:
            if not self._look(now=True).size:
                self._give_up(NO_ROOM)
            self._call("order", "signal", int(signal.SIGTERM if number == signal.SIGHUP else number))

    def stacks(self) -> list[str]:
        """Have those that are left write their stacks."""
        sight = self._look(now=True)
        left = [rank for rank in range(sight.size) if rank not in sight.ends]
        if not left or self._life is None:
            return []
        self._call("order", "signal", int(signal.SIGUSR2))
        time.sleep(fate.STACKS_S)
        return [f"rank {rank} was still there: its stacks are in {self._life.logs}/rank-{rank}.log" for rank in left]

    def end(self) -> None:
        """Kill those that are left."""
        if self._ended or self._life is None:
            return
        self._call("order", "end")
        deadline = time.monotonic() + END_S
        while self.running() and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        if self.running():
            self._give_up("its workers do not answer")

    def close(self) -> None:
        """There will be no further life: Ray Train ends its workers."""
        began = self._look(now=True).size
        self._call("close")
        if self._fit and began:  # workers that wait for room hear of nothing
            self._fit.join(LEAVE_S)

    def _give_up(self, why: str) -> None:
        self._ended = True
        self._fallen = self._fallen or why
        self._call("lose", why)

    def _look(self, now: bool = False) -> Sight:
        if now or time.monotonic() - self._looked >= LOOK_S / 2:
            self._sight = self._call("look")
            self._looked = time.monotonic()
        return self._sight

    def _call(self, method: str, *words: Any) -> Any:
        import ray

        return ray.get(getattr(self._desk, method).remote(*words))

    def _run(self) -> None:
        """Ray Train, in a thread of its own; its end is the end of the life that it had."""
        from cluster.ray.train import fitting

        try:
            fitting(self._job, self._desk)()
            why = "Ray Train ended its workers"
        except Exception as error:
            first = str(error).strip().splitlines()[:1]
            why = f"Ray Train failed: {type(error).__name__}{': ' + first[0] if first else ''}"
            logger.warning("Ray Train failed", exc_info=True)
        try:
            self._call("lose", why)
        except Exception:
            logger.debug("the desk is gone, and the job with it", exc_info=True)


def _addresses() -> set[str]:
    """Of the nodes that are there."""
    import ray

    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


class _Rank:
    """A rank as `fate` asks about it; its process is on another machine."""

    pid = 0

    def __init__(self, end: End | None):
        self._end = end

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._end.code if self._end else None
