"""One job's lives, one after the other: start the ranks, watch them, start them again after a fault.

The same loop serves every launcher; what differs is how the ranks of one life are started, asked and ended, which is a
`Ranks` of the launcher. Restarts are bounded: a new checkpoint makes the count begin anew, so a run that advances is
never given up. A user's mistake is never retried, nor a run that somebody else has taken over. Ctrl-C, TERM and USR1
are passed on to the ranks once: they save, stop, and the command ends with 75; a second Ctrl-C or TERM ends everything
at once. A life has a name, which its ranks write into the attempts they open; so its supervisor knows them anywhere.
"""

import os
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from cluster import fate
from cluster.hold import Hold
from cluster.job import EXIT_CODES, FAULT, STOPPED, USER_ERROR, Job
from data.errors import UserError
from trainer import record
from trainer.console import Follower
from trainer.signals import forget_requests, requested

POLL_S = 0.2
GRACE_S = 5.0  # what the other ranks get to end by themselves after one has died
LONGEST_BACKOFF_S = 60.0


@dataclass(frozen=True)
class Life:
    """What the ranks of one life are started with."""

    name: str
    """Theirs alone."""
    first: int
    """The attempt they will open; a rollback opens further ones in the same processes."""
    logs: Path
    """Where each writes `rank-R.log`; the folder is there."""
    words: tuple[str, ...]
    """Added to the argv of each rank."""


class Ranks(Protocol):
    """The processes of one life at a time, as a launcher starts them."""

    def start(self, life: Life) -> None:
        """Begin a life; the one before has ended. Raises OSError or UserError where it can't."""
        ...

    def running(self) -> bool:
        """Whether any of them is still there."""
        ...

    def ending(self) -> bool:
        """Whether any of them has ended."""
        ...

    def fallen(self) -> str | None:
        """Who fell first and why, as soon as one has ended with an error; None before that."""
        ...

    def mistake(self) -> str | None:
        """The user's mistake that one of them ended with."""
        ...

    def moved(self) -> str | None:
        """Why the launcher itself had this life save and stop, so that another begins elsewhere; None: it didn't."""
        ...

    def unmeant(self, message: str) -> str | None:
        """Why ranks that say they were stopped should not have been, though nobody has told them by this supervisor.

        Args:
            message: what they say stopped them.

        Returns:
            None: they were right to stop.
        """
        ...

    def signal(self, number: int) -> None:
        """Pass a request to stop on to them."""
        ...

    def stacks(self) -> list[str]:
        """Have those that are left write their stacks to their logs; returns a line on each that was asked."""
        ...

    def end(self) -> None:
        """End them at once, and wait until they are gone."""
        ...


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


class Supervisor:
    """Sees one job to its end, in this process."""

    def __init__(self, job: Job, held: Hold, ranks: Ranks, follower: Watcher | None = None, family: str = ""):
        """
        Args:
            held: the run's lock.
            ranks: how a life of the job is started.
            follower: what is shown of it; None: the run's own live view.
            family: what the names of its lives begin with; a supervisor that comes again knows them by it.
        """
        self.job, self.held, self.ranks, self._family = job, held, ranks, family
        self.began = time.monotonic()
        self.life: Life | None = None
        self.follower = follower or Follower(job.run, job.steps)
        self.asked: int | None = None
        self._starting = False

    def run(self) -> int:
        """Until the job is done, stopped, or given up; returns 0 done, 75 stopped, 1 a fault.

        Raises:
            UserError: a user's mistake, or somebody else has taken the run over.
        """
        before = {number: signal.signal(number, self._ask) for number in _stop_signals()}
        try:
            return self._lives()
        except Exception:
            self.ranks.signal(signal.SIGTERM)  # whatever went wrong here, the ranks save and stop
            self._wait_for_ranks(self.job.last_s)
            raise
        finally:
            self.ranks.end()
            self._show(self.follower.close)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait_for_ranks(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.ranks.running() and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _show(self, show: Callable[..., None], *words: str) -> None:
        """Show something, if there is still anybody to show it to: a broken pipe or a full disk stops no run."""
        with suppress(OSError, SystemExit):  # rich ends the process where its pipe is broken
            show(*words)

    def _say(self, text: str, style: str = "") -> None:
        self._show(self.follower.say, text, style)

    def _lives(self) -> int:
        failures = 0
        forget_requests(self.job.run, self._newest())
        if self.held.over:
            self._say(f"taking over from {self.held.over}", "yellow")
        while True:
            saved = record.load(self.job.run).newest_saved()
            outcome, message = self._one_life()
            self._show(self.follower.poll)
            if outcome in ("stopped", "fault") and not self._stop_asked() and (why := self.ranks.moved()):
                self._say(f"{why}; the run goes on in a new group of ranks", "yellow")
                continue
            if outcome == "stopped" and not self._stop_asked() and (why := self.ranks.unmeant(message)):
                outcome, message = "fault", f"stopped {message}: {why}"
            if outcome != "fault" or self._stop_asked():
                return self._end(outcome, message)
            failures = 1 if record.load(self.job.run).newest_saved() != saved else failures + 1
            if failures > self.job.max_restarts:
                self._say(f"given up after {failures} faults without a new checkpoint: {message}", "bold red")
                return FAULT
            wait = min(LONGEST_BACKOFF_S, self.job.backoff_s * 2 ** (failures - 1))
            self._say(f"{message}; restart {failures} of {self.job.max_restarts} in {wait:g} s", "yellow")
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

    def _newest(self) -> int:
        return max(record.numbers(self.job.run), default=0)

    def _stop_asked(self) -> bool:
        """Whether a signal, or `luban stop` in words that no rank has heeded any more, has asked for a stop."""
        first = self.life.first if self.life else 1
        return self.asked is not None or requested(self.job.run, first, self._newest() + 1)

    def _next_life(self) -> Life:
        first = self._newest() + 1
        logs = self.job.run / "logs" / f"attempt-{first}"
        name = self._family + secrets.token_hex(8)
        if self.life:
            words = ["--restart", "--spent", f"{time.monotonic() - self.began:.1f}"]
        else:
            words = ["--takeover"] if self.job.takeover else []
        return Life(name, first, logs, (*words, "--life", name))

    def _one_life(self) -> tuple[str, str]:
        """Start the ranks and see them end. Returns (outcome, what happened)."""
        if taken := self.held.taken():
            return "user_error", taken
        self.life = self._next_life()
        try:
            self.life.logs.mkdir(parents=True, exist_ok=True)
            self._starting = True
            self.ranks.start(self.life)
        except OSError as error:
            raise UserError(f"cannot start ranks with logs in {self.life.logs}: {error}") from None
        finally:
            self._starting = False
        if self.asked is not None:  # a signal that came before there was anybody to pass it on to
            self.ranks.signal(self.asked)
        fallen, deadline, told = None, None, False
        while self.ranks.running():
            self._show(self.follower.poll)
            time.sleep(POLL_S)
            if self.asked is not None and not told:
                told = True
                self._say("stopping: the ranks save first; a second signal ends everything at once", "yellow")
            if not fallen and (fallen := self.ranks.fallen()):
                deadline = time.monotonic() + GRACE_S
                if self.asked is None and self.ranks.mistake() is None:
                    self._say(f"{fallen}; ending the others", "bold red")
            elif deadline is None and self.ranks.ending():
                deadline = time.monotonic() + self.job.last_s
            if deadline is not None and time.monotonic() > deadline:
                for line in self.ranks.stacks():
                    self._say(line, "yellow")
                self.ranks.end()
            if self.held.taken() and not self._mine(self.life, record.load(self.job.run)):
                self.ranks.end()  # before they open an attempt, by which they would fence who took over
        fallen = self.ranks.fallen() or fallen  # by now more may be known
        if not self.job.recorded and not fallen:
            return "done", ""
        return self._judge(self.life, fallen or "the ranks ended without a word")

    def _mine(self, life: Life, history: record.History) -> record.Attempt | None:
        """The newest attempt that a life has opened."""
        newest_first = (a for a in reversed(history.attempts) if a.number >= life.first)
        return next((a for a in newest_first if a.start.get("life") == life.name), None)

    def _judge(self, life: Life, fallen: str) -> tuple[str, str]:
        """What became of the life, from its attempt's own last line, else from who fell first."""
        history = record.load(self.job.run)
        mine = self._mine(life, history)
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
        if mistake := self.ranks.mistake():
            return "user_error", mistake
        if mine:
            fate.write_down(self.job.run, mine.number, fallen)
        return "fault", fallen

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and number == signal.SIGUSR1:
            return  # a scheduler's: it may well come once for a preemption and once for the time limit
        if self.asked is not None:
            self.ranks.end()
            os._exit(128 + number)
        self.asked = number
        if not self._starting:  # a second signal would end the ranks at once
            self.ranks.signal(number)


def _stop_signals() -> list[signal.Signals]:
    """What asks for a stop: also a terminal that hangs up, unless nohup has it ignored."""
    heard = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
    return [number for number in heard if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
