"""What a scheduler says of a run's job: for `luban status`, and before a second start of the same run."""

import time
from pathlib import Path

from cluster import submission
from cluster.launchers import scheduler
from cluster.submission import Submission
from data.errors import UserError
from trainer import claim, record
from trainer.units import duration


def standing(run: Path) -> str | None:
    """One line on where a run was submitted, and what became of its job; None where it never was.

    A scheduler that doesn't answer is part of the line, and no error: the run's folder tells the rest.
    """
    job = submission.read(run)
    if job is None:
        return None
    try:
        state = scheduler(job.on).state(job.id) or _over(run, job)
    except UserError as error:
        state = f"unknown, {error}"
    return f"{_submitted(job)}: {state}"


def refuse_if_submitted(run: Path, takeover: bool) -> str | None:
    """Keep a run from a second start while its job waits or runs at a scheduler; to be asked while the run is held.

    Args:
        takeover: the job is cancelled instead, queued or running: what it still does is void.

    Returns:
        What was done about it, in words; None where there was nothing to do.

    Raises:
        Held: there is a job, or its scheduler doesn't tell.
        UserError: it can't be cancelled.
    """
    job = submission.read(run)
    if job is None or _done(run):
        return None
    try:
        state = scheduler(job.on).state(job.id)
    except UserError as error:
        if takeover:
            return f"{_submitted(job)}, may still be there: {error}"
        raise claim.Held(
            f"{run} was handed over as job {_submitted(job)}, and whether it is still there can't be asked: {error}. "
            "--takeover goes on regardless, and fences it"
        ) from None
    if state is None:
        return None
    if takeover:
        scheduler(job.on).cancel(job.id)
        return f"cancelled job {_submitted(job)}, which was {state}"
    raise claim.Held(claim.refusal(run, f"job {_submitted(job)}, {state}"))


def _submitted(job: Submission) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.submitted))
    return f"{job.id} of {job.on}, submitted {duration(max(0.0, time.time() - job.submitted))} ago ({since})"


def _over(run: Path, job: Submission) -> str:
    """That a job is over, why, and whether it ever came to train."""
    begun = any(attempt.start["time"] >= job.submitted for attempt in record.load(run).attempts)
    if why := scheduler(job.on).reason(job.id):
        return f"failed: {why}"
    return "over" if begun else "over before it began an attempt; the same command submits it again"


def _done(run: Path) -> bool:
    attempts = record.load(run).attempts
    return bool(attempts) and attempts[-1].outcome == "done"
