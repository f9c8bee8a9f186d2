"""What asks a rank to stop: TERM, INT and USR1; on rank 0 also the time budget and `luban stop`.

Asking is not stopping: the loop agrees on it with the other ranks in the step's own agreement, saves, and ends. A
second signal ends the process at once: a checkpoint that was being written never gets its manifest, so nothing on the
disk is damaged.

`luban stop` leaves a file beside the attempt that it means, `attempts/0003.stop`, which no other attempt heeds. Rank 0
looks for it once a second at most: 26 us on a crowded machine, and 0.3 us for a step that need not look.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

ASK = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LOOK_S = 1.0


class Stop:
    """Whether this rank has been asked to stop, and by what; made first of all, because its clock is the process's."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._signalled = False
        self._began, self._looked = time.monotonic(), 0.0
        self._look: Callable[[], str | None] | None = None
        for number in ASK:
            signal.signal(number, self._ask)

    def heed(self, run: Path, attempt: Callable[[], int], minutes: float, spent_s: float = 0.0) -> None:
        """From now on mind the time budget and `luban stop`, too; for rank 0, whose word the others take.

        Args:
            attempt: the number of the attempt at this moment; requests for those it had since now count as well.
            minutes: the budget of one start of the run; 0: none.
            spent_s: what earlier lives of the same start have used of it, in seconds.
        """
        first, deadline = attempt(), self._began + 60 * minutes - spent_s

        def look() -> str | None:
            if minutes and time.monotonic() >= deadline:
                return f"the time budget of {minutes:g} minute{'s' * (minutes != 1)}"
            return "luban stop" if requested(run, first, attempt()) else None

        self._look = look

    @property
    def asked(self) -> bool:
        """Something has asked for a stop."""
        if self.reason is None and self._look is not None and time.monotonic() - self._looked >= LOOK_S:
            self.reason = self._look()
            self._looked = time.monotonic()
        return self.reason is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            os._exit(128 + number)
        self._signalled = True
        self.reason = self.reason or signal.Signals(number).name


def request(run: Path, attempt: int) -> None:
    """Ask an attempt to stop."""
    _request(run, attempt).touch()


def requested(run: Path, first: int, last: int) -> bool:
    """Whether any of the attempts `first` to `last` has been asked to stop."""
    return any(_request(run, number).exists() for number in range(first, last + 1))


def forget_requests(run: Path, begun: int) -> None:
    """Remove requests meant for attempts after `begun`, the newest there is: whoever was to begin them never did."""
    for path in (run / "attempts").glob("*.stop"):
        if path.stem.isdigit() and int(path.stem) > begun:
            path.unlink(missing_ok=True)


def _request(run: Path, attempt: int) -> Path:
    return run / "attempts" / f"{attempt:04d}.stop"
