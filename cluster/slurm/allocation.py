"""The Slurm job that this process runs in, and whether it is still this process that Slurm means by it.

A job that is queued again keeps its id, and its steps are counted from 0 again. So what a turn on a node that was cut
off has to say, once its cable is mended, is taken for the word of the turn that runs by then: `17.0` is another step.
Before a turn changes anything at the controller it therefore asks which start of the job there is (`Restarts`, which
the batch script was told as SLURM_RESTART_COUNT). Between the answer and the act lie at most the patience of one
command (60 s), a fifth of the time after which a Slurm as it comes gives a silent node up.

The name is sbatch's, `17_2` for an element of an array: the number of the last element is also the array's own, and
`scontrol requeue 17` would queue all of its elements again.
"""

import os
from dataclasses import dataclass

from cluster.slurm.client import ask, values
from data.errors import UserError


class Superseded(UserError):
    """Slurm has started the job again; this turn of it is nobody's any more."""


@dataclass(frozen=True)
class Allocation:
    """One start of a job."""

    name: str
    """What sbatch has called the job: its id, and the index of an array's element."""
    restarts: int
    """How often Slurm had queued it again before this start."""

    @classmethod
    def here(cls) -> "Allocation":
        """From the environment. Raises UserError outside of a job."""
        number = os.environ.get("SLURM_JOB_ID")
        if number is None:
            raise UserError(
                "SLURM_JOB_ID is not set: cluster.slurm.turn is what a batch script runs; see luban ... --dry-run"
            )
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        return cls(f"{array}_{task}" if array and task else number, int(os.environ.get("SLURM_RESTART_COUNT") or 0))

    @property
    def family(self) -> str:
        """What the names of its lives begin with."""
        return f"slurm-{self.name}-"

    @property
    def holder(self) -> str:
        """The job in words, as whoever holds the run is told."""
        return f"{self.name} of slurm"

    def nodes(self) -> str:
        """The nodes that the job has by now, as a list such as n[1-2]; fewer where some were lost.

        Raises:
            UserError: as `told`.
        """
        return self.told()["NodeList"]

    def steps(self) -> list[str]:
        """The job's steps, without the batch script itself. Raises UserError where Slurm doesn't answer."""
        shown = ask("squeue", "--noheader", "--steps", "--jobs", self.name, "--format", "%i").split()
        return [step for step in shown if step.rpartition(".")[2].isdigit()]

    def told(self) -> dict[str, str]:
        """What Slurm knows of this start of the job: JobState, NodeList ...

        Raises:
            Superseded: it knows a later one.
            UserError: it doesn't answer, or has forgotten the job.
        """
        told = values(ask("scontrol", "show", "job", self.name, "--oneliner"))
        if told.get("Restarts") != str(self.restarts):
            raise Superseded(
                f"Slurm has started job {self.name} again (Restarts={told.get('Restarts')}, and this is "
                f"{self.restarts}): nothing that is left here counts"
            )
        return told

    def requeue(self) -> None:
        """Queue the job again, at which Slurm ends this process. Raises UserError as `told`."""
        self.told()
        ask("scontrol", "requeue", self.name)

    def cancel(self) -> None:
        """End the job. Raises UserError as `told`."""
        self.told()
        ask("scancel", self.name)

    def kill_steps(self) -> None:
        """SIGKILL all that the job has started by srun. Raises UserError as `told`."""
        self.told()
        for step in self.steps():
            ask("scancel", "--signal=KILL", step)
