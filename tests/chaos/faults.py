"""The faults: a crash, a loss of power, a disk that is full or broken, a stop."""

import errno
import os
import re
import signal
from pathlib import Path

from tests.chaos.gate import GROWS, Call, Fault
from tests.chaos.power import Platter

KILLED = 9  # exit code of a child that a fault has ended
FIRED = "fired"  # a file beside the run: the fault has struck, and where


class Once(Fault):
    """A fault at call number `at`, or at the first call after it that it can strike."""

    def __init__(self, home: Path, at: int):
        self.home, self.at, self.fired = home, at, False

    def fire(self, call: Call) -> None:
        """Leave word of having struck, and of the newest checkpoint that the record says was saved."""
        self.fired = True
        saved = [0]
        for path in (self.home / "run" / "attempts").glob("*.jsonl"):
            saved += [int(step) for step in re.findall(rb'{"event": "checkpoint", "step": (\d+)', path.read_bytes())]
        handle = os.open(self.home.with_suffix(f".{FIRED}"), os.O_WRONLY | os.O_CREAT)
        os.write(handle, f"{max(saved)} {call.number} {call}".encode())
        os.close(handle)


class Crash(Once):
    """The process is gone, before a call; with `torn`, in the middle of a write."""

    def __init__(self, home: Path, at: int, torn: bool = False):
        super().__init__(home, at)
        self.torn = torn

    def before(self, call: Call) -> None:
        if call.number >= self.at and not self.torn:
            self.fire(call)
            self.end()

    def some(self, call: Call, size: int) -> int:
        self.fired = self.torn and call.number >= self.at
        return size // 2 if self.fired else size

    def after(self, call: Call) -> None:
        if self.fired:
            self.fire(call)
            self.end()

    def end(self) -> None:
        """The last moment."""
        os._exit(KILLED)


class PowerLoss(Once):
    """The machine is gone, after a call, with what was not flushed; see `power.py` for the seed."""

    alone = True

    def __init__(self, home: Path, at: int, seed: int | None):
        super().__init__(home, at)
        self.seed, self.platter = seed, Platter(home)

    def after(self, call: Call) -> None:
        if self.fired:
            return  # it is the folder being put back
        self.platter.after(call)
        if call.number >= self.at:
            self.fire(call)
            self.platter.lose_power(self.seed)
            os._exit(KILLED)


class Full(Once):
    """No space left: at one call that would take some, or from there on."""

    def __init__(self, home: Path, at: int, for_ever: bool):
        super().__init__(home, at)
        self.for_ever = for_ever

    def before(self, call: Call) -> None:
        if call.name in GROWS and call.number >= self.at and (self.for_ever or not self.fired):
            if call.name == "open" and not call.creates:
                return
            self.fire(call)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(call.path))


class Short(Once):
    """One write takes half of its bytes, and says so."""

    def some(self, call: Call, size: int) -> int:
        if call.number < self.at or self.fired or size < 2:
            return size
        self.fire(call)
        return size // 2


class Broken(Once):
    """One fsync fails: the disk is at its end."""

    def before(self, call: Call) -> None:
        if call.name == "fsync" and call.number >= self.at and not self.fired:
            self.fire(call)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(call.path))


class Sleep(Once):
    """The whole process stops before a call, until somebody wakes it."""

    looks = True

    def before(self, call: Call) -> None:
        if call.number >= self.at and not self.fired:
            self.fire(call)
            os.kill(os.getpid(), signal.SIGSTOP)
