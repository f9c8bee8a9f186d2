"""Ranks on this machine: spawn them, watch them, start them again after a fault.

A rank that dies is noticed within half a second (the processes are polled five times a second), the others are ended,
and a fresh life begins with a fresh port and the `--restart` flag, so that it adopts the last checkpoint at once.
Restarts are bounded: a new checkpoint makes the count begin anew, so a run that advances is never given up. A user's
mistake is never retried, nor a run that somebody else has taken over. Ctrl-C, TERM and USR1 are passed on to the
ranks once: they save, stop, and the command ends with 75; a second signal ends everything at once. Ranks that are left
over by a fault write their stacks to their logs before they are ended. Ranks die with their supervisor.
"""

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Protocol

from cluster import fate
from cluster.hold import Hold, hold
from cluster.job import EXIT_CODES, FAULT, STOPPED, USER_ERROR, Job
from data.errors import UserError
from trainer import record
from trainer.console import Follower
from trainer.signals import forget_requests, requested

POLL_S = 0.2
GRACE_S = 5.0  # what the other ranks get to end by themselves after one has died
LONGEST_BACKOFF_S = 60.0
PR_SET_PDEATHSIG = 1
MISTAKE = "luban: error: "  # what a rank's log says before a user's mistake


class Watcher(Protocol):
    """What a supervisor shows its run to."""

    def poll(self) -> None:
        """Called several times a second; looks at the run folder."""
        ...

    def say(self, text: str, style: str = "") -> None:
        """A line of the supervisor's own."""
        ...

    def close(self) -> None:
        """The run's command ends."""
        ...


class Local:
    """The launcher behind `--on local`."""

    def __init__(self, held: Hold | None = None):
        """
        Args:
            held: the run, if the caller holds it already; else `submit` does.
        """
        self._held = held

    def render(self, job: Job) -> str:
        """The commands of the ranks, as a shell script."""
        lines = [f"# {job.ranks_per_node} rank(s) on this machine, logs in {job.run}/logs/attempt-N/"]
        for rank in range(job.ranks_per_node):
            variables = {**_variables(job, rank, "PORT"), **dict(job.environment)}
            lines.append(
                f"{' '.join(f'{k}={shlex.quote(v)}' for k, v in variables.items())} {shlex.join(_argv(job))} &"
            )
        return "\n".join([*lines, "wait"]) + "\n"

    def submit(self, job: Job) -> int:
        """Supervise the job to its end; returns 0 done, 75 stopped, 2 a user's mistake, 1 a fault."""
        # Before there is a supervisor, with signals and a terminal to give back.
        with nullcontext(self._held) if self._held else hold(job.run, job.takeover) as held:
            return Supervisor(job, held).run()


class Supervisor:
    """One job's lives, one after the other, in this process."""

    def __init__(self, job: Job, held: Hold, follower: Watcher | None = None):
        """
        Args:
            held: the run's lock.
            follower: what is shown of it; None: the run's own live view.
        """
        self.job, self.held = job, held
        self.began = time.monotonic()
        self.first = 1
        """The first attempt that the present life may open; a rollback opens further ones in the same processes."""
        self.follower = follower or Follower(job.run, job.steps)
        self.asked: int | None = None
        self.ranks: list[subprocess.Popen[bytes]] = []

    def run(self) -> int:
        """Until the job is done, stopped, or given up."""
        before = {number: signal.signal(number, self._ask) for number in _stop_signals()}
        try:
            return self._lives()
        except Exception:
            self._pass_on(signal.SIGTERM)  # whatever went wrong here, the ranks save and stop
            self._wait_for_ranks(self.job.last_s)
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
        with suppress(OSError, SystemExit):  # rich ends the process where its pipe is broken
            show(*words)

    def _say(self, text: str, style: str = "") -> None:
        self._show(self.follower.say, text, style)

    def _lives(self) -> int:
        failures = 0
        restart = False
        forget_requests(self.job.run, max(record.numbers(self.job.run), default=0))
        if self.held.over:
            self._say(f"taking over from {self.held.over}", "yellow")
        while True:
            saved = record.load(self.job.run).newest_saved()
            outcome, message = self._one_life(restart)
            self._show(self.follower.poll)
            if outcome != "fault" or self._stop_asked():
                return self._end(outcome, message)
            failures = 1 if record.load(self.job.run).newest_saved() != saved else failures + 1
            if failures > self.job.max_restarts:
                self._say(f"given up after {failures} faults without a new checkpoint: {message}", "bold red")
                return FAULT
            wait = min(LONGEST_BACKOFF_S, self.job.backoff_s * 2 ** (failures - 1))
            self._say(f"{message}; restart {failures} of {self.job.max_restarts} in {wait:g} s", "yellow")
            restart = True
            deadline = time.monotonic() + wait
            while time.monotonic() < deadline and not self._stop_asked() and not self.held.taken():
                time.sleep(POLL_S)
            if self._stop_asked():
                self._say("stopped; the same command continues", "yellow")
                return STOPPED

    def _end(self, outcome: str, message: str) -> int:
        """Say how it ended; returns the exit code. Raises UserError for a user's mistake, and for a lost hold."""
        code = STOPPED if outcome == "fault" else EXIT_CODES[outcome]
        if code == USER_ERROR:
            raise UserError(message)
        if outcome == "fault":
            self._say(f"the stop was not clean: {message}", "bold red")
        if code == STOPPED:
            saved = record.load(self.job.run).newest_saved()
            self._say(f"stopped; the same command continues from {saved or 'the start'}")
        return code

    def _stop_asked(self) -> bool:
        """Whether a signal, or `luban stop` in words that no rank has heeded any more, has asked for a stop."""
        newest = max(record.numbers(self.job.run), default=0)
        return self.asked is not None or requested(self.job.run, self.first, newest + 1)

    def _one_life(self, restart: bool) -> tuple[str, str]:
        """Start the ranks and see them end. Returns (outcome, what happened)."""
        if taken := self.held.taken():
            return "user_error", taken
        self.first = max(record.numbers(self.job.run), default=0) + 1
        logs = self.job.run / "logs" / f"attempt-{self.first}"
        try:
            logs.mkdir(parents=True, exist_ok=True)
            self._spawn(logs, restart)
        except OSError as error:
            raise UserError(f"cannot start ranks with logs in {logs}: {error}") from None
        fallen, deadline, told = "", None, False
        while any(rank.poll() is None for rank in self.ranks):
            self._show(self.follower.poll)
            time.sleep(POLL_S)
            if self.asked is not None and not told:
                told = True
                self._say("stopping: the ranks save first; a second signal ends everything at once", "yellow")
            if not fallen and any(rank.poll() for rank in self.ranks):
                deadline = time.monotonic() + GRACE_S
                number, fallen = self._fallen(logs)
                if self.asked is None and self.ranks[number].poll() != USER_ERROR:
                    self._say(f"{fallen}; ending the others", "bold red")
            elif deadline is None and any(rank.poll() is not None for rank in self.ranks):
                deadline = time.monotonic() + self.job.last_s
            if deadline is not None and time.monotonic() > deadline:
                for number in fate.ask_for_stacks(self.ranks):
                    self._say(
                        f"rank {number} was still there: its stacks are in {logs / f'rank-{number}.log'}", "yellow"
                    )
                self._end_ranks()
            if self.held.taken() and not self._mine(record.load(self.job.run)):
                self._end_ranks()  # before they open an attempt, by which they would fence who took over
        if not fallen:
            _, fallen = self._fallen(logs)
        return self._judge(logs, fallen)

    def _fallen(self, logs: Path) -> tuple[int, str]:
        """(rank, what became of it and where to read of it) of the one that fell first."""
        number, what = fate.cause(self.ranks, logs)
        return number, f"rank {number} {what} (see {logs / f'rank-{number}.log'})"

    def _mine(self, history: record.History) -> record.Attempt | None:
        """The newest attempt that the present life has opened."""
        me = {"pid": self.ranks[0].pid, "host": socket.gethostname()}
        newest_first = (a for a in reversed(history.attempts) if a.number >= self.first)
        return next((a for a in newest_first if a.start["ranks"][0].items() >= me.items()), None)

    def _judge(self, logs: Path, fallen: str) -> tuple[str, str]:
        """What became of the life, from its attempt's own last line, else from who fell first."""
        history = record.load(self.job.run)
        mine = self._mine(history)
        if history.attempts and mine and history.attempts[-1] is not mine:
            taken = history.attempts[-1].start
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(taken["time"]))
            by = f"process {taken['ranks'][0]['pid']} on {taken['ranks'][0]['host']}"
            number = history.attempts[-1].number
            return "user_error", f"{self.job.run} was taken over by attempt {number} since {since}, {by}"
        if taken := self.held.taken():
            return "user_error", taken
        if mine and mine.outcome == "fenced":  # by an attempt that has not written its first line yet
            return "user_error", mine.message
        if mine and mine.outcome and mine.outcome != "fault":
            return mine.outcome, mine.message
        for number, rank in enumerate(self.ranks):
            if rank.returncode == USER_ERROR:
                return "user_error", _mistake(logs / f"rank-{number}.log")
        if mine:
            fate.write_down(self.job.run, mine.number, fallen)
        return "fault", fallen

    def _spawn(self, logs: Path, restart: bool) -> None:
        port = str(_free_port())
        spent = f"{time.monotonic() - self.began:.1f}"
        argv = [*self.job.argv, "--restart", "--spent", spent] if restart else _argv(self.job)
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
                rank.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    def _end_ranks(self) -> None:
        for rank in self.ranks:
            if rank.poll() is None:
                rank.kill()
        for rank in self.ranks:
            rank.wait()


def _argv(job: Job) -> list[str]:
    """Of a rank of the first life."""
    return [*job.argv, "--takeover"] if job.takeover else list(job.argv)


def _stop_signals() -> list[signal.Signals]:
    """What asks for a stop: also a terminal that hangs up, unless nohup has it ignored."""
    heard = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
    return [number for number in heard if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


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
