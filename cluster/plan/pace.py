"""How long an update takes, and what follows from it. Pure arithmetic; nothing is assumed that wasn't told or measured.

The seconds of an update come from one of: a few real steps taken here (`measure.py`); another run's metrics, by the
floating-point operations that it reached on the same kind of device; or a stated efficiency of the device's peak.
Without any of them time, energy and cost are unknown.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from cluster.plan.memory import Setup
from data.errors import UserError
from trainer import jsonl, record
from trainer.meters import flops_per_token
from trainer.objectives.rows import text_figures
from trainer.recipe import Recipe
from trainer.record import METRICS

SPARE, START_UP_MINUTES = 1.25, 15  # what a time limit has above the updates: saves, evaluations, busy neighbours
LEAST_LINES = 3  # of metrics, before a run's speed is taken for it
RECOMPUTED = 4 / 3  # work with activation checkpointing, against without: one forward pass more, of three


@dataclass(frozen=True)
class Pace:
    """Seconds of one update, and how they are known."""

    step_s: float
    source: str


def update_flops(setup: Setup) -> float:
    """Floating-point operations of one rank in one update; recomputed activations don't count, filler rows do."""
    model = setup.recipe.model
    trained = sum(setup.trained.values())
    tokens, labels = text_figures(setup.recipe)
    each = flops_per_token(model, setup.parameters, setup.vocab_size, trained, labels).causal
    return each * tokens * setup.shape.micro_batch * setup.shape.accumulation


def stated(setup: Setup, peak: float | None, efficiency: float, device: str) -> Pace:
    """From a share of the device's peak (MFU), between 0 and 1.

    Raises:
        UserError: the peak isn't known, or the share isn't one.
    """
    if not 0 < efficiency <= 1:
        raise UserError(f"--efficiency {efficiency} is a share of the device's peak: above 0, at most 1")
    if peak is None:
        precision = "bf16" if setup.bf16 else "fp32"
        raise UserError(f"--efficiency needs a known peak, and {device} has none in {precision}: take --measure")
    again = RECOMPUTED if setup.recipe.engine.activation_checkpointing else 1.0
    return Pace(again * update_flops(setup) / (peak * efficiency), f"{efficiency:.0%} of the peak of {device}, stated")


def of_run(run: Path) -> tuple[float, dict]:
    """(median seconds of an update, the attempt's start) of the newest attempt with enough lines of metrics.

    Raises:
        UserError: no attempt has them.
    """
    lines, _ = jsonl.read(run / METRICS)
    for attempt in reversed(record.load(run).attempts):
        own = [line["speed/step_ms"] for line in lines if line.get("attempt") == attempt.number and _timed(line)]
        if len(own) >= LEAST_LINES:
            return statistics.median(own) / 1000, attempt.start
    raise UserError(f"{run} has no attempt with {LEAST_LINES} timed lines of metrics: its speed isn't known")


def like(setup: Setup, run: Path, recipe: Recipe, vocab_size: int, device: str) -> Pace:
    """From what `run`, of `recipe`, reached on the same kind of device.

    Raises:
        UserError: it was on another kind of device, or its speed isn't known.
    """
    step_s, start = of_run(run)
    return scaled(setup, Setup.of(recipe, vocab_size, start["world"], device != "cpu"), step_s, start, run, device)


def scaled(setup: Setup, done: Setup, step_s: float, start: dict, run: Path, device: str) -> Pace:
    """`done` took `step_s` an update; how long `setup` takes, by the floating-point operations of both.

    Args:
        start: the attempt's, which names the device and the ranks.

    Raises:
        UserError: it was on another kind of device.
    """
    theirs = str(start["device"])
    if (theirs.startswith("cpu") and device != "cpu") or (not theirs.startswith("cpu") and device != theirs):
        raise UserError(f"{run} ran on {theirs}, and this plan is for {device}: its speed says nothing about it")
    again = [RECOMPUTED if each.recipe.engine.activation_checkpointing else 1.0 for each in (setup, done)]
    reached = update_flops(done) / step_s
    seconds = update_flops(setup) / reached * again[0] / again[1]
    where = f"{reached / 1e12:.3g} TFLOP/s of each of {start['world']} rank(s), measured in {run.name}"
    return Pace(seconds, where)


def hours(recipe: Recipe, run: Path | None = None, step_s: float | None = None) -> float | None:
    """Hours of the updates that are left: what a scheduler may be asked for, before start-up, saves and evaluations.

    Args:
        run: its folder; its own speed counts where it has trained on as many ranks, and the updates it has behind it.
        step_s: seconds of an update, stated or measured elsewhere; it comes before the run's own.

    Returns:
        None where nobody knows how long an update takes.
    """
    left = recipe.train.steps
    if run is not None and record.load(run).attempts:
        left -= min(left, max((s.get("step", 0) for a in record.load(run).attempts for s in a.applied), default=0))
        if step_s is None:
            try:
                found, start = of_run(run)
            except UserError:
                return None
            step_s = found if start["world"] == recipe.launch.ranks else None
    return None if step_s is None else left * step_s / 3600


def minutes(hours_left: float) -> int:
    """The time limit to ask a scheduler for, where the updates take so long."""
    return math.ceil(60 * hours_left * SPARE) + START_UP_MINUTES


def _timed(line: dict) -> bool:
    return isinstance(line.get("speed/step_ms"), int | float)
