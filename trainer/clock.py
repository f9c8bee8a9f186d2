"""One rank's stopwatch, which is always in exactly one category: so its seconds add up to the time that passed.

It counts from the start of the process, not from its own making: importing torch and DeepSpeed takes longer than most
of what follows, and a figure that leaves it out flatters. The kernel says when the process began, on the clock that
also measures everything here, CLOCK_BOOTTIME: it never jumps, and it counts a suspended machine. Nanoseconds are
integers, so nothing is lost to rounding either. Measured: 0.5 µs a switch, 2 µs a
`with clock.of(...)`; a step has one of these.

What a rank waits for inside a collective is compute here: a clock sees its own rank. A switch belongs to the thread
that trains; a thread that writes a checkpoint in the background stalls nothing, and must not touch it.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CATEGORIES = ("start_up", "compute", "data_wait", "checkpoint", "evaluation", "shutdown")


def boot_ns() -> int:
    """Nanoseconds since the machine's boot, suspended ones included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def process_start_ns() -> int:
    """When this process was started, in nanoseconds since the boot; the kernel rounds down to 10 ms (proc_pid_stat(5),
    field 22)."""
    after_name = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return int(after_name[19]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Clock:
    """The seconds of one rank by category. It begins in "start_up"."""

    def __init__(self, now: Callable[[], int] = boot_ns, began: int | None = None):
        """
        Args:
            now: nanoseconds, never going back.
            began: when the first second counts, by `now`; None: the start of this process.
        """
        self._now = now
        self._since = min(process_start_ns() if began is None else began, now())
        self._spent: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self._before = dict(self._spent)
        self.category: str = CATEGORIES[0]
        self.began = time.time() - (now() - self._since) / 1e9
        """Unix time of the attempt's first second."""

    def enter(self, category: str) -> None:
        """From now on the time is this category's. Raises ValueError for one that doesn't exist."""
        if category not in self._spent:
            raise ValueError(f"{category!r} is no category of the clock: it has {', '.join(CATEGORIES)}")
        now = self._now()
        self._spent[self.category] += now - self._since
        self.category, self._since = category, now

    @contextmanager
    def of(self, category: str) -> Iterator[None]:
        """Inside the `with` the time is this category's; after it, that of the category before."""
        outer = self.category
        self.enter(category)
        try:
            yield
        finally:
            self.enter(outer)

    def seconds(self) -> dict[str, float]:
        """Seconds of this attempt up to now, by category."""
        self.enter(self.category)
        return {name: (spent - self._before[name]) / 1e9 for name, spent in self._spent.items()}

    def running(self, *categories: str) -> float:
        """Seconds of these categories, or of all, over all attempts of this process: it never goes back."""
        self.enter(self.category)
        return sum(self._spent[name] for name in categories or CATEGORIES) / 1e9

    def restart(self) -> None:
        """A new attempt begins in this process, here and in "start_up": what was before is not its own."""
        self.enter(CATEGORIES[0])
        self._before = dict(self._spent)
        self.began = time.time()
