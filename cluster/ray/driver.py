"""The process of a Ray job: `python -P -m cluster.ray.driver RUN --job ID`, on the head node. It supervises the run.

It is the supervisor of every launcher, with ranks in workers of Ray Train. What it writes is the log of the Ray job;
what the ranks write lies in the run's folder. It begins only where the run's folder names this very job: a folder of
the same path that is another disk's, or a job that another submission has replaced, is refused.
"""

import argparse
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cluster import submission
from cluster.hold import Hold, hold
from cluster.job import USER_ERROR, Job, training_job
from cluster.ray.metrics import Metered
from cluster.ray.ranks import RayRanks
from cluster.supervisor import Supervisor
from data.errors import UserError
from trainer import claim
from trainer.console import Follower
from trainer.run import FILE, read_recipe

SUBMITTED_S = 30.0  # what the command that submits gets to write the job's name, and to let go of the run
LOOK_S = 0.2


def main(argv: list[str] | None = None) -> int:
    """Train; returns 0 done, 75 stopped, 2 a user's mistake, 1 a fault."""
    parser = argparse.ArgumentParser(prog="python -m cluster.ray.driver", description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--job", required=True, help="the name under which it was submitted")
    parser.add_argument("--takeover", action="store_true", help="whoever holds the run is fenced, not respected")
    what = "what each rank runs that is no trainer: it writes no attempt, and begins once"
    parser.add_argument("--unrecorded", nargs=argparse.REMAINDER, default=[], help=what)
    arguments = parser.parse_args(argv)
    try:
        return drive(arguments.run, arguments.job, arguments.takeover, arguments.unrecorded)
    except UserError as error:
        print(f"luban: {error}", file=sys.stderr, flush=True)
        return USER_ERROR


def drive(run: Path, name: str, takeover: bool, unrecorded: Sequence[str] = ()) -> int:
    """Supervise a run until it ends.

    Args:
        unrecorded: what ranks run that write no attempts, from the word after the interpreter on; they have one life.

    Raises:
        UserError: a mistake of the user's.
    """
    await_submission(run, name)
    job = training_job(run, read_recipe(run), takeover)
    if unrecorded:
        argv = (job.argv[0], *unrecorded)
        job = replace(job, argv=argv, min_ranks=job.ranks, max_restarts=0, recorded=False)
    with ExitStack() as ending:
        held = _hold(run, takeover, ending)
        _connect(job)
        view = Metered(Follower(run, job.steps), run)
        ranks = RayRanks(job, view.say)
        ending.callback(ranks.close)
        return Supervisor(job, held, ranks, view).run()


def await_submission(run: Path, name: str, patience_s: float = SUBMITTED_S) -> None:
    """Wait until the run's folder names the job. Raises UserError where it isn't there, or names another."""
    deadline = time.monotonic() + patience_s
    while True:
        found = submission.read(run) if (run / FILE).is_file() else None
        if found is not None and found.id == name:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_S)
    if found is not None:
        raise UserError(f"{run} was submitted again as {found.id}: this job, {name}, is void")
    raise UserError(
        f"node {socket.gethostname()}, where Ray runs the driver, doesn't see the run's folder {run}: put runs "
        "(LUBAN_HOME) on a file system that all nodes share under one path"
    )


def _hold(run: Path, takeover: bool, ending: ExitStack) -> Hold:
    """The run's lock, as soon as the command that submitted the job has let go of it."""
    deadline = time.monotonic() + SUBMITTED_S
    while True:
        try:
            return ending.enter_context(hold(run, takeover))
        except claim.Held:
            if claim.alive(run) is not None or time.monotonic() > deadline:
                raise
        time.sleep(LOOK_S)


def _connect(job: Job) -> None:
    """Join the cluster that runs this job. Raises UserError where it can never have room for the ranks."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray
    from ray._private.state import state as cluster_state

    ray.init(address="auto", logging_level=logging.WARNING)
    most = cluster_state.get_max_resources_from_cluster_config() or {}
    from cluster.ray.train import per_rank

    for name, amount in per_rank(job).items() if most else ():
        if amount * job.min_ranks > most.get(name, 0):
            raise UserError(
                f"{job.min_ranks} ranks need {amount * job.min_ranks:g} {name}, and this cluster can have "
                f"{most.get(name, 0):g} at most: lower launch.ranks or launch.min_ranks, or enlarge the cluster"
            )


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Ray ends a process by itself, with a code of its own, where a thread still waits in a call to it
