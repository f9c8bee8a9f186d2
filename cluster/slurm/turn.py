"""One turn of a run in a Slurm job: what the batch script becomes. `python -P -m cluster.slurm.turn RUN -- srun ...`

It holds the run, sees its lives like any supervisor, and decides alone what becomes of the job. At the time limit or
before a preemption (USR1) the ranks save and stop, and its last act is to queue the job again; Slurm then ends it at
once. It isn't queued again when the run is done, after a user's mistake, after `luban stop`, when its faults were too
many, or when turn after turn ends without a new checkpoint.

A job that comes again, because a node failed or was cut off, fences its own earlier life at once, wherever that still
writes. It knows it by its name, which begins with the job's. A start that somebody else has made meanwhile is
respected, and so is a newer submission of the run.
"""

import argparse
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.slurm.allocation import Allocation
    from trainer.record import History

QUEUED_S = 60.0  # for Slurm to end this process, once the job is requeued
HANDED_S = 30.0  # for the command that has submitted the job to write it down, and let go of the run


class Asked:
    """USR1, heard from the first moment on: during the imports nobody else could hear it."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.pass_on: Callable[[int], None] | None = None
        signal.signal(signal.SIGUSR1, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self.pass_on:
            self.pass_on(number)


def main() -> int:
    """Take the turn; returns the exit code, if the job isn't requeued."""
    asked = Asked()
    parser = argparse.ArgumentParser(prog="python -m cluster.slurm.turn", description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--takeover", action="store_true", help="the first turn fences whoever holds the run")
    parser.add_argument("--no-requeue", action="store_true", help="end with 75 where the job would be queued again")
    parser.add_argument("--unrecorded", action="store_true", help="the ranks write no attempts, and begin once")
    parser.add_argument("command", nargs="+", help="starts the ranks of a life: srun ...")
    arguments = parser.parse_args()
    from cluster.slurm.allocation import Allocation
    from cluster.slurm.client import ask
    from data.errors import UserError

    allocation = None
    try:
        allocation = Allocation.here()
        code, again = take(
            arguments.run, arguments.command, allocation, arguments.takeover, asked, not arguments.unrecorded
        )
        if again and arguments.no_requeue:
            print("the site file says requeue: false; the same command goes on", flush=True)
            again = False
    except UserError as error:
        print(f"luban: error: {error}", file=sys.stderr, flush=True)
        code, again = 2, False
    if again and allocation:
        try:
            print(f"queued again as job {allocation.name}", flush=True)
            allocation.requeue()
            time.sleep(QUEUED_S)
        except UserError as error:
            print(f"luban: cannot queue the job again: {error}", file=sys.stderr, flush=True)
    elif allocation and code:
        with suppress(UserError):
            if code in requeued_codes(ask("scontrol", "show", "config")):
                print(f"this site queues jobs again that end with {code} (RequeueExit): it is cancelled", flush=True)
                allocation.cancel()
                time.sleep(QUEUED_S)
    return code


def requeued_codes(config: str) -> set[int]:
    """Exit codes after which Slurm queues a job again by itself, from `scontrol show config`."""
    lists = re.findall(r"^RequeueExit(?:Hold)?\s*= ([\d,-]+)$", config, re.MULTILINE)
    ranges = [part.partition("-") for text in lists for part in text.split(",")]
    return {code for low, _, high in ranges for code in range(int(low), int(high or low) + 1)}


def take(
    run: Path, command: list[str], allocation: "Allocation", takeover: bool, asked: Asked, recorded: bool = True
) -> tuple[int, bool]:
    """See the run through this turn; returns (exit code, whether the job should be queued again).

    Args:
        command: starts the ranks of a life.
        takeover: the job's first turn fences whoever holds the run.
        recorded: the ranks write attempts; others have one life.

    Raises:
        UserError: a user's mistake, somebody else holds the run, or another job has it by now.
    """
    from cluster.hold import hold, holder
    from cluster.job import STOPPED, training_job
    from cluster.slurm.ranks import SlurmRanks, TooFewNodes
    from cluster.supervisor import Supervisor
    from trainer import record
    from trainer.ancestor import pin_ancestor
    from trainer.run import read_recipe
    from trainer.signals import requested

    first = allocation.restarts == 0
    mine = not first and (holder(run) or {}).get("job") == allocation.holder
    with hold(run, (takeover and first) or mine, allocation.holder, HANDED_S) as held:
        _heed_newer_submissions(run, allocation)
        pin_ancestor(run)
        history = record.load(run)
        own = bool(history.attempts) and str(history.attempts[-1].start.get("life")).startswith(allocation.family)
        recipe = read_recipe(run)
        job = training_job(run, recipe, takeover=(takeover and first) or (own and not first))
        if not recorded:
            job = replace(job, recorded=False, max_restarts=0)
        ranks = SlurmRanks(job, command, allocation, held)
        supervisor = Supervisor(job, held, ranks, family=allocation.family)
        supervisor.asked = asked.number
        asked.pass_on = lambda number: setattr(supervisor, "asked", number)
        try:
            code = supervisor.run()
        except TooFewNodes as error:
            print(error, flush=True)
            return STOPPED, True
        history = record.load(run)
        begun = supervisor.life.first if supervisor.life else max(record.numbers(run), default=0) + 1
        by_hand = requested(run, begun, max(record.numbers(run), default=0) + 1)
        if code != STOPPED or supervisor.asked != signal.SIGUSR1 or by_hand:
            return code, False
        if (idle := idle_turns(history)) > job.max_restarts:
            print(f"given up after {idle} turns without a new checkpoint: ask for more time", flush=True)
            return 1, False
        return code, True


def idle_turns(history: "History") -> int:
    """Attempts at the end of a record that were stopped before they saved anything."""
    count = 0
    for attempt in reversed(history.attempts):
        if attempt.outcome != "stopped" or attempt.of("checkpoint"):
            break
        count += 1
    return count


def _heed_newer_submissions(run: Path, allocation: "Allocation") -> None:
    """Raise UserError where the run was handed over to another job since; waits for its own to be written down."""
    from cluster import submission
    from data.errors import UserError

    deadline = time.monotonic() + HANDED_S
    while True:
        job = submission.read(run)
        if job is not None and job.id == allocation.name:
            return
        if time.monotonic() > deadline:
            which = f"it is job {job.id} of {job.on}" if job else "it was never submitted"
            raise UserError(f"job {allocation.name} is not {run}'s any more: {which}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
