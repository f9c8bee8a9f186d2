"""The ranks of one life in a Slurm allocation: one srun, a task on each node, torchrun there, the ranks under it.

What is told to the ranks goes through srun, which passes a signal on to every process of its step; torchrun and the
shells ignore it (they trap it), the ranks heed it. A rank hears only once it has opened the run's attempt, so a signal
waits until then. TERM is not passed on: Slurm gives it to every process by itself when it cancels a job, and a second
one would end the ranks before they have saved; whoever sends it to the supervisor alone is understood by a request in
the run's folder.

What is told to the controller concerns the job that Slurm has by now, not the life that is meant: a turn that was cut
off and whose job runs elsewhere must stay silent, srun included. It learns of that from its lock, which the later turn
has taken; it then kills srun at once, before the fenced ranks end and srun reports it, and of ranks that had not begun
an attempt yet it kills those on its own node. Before it speaks it asks whether the job is still its own.

Of how a life ends srun tells only an exit code. Who fell first stands in the ranks' logs, and of a rank that a signal
killed in torchrun's words, in `srun.log` beside them.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cluster import fate
from cluster.hold import Hold, holder
from cluster.job import Job
from cluster.ports import free_port
from cluster.slurm.allocation import Allocation
from cluster.slurm.client import addresses
from cluster.supervisor import Life
from data.errors import UserError
from trainer import claim, record
from trainer.signals import request

LOOK_S = 1.0  # between two looks at the record: its file system is shared
END_S = 30.0  # for a step to be gone that was killed
LOG = "srun.log"
CANCELLED = ("by SIGTERM at ", "by a signal to another rank at ")  # how ranks tell what `scancel` has sent them
STALE = (
    "SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_NPROCS",
    "SLURM_TASKS_PER_NODE",
)  # fmt: skip
"""What srun would take from the environment of the allocation as it began."""
ROOT = re.compile(r"Root Cause.*?rank\s*: (\d+) \(local_rank: \d+\).*?exitcode\s*: (-?\d+) ", re.DOTALL)
NODE = re.compile(r"^srun: error: (.*?(?:Node failure on|NODE FAILURE|DUE TO NODE).*)$", re.MULTILINE)


class TooFewNodes(Exception):
    """The allocation has lost more nodes than the job can do without."""


class SlurmRanks:
    """The ranks of one life, as a step of this job."""

    def __init__(self, job: Job, command: Sequence[str], allocation: Allocation, held: Hold):
        """
        Args:
            command: the step: `srun ...`, to which a life's words are added.
            held: the run's lock.
        """
        self._job, self._command, self._allocation, self._held = job, list(command), allocation, held
        self._step: subprocess.Popen[bytes] | None = None
        self._life: Life | None = None
        self._untold: int | None = None
        self._looked, self._open, self._ended = 0.0, False, False
        self._fallen: str | None = None
        self._said_from, self._began = 0, 0.0

    def start(self, life: Life) -> None:
        """Begin a step on the nodes that there are.

        Raises:
            OSError: a log can't be written.
            UserError: Slurm doesn't answer.
            TooFewNodes: they aren't enough any more.
        """
        nodes = self._allocation.nodes()
        places = addresses(nodes)
        if len(places) * self._job.ranks_per_node < self._job.min_ranks:
            raise TooFewNodes(f"{len(places)} of {self._job.nodes} nodes are left: {nodes}")
        environment = {name: value for name, value in os.environ.items() if name not in STALE} | {
            "LUBAN_LIFE": life.name,
            "LUBAN_ADDRESSES": " ".join(places),
            "LUBAN_PORT": str(free_port(places[0])),
        }
        size = [f"--nodes={len(places)}", f"--ntasks={len(places)}"]
        if len(places) < self._job.nodes:
            size.append("--overlap")  # else it would wait for the step before, which a lost node never gives back
        words = [*self._command[:1], *size, *self._command[1:], *life.words, "--logs", str(life.logs)]
        with (life.logs / LOG).open("ab") as log:
            self._said_from, self._began = log.tell(), time.time()
            self._step = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._life, self._untold, self._fallen = life, None, None
        self._looked, self._open, self._ended = 0.0, False, False

    def running(self) -> bool:
        """Whether the step is still there, and this job's; tells the ranks what they couldn't hear before."""
        if self._step is None or self._step.poll() is not None:
            return False
        if self._superseded():
            self._abandon(kill=self._attempt() is None)  # one that began now would fence the later turn
            return False
        if time.monotonic() - self._looked >= LOOK_S:
            self._look()
        return True

    def ending(self) -> bool:
        """Whether rank 0 has written how it ended: the others have, too, or never will."""
        return self._ended or not self.running()

    def fallen(self) -> str | None:
        """Which fell first and why, once the step has ended with an error."""
        if self._fallen is None and self._life and self._step and self._step.poll():
            said = (self._life.logs / LOG).read_bytes()[self._said_from :].decode("utf-8", "replace")
            self._fallen = cause(said, self._step.returncode, self._life.logs, self._began)
        return self._fallen

    def mistake(self) -> str | None:
        """The user's mistake that a rank, or a node, ended with."""
        assert self._life
        for log in [*sorted(self._life.logs.glob("rank-*.log")), self._life.logs / LOG]:
            if found := fate.mistake(log):
                return found
        return None

    def moved(self) -> str | None:
        """Never: a job that must go is queued again, and this turn is over."""
        return None

    def unmeant(self, message: str) -> str | None:
        """Why a stop was none: only the step was ended, and the job is there and goes on."""
        if not message.startswith(CANCELLED):
            return None
        try:
            running = self._allocation.told()["JobState"] == "RUNNING"
        except UserError:
            return None
        return f"the step was cancelled, and job {self._allocation.name} was not" if running else None

    def signal(self, number: int) -> None:
        """Ask the ranks to save and stop."""
        if self._life is None or not self.running():
            return
        if number != signal.SIGUSR1:
            with suppress(OSError):
                request(self._job.run, self._attempt() or self._life.first)
        elif self._open:
            self._tell(number)
        else:
            self._untold = number

    def stacks(self) -> list[str]:
        """Have those that are left write their stacks."""
        if not self.running():
            return []
        assert self._life
        self._tell(signal.SIGUSR2)
        time.sleep(fate.STACKS_S)
        return [f"ranks were still there: their stacks are in {self._life.logs}/rank-*.log"]

    def end(self) -> None:
        """Kill the step, and wait until it is gone."""
        if self._step is None or not self.running():
            return
        try:
            self._allocation.kill_steps()
        except UserError:  # nobody there would do it, or knows this turn
            self._abandon(kill=True)
            return
        try:
            self._step.wait(END_S)
        except subprocess.TimeoutExpired:  # srun waits for a node that is gone; the next step waits for its own
            self._step.kill()
            self._step.wait()

    def _superseded(self) -> bool:
        """Whether a later turn of this job has taken the run."""
        if self._held.taken() is None:
            return False
        return (holder(self._job.run) or {}).get("job") == self._allocation.holder

    def _abandon(self, kill: bool) -> None:
        """End the life without a word to Slurm.

        Args:
            kill: its ranks on this node; where they have an attempt that is fenced, they end by themselves.
        """
        assert self._step and self._life
        self._step.kill()
        self._step.wait()
        for pid in _ranks_here(self._life.name) if kill else []:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _attempt(self) -> int | None:
        """The newest attempt that this life has opened."""
        assert self._life
        mine = [a for a in record.load(self._job.run).attempts if a.start.get("life") == self._life.name]
        return mine[-1].number if mine else None

    def _tell(self, number: int) -> None:
        if self._step is not None and self._step.poll() is None:
            self._step.send_signal(number)

    def _look(self) -> None:
        """At the record: whether the ranks have opened an attempt of this life, and whether rank 0 has ended."""
        assert self._life
        self._looked = time.monotonic()
        numbers = [number for number in record.numbers(self._job.run) if number >= self._life.first]
        if numbers:
            self._open = True
            self._ended = claim.ended(self._job.run, max(numbers))
        if self._open and self._untold is not None:
            self._tell(self._untold)
            self._untold = None


def cause(said: str, code: int, logs: Path, since: float) -> str:
    """Who fell first in a life and why, in words.

    Args:
        said: what srun and the torchruns have said.
        code: srun's exit code.
        logs: where the ranks' logs lie.
        since: Unix time at which the life began.
    """
    if found := NODE.search(said):
        return found[1]
    for rank, exit_code in ROOT.findall(said):
        if int(exit_code) < 0 and int(exit_code) != -signal.SIGTERM:  # by TERM a torchrun ends the others
            return f"rank {rank} was killed by {signal.Signals(-int(exit_code)).name} (see {logs})"
    if first := fate.first_said(logs, since):
        return f"rank {first[0]}: {first[1]} (see {logs}/rank-{first[0]}.log)"
    lines = [line for line in said.splitlines() if line.strip()] or ["nothing"]
    last = next((line for line in reversed(lines) if line.startswith("srun: error:")), lines[-1])
    return f"srun ended with {code}, and its last word was {last!r} (see {logs}/{LOG})"


def _ranks_here(life: str) -> list[int]:
    """The processes on this node that were started with a life's words; in a container, too, they are seen."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"\0--life\0{life}\0".encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found
