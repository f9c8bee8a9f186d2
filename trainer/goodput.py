"""Where a run's wall-clock went: every second of every attempt, and of the gaps between them, is in one category.

Goodput is the share of it that computed what the newest weights are made of. An attempt's own clock (`trainer.clock`)
says how it spent its time; only afterwards can it be known what of that was worth anything: compute and data wait
after the checkpoint that the lineage went on from are *lost*, wholly where it went on from an older attempt's. So is
what a killed attempt did after its last reading, up to its last heartbeat.

Durations are the attempts' own and can't jump; the gaps between them are differences of the wall clock, so a clock set
back makes a gap of nothing, and is said. What an attempt without a clock did is not guessed: it is not attributed.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from trainer import checkpoint, claim, record
from trainer.clock import CATEGORIES as LIVE
from trainer.clock import Clock

NAMES = {
    "compute": "compute",
    "data_wait": "data wait",
    "checkpoint": "checkpoint stall",
    "evaluation": "evaluation",
    "start_up": "start-up",
    "shutdown": "shutdown",
    "lost": "lost work",
    "down": "down",
    "unattributed": "not recorded",
}
"""The categories, and how a person reads them."""
REDONE = ("compute", "data_wait")  # what is lost of an attempt that a later one rolls back
EVERY_S = 5.0  # between two readings in the record: one is 200 bytes
SAID_S = 2.0  # a disagreement of clocks from which it is said


@dataclass(frozen=True)
class Life:
    """One attempt, and the gap before it."""

    attempt: int
    began: float
    """Unix time of its process's start; for one begun by a rollback, of that."""
    ended: float
    """Unix time of its last event or heartbeat, or now."""
    seconds: dict[str, float]
    """By category; "down" is the gap before it."""


@dataclass(frozen=True)
class Goodput:
    """All attempts of a run, in order."""

    lives: list[Life]
    notes: list[str]
    """What a person should know of the clocks."""

    @property
    def seconds(self) -> dict[str, float]:
        """Of the whole run, by category."""
        return {name: sum(life.seconds[name] for life in self.lives) for name in NAMES}

    @property
    def wall(self) -> float:
        """Seconds from the first attempt's start to the last one's end: the sum of all categories."""
        return sum(self.seconds.values())

    @property
    def percent(self) -> float | None:
        """Compute in percent of the wall-clock, at least: "unattributed" may hold more. None where nothing is known."""
        compute, unknown, wall = self.seconds["compute"], self.seconds["unattributed"], self.wall
        return 100 * compute / wall if wall and (compute or not unknown) else None

    def shown(self) -> Iterator[tuple[str, float, float]]:
        """(category, seconds, percent) of those that come to a tenth of a second, the longest first."""
        for name, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            if seconds >= 0.05:
                yield name, seconds, 100 * seconds / self.wall


def measure(history: record.History) -> Goodput:
    """The account of a run as its folder stands now."""
    newest = history.attempts[-1].number if history.attempts else None
    running = newest is not None and claim.alive(history.run) == newest
    beats = {attempt.number: claim.last_beat(history.run, attempt.number) for attempt in history.attempts}
    return account(history, beats, time.time() if running else None)


def account(
    history: record.History, beats: Mapping[int, float | None] | None = None, now: float | None = None
) -> Goodput:
    """The account of a run: a pure function.

    Args:
        beats: Unix time of each attempt's last heartbeat, where one is left.
        now: Unix time; given where the newest attempt still runs. What it did since its last reading is "unattributed"
            until the next one.

    Raises:
        UserError: an attempt whose checkpoint was adopted is gone from the record.
    """
    lives: list[Life] = []
    notes: list[str] = []
    marks = _marks(history, now is not None)
    for attempt, after in zip_longest(history.attempts, history.attempts[1:]):
        began = _began(attempt)
        ended = _ended(attempt, after, (beats or {}).get(attempt.number), now)
        seconds = dict.fromkeys(NAMES, 0.0)
        if lives:
            gap = began - lives[-1].ended
            seconds["down"] = max(0.0, gap)
            if gap < -SAID_S:
                notes.append(
                    f"attempt {attempt.number} began {-gap:.0f} s before attempt {lives[-1].attempt} had ended: a "
                    "clock was set back, or both lived for a while; no time between them is counted"
                )
        rolled_back = after is not None and after.start.get("supervisor") == "rollback"
        rest = "lost" if rolled_back or not attempt.outcome else "shutdown"
        _spend(attempt, began, ended, "unattributed" if after is None and now is not None else rest, seconds)
        _lose(seconds, marks.get(attempt.number, {}))
        lives.append(Life(attempt.number, began, ended, seconds))
        notes += _doubts(attempt, began, seconds)
    return Goodput(lives, notes)


def _began(attempt: record.Attempt) -> float:
    return attempt.start.get("began", attempt.start["time"])


def _ended(attempt: record.Attempt, after: record.Attempt | None, beat: float | None, now: float | None) -> float:
    """A heartbeat after the next attempt's start is one of a fenced attempt, or of a copied folder: it counts not."""
    if after is None and now is not None:
        return max(now, attempt.ended)
    if after is not None and after.start.get("supervisor") == "rollback":
        return max(_began(after), attempt.ended)
    if attempt.outcome or beat is None or (after is not None and beat > _began(after)):
        return attempt.ended
    return max(beat, attempt.ended)


def _spend(attempt: record.Attempt, began: float, ended: float, rest: str, seconds: dict[str, float]) -> None:
    """Add what the attempt did to `seconds`: its last reading, and as `rest` the time from there to its end."""
    if "began" not in attempt.start:
        seconds["unattributed"] += max(0.0, ended - began)
        return
    last = next((event for event in reversed(attempt.events) if _is_reading(event)), None)
    if last is None:
        seconds["start_up"] += max(0.0, attempt.start["time"] - began)
        last = attempt.start
    for name, spent in last.get("clock", {}).items():
        seconds[name] += spent
    seconds[rest] += max(0.0, ended - last["time"])


def _lose(seconds: dict[str, float], mark: Mapping[str, float] | None) -> None:
    """Make lost what was done after the mark, and will be, or has been, done again."""
    if mark is None:
        return
    for name in REDONE:
        gone = max(0.0, seconds[name] - mark.get(name, 0.0))
        seconds[name] -= gone
        seconds["lost"] += gone


def _is_reading(event: Mapping[str, Any]) -> bool:
    """A checkpoint's clock is not: it was read when the weights were taken, which may be long before the event."""
    return "clock" in event and event["event"] != "checkpoint"


def _marks(history: record.History, running: bool) -> dict[int, Mapping[str, float] | None]:
    """The reading up to which the work of an attempt is in the lineage; None: all of it. Those that lack are lost."""
    if not history.attempts:
        return {}
    attempt = history.attempts[-1]
    saved = attempt.of("checkpoint")
    marks: dict[int, Mapping[str, float] | None] = {}
    marks[attempt.number] = None if running else saved[-1].get("clock", {}) if saved else {}
    while (adopted := attempt.start["adopts"]) is not None:
        attempt = history.attempt(checkpoint.attempt_of(adopted))
        marks[attempt.number] = _mark(attempt, adopted)
    return marks


def _mark(attempt: record.Attempt, name: str) -> Mapping[str, float]:
    """The clock at a checkpoint; where it was killed before it could write that down, at the last reading before."""
    saved = next((event for event in attempt.of("checkpoint") if event["name"] == name), None)
    if saved is not None:
        return saved.get("clock", {})
    found: Mapping[str, float] = {}
    for event in attempt.events:
        if event["event"] == "step" and event["step"] > checkpoint.step_of(name):
            break
        if _is_reading(event):
            found = event["clock"]
    return found


def _doubts(attempt: record.Attempt, began: float, seconds: Mapping[str, float]) -> Iterator[str]:
    if "began" not in attempt.start:
        yield (
            f"attempt {attempt.number} was recorded without a clock: its {seconds['unattributed']:.0f} s can't be "
            "attributed"
        )
    for event in reversed(attempt.events):
        if _is_reading(event):
            moved = event["time"] - began - sum(event["clock"].values())
            if abs(moved) > SAID_S:
                yield f"the wall clock was moved by {moved:+.0f} s during attempt {attempt.number}"
            return


def before(history: record.History, number: int, start: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by category of the earlier attempts, and of the gap up to the one that begins with `start`."""
    begun = record.Attempt(number, [{**start, "event": "start", "time": start["began"]}])
    beats = {attempt.number: claim.last_beat(history.run, attempt.number) for attempt in history.attempts}
    whole = account(record.History(history.run, [*history.attempts, begun]), beats, start["began"])
    return whole.seconds


class Timesheet:
    """What a running attempt says of its time: to the record every few seconds, and on each line of metrics."""

    def __init__(self, clock: Clock, writer: claim.Writer, earlier: Mapping[str, float]):
        """
        Args:
            earlier: as `before` gives it.
        """
        self._clock, self._writer, self._earlier = clock, writer, earlier
        self._written = clock.running()

    def write(self, least_s: float = EVERY_S) -> None:
        """Put a reading into the record, unless the last one is younger than `least_s`."""
        if self._clock.running() - self._written >= least_s:
            self._writer.append("clock", clock=self._clock.seconds())
            self._written = self._clock.running()

    def figures(self) -> dict[str, float]:
        """Shares of the whole run's wall-clock so far, in percent: goodput/compute_pct is the goodput."""
        own = self._clock.seconds()
        seconds = {name: spent + own.get(name, 0.0) for name, spent in self._earlier.items()}
        whole = sum(seconds.values())
        shown = [name for name in seconds if name in (*LIVE, "lost", "down") or seconds[name]]
        return {f"goodput/{name}_pct": 100 * seconds[name] / whole for name in shown}
