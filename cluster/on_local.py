"""Ranks on this machine: plain processes, watched by the command that started them.

A rank that dies is noticed within half a second (the processes are polled five times a second), the others are ended,
and a fresh life begins with a fresh port and the `--restart` flag, so that it adopts the last checkpoint at once.
Ranks that are left over by a fault write their stacks to their logs before they are ended. Ranks die with their
supervisor.
"""

import os
import shlex
import signal
import subprocess
from pathlib import Path

from cluster import fate
from cluster.hold import Hold
from cluster.job import USER_ERROR, Job
from cluster.leash import die_with_parent
from cluster.ports import free_port
from cluster.supervisor import Life, Supervisor
from data.errors import UserError

MOST_RANKS = 1024


class Local:
    """The launcher behind `--on local`."""

    def render(self, job: Job) -> str:
        """The commands of the ranks, as a shell script."""
        lines = [f"# {job.ranks} rank(s) on this machine, logs in {job.run}/logs/attempt-N/"]
        argv = [*job.argv, "--takeover"] if job.takeover else job.argv
        for rank in range(job.ranks):
            variables = {**_variables(job, rank, "PORT"), **dict(job.environment)}
            lines.append(f"{' '.join(f'{k}={shlex.quote(v)}' for k, v in variables.items())} {shlex.join(argv)} &")
        return "\n".join([*lines, "wait"]) + "\n"

    def check(self, job: Job) -> None:
        """Raises UserError where one machine can't be what the job asks for."""
        if job.nodes > 1:
            raise UserError(f"launch.nodes is {job.nodes}, and --on local is one machine: take --on slurm or --on ray")
        if job.ranks > MOST_RANKS:
            raise UserError(f"launch.ranks is {job.ranks}, and one machine takes {MOST_RANKS} at most")

    def submit(self, job: Job, held: Hold) -> int:
        """Supervise the job to its end; returns 0 done, 75 stopped, 2 a user's mistake, 1 a fault."""
        return Supervisor(job, held, LocalRanks(job)).run()


class LocalRanks:
    """The ranks of one life, as children of this process."""

    def __init__(self, job: Job):
        self._job = job
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._life: Life | None = None
        self._fallen: tuple[int, str] | None = None

    def start(self, life: Life) -> None:
        """Spawn them. Raises OSError where a log can't be written or there is no room for a process."""
        self._life, self._ranks, self._fallen = life, [], None
        port = str(free_port())
        for rank in range(self._job.ranks):
            environment = os.environ | _variables(self._job, rank, port) | dict(self._job.environment)
            with (life.logs / f"rank-{rank}.log").open("ab") as log:
                self._ranks.append(
                    subprocess.Popen(
                        [*self._job.argv, *life.words],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        preexec_fn=die_with_parent,
                    )
                )

    def running(self) -> bool:
        """Whether any of them is still there."""
        return any(rank.poll() is None for rank in self._ranks)

    def ending(self) -> bool:
        """Whether any of them has ended."""
        return any(rank.poll() is not None for rank in self._ranks)

    def fallen(self) -> str | None:
        """Which fell first and why; asked as soon as one has ended with an error, because later it can't be told."""
        if not self._fallen and self._life and any(rank.poll() for rank in self._ranks):
            self._fallen = fate.cause(self._ranks, self._life.logs)
        return f"rank {self._fallen[0]} {self._fallen[1]} (see {self._log(self._fallen[0])})" if self._fallen else None

    def mistake(self) -> str | None:
        """The user's mistake that a rank ended with."""
        for number, rank in enumerate(self._ranks):
            if rank.poll() == USER_ERROR:
                return fate.mistake(self._log(number)) or f"see {self._log(number)}"
        return None

    def moved(self) -> str | None:
        """Never: there is nowhere else."""
        return None

    def unmeant(self, message: str) -> str | None:
        """Never: who ends a rank here means it."""
        return None

    def signal(self, number: int) -> None:
        """Send it to those that are left."""
        for rank in self._ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    def stacks(self) -> list[str]:
        """Have those that are left write their stacks."""
        asked = fate.ask_for_stacks(self._ranks)
        return [f"rank {number} was still there: its stacks are in {self._log(number)}" for number in asked]

    def end(self) -> None:
        """Kill those that are left."""
        for rank in self._ranks:
            if rank.poll() is None:
                rank.kill()
        for rank in self._ranks:
            rank.wait()

    def _log(self, rank: int) -> Path:
        assert self._life
        return self._life.logs / f"rank-{rank}.log"


def _variables(job: Job, rank: int, port: str) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
