"""What is to be started, as a value, and what every launcher can do with it.

A `Job` knows the argv of one rank and what the ranks need, and not what they compute. `render` is a pure function of
it, so that `--dry-run` prints exactly what `submit` would do.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
    cpus_per_rank: int = 1
    """CPU threads."""
    gpus_per_node: int = 0
    environment: tuple[tuple[str, str], ...] = ()
    """Added to a rank's environment."""
    max_restarts: int = 3
    """Faults without a new checkpoint in between, after which it ends."""
    backoff_s: float = 1.0
    """Wait before the first restart, in seconds, doubled at each further one."""
    last_s: float = 90.0
    """What the other ranks get after one has ended well, in seconds: rank 0 may wait for W&B, and for the store."""
    takeover: bool = False
    """Its first life fences whoever holds the run."""


class Launcher(Protocol):
    """Where jobs run."""

    def render(self, job: Job) -> str:
        """What `submit` would do, as text."""
        ...

    def submit(self, job: Job) -> int:
        """Do it, and see the job to its end; returns the command's exit code (0, 2, 75 or another)."""
        ...


def training_job(run: Path, recipe: Recipe, takeover: bool = False) -> Job:
    """The job of training `run` on one machine."""
    return Job(
        argv=(sys.executable, "-P", "-m", "trainer", str(run.absolute())),
        run=run,
        steps=recipe.train.steps,
        ranks_per_node=recipe.launch.ranks,
        cpus_per_rank=recipe.launch.threads,
        environment=(("OMP_NUM_THREADS", str(recipe.launch.threads)),),
        max_restarts=recipe.launch.max_restarts,
        backoff_s=recipe.launch.backoff_s,
        last_s=90.0 + (STORE_S if recipe.checkpoint.store else 0.0),
        takeover=takeover,
    )
