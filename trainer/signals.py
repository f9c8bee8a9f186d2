"""TERM, INT and USR1 ask for a stop; the loop agrees on it with the other ranks, saves, and ends.

A second signal ends the process at once: a checkpoint that was being written never gets its manifest, so nothing on
the disk is damaged.
"""

import os
import signal
from types import FrameType

ASK = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
    """Whether this rank has been asked to stop, and by what."""

    def __init__(self) -> None:
        self.reason: str | None = None
        for number in ASK:
            signal.signal(number, self._ask)

    @property
    def asked(self) -> bool:
        """A signal has come."""
        return self.reason is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            os._exit(128 + number)
        self.reason = signal.Signals(number).name
