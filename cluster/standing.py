"""What a scheduler says of a run's job, for `luban status`; the run itself is told by its folder."""

import time
from pathlib import Path

from cluster import submission
from cluster.launchers import scheduler
from data.errors import UserError
from trainer.units import duration


def standing(run: Path) -> str | None:
    """One line on where a run was submitted, and what became of its job; None where it never was.

    A scheduler that doesn't answer is part of the line, and no error: the run's folder tells the rest.
    """
    job = submission.read(run)
    if job is None:
        return None
    try:
        state = scheduler(job.on).state(job.id) or "over"
    except UserError as error:
        state = f"unknown, {error}"
    return f"{job.id} of {job.on}, submitted {duration(max(0.0, time.time() - job.submitted))} ago: {state}"
