"""What the report tells of one run: its files, read once, and the figures and curves made of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from data.remote.origin import is_remote
from data.remote.remote import known_info
from trainer import record
from trainer.console import best_evaluation, state_of
from trainer.explanation import Explanation, newest
from trainer.goodput import Goodput, measure
from trainer.meters import Counted, labels_of
from trainer.recipe import Recipe
from trainer.report_charts import Piece, Point
from trainer.run import FILE, read_recipe
from trainer.units import duration, short

EXPLANATIONS = 6
"""Inputs whose explanations are read, the newest."""


@dataclass(frozen=True)
class Story:
    """One run folder."""

    run: Path
    recipe: Recipe
    recipe_text: str
    history: record.History
    lines: list[dict[str, Any]]
    """Of metrics.jsonl."""
    datasets: dict[str, dict[str, Any] | None]
    """dataset.json of each of the run's sources, by name; None where the dataset isn't in its place any more."""
    proof: dict[str, Any] | None
    """proof.json."""
    explanations: list[Explanation]
    """Of single inputs, the newest first, `EXPLANATIONS` at most."""
    unread: list[str]
    """What is wrong with those of them that can't be read."""
    explained: int
    """How many there are."""

    @classmethod
    def load(cls, run: Path) -> "Story":
        """Raises UserError where `run` is no run folder, or its record is damaged."""
        recipe, history = read_recipe(run), record.load(run)
        return cls(
            run,
            recipe,
            (run / FILE).read_text("utf-8", "replace"),
            history,
            history.metrics(),
            {name: _info(place, recipe) for name, place in recipe.data.places.items()},
            _json(run / "proof.json"),
            *newest(run, EXPLANATIONS),
        )

    @property
    def name(self) -> str:
        """What the recipe calls it."""
        return self.recipe.name

    @cached_property
    def state(self) -> str:
        """not started, running, done, stopped, failed or killed."""
        return state_of(self.history)

    @cached_property
    def lineage(self) -> list[dict[str, Any]]:
        """The step events that made the newest weights."""
        return self.history.lineage()

    @cached_property
    def counts(self) -> Counted:
        """What its labels are."""
        return labels_of(self.lines)

    @cached_property
    def labels_at(self) -> dict[int, int]:
        """Labels behind each step of the lineage."""
        total, found = 0, {0: 0}
        for event in self.lineage:
            if event["verdict"] == "applied":
                total += event["labels"]
                found[event["step"]] = total
        return found

    @cached_property
    def lost_steps(self) -> int:
        """Applied updates that were rolled back."""
        return sum(last - first + 1 for _, first, last in self.history.lost)

    def is_lost(self, attempt: int, step: int) -> bool:
        """Whether what `attempt` did at `step` is in no lineage, or was written when it no longer counted."""
        rolled_back = any(number == attempt and first <= step <= last for number, first, last in self.history.lost)
        return rolled_back or step > self._accepted.get(attempt, -1)

    @cached_property
    def _accepted(self) -> dict[int, int]:
        """Last step of each attempt that later ones accept."""
        return {attempt.number: attempt.last_step for attempt in self.history.attempts}

    def curve(self, name: str, axis: str, kind: str = "train") -> list[Piece]:
        """The metric `name` over "steps" or "labels", as one line of what counts and one for each lost part."""
        x_name = "train/step" if axis == "steps" else f"train/{self.counts}"
        samples = [
            (line["attempt"], line["train/step"], line.get(x_name), line.get(name))
            for line in self.lines
            if line.get("kind", "train") == kind and isinstance(line.get("train/step"), int) and "attempt" in line
        ]
        kept: dict[int, Point] = {}
        lost: dict[int, list[Point]] = {}
        for attempt, step, x, y in samples:
            if not isinstance(x, int | float) or not isinstance(y, int | float):
                continue
            if self.is_lost(attempt, step):
                if attempt not in lost:  # it parts from what counts at the last point before
                    lost[attempt] = [kept[before] for before in sorted(kept) if before < step][-1:]
                lost[attempt].append((x, y))
            else:
                kept[step] = (x, y)
        pieces = [Piece(points, lost=True) for points in lost.values()]
        return [*pieces, Piece([kept[step] for step in sorted(kept)])] if kept else pieces

    def restarts(self, axis: str) -> list[tuple[float, str]]:
        """(x, name) of each attempt after the first."""
        return [
            (self._x(attempt.start["step"], axis), f"attempt {attempt.number}") for attempt in self.history.attempts[1:]
        ]

    def bands(self, axis: str) -> list[tuple[float, float]]:
        """Intervals of x that were done more than once."""
        return [(self._x(first - 1, axis), self._x(last, axis)) for _, first, last in self.history.lost]

    def _x(self, step: int, axis: str) -> float:
        if axis == "steps":
            return step
        known = self.labels_at
        return known.get(step, max(known.values()) if step > max(known) else 0)

    @cached_property
    def evaluations(self) -> list[tuple[int, dict[str, Any]]]:
        """(attempt, event) of every evaluation, oldest first."""
        return [(attempt.number, event) for attempt in self.history.attempts for event in attempt.of("evaluation")]

    @cached_property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest validation loss."""
        return best_evaluation(self.history)

    def values(self, name: str) -> list[float]:
        """All logged values of a metric, lost steps included."""
        return [line[name] for line in self.lines if isinstance(line.get(name), int | float)]

    @cached_property
    def goodput(self) -> Goodput:
        """Where the run's whole wall-clock went."""
        return measure(self.history)

    def figures(self) -> Iterator[tuple[str, str, str]]:
        """(name, value, remark) of what matters most; "n/a" where it is not known."""
        train = next((line for line in reversed(self.lines) if isinstance(line.get("train/loss"), float)), {})
        best = self.best["metrics"] if self.best else {}
        accuracy = best.get("accuracy")
        steps = self.history.attempts[-1].last_step if self.history.attempts else 0
        of_tokens = self.counts == "tokens"
        unit = "nats a token" if of_tokens else "a mean over examples"
        yield "Training loss", _shown(train.get("train/loss"), 4), f"{unit}, at step {train.get('train/step', 0)}"
        yield "Best validation loss", _shown(best.get("loss"), 4), f"at step {self.best['step']}" if self.best else ""
        yield "Perplexity", _shown(best.get("perplexity"), 2), "validation"
        yield "Bits per byte", _shown(best.get("bits_per_byte"), 4), "validation"
        yield (
            "Token accuracy" if of_tokens else "Accuracy",
            _percent(None if accuracy is None else 100 * accuracy),
            "validation",
        )
        yield "Steps", f"{steps:,}", f"of {self.recipe.train.steps:,}"
        learned = short(self.labels_at.get(steps, max(self.labels_at.values())))
        yield (
            ("Tokens", learned, "label tokens in the weights") if of_tokens else ("Examples", learned, "in the weights")
        )
        parameters = self.history.attempts[-1].start.get("parameters") if self.history.attempts else None
        yield "Parameters", short(parameters) if parameters else "n/a", ""
        speeds = self.values("speed/tokens_per_s")
        yield "Speed", f"{short(median(speeds))}/s" if speeds else "n/a", "tokens, median"
        mfu = self.values("speed/mfu_pct")
        yield (
            "MFU",
            f"{median(mfu):.1f} %" if mfu else "n/a",
            "causal attention" if mfu else "the device's peak is unknown",
        )
        waits = self.values("speed/data_wait_pct")
        yield "Data wait", f"{median(waits):.1f} %" if waits else "n/a", "of a step, median"
        memory = self.values("memory/peak_gib")
        yield "Peak memory", f"{max(memory):.2f} GiB" if memory else "n/a", "of rank 0"
        yield "Wall-clock", duration(self.goodput.wall), "over all attempts"
        yield "Goodput", _percent(self.goodput.percent), "of it computed what the weights are made of"
        yield "Attempts", str(len(self.history.attempts)), ""
        yield "Lost steps", f"{self.lost_steps:,}", "rolled back and done again" if self.lost_steps else ""


@dataclass(frozen=True)
class Coverage:
    """Which positions the weights were made of."""

    consumed: int
    updates: int
    skipped: list[tuple[int, int]]
    gaps: list[tuple[int, int]]
    repeated: list[tuple[int, int]]

    @property
    def exact(self) -> bool:
        """Whether every position up to `consumed` was read once and only once."""
        return not self.gaps and not self.repeated


def coverage(lineage: list[dict[str, Any]]) -> Coverage:
    """What a lineage's steps read, interval by interval."""
    skipped, gaps, repeated = [], [], []
    reached = updates = 0
    for event in lineage:
        first, last = event["positions"]
        if first > reached:
            gaps.append((reached, first))
        elif first < reached:
            repeated.append((first, min(reached, last)))
        if event["verdict"] == "applied":
            updates += 1
        else:
            skipped.append((first, last))
        reached = max(reached, last)
    return Coverage(reached, updates, skipped, gaps, repeated)


def _info(place: str, recipe: Recipe) -> dict[str, Any] | None:
    """`dataset.json` of a folder, or of a remote dataset that was opened on this node; a report asks no network."""
    return known_info(place, recipe.data.access.cache) if is_remote(place) else _json(Path(place) / "dataset.json")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _shown(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f} %"
