"""`luban stop`: ask a run to save and stop, from anywhere that sees its folder, and wait until it has.

A request is meant for the attempt that runs when it is made. While this command waits it repeats the request to a
newer attempt (a restart, a rollback), and where a start has no attempt yet to the one that is coming. A job that still
waits in a scheduler's queue is cancelled instead.
"""

import time
from collections.abc import Callable
from pathlib import Path

from cluster import submission
from cluster.hold import holder
from cluster.job import DONE, FAULT
from cluster.launchers import scheduler
from data.errors import UserError
from trainer import claim, record
from trainer.console import state_of
from trainer.signals import request
from trainer.units import duration

POLL_S = 0.25
TELL_S = 10.0  # between two lines of progress

Say = Callable[[str], None]


def stop(run: Path, wait: bool, say: Say) -> int:
    """Ask, and see the run end.

    Args:
        wait: until it has ended; False: return as soon as it is asked.
        say: takes each line for the person.

    Returns:
        0 if it has stopped or come to its end (without `wait`: if it is asked); 1 if it fell before it could.

    Raises:
        UserError: nothing runs there, or its folder can't be written.
    """
    if _cancelled(run, say):
        return DONE
    began = told = time.monotonic()
    asked: int | None = None
    while True:
        attempt, there = _running(run)
        if not there:
            break
        if attempt not in (asked, None):
            _ask(run, attempt)
            say(f"asked attempt {attempt} of {run} to stop; it finishes its step and saves")
            asked = attempt
            if not wait:
                return DONE
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            say(f"still waiting after {duration(told - began)}, {_standing(run)}")
        time.sleep(POLL_S)
    history = record.load(run)
    last = history.attempts[-1] if history.attempts else None
    what = f"attempt {last.number} is {state_of(history)}" if last else "no attempt has begun"
    what += f": {last.message}" if last and last.message else ""
    if asked is None:
        raise UserError(f"{run} has nothing to stop: {what}")
    say(what)
    return DONE if last is None or last.outcome in ("stopped", "done") else FAULT


def _cancelled(run: Path, say: Say) -> bool:
    """Cancel the run's job where it waits in a queue: there is nobody yet who could heed a request."""
    job = submission.read(run)
    if job is None or holder(run) is not None or claim.alive(run) is not None:
        return False
    state = scheduler(job.on).state(job.id)
    if state is None:
        return False
    scheduler(job.on).cancel(job.id)
    say(f"cancelled job {job.id} of {job.on}, which was {state}; the same command submits it again")
    return True


def _running(run: Path) -> tuple[int | None, bool]:
    """(the attempt to ask, None where it is ending already; whether anything is running at all)."""
    if (attempt := claim.alive(run)) is not None:
        return attempt, True
    newest = max(record.numbers(run), default=0)
    held = holder(run)
    attempts = record.load(run).attempts
    ended = bool(attempts) and attempts[-1].number == newest and attempts[-1].outcome not in (None, "fault")
    if held is not None and (held.get("attempt", 0) > newest or not ended):
        return newest + 1, True  # a start, or a restart, is under way
    return None, held is not None or (ended and newest not in claim.dead(run, newest + 1))


def _standing(run: Path) -> str:
    """Where the run stands, in words."""
    attempts = record.load(run).attempts
    return f"attempt {attempts[-1].number} at step {attempts[-1].last_step}" if attempts else "it is starting"


def _ask(run: Path, attempt: int) -> None:
    try:
        (run / "attempts").mkdir(exist_ok=True)
        request(run, attempt)
    except OSError as error:
        raise UserError(f"cannot leave a request in {run}/attempts: {error.strerror or error}") from None
