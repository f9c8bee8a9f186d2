"""The record of a run: attempts, and the lineage of its weights.

An attempt is one distributed life. It owns one file, `attempts/0003.jsonl`, created exclusively by its rank 0: events,
append-only. Its first line names the checkpoint it adopts and how many bytes of each earlier attempt it accepts; what
an older attempt writes after that is void for every reader, and nobody deletes it. `claim.py` says why that holds at
any interleaving, and writes.

The *lineage* of the weights is the chain of applied steps that made them: an attempt's own, then those of the attempt
whose checkpoint it adopted, up to that checkpoint, and so on. Exactly-once is a claim about the lineage. Steps applied
after an adopted checkpoint are *lost*: their weights are gone, and their positions are read again.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data.errors import UserError
from trainer import checkpoint, jsonl

FORMAT, VERSION = "luban-attempt", 1
METRICS = "metrics.jsonl"


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
            attempt = None if adopted is None else self.attempt(checkpoint.attempt_of(adopted))
        return [event for part in reversed(chain) for event in part]

    def attempt(self, number: int) -> Attempt:
        """By number. Raises UserError if its file is gone."""
        for attempt in self.attempts:
            if attempt.number == number:
                return attempt
        raise UserError(incomplete(self.run, number))

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
        """The last checkpoint that the record says was written and not given up, on disk or not."""
        written = (e["name"] for attempt in reversed(self.attempts) for e in reversed(attempt.of("checkpoint")))
        return next((name for name in written if name not in self.retired | self.damaged), None)

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
            if name not in self.retired | self.damaged
            and (name in known or (checkpoint.attempt_of(name) == self.claimed and checkpoint.step_of(name) <= reached))
        ]

    def unled(self, found: Iterable[str]) -> list[str]:
        """Those of `found` to which no line of the newest attempt leads: its file was cut short.

        Its steps are flushed before a checkpoint of them is published, so neither a kill nor a loss of power does this.
        """
        there = list(found)
        known = {*self.checkpoints(there), *self.retired, *self.damaged}
        return [name for name in there if name not in known and checkpoint.attempt_of(name) == self.claimed]

    @cached_property
    def manifests(self) -> dict[str, str]:
        """The digest of each checkpoint's manifest, by name; a kill can leave one that isn't written down."""
        saved = [event for attempt in self.attempts for event in attempt.of("checkpoint")]
        return {event["name"]: event["manifest"] for event in saved if "manifest" in event}

    @cached_property
    def retired(self) -> set[str]:
        """Checkpoints given up: removed, or about to be, or what a rollback went behind."""
        gone = {name for attempt in self.attempts for event in attempt.of("retire") for name in event["names"]}
        return gone.union(*(attempt.start.get("retires", ()) for attempt in self.attempts))

    @cached_property
    def damaged(self) -> set[str]:
        """Checkpoints that an attempt has found damaged, and passed over; they stay where they are, and don't count."""
        return set().union(*(attempt.start.get("damaged", ()) for attempt in self.attempts))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without those that an attempt wrote when it was fenced."""
        bounds = [(attempt.number, attempt.start.get("metrics", float("inf"))) for attempt in self.attempts]
        lines = []
        for at, line in jsonl.read_with_offsets(self.run / METRICS):
            if not any(line.get("attempt", 0) < number and at >= bound for number, bound in bounds):
                lines.append(line)
        return lines


def files(run: Path) -> list[Path]:
    """The files of a run's attempts, in order; a copy of one that somebody has put beside it is none."""
    found = [path for path in (run / "attempts").glob("*.jsonl") if re.fullmatch(r"\d{4,}", path.stem)]
    return sorted(found, key=lambda path: int(path.stem))


def numbers(run: Path) -> list[int]:
    """Numbers of a run's attempts, in order, those included that were killed before their first line."""
    return [int(path.stem) for path in files(run)]


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
        if events[0]["event"] != "start":
            raise _damaged(run, number, 1)
        for earlier, size in events[0]["accepts"].items():
            if size and int(earlier) not in texts:
                raise UserError(incomplete(run, int(earlier)))
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


def incomplete(run: Path, number: int) -> str:
    return f"{run} lacks attempts/{number:04d}.jsonl: its record is incomplete, restore the file from a copy"
