"""Where a run was handed over to a scheduler: `runs/NAME/job.json`, so that status, logs and stop need only the folder.

The newest submission alone is kept; what the runs of a job did is in the run's own record.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from data.errors import UserError
from data.publish import published

FILE = "job.json"
FORMAT, VERSION = "luban-job", 1


@dataclass(frozen=True)
class Submission:
    """A job at a scheduler."""

    on: str
    """The launcher as `--on` names it, such as slurm or ray=http://127.0.0.1:8265."""
    id: str
    """The scheduler's name of it."""
    submitted: float
    """Unix time."""
    site: str | None = None
    """With Slurm, the site file it was submitted with."""

    @property
    def words(self) -> str:
        """What `--on` must say to submit it again in the same way."""
        return f"{self.on}={self.site}" if self.site else self.on


class Scheduler(Protocol):
    """A launcher that hands jobs over, and can be asked about them later."""

    def state(self, id: str) -> str | None:
        """What the scheduler says of a job, in a word or two such as "queued (Resources)" or "running on n[1-2]".

        Returns:
            None where it is over, or the scheduler has forgotten it.

        Raises:
            UserError: the scheduler doesn't answer.
        """
        ...

    def reason(self, id: str) -> str | None:
        """Why a job failed, in a line; None where it didn't, or the scheduler can't tell."""
        ...

    def cancel(self, id: str) -> None:
        """End a job, begun or not; raises UserError where the scheduler doesn't answer."""
        ...


def write(run: Path, on: str, id: str, site: str | None = None) -> None:
    """Keep where a run was submitted."""
    document = {"format": FORMAT, "version": VERSION, **asdict(Submission(on, id, time.time(), site))}
    with published(run / FILE) as draft:
        draft.write_text(json.dumps(document, indent=1) + "\n")


def read(run: Path) -> Submission | None:
    """Where a run was submitted last; None where it never was.

    Raises:
        UserError: the file is of a newer version, or damaged.
    """
    path = run / FILE
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text())
        if (document.pop("format"), document.pop("version")) != (FORMAT, VERSION):
            raise UserError(f"{path} is of a newer Luban than this one: update, or ask the scheduler itself")
        return Submission(**document)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it; it only says where the run was submitted") from None
