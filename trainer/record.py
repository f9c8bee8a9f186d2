"""The record of a run: attempts, and the lineage of its weights.

An attempt is one distributed life. It owns one file, `attempts/0003.jsonl`, created exclusively by its rank 0: events,
append-only. Its first line names the checkpoint it adopts and how many bytes of each earlier attempt it accepts; what
an older attempt writes after that is void for every reader, and nobody deletes it.

Fencing holds at any interleaving, also when a process sleeps for an hour between a check and the write it was for:
- The file is created *before* the older attempts are read. So an older one either sees the file when it looks, or has
  written what the newer one will read.
- An attempt removes a checkpoint in three acts: it writes that it will (`retire`), looks for a newer attempt, removes.
  A newer attempt adopts nothing that an accepted line gives up; so whatever it adopts, nobody removes.
- A checkpoint exists for a reader only where an accepted line names it (or its attempt is the newest that anybody has
  claimed), so one that a fenced attempt publishes late is nobody's. Everything else it can write lies in files of its
  own number.
- What an attempt accepts of an older one never changes any more: it is flushed before it is accepted, and a whole line
  is never taken back. So a record that is shorter than was accepted, or has other bytes (each line ends in a checksum),
  is damaged, and a reader says where.

The *lineage* of the weights is the chain of applied steps that made them: an attempt's own, then those of the attempt
whose checkpoint it adopted, up to that checkpoint, and so on. Exactly-once is a claim about the lineage. Steps applied
after an adopted checkpoint are *lost*: their weights are gone, and their positions are read again.
"""

import errno
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.publish import sync_folder
from trainer import checkpoint, jsonl

FORMAT, VERSION = "luban-attempt", 1
METRICS = "metrics.jsonl"
BEAT_S = 2.0  # how often a living attempt touches its heartbeat
STALE_S = 15.0  # a heartbeat older than this is a dead attempt's
LAST_LINE = 16384  # an attempt's last line is within so many bytes of its end
DURABLE = {"start", "checkpoint", "retire", "outcome"}  # events flushed to the disk before going on


class Held(UserError):
    """Another start of the run is alive."""


class Fenced(Exception):
    """A newer attempt of the run has begun; this one must not write any more."""


@dataclass
class Attempt:
    """What one attempt wrote, as far as later ones accept it."""

    number: int
    events: list[dict[str, Any]]
    void: list[dict[str, Any]] = field(default_factory=list)

    @property
    def start(self) -> dict[str, Any]:
        """Its first event."""
        return self.events[0]

    @property
    def applied(self) -> list[dict[str, Any]]:
        """Its step events that changed the weights."""
        return [event for event in self.of("step") if event["verdict"] == "applied"]

    @property
    def outcome(self) -> str | None:
        """done, stopped, user_error or fault; None where it was killed, or still runs."""
        return next((event["outcome"] for event in reversed(self.of("outcome"))), None)

    @property
    def message(self) -> str:
        """What its outcome says."""
        return next((event["message"] for event in reversed(self.of("outcome"))), "")

    @property
    def last_step(self) -> int:
        """Updates applied when it ended, those it adopted included."""
        return self.applied[-1]["step"] if self.applied else self.start["step"]

    @property
    def ended(self) -> float:
        """Unix time of its last event."""
        return self.events[-1]["time"]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Its events of one kind, in order."""
        return [event for event in self.events if event["event"] == kind]


@dataclass
class History:
    """All attempts of a run."""

    run: Path
    attempts: list[Attempt]
    claimed: int = 0
    """The newest number that anybody but the reader has taken, a first line written or not; 0: none."""

    def lineage(self, consumed: int | None = None) -> list[dict[str, Any]]:
        """The step events, applied and skipped, that led to the newest weights, in order.

        Args:
            consumed: only up to this position; for the weights of an older checkpoint.
        """
        chain: list[list[dict[str, Any]]] = []
        limit = float("inf") if consumed is None else consumed
        attempt = self.attempts[-1] if self.attempts else None
        while attempt is not None:
            chain.append([event for event in attempt.of("step") if event["positions"][1] <= limit])
            adopted = attempt.start["adopts"]
            limit = min(limit, attempt.start["consumed"])
            attempt = None if adopted is None else self.attempt(int(adopted.rpartition(".a")[2]))
        return [event for part in reversed(chain) for event in part]

    def attempt(self, number: int) -> Attempt:
        """By number. Raises UserError if its file is gone."""
        for attempt in self.attempts:
            if attempt.number == number:
                return attempt
        raise UserError(_incomplete(self.run, number))

    @cached_property
    def lost(self) -> list[tuple[int, int, int]]:
        """(attempt, first step, last step) of applied steps that are in no lineage: rolled back, and redone."""
        kept = {id(event) for event in self.lineage()}
        spans = []
        for attempt in self.attempts:
            steps = [event["step"] for event in attempt.applied if id(event) not in kept]
            if steps:
                spans.append((attempt.number, min(steps), max(steps)))
        return spans

    @property
    def rolled_back(self) -> set[int]:
        """Numbers of the attempts that ended in a rollback: the next one began in the same processes."""
        return {attempt.start["rollback"]["attempt"] for attempt in self.attempts if attempt.start.get("rollback")}

    def newest_saved(self) -> str | None:
        """The last checkpoint that the record says was written, on disk or not."""
        return next(
            (e["name"] for attempt in reversed(self.attempts) for e in reversed(attempt.of("checkpoint"))), None
        )

    def checkpoints(self, found: Iterable[str] | None = None) -> list[str]:
        """Names of the checkpoints that the record vouches for, oldest first.

        One of the newest attempt counts also without its event, if the record has its steps: it was killed between the
        manifest and the event. Not so once another has claimed the next number, even if that one wrote nothing: it
        may be clearing up.

        Args:
            found: those that are there; None: those in the run's folder.
        """
        known = {event["name"] for attempt in self.attempts for event in attempt.of("checkpoint")}
        known |= {attempt.start["adopts"] for attempt in self.attempts}
        last = self.attempts[-1] if self.attempts and self.attempts[-1].number == self.claimed else None
        reached = last.last_step if last else 0
        there = checkpoint.names(self.run) if found is None else found
        return [
            name
            for name in there
            if name not in self.retired
            and (name in known or (checkpoint.attempt_of(name) == self.claimed and checkpoint.step_of(name) <= reached))
        ]

    @cached_property
    def retired(self) -> set[str]:
        """Checkpoints given up: removed, or about to be, or what a rollback went behind."""
        gone = {name for attempt in self.attempts for event in attempt.of("retire") for name in event["names"]}
        return gone.union(*(attempt.start.get("retires", ()) for attempt in self.attempts))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without those that an attempt wrote when it was fenced."""
        bounds = [(attempt.number, attempt.start.get("metrics", float("inf"))) for attempt in self.attempts]
        lines = []
        for at, line in jsonl.read_with_offsets(self.run / METRICS):
            if not any(line.get("attempt", 0) < number and at >= bound for number, bound in bounds):
                lines.append(line)
        return lines


def numbers(run: Path) -> list[int]:
    """Numbers of a run's attempts, in order, those included that were killed before their first line."""
    return sorted(int(path.stem) for path in (run / "attempts").glob("[0-9]*.jsonl"))


def load(run: Path, mine: int | None = None) -> History:
    """The record of a run; a torn last line of a killed attempt is not yet an event.

    Args:
        mine: the number that the reader has claimed itself.

    Raises:
        UserError: a file of the record is damaged, gone or of a newer format.
    """
    texts = {number: (run / "attempts" / f"{number:04d}.jsonl").read_bytes() for number in numbers(run)}
    attempts = []
    accepted: dict[int, int] = {}
    for number in sorted(texts, reverse=True):
        text, limit = texts[number], accepted.get(number, len(texts[number]))
        if number in accepted and (len(text) < limit or text[:limit][-1:] not in (b"", b"\n")):
            raise _damaged(run, number, text[:limit].count(b"\n") + 1)
        events = _events(run, number, text[:limit])
        if not events:
            continue  # killed before its first line
        for earlier, size in events[0]["accepts"].items():
            if size and int(earlier) not in texts:
                raise UserError(_incomplete(run, int(earlier)))
            accepted[int(earlier)] = min(accepted.get(int(earlier), size), size)
        void = [event for event in map(jsonl.parse, text[limit:].splitlines()) if event is not None]
        attempts.append(Attempt(number, events, void))
    return History(run, attempts[::-1], max((number for number in texts if number != mine), default=0))


def digest(run: Path, attempt: int, size: int) -> str | None:
    """SHA-256 of the first `size` bytes of an attempt's file; None where it is gone or has fewer."""
    try:
        text = (run / "attempts" / f"{attempt:04d}.jsonl").read_bytes()
    except FileNotFoundError:
        return None
    return hashlib.sha256(text[:size]).hexdigest() if len(text) >= size else None


def alive(run: Path) -> int | None:
    """The number of the newest attempt if it still runs: no outcome, and a fresh heartbeat."""
    newest = max(numbers(run), default=None)
    if newest is None:
        return None
    beat = last_beat(run, newest)
    if beat is None:
        return None
    with (run / "attempts" / f"{newest:04d}.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_LINE))
        ended = b'{"event": "outcome"' in file.read()
    return newest if time.time() - beat < STALE_S and not ended else None


def dead(run: Path, before: int) -> set[int]:
    """Numbers below `before`, the reader's own, of attempts that write no more: ended, or without a fresh heartbeat.

    Whoever has slept and is fenced by now must not take a newer attempt that sleeps for dead.
    """
    older = [number for number in numbers(run) if number < before]
    return {number for number in older if time.time() - (last_beat(run, number) or 0) > STALE_S}


def refuse_if_held(run: Path) -> None:
    """Raise Held where another start of the run is alive; waits for a heartbeat that may be a killed one's last."""
    number = alive(run)
    if number is None:
        return
    seen = last_beat(run, number)
    deadline = time.time() + 3 * BEAT_S
    while time.time() < deadline:
        if alive(run) != number:
            return
        if last_beat(run, number) not in (seen, None):
            raise Held(
                f"{run} is already running: {_holder(run, number)}. Stop it first with luban stop {run.name}, or take "
                "it over at once with --takeover, or take another name=..."
            )
        time.sleep(0.2)


class Writer:
    """The file of the attempt that now begins; rank 0 alone has one. `close` ends it and its heartbeat."""

    def __init__(self, run: Path, by_hand: bool = False, after: int | None = None):
        """Take the next number: from now on every older attempt is fenced. `start` writes the first line.

        Args:
            by_hand: an attempt that is alive is respected, not fenced.
            after: the attempt that it must follow: the caller's own, which has had no successor.

        Raises:
            Held: another start is alive, or took the same number first.
            UserError: the record is damaged, or lacks an attempt whose checkpoint is there.
        """
        self.run, folder = run, run / "attempts"
        folder.mkdir(parents=True, exist_ok=True)
        taken = numbers(run)
        self.number = max(taken, default=0) + 1 if after is None else after + 1
        orphans = [checkpoint.attempt_of(name) for name in checkpoint.names(run)]
        if max(orphans, default=0) >= self.number:  # its number would be given out again
            raise UserError(_incomplete(run, max(orphans)))
        if by_hand:  # after the number is chosen: who begins in between has it, and this one fails below
            refuse_if_held(run)
        path = folder / f"{self.number:04d}.jsonl"
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError:
            raise Held(f"{run} is being started by another process at this moment; wait for it, or stop it") from None
        self._beat_path = folder / f"{self.number:04d}.alive"
        self._ended, self._lock = threading.Event(), threading.Lock()
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        self._beat_path.write_text(json.dumps(holder))
        self._bytes, self._sha256 = 0, hashlib.sha256()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        for each in (folder, run, run.parent):
            sync_folder(each)
        for number in taken:
            _flush(folder / f"{number:04d}.jsonl")
        self.history = load(run, self.number)
        """What this attempt builds on: read after the older ones were fenced."""
        self._accepts = {f"{number:04d}": 0 for number in taken}  # also of those that may yet write their first line
        self._accepts |= {f"{attempt.number:04d}": _accepted_size(folder, attempt) for attempt in self.history.attempts}
        self._metrics = (run / METRICS).stat().st_size if (run / METRICS).exists() else 0

    def start(self, **start: Any) -> None:
        """Write the first line: what is adopted, and what of the past is accepted."""
        head = {"format": FORMAT, "version": VERSION, "attempt": self.number}
        self.append("start", **head, **start, accepts=self._accepts, metrics=self._metrics)

    def retire(self, names: list[str]) -> bool:
        """Give checkpoints up, before they are removed; False where this attempt is fenced and must not remove them."""
        self.append("retire", names=names)
        return not self.fenced()

    def append(self, event: str, **values: Any) -> None:
        """Write one event, in one write: whole, or not at all. Raises UserError for a full disk."""
        line = jsonl.sealed({"event": event, **jsonl.finite(values), "time": time.time()})
        with self._lock:  # notes come from the W&B thread too
            size = os.fstat(self._file).st_size
            try:
                if os.write(self._file, line) < len(line):
                    os.ftruncate(self._file, size)  # half a line; a whole one may have been accepted, and stays
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if event in DURABLE:
                    os.fsync(self._file)
            except OSError as error:
                raise UserError(
                    f"cannot write the record in {self.run}/attempts ({error.strerror}). The run stands at its last "
                    "checkpoint: make room and start it again"
                ) from None
            self._bytes += len(line)
            self._sha256.update(line)

    def seal(self) -> dict[str, Any]:
        """What has been written so far, as a checkpoint keeps it: attempt, bytes, and their SHA-256."""
        with self._lock:
            return {"attempt": self.number, "bytes": self._bytes, "sha256": self._sha256.hexdigest()}

    def sync(self) -> None:
        """Make every event so far durable."""
        os.fsync(self._file)

    def fenced(self) -> bool:
        """Whether a newer attempt has begun: from then on nothing this one does counts."""
        return (self.run / "attempts" / f"{self.number + 1:04d}.jsonl").exists()

    def close(self) -> None:
        """Stop the heartbeat."""
        self._ended.set()
        self._beat_path.unlink(missing_ok=True)
        os.close(self._file)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(FileNotFoundError):  # closed between the wait and here
                os.utime(self._beat_path)


def _holder(run: Path, number: int) -> str:
    """Who holds the run and since when, in words."""
    try:
        held = json.loads((run / "attempts" / f"{number:04d}.alive").read_text())
    except (OSError, ValueError):
        return f"attempt {number}"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(held["since"]))
    return f"attempt {number} since {since}, rank 0 is process {held['pid']} on {held['host']}"


def last_beat(run: Path, number: int) -> float | None:
    """When an attempt's heartbeat was last touched, in Unix time; None where it has none any more."""
    try:
        return (run / "attempts" / f"{number:04d}.alive").stat().st_mtime
    except OSError:
        return None


def _accepted_size(folder: Path, attempt: Attempt) -> int:
    """Bytes of an earlier attempt that make up its accepted events."""
    text = (folder / f"{attempt.number:04d}.jsonl").read_bytes()
    end = 0
    for _ in attempt.events:
        end = text.index(b"\n", end) + 1
    return end


def _events(run: Path, number: int, text: bytes) -> list[dict[str, Any]]:
    events = []
    for line in text.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # torn by a kill
        event = jsonl.parse(line)
        if event is None or not jsonl.intact(line):
            raise _damaged(run, number, len(events) + 1)
        events.append(event)
    if events and (events[0].get("format", FORMAT) != FORMAT or events[0].get("version", 0) > VERSION):
        raise UserError(f"{run}/attempts/{number:04d}.jsonl is of a newer format: use a newer Luban")
    return events


def _damaged(run: Path, number: int, line: int) -> UserError:
    return UserError(f"{run}/attempts/{number:04d}.jsonl line {line} is damaged: restore the file from a copy")


def _incomplete(run: Path, number: int) -> str:
    return f"{run} lacks attempts/{number:04d}.jsonl: its record is incomplete, restore the file from a copy"


def _flush(path: Path) -> None:
    """Make what another process has written durable."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
