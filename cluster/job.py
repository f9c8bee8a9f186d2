"""What is to be started, as a value, and what every launcher can do with it.

A `Job` knows the argv of one rank and what the ranks need, and not what they compute. `render` is a pure function of
it, so that `--dry-run` prints exactly what `submit` would do.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.hold import Hold
from trainer.mirror import LAST_S as STORE_S
from trainer.recipe import Recipe

DONE, USER_ERROR, STOPPED, FAULT = 0, 2, 75, 1
EXIT_CODES = {"done": DONE, "user_error": USER_ERROR, "stopped": STOPPED, "fault": FAULT}
"""A supervisor's exit code for each outcome of an attempt."""


@dataclass(frozen=True)
class Job:
    """One distributed life after another, until the run is done."""

    argv: tuple[str, ...]
    """Of one rank; RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT come by the environment."""
    run: Path
    """The run's folder."""
    steps: int
    """Updates of the whole run, for progress."""
    nodes: int = 1
    ranks_per_node: int = 1
    min_ranks: int = 1
    """With fewer it doesn't go on, where a launcher can shrink it."""
    cpus_per_rank: int = 1
    """CPU threads."""
    gpus_per_rank: int = 0
    memory_gb: float = 0.0
    """Of one rank; 0: what a site gives by default."""
    time_limit_minutes: int = 0
    """After which a scheduler ends it, to go on in another turn; 0: the scheduler's own."""
    environment: tuple[tuple[str, str], ...] = ()
    """Added to a rank's environment."""
    pip: tuple[str, ...] = ()
    """What Ray is to install for it."""
    max_restarts: int = 3
    """Faults without a new checkpoint in between, after which it ends."""
    backoff_s: float = 1.0
    """Wait before the first restart, in seconds, doubled at each further one."""
    last_s: float = 90.0
    """What the other ranks get after one has ended well, in seconds: rank 0 may wait for W&B, and for the store."""
    takeover: bool = False
    """Its first life fences whoever holds the run."""
    recorded: bool = True
    """Its ranks write attempts, which say how it ended; of others it is enough that none ends with an error."""

    @property
    def ranks(self) -> int:
        """Over all nodes."""
        return self.nodes * self.ranks_per_node


class Launcher(Protocol):
    """Where jobs run."""

    def render(self, job: Job) -> str:
        """What `submit` would do, as text; a pure function of the job and of the launcher's settings."""
        ...

    def check(self, job: Job) -> None:
        """Raises UserError where the launcher is out of reach, or has nothing like what the job asks for."""
        ...

    def submit(self, job: Job, held: Hold) -> int:
        """Do it while the run is held; returns the command's exit code.

        One that supervises the job in this process sees it to its end (0, 2, 75 or another code). One that hands it
        over to a scheduler writes the run's `Submission` and returns 0.
        """
        ...


def command_job(run: Path, recipe: Recipe, words: tuple[str, ...]) -> Job:
    """The job of one of Luban's own commands on a run, in one process that has what one rank had."""
    launch = recipe.launch
    return Job(
        argv=(sys.executable, "-P", "-m", "luban", *words),
        run=run,
        steps=0,
        cpus_per_rank=launch.threads,
        gpus_per_rank=launch.gpus_per_rank,
        memory_gb=launch.memory_gb,
        environment=(("OMP_NUM_THREADS", str(launch.threads)),),
    )


def training_job(run: Path, recipe: Recipe, takeover: bool = False) -> Job:
    """The job of training `run`."""
    launch = recipe.launch
    return Job(
        argv=(sys.executable, "-P", "-m", "trainer", str(run.absolute())),
        run=run,
        steps=recipe.train.steps,
        nodes=launch.nodes,
        ranks_per_node=launch.ranks // launch.nodes,
        min_ranks=launch.min_ranks or launch.ranks,
        cpus_per_rank=launch.threads,
        gpus_per_rank=launch.gpus_per_rank,
        memory_gb=launch.memory_gb,
        time_limit_minutes=launch.time_limit_minutes,
        environment=(("OMP_NUM_THREADS", str(launch.threads)),),
        pip=launch.pip,
        max_restarts=launch.max_restarts,
        backoff_s=launch.backoff_s,
        last_s=90.0 + (STORE_S if recipe.checkpoint.store else 0.0),
        takeover=takeover,
    )
