"""`luban logs`: what the ranks of a run said, read from its folder, whatever started them."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster import submission
from cluster.hold import holder
from cluster.job import DONE, EXIT_CODES, FAULT, USER_ERROR
from cluster.launchers import scheduler
from data.errors import UserError
from trainer import claim, record
from trainer.units import printable

POLL_S = 0.5
QUEUE_S = 2.0  # between two questions to a scheduler
TAIL = 1 << 16  # bytes from which the last lines are taken


def show(run: Path, attempt: int | None, rank: int, lines: int, follow: bool, say: Callable[[str], object]) -> None:
    """Print the end of a rank's log, and what is added to it while the run lives.

    Args:
        attempt: a number; None: the newest that has a log. A rollback goes on in the log of the attempt before it.
        rank: whose log.
        lines: so many last lines; 0: all of it.
        follow: go on until the run ends; a new attempt's log is taken up by itself. A run that waits at a scheduler
            is waited for, before its first attempt and between two.
        say: takes each line.

    Raises:
        UserError: there is no such log.
    """
    if follow and attempt is None:
        _await_begin(run, rank, say)
    path = _log(run, attempt, rank)
    say(f"== {path}")
    offset = 0 if lines == 0 else _start_of_last(path, lines)
    while True:
        alive = follow and _lives(run)
        for line in _lines(path, offset, whole=not alive):
            say(printable(line.decode("utf-8", "replace").rstrip("\n")))
            offset += len(line)
        if not alive:
            return
        newest = _log(run, attempt, rank)
        if newest != path:
            path, offset = newest, 0
            say(f"== {path}")
        time.sleep(POLL_S)


def ended(run: Path) -> int:
    """The exit code that a run has come to, by its newest attempt: 0 done, 2 a mistake, 75 stopped, 1 anything else."""
    attempts = record.load(run).attempts
    return EXIT_CODES.get(attempts[-1].outcome or "fault", FAULT) if attempts else FAULT


def _lives(run: Path) -> bool:
    """Whether a run is at work, or its job has another life to come. Raises UserError where a scheduler is silent.

    A run that is over by its own record is over, however long its scheduler takes to notice.
    """
    if holder(run) is not None or claim.alive(run) is not None:
        return True
    job = submission.read(run)
    if job is None or ended(run) in (DONE, USER_ERROR):
        return False
    time.sleep(QUEUE_S)
    return scheduler(job.on).state(job.id) is not None


def _await_begin(run: Path, rank: int, say: Callable[[str], object]) -> None:
    """While a run has no log yet and its job is still at a scheduler, wait. Raises UserError where that is silent."""
    job, told = submission.read(run), None
    while job and not any((run / "logs").glob(f"attempt-*/rank-{rank}.log")):
        state = scheduler(job.on).state(job.id)
        if state is None:
            return
        if state != told:
            say(f"job {job.id} of {job.on} is {state}")
        told = state
        time.sleep(QUEUE_S)


def _log(run: Path, attempt: int | None, rank: int) -> Path:
    found = {
        int(number[1]): path
        for path in (run / "logs").glob(f"attempt-*/rank-{rank}.log")
        if (number := re.fullmatch(r"attempt-(\d+)", path.parent.name))
    }
    if attempt is None and found:
        return found[max(found)]
    if attempt in found:
        return found[attempt]
    known = sorted(str(path.relative_to(run / "logs")) for path in (run / "logs").glob("attempt-*/*.log"))
    shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    which = f" in attempt {attempt}" if attempt else ""
    raise UserError(f"{run} has no log of rank {rank}{which}; there is {shown or 'none'}")


def _start_of_last(path: Path, lines: int) -> int:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL))
        tail = file.read()
    kept = tail.splitlines(keepends=True)[-lines:]
    return size - sum(map(len, kept))


def _lines(path: Path, offset: int, whole: bool) -> Iterator[bytes]:
    """What a log has from `offset` on; an unfinished last line only where nothing will be added to it."""
    with path.open("rb") as file:
        file.seek(offset)
        yield from (line for line in file if whole or line.endswith(b"\n"))
