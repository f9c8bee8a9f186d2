"""Trying again: a network or a server that fails for a moment costs a wait, one that fails for good is named.

Exponential back-off with full-range jitter (so that a thousand readers whom one server dropped don't all come back at
once: Brooker 2015), bounded tries, every failed one said. What can't get better by waiting isn't tried again.
"""

import random
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from data.errors import UserError

T = TypeVar("T")
LONGEST_WAIT_S = 30.0
_dice = random.Random()  # its own: a retry must not move anybody else's random numbers


class Unreachable(OSError):
    """A file that couldn't be fetched for now: a server's or a network's fault, which a later start may not meet."""


class Damaged(UserError):
    """A file that isn't the one that was written: cut short, swapped or changed. Waiting doesn't mend it."""


class Stopped(Exception):
    """Nobody waits for the result any more."""


@dataclass(frozen=True)
class Patience:
    """How long a fetch is waited for, and how often it is tried."""

    tries: int = 6
    timeout_s: float = 60.0
    """Without a byte for so long, a connection counts as dead."""
    backoff_s: float = 0.5
    """The mean of the first wait; each next one is twice as long, up to 30 s."""

    def insist(
        self,
        what: str,
        attempt: Callable[[int], T],
        stop: threading.Event | None = None,
        say: Callable[[str], None] | None = None,
    ) -> T:
        """`attempt(n)` for n = 1, 2 ... until it returns.

        Args:
            what: names the file and where it is from, without secrets.
            stop: when set, no further try is made.
            say: told of every failed try; default: stderr.

        Raises:
            Unreachable: the last try failed; names the number of tries.
            Stopped: `stop` was set.
            UserError: from `attempt`, at once; of `Damaged`, at the second time in a row.
        """
        damaged, problem = 0, ""
        for number in range(1, self.tries + 1):
            if stop is not None and stop.is_set():
                raise Stopped(what)
            try:
                return attempt(number)
            except Damaged as error:
                damaged += 1
                if damaged > 1 or number == self.tries:
                    raise
                problem = str(error)
            except OSError as error:
                damaged = 0
                problem = str(error) or type(error).__name__
            if number == self.tries:
                break
            wait = min(LONGEST_WAIT_S, self.backoff_s * 2 ** (number - 1)) * _dice.uniform(0.5, 1.5)
            (say or to_stderr)(f"{what}: {problem}; try {number + 1} of {self.tries} in {wait:.1f} s")
            if (stop or threading.Event()).wait(wait):
                raise Stopped(what)
        raise Unreachable(f"{what}: {problem} (tried {self.tries} times)")


def to_stderr(text: str) -> None:
    """Say something in a rank's log, or on the terminal."""
    with suppress(OSError):  # a log's full disk must not end the reading
        print(f"luban: {text}", file=sys.stderr, flush=True)
