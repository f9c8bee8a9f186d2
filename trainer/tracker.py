"""Where a run's figures go: a line in metrics.jsonl, then Weights & Biases.

metrics.jsonl is the truth and needs nobody; W&B is a copy of it, made in a thread of its own that can neither stop nor
stall the run. The choice comes from what was measured with W&B 0.31: a server that refuses or hangs holds `init` for
16 s at its shortest timeout and 101 s by default, `finish` waits for ever by default, and a killed `wandb-core` turns
the next `log` into a ConnectionResetError. A logged line costs 1 ms, which the thread pays too.

What can't be sent online is kept offline in the run folder, for `wandb sync`; what can't be kept is counted and said.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer import record
from trainer.jsonl import Appender, finite
from trainer.recipe import Recipe
from trainer.wandb_session import Session, kill_service, unreachable

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "off"}
"""Values of the environment's WANDB_MODE that mean something here."""

Say = Callable[[str], None]


class Metrics:
    """Writes runs/NAME/metrics.jsonl; line numbers go on over attempts and never repeat."""

    def __init__(self, run_folder: Path, attempt: int) -> None:
        path = run_folder / "metrics.jsonl"
        self._file = Appender(path)
        self.attempt = attempt
        self._next = _next_line(run_folder)

    def write(self, values: Mapping[str, Any], kind: str = "train") -> dict[str, Any]:
        """Append one line of "train", "evaluation" or "summary" figures; what was written, with its number."""
        line = {"line": self._next, "attempt": self.attempt, "time": time.time(), "kind": kind, **finite(values)}
        self._file.append(line)
        self._next += 1
        return line

    def close(self) -> None:
        """Nothing more will be written."""
        self._file.close()


class Tracker:
    """What the loop talks to. On ranks other than 0 it does nothing."""

    def __init__(
        self,
        run_folder: Path,
        attempt: int,
        recipe: Recipe,
        *,
        rank: int = 0,
        facts: Mapping[str, Any] | None = None,
        say: Say | None = None,
    ) -> None:
        """
        Args:
            run_folder: The run.
            attempt: Number of this distributed life.
            recipe: As resolved; `log` says whether and where W&B is used.
            rank: Of this process.
            facts: More to show as W&B's configuration: world size, parameters, versions.
            say: Takes a sentence for the person; called from W&B's thread too. None: the log.
        """
        self._metrics = self._wandb = None
        if rank == 0:
            self._metrics = Metrics(run_folder, attempt)
            mode = chosen_mode(recipe.log.wandb, os.environ)
            if mode != "off":
                self._wandb = WandB(run_folder, recipe, mode, facts=facts, say=say)

    def log(self, values: Mapping[str, Any], kind: str = "train") -> None:
        """Figures of one step, on disk when this returns; W&B gets them when it can."""
        if self._metrics:
            line = self._metrics.write(values, kind)
            if self._wandb:
                self._wandb.log(line)

    def begin_attempt(self, attempt: int) -> None:
        """What comes from now on is of another attempt, in the same process."""
        if self._metrics:
            self._metrics.attempt = attempt

    def alert(self, title: str, text: str) -> None:
        """A W&B alert: the run's owner gets a mail or a message."""
        if self._wandb:
            self._wandb.alert(title, text)

    def finish(self, code: int) -> None:
        """The attempt ends with this exit code. Waits for W&B, a minute at most."""
        if self._wandb:
            self._wandb.finish(code)
        if self._metrics:
            self._metrics.close()
        self._metrics = self._wandb = None


class WandB:
    """Weights & Biases in a daemon thread behind a bounded queue. No method raises; only `finish` waits."""

    def __init__(
        self,
        run_folder: Path,
        recipe: Recipe,
        mode: str,
        *,
        facts: Mapping[str, Any] | None = None,
        say: Say | None = None,
        queue_lines: int = 2000,
        init_timeout_s: float = 20,
        finish_timeout_s: float = 60,
    ) -> None:
        """
        Args:
            run_folder: W&B's files go to its wandb/ folder, the run id to wandb/id.
            recipe: Names and tags come from it; the whole of it becomes the configuration.
            mode: "auto" (online where a key is configured), "online" or "offline".
            facts: Further configuration.
            say: Takes a sentence for the person, from any thread. None: the log.
            queue_lines: Lines kept while W&B is slow; more are dropped and counted.
            init_timeout_s: Given to an unresponsive server; W&B takes some 10 s more.
            finish_timeout_s: Longest wait in `finish`.
        """
        self.dropped = 0
        self._folder, self._recipe, self._mode, self._facts = run_folder, recipe, mode, dict(facts or {})
        self._say_aloud = say or logging.getLogger("luban.wandb").warning
        self._init_timeout, self._finish_timeout = init_timeout_s, finish_timeout_s
        self._keys = {key for key in [os.environ.get("WANDB_API_KEY")] if key}
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(queue_lines)
        self._gave_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl; its number becomes W&B's step."""
        self._put("log", line)

    def alert(self, title: str, text: str) -> None:
        """Tell the run's owner."""
        self._put("alert", (title, text))

    def finish(self, code: int) -> None:
        """Send what is left and end the W&B run, within the deadline."""
        deadline = time.monotonic() + self._finish_timeout
        while self._thread.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Full):
                self._queue.put(("finish", code), timeout=0.2)
                self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            unsent = self._queue.qsize()
            self._gave_up.set()
            kill_service()
            self._thread.join(2)
            self._say(
                f"gave up after {self._finish_timeout:g} s with about {unsent} lines unsent; metrics.jsonl has them all"
            )
        if self.dropped:
            self._say(f"{self.dropped} lines were dropped because it was too slow; metrics.jsonl has them all")

    def _put(self, what: str, value: Any) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait((what, value))
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                self._say(f"is slower than the run: {self._queue.maxsize} lines wait, newer ones are dropped")

    def _say(self, text: str) -> None:
        for key in tuple(self._keys):
            text = text.replace(key, "[key]")
        with contextlib.suppress(OSError):  # a full disk is not W&B's to report
            self._say_aloud(f"W&B: {text}")

    def _work(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except Exception as error:
            self._say(f"the package can't be imported ({_brief(error)}); the run goes on without it")
            return
        try:
            (self._folder / "wandb").mkdir(parents=True, exist_ok=True)
            settings = {
                "init_timeout": self._init_timeout,
                "finish_timeout": max(1.0, self._finish_timeout - 10),
                "console": "off",
                "silent": True,
                "x_graphql_retry_max": 3,
            }
            self._serve(Session(wandb, self._folder, self._recipe, self._facts, settings))
        except BaseException as error:  # wandb.teardown raises SystemExit where its service was killed
            self._heard(f"stopped: {_brief(error)}; the run goes on without it")

    def _serve(self, session: Session) -> None:
        """Do what the queue asks until it says finish; on a failure fall from online to offline to nothing."""
        modes = self._modes(session)
        running = self._open(session, modes)
        while running:
            what, value = self._queue.get()
            if what == "finish":
                session.finish(value)
                return
            try:
                session.do(what, value)
            except Exception as error:
                self._heard(f"logging failed ({_brief(error)}); {_what_next(modes)}")
                session.drop()
                running = self._open(session, modes)
                if running:
                    session.do(what, value)

    def _modes(self, session: Session) -> list[str]:
        """The modes to try, in order."""
        if self._mode == "offline":
            return ["offline"]
        try:
            url, found = session.credentials()
        except Exception as error:
            self._say(f"{_brief(error)}; keeping the run offline")
            return ["offline"]
        if found is None:
            if self._mode == "online":
                self._say("no key is configured (`wandb login`, or WANDB_API_KEY); keeping the run offline")
            return ["offline"]
        self._keys.update(key for key in [getattr(found, "api_key", None)] if key)
        problem = unreachable(url)
        if problem:
            self._say(f"{problem}; keeping the run offline")
            return ["offline"]
        return ["online", "offline"]

    def _open(self, session: Session, modes: list[str]) -> bool:
        """Start the run in the first mode left that works; False: in none."""
        while modes and not self._gave_up.is_set():
            mode = modes.pop(0)
            try:
                address = session.start(mode, self._keys)
            except Exception as error:
                self._heard(f"{mode} failed ({_brief(error)}); {_what_next(modes)}")
                session.drop()
                continue
            offline = f"offline; to upload it later: wandb sync {self._folder}/wandb/offline-run-*"
            self._say(f"online at {address}" if address else offline)
            return True
        return False

    def _heard(self, text: str) -> None:
        """Say it, unless it is only the echo of having given up."""
        if not self._gave_up.is_set():
            self._say(text)


def chosen_mode(recipe_mode: str, environment: Mapping[str, str]) -> str:
    """ "auto", "online", "offline" or "off": WANDB_MODE of the environment, unless the recipe says off."""
    if recipe_mode == "off":
        return "off"
    return MODES.get(environment.get("WANDB_MODE", "").strip().lower(), recipe_mode)


def _next_line(run_folder: Path) -> int:
    """The number after the last line's; what a fenced attempt has written doesn't count."""
    return 1 + max((line["line"] for line in record.load(run_folder).metrics() if "line" in line), default=-1)


def _what_next(modes: list[str]) -> str:
    return "keeping the run offline" if modes else "the run goes on without it"


def _brief(error: BaseException) -> str:
    """An exception on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
