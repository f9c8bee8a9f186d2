"""Ranks on this machine: spawn them, watch them, start them again after a fault.

A rank that dies is noticed within half a second (the processes are polled five times a second), the others are ended,
and a fresh life begins with a fresh port and the `--restart` flag, so that it adopts the last checkpoint at once.
Restarts are bounded: a new checkpoint makes the count begin anew, so a run that advances is never given up. A user's
mistake is never retried. Ctrl-C, TERM and USR1 are passed on to the ranks once: they save, stop, and the command
ends with 75; a second signal ends everything at once. Ranks die with their supervisor.
"""

import ctypes
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from cluster.job import EXIT_CODES, FAULT, STOPPED, USER_ERROR, Job
from data.errors import UserError
from trainer import checkpoint, record
from trainer.console import Follower

POLL_S = 0.2
GRACE_S = 5.0  # what the other ranks get to end by themselves after one has died
LAST_S = 90.0  # and after one has ended well: rank 0 waits up to a minute for W&B
LONGEST_BACKOFF_S = 60.0
PR_SET_PDEATHSIG = 1
MISTAKE = "luban: error: "  # what a rank's log says before a user's mistake


class Local:
    """The launcher behind `--on local`."""

    def render(self, job: Job) -> str:
        """The commands of the ranks, as a shell script."""
        lines = [f"# {job.ranks_per_node} rank(s) on this machine, logs in {job.run}/logs/attempt-N/"]
        for rank in range(job.ranks_per_node):
            variables = {**_variables(job, rank, "PORT"), **dict(job.environment)}
            lines.append(f"{' '.join(f'{k}={shlex.quote(v)}' for k, v in variables.items())} {shlex.join(job.argv)} &")
        return "\n".join([*lines, "wait"]) + "\n"

    def submit(self, job: Job) -> int:
        """Supervise the job to its end; returns 0 done, 75 stopped, 2 a user's mistake, 1 a fault."""
        with _only_supervisor(job.run):  # before there is a supervisor, with signals and a terminal to give back
            return Supervisor(job).run()


class Supervisor:
    """One job's lives, one after the other, in this process."""

    def __init__(self, job: Job):
        self.job = job
        self.follower = Follower(job.run, job.steps)
        self.asked: int | None = None
        self.ranks: list[subprocess.Popen[bytes]] = []

    def run(self) -> int:
        """Until the job is done, stopped, or given up."""
        before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        }
        try:
            return self._lives()
        except Exception:
            self._pass_on(signal.SIGTERM)  # whatever went wrong here, the ranks save and stop
            self._wait_for_ranks(LAST_S)
            raise
        finally:
            self._end_ranks()
            self._show(self.follower.close)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait_for_ranks(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(rank.poll() is None for rank in self.ranks) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _show(self, show: Callable[..., None], *words: str) -> None:
        """Show something, if there is still anybody to show it to: a broken pipe or a full disk stops no run."""
        with suppress(OSError):
            show(*words)

    def _say(self, text: str, style: str = "") -> None:
        self._show(self.follower.say, text, style)

    def _lives(self) -> int:
        failures = 0
        restart = False
        while True:
            saved = checkpoint.names(self.job.run)
            outcome, message = self._one_life(restart)
            self._show(self.follower.poll)
            if outcome != "fault" or self.asked is not None:
                code = STOPPED if outcome == "fault" else EXIT_CODES[outcome]
                if code == USER_ERROR:
                    raise UserError(message)
                if outcome == "fault":
                    self._say(f"the stop was not clean: {message}", "bold red")
                if code == STOPPED:
                    saved = checkpoint.names(self.job.run)
                    self._say(f"stopped; the same command continues from {saved[-1] if saved else 'the start'}")
                return code
            failures = 1 if checkpoint.names(self.job.run) != saved else failures + 1
            if failures > self.job.max_restarts:
                self._say(f"given up after {failures} faults without a new checkpoint: {message}", "bold red")
                return FAULT
            wait = min(LONGEST_BACKOFF_S, self.job.backoff_s * 2 ** (failures - 1))
            self._say(f"{message}; restart {failures} of {self.job.max_restarts} in {wait:g} s", "yellow")
            restart = True
            deadline = time.monotonic() + wait
            while time.monotonic() < deadline and self.asked is None:
                time.sleep(POLL_S)
            if self.asked is not None:
                self._say("stopped; the same command continues", "yellow")
                return STOPPED

    def _one_life(self, restart: bool) -> tuple[str, str]:
        """Start the ranks and see them end. Returns (outcome, what happened)."""
        number = max(record.numbers(self.job.run), default=0) + 1
        logs = self.job.run / "logs" / f"attempt-{number}"
        try:
            logs.mkdir(parents=True, exist_ok=True)
            self._spawn(logs, restart)
        except OSError as error:
            raise UserError(f"cannot start ranks with logs in {logs}: {error}") from None
        fallen: int | None = None
        deadline, told = None, False
        while any(rank.poll() is None for rank in self.ranks):
            self._show(self.follower.poll)
            time.sleep(POLL_S)
            if self.asked is not None and not told:
                told = True
                self._say("stopping: the ranks save first; the same signal again ends everything at once", "yellow")
            if fallen is None:
                ended = [(rank.poll() or 0, number) for number, rank in enumerate(self.ranks)]
                # A rank killed by a signal is the cause; those that lost their connection to it are not.
                fallen = next((number for code, number in sorted(ended) if code), None)
                if fallen is not None:
                    deadline = time.monotonic() + GRACE_S
                    if self.asked is None and self.ranks[fallen].returncode != USER_ERROR:
                        self._say(
                            f"rank {fallen} {_fate(self.ranks[fallen].returncode)}; ending the others", "bold red"
                        )
                elif deadline is None and any(rank.poll() is not None for rank in self.ranks):
                    deadline = time.monotonic() + LAST_S
            if deadline is not None and time.monotonic() > deadline:
                self._end_ranks()
        codes = [rank.returncode for rank in self.ranks]
        return self._judge(number, logs, codes, fallen)

    def _judge(self, number: int, logs: Path, codes: Sequence[int], fallen: int | None) -> tuple[str, str]:
        """What became of attempt `number`, from its own last line, else from the ranks' exit codes."""
        history = record.load(self.job.run)
        pid = self.ranks[0].pid
        mine = [a for a in history.attempts if a.number >= number and a.start["ranks"][0]["pid"] == pid]
        written = mine[-1] if mine else None  # a rollback is an attempt of the same processes
        if written and history.attempts[-1] is not written:
            taken = history.attempts[-1].start["ranks"][0]
            where = f"process {taken['pid']} on {taken['host']}"
            return "user_error", f"{self.job.run} was taken over by attempt {history.attempts[-1].number}, {where}"
        if written and written.outcome and written.outcome != "fault":
            return written.outcome, written.message
        for rank, code in enumerate(codes):
            if code == USER_ERROR:
                return "user_error", _mistake(logs / f"rank-{rank}.log")
        if fallen is None:
            fallen = next((rank for rank, code in enumerate(codes) if code), 0)
        code = codes[fallen]
        why = f": {written.message}" if written and written.message and code > 0 else ""
        return "fault", f"rank {fallen} {_fate(code)}{why} (see {logs / f'rank-{fallen}.log'})"

    def _spawn(self, logs: Path, restart: bool) -> None:
        port = str(_free_port())
        argv = [*self.job.argv, "--restart"] if restart else list(self.job.argv)
        self.ranks = []
        for rank in range(self.job.ranks_per_node):
            environment = os.environ | _variables(self.job, rank, port) | dict(self.job.environment)
            with (logs / f"rank-{rank}.log").open("ab") as log:
                self.ranks.append(
                    subprocess.Popen(
                        argv,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        preexec_fn=_die_with_parent,
                    )
                )
        if self.asked is not None:  # a signal that came before there was anybody to pass it on to
            self._pass_on(self.asked)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            self._end_ranks()
            os._exit(128 + number)
        self.asked = number
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def _end_ranks(self) -> None:
        for rank in self.ranks:
            if rank.poll() is None:
                rank.kill()
        for rank in self.ranks:
            rank.wait()


def _fate(code: int) -> str:
    """What an exit code says, in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


@contextmanager
def _only_supervisor(run: Path) -> Iterator[None]:
    """Hold the run against other supervisors on this machine, from before there is an attempt with a heartbeat."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".supervisor").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{run} is being started, or run, by another command at this moment; stop it first"
            ) from None
        yield


def _variables(job: Job, rank: int, port: str) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.ranks_per_node),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _mistake(log: Path) -> str:
    """The user's mistake that a rank's log ends with."""
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    return text.rpartition(MISTAKE)[2].strip() or f"see {log}"
