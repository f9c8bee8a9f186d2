"""Who fell first in a life that ended by a fault, and why: what a supervisor alone can tell.

When one rank falls, the others fall over it: within milliseconds they lose their connection, and what rank 0 then
writes of itself ("Connection closed by peer") hides the cause. So the supervisor judges, in this order: a rank that a
signal killed; a rank that a signal stopped, for which the others waited in vain; the rank that was first to say what
was wrong in its log, where one that was waiting for others comes last. The judgement becomes the attempt's outcome.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from trainer import jsonl
from trainer.watchdog import WAITS

STACKS_S = 1.0  # to write the stacks of all threads takes a rank some milliseconds
SAID = re.compile(r"^luban: fault at ([\d.]+): (.*)$", re.MULTILINE)
MISTAKE = "luban: error: "  # what a rank's log says before a user's mistake
STILL = {"T": "is stopped by a signal (state T; kill -CONT would wake it)", "t": "is held by a debugger (state t)"}

Ranks = Sequence[subprocess.Popen[bytes]]


class Rank(Protocol):
    """What is asked of a rank that may be on another machine."""

    pid: int
    """0 where it is."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        ...


def cause(ranks: Sequence[Rank], logs: Path) -> tuple[int, str]:
    """(rank, what became of it) of the rank that fell first; to be asked as soon as one has ended with an error."""
    codes = [rank.poll() or 0 for rank in ranks]
    for number, code in enumerate(codes):
        if code < 0:
            return number, f"was killed by {signal.Signals(-code).name}"
    said = [
        (message, float(at), number) for number, code in enumerate(codes) if code for at, message in _said(logs, number)
    ]
    for number, rank in enumerate(ranks):
        if rank.poll() is None and (still := STILL.get(_state(rank.pid))):
            others = "".join(f"; rank {other}: {message}" for message, _, other in said[:1])
            return number, still + others
    if said:
        message, _, number = min(said, key=lambda entry: (WAITS in entry[0], entry[1]))
        return number, f"ended with exit code {codes[number]}: {message}"
    number = next((number for number, code in enumerate(codes) if code), 0)
    return number, f"ended with exit code {codes[number]}"


def first_said(logs: Path, since: float) -> tuple[int, str] | None:
    """(rank, what it gave as the reason of its end) of the rank whose log says so first; one that waited comes last.

    Args:
        since: Unix time of the life's beginning; what an earlier one has left in the logs doesn't count.
    """
    numbers = [int(path.stem.removeprefix("rank-")) for path in logs.glob("rank-*.log")]
    said = [(WAITS in m, float(at), rank, m) for rank in numbers for at, m in _said(logs, rank) if float(at) >= since]
    return min(said)[2:] if said else None


def ask_for_stacks(ranks: Ranks) -> list[int]:
    """Have the ranks that still live write the stacks of their threads to their logs; returns which were asked."""
    asked = [number for number, rank in enumerate(ranks) if rank.poll() is None and _state(rank.pid) not in STILL]
    for number in asked:
        ranks[number].send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + STACKS_S
    while time.monotonic() < deadline and any(ranks[number].poll() is None for number in asked):
        time.sleep(STACKS_S / 10)
    return asked


def write_down(run: Path, attempt: int, message: str) -> None:
    """Make it the last word of an attempt whose ranks have all ended, in place of what rank 0 could tell."""
    with suppress(OSError):  # on a full disk there is only the terminal
        path = run / "attempts" / f"{attempt:04d}.jsonl"
        whole = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, whole)  # the line that a kill tore is no event; nobody writes here any more
        line = jsonl.sealed({"event": "outcome", "outcome": "fault", "message": message, "time": time.time()})
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def mistake(log: Path) -> str | None:
    """The user's mistake that a rank's log ends with, if it does."""
    with suppress(OSError):
        _, said, words = log.read_text("utf-8", "replace").rpartition(MISTAKE)
        return words.strip() if said else None
    return None


def _said(logs: Path, rank: int) -> list[tuple[str, str]]:
    """(Unix time, message) of what a rank's log gives as the reason of its end."""
    with suppress(OSError):
        return SAID.findall((logs / f"rank-{rank}.log").read_text("utf-8", "replace"))
    return []


def _state(pid: int) -> str:
    """The letter of a process's state, as in proc(5); empty where it is gone."""
    with suppress(OSError):
        found = re.search(r"^State:\s+(\S)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return found[1] if found else ""
    return ""
