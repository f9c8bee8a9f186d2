"""Finds a rank in which nothing moves any more, and ends it with its stacks in its log.

The loop says at the head of each phase which one begins: one assignment. A daemon thread sleeps until the phase in
hand would be older than `engine.timeout_s`; if it still is the same one by then, the stacks of all threads
go to the rank's log and the process ends with the code of a fault, without a collective: the supervisor sees it, ends
the others and starts anew. Process groups get `HEAD_START_S` more, or on a crowded machine their own timeout would
come first, which tells of one thread alone.

Code that holds Python's lock for ever would stop this thread too; behind it stands faulthandler's own timer, which
needs no lock, set anew whenever the thread wakes. A process that was stopped as a whole (SIGSTOP, a paused container)
is not hung: the thread notices that it overslept, and gives the phase its time anew; only a sleep of ten timeouts ends
it.
"""

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import NamedTuple

FAULT = 1
START_UP_S = 300.0  # least allowance before the first step: imports and first kernels take 5 to 20 s, a cold disk more
HEAD_START_S = 5.0
MAIN = threading.main_thread().ident
COLLECTIVES = "distributed_c10d.py"  # where a thread that waits for other ranks is found
WAITS = "it waits for the other ranks"


class Phase(NamedTuple):
    """What a rank is doing."""

    name: str
    since: float
    """Monotonic, in seconds."""
    at_least_s: float
    """It may take this long even where the timeout is shorter."""


_phase: Phase | None = None  # a process is one rank, so its phase is the module's


def enter(name: str, at_least_s: float = 0.0) -> None:
    """This rank does something else from now on, or gets on with what may take long without any collective.

    Only the main thread's word counts: what another thread does is no step forward.
    """
    global _phase
    if threading.get_ident() == MAIN:
        _phase = Phase(name, time.monotonic(), at_least_s)


def rest() -> None:
    """Nothing is watched until the next phase."""
    global _phase
    _phase = None


def watch(timeout_s: float) -> None:
    """Begin to watch this process: a phase older than `timeout_s` seconds ends it."""
    threading.Thread(target=_watch, args=(timeout_s,), name="watchdog", daemon=True).start()


def _watch(timeout_s: float) -> None:
    global _phase
    while True:
        phase, now = _phase, time.monotonic()
        allowed = max(timeout_s, phase.at_least_s) if phase else timeout_s
        left = allowed if phase is None else phase.since + allowed - now
        if left > 0:
            # Where the disk of the log is full there is nobody to tell.
            with suppress(OSError, ValueError, RuntimeError):
                faulthandler.dump_traceback_later(left + 10 * timeout_s, exit=True)
            asleep = min(left, timeout_s)  # no phase that begins meanwhile can be too old by then
            time.sleep(asleep)
            if phase is not None and time.monotonic() - now - asleep > timeout_s / 2 and _phase is phase:
                _phase = phase._replace(since=time.monotonic())
        elif phase is _phase and phase is not None:
            _end(phase, now - phase.since)


def _end(phase: Phase, seconds: float) -> None:
    """Say what is known, and end the process."""
    frames = sys._current_frames()
    message = f"nothing has moved for {seconds:.0f} s in {phase.name}: {_place(frames)}"
    with suppress(OSError, ValueError):
        tell_fault(message)
        faulthandler.dump_traceback(all_threads=True)
    os._exit(FAULT)


def _place(frames: dict[int, FrameType]) -> str:
    """What the rank is at: waiting for others, or in which function of which file."""
    for frame in frames.values():
        within: FrameType | None = frame
        while within is not None:
            if within.f_code.co_filename.endswith(COLLECTIVES):
                return WAITS
            within = within.f_back
    main = frames[MAIN or 0]
    return f"it is in {main.f_code.co_name} ({main.f_code.co_filename}:{main.f_lineno})"


def tell_fault(message: str) -> None:
    """Say in this rank's log why it ends and when, in the words that a supervisor looks for."""
    print(f"luban: fault at {time.time():.3f}: {message}", file=sys.stderr, flush=True)
