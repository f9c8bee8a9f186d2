"""How a long job says where it is: a bar with an ETA on a terminal, a line every few seconds in a log, or nothing."""

import sys
import time
from typing import Protocol


class Progress(Protocol):
    """What a job calls. Stages follow one another; each is begun, advanced and ended."""

    def begin(self, stage: str, total: int | None, unit: str) -> None:
        """A stage begins; `total` in `unit`s, none if it isn't known."""
        ...

    def advance(self, amount: int) -> None:
        """So many more units are done."""
        ...

    def end(self, note: str = "") -> None:
        """The stage is over; `note` says what came of it."""
        ...

    def say(self, line: str) -> None:
        """A remark outside any stage."""
        ...


class Silent:
    """Says nothing."""

    def begin(self, stage: str, total: int | None, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int) -> None:
        """Nothing."""

    def end(self, note: str = "") -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class Lines:
    """Plain lines on stderr: at each stage's end and at most every `every` seconds within."""

    def __init__(self, every: float = 10.0):
        self._every = every

    def begin(self, stage: str, total: int | None, unit: str) -> None:
        """Remember the stage; nothing is printed yet."""
        self._stage, self._total, self._unit, self._done = stage, total, unit, 0
        self._began = self._printed = time.monotonic()

    def advance(self, amount: int) -> None:
        """Print how far it is, if the last line is long ago."""
        self._done += amount
        now = time.monotonic()
        if now - self._printed < self._every:
            return
        self._printed = now
        line = f"{self._stage}: {self._done:,} {self._unit}"
        if self._total and self._done:
            left = (now - self._began) * max(0, self._total - self._done) / self._done
            line += f" of {self._total:,}, {left:.0f} s left"
        self.say(line)

    def end(self, note: str = "") -> None:
        """Print what came of the stage and how long it took."""
        took = time.monotonic() - self._began
        self.say(f"{self._stage}: {note or f'{self._done:,} {self._unit}'} ({took:.1f} s)")

    def say(self, line: str) -> None:
        """Print the line."""
        print(line, file=sys.stderr, flush=True)


class Bars:
    """A rich progress bar on stderr for the stage under way, a line for each that is over."""

    def begin(self, stage: str, total: int | None, unit: str) -> None:
        """Show a bar."""
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        self._stage, self._began = stage, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bar = Rich(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(stage, total=total)
        self._bar.start()

    def advance(self, amount: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, amount)

    def end(self, note: str = "") -> None:
        """Take the bar away and leave a line."""
        self._bar.stop()
        self.say(f"{self._stage}: {note or 'done'} ({time.monotonic() - self._began:.1f} s)")

    def say(self, line: str) -> None:
        """Print the line."""
        print(line, file=sys.stderr, flush=True)


def for_this_stream() -> Progress:
    """Bars if stderr is a terminal, else lines."""
    return Bars() if sys.stderr.isatty() else Lines()
