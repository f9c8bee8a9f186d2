"""What resuming promises, and whether two runs of one recipe kept it: pure functions of recipes and records.

Three promises, from the recipe and from what changed between the runs:

    bitwise    every loss, weight and moment the same bit for bit: nothing changed, or `engine.exact=any`
    close      another number of ranks or ZeRO stage adds the same numbers in another order: what was read, counted and
               scheduled is the same bit for bit; losses and gradient norms are within a tolerance
    samples    what was read, counted and scheduled, and nothing more: `engine.exact=samples`

The tolerance is relative, and for the first 5 updates after the change; later ones are shown and not judged, because
rounding grows from update to update at a pace of the recipe's own. Measured on models of 64 thousand to a million
parameters, 2 ranks at ZeRO 2 resumed on 1 at ZeRO 3 and on 3 at ZeRO 2, largest relative difference within so many
updates (two numbers: in a calm recipe, and in one whose gradient norm spikes after the warm-up):

                          5               10               50
    fp32   loss           1e-7, 1e-7      1e-7, 1e-5       1e-7, 1e-2
           gradient norm  1e-7, 1e-7      1e-7, 1e-2       1e-5, 0.9
    bf16   loss           2e-5             2e-5             2e-3
           gradient norm  2e-3             2e-3             0.4

What a resume can break shows at once: moments forgotten at the resume move the second loss after it. Gradient norms
are judged beside losses because AdamW and clipping hide a gradient of a wrong scale from the losses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from trainer import record
from trainer.recipe import Recipe
from trainer.schedule import learning_rate
from trainer.shape import Shape
from trainer.verify import Check

JUDGED = 5  # updates after the change whose figures are held against the tolerance
TOLERANCE = {"fp32": {"loss": 1e-5, "grad_norm": 1e-5}, "bf16": {"loss": 1e-3, "grad_norm": 2e-2}}
FIGURES = {"loss of each step": "loss", "grad_norm of each step": "grad_norm"}
STATE = ("weights", "moments exp_avg", "moments exp_avg_sq", "validation", "dropout seeds of each step")


@dataclass(frozen=True)
class Topology:
    """How a part of a run is spread."""

    ranks: int
    zero_stage: int

    def __str__(self) -> str:
        return f"{self.ranks} rank{'s' * (self.ranks > 1)} at ZeRO {self.zero_stage}"

    def applied(self, recipe: Recipe) -> Recipe:
        """`recipe` on this topology."""
        launch = recipe.launch.model_copy(update={"ranks": self.ranks})
        engine = recipe.engine.model_copy(update={"zero_stage": self.zero_stage})
        return recipe.model_copy(update={"launch": launch, "engine": engine})


@dataclass(frozen=True)
class Promise:
    """What must be equal, and how."""

    kind: Literal["bitwise", "close", "samples"]
    why: str
    precision: str = "fp32"
    """Which tolerance holds where it is close."""
    killed_at: int = 0
    """Updates before the first one that the two runs did on different topologies."""

    def __str__(self) -> str:
        if self.kind == "bitwise":
            return f"everything is the same bit for bit ({self.why})"
        counted = "rows, counts and learning rates are the same bit for bit"
        if self.kind == "samples":
            return f"{counted}; losses and weights are shown and not judged ({self.why})"
        tolerance = TOLERANCE[self.precision]
        return (
            f"{counted}; so is everything up to step {self.killed_at}; in the {JUDGED} updates after it losses differ "
            f"by at most {tolerance['loss']:g} of their size and gradient norms by {tolerance['grad_norm']:g}; later "
            f"ones and the weights are shown and not judged ({self.why})"
        )


def promised(recipe: Recipe, before: Topology, after: Topology, killed_at: int, bf16: bool) -> Promise:
    """What a resume promises against a run that stayed on the topology it had `before`.

    Args:
        killed_at: updates before the resume.
        bf16: whether it computes in bf16.
    """
    exact = recipe.engine.exact
    if exact == "samples":
        return Promise("samples", "engine.exact=samples")
    if before == after:
        return Promise("bitwise", "the same ranks and ZeRO stage")
    if exact == "any" and before.zero_stage and after.zero_stage:
        return Promise("bitwise", "engine.exact=any")
    sizes = [Shape.of(part.applied(recipe), part.ranks).micro_batch for part in (before, after)]
    if (recipe.model.residual_dropout or recipe.model.attention_dropout) and sizes[0] != sizes[1]:
        why = f"dropout is drawn by forward, and forwards of {sizes[0]} and {sizes[1]} rows draw differently"
        return Promise("samples", f"{why}: with engine.micro_batch={min(sizes)} they would be comparable")
    return Promise("close", "the same sums in another order", "bf16" if bf16 else "fp32", killed_at)


@dataclass(frozen=True)
class Ruling:
    """One check, and what it means for the promise."""

    check: Check
    broken: bool
    words: str
    """same, within ..., differs as it may, or DIFFERS."""


def rulings(
    promise: Promise, checks: Sequence[Check], a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]
) -> Iterator[Ruling]:
    """Each check held against the promise; `a` and `b` are the step events of the two lineages."""
    for check in checks:
        if check.equal:
            yield Ruling(check, False, "same")
        elif promise.kind == "close" and check.name in FIGURES:
            yield _within(promise, check, a, b)
        elif promise.kind != "bitwise" and (check.name in FIGURES or check.name in STATE):
            yield Ruling(check, False, "differs, as it may")
        else:
            yield Ruling(check, True, "DIFFERS")


def _within(promise: Promise, check: Check, a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> Ruling:
    """A figure of each step against the tolerance; one that is not finite on one side alone is out of it."""
    name, broken_at, largest = FIGURES[check.name], None, 0.0
    tolerance = TOLERANCE[promise.precision][name]
    for x, y in zip(a, b, strict=False):
        if x["step"] > promise.killed_at + JUDGED or x[name] == y[name]:
            continue
        one_sided = x[name] is None or y[name] is None
        away = float("inf") if one_sided else abs(x[name] - y[name]) / max(abs(x[name]), abs(y[name]))
        largest = max(largest, away)
        if broken_at is None and (away > tolerance or x["step"] <= promise.killed_at):
            broken_at = x["step"]
    if broken_at is None:
        return Ruling(check, False, f"within {tolerance:g} ({largest:.1e})")
    where = "before the kill" if broken_at <= promise.killed_at else f"tolerance {tolerance:g}"
    detail = f"first at step {broken_at}, {where}; up to {largest:.3g} of its size"
    return Ruling(replace(check, detail=detail), True, "DIFFERS")


def other_checks(recipe: Recipe, straight: record.History, resumed: record.History, adopts: str) -> Iterator[Check]:
    """What `compare` leaves out: where it resumed, what it did again, the recipe's own rates, dropout, validation.

    Args:
        recipe: as the user has it, with its own number of updates.
        adopts: the checkpoint that was to be adopted.
    """
    newest = resumed.attempts[-1]
    lost = [f"{first} to {last}" if first < last else f"{first}" for _, first, last in resumed.lost]
    found = newest.start["adopts"]
    problem = "" if found == adopts else f"it adopted {found} instead of {adopts}"
    problem = problem or ("" if lost else "no update was lost to the kill, so none was redone")
    yield Check(
        "resumed", f"from {found}, steps {', '.join(lost) or 'none'} lost and redone", not problem, 0.0, problem
    )
    applied = [event for event in resumed.lineage() if event["verdict"] == "applied"]
    rate = partial(learning_rate, schedule=recipe.schedule, peak=recipe.optimizer.lr, steps=recipe.train.steps)
    odd = next((event["step"] for event in applied if event["lr"] != rate(event["step"] - 1)), None)
    detail = "" if odd is None else f"first differs at step {odd}, where {rate(odd - 1):g} is due"
    yield Check(
        "lr by the recipe", f"{recipe.schedule.kind} over {recipe.train.steps:,} updates", odd is None, 0.0, detail
    )
    seeds = [list(_forwards(history)) for history in (straight, resumed)]
    odd = next((x[0] for x, y in zip(*seeds, strict=False) if x != y), None)
    yield Check(
        "dropout seeds of each step", "position and rows of each forward", odd is None, 0.0,
        "" if odd is None else f"first differs at step {odd}: {_sizes(straight)} and {_sizes(resumed)} rows a forward",
    )  # fmt: skip
    losses = [_validation(history) for history in (straight, resumed)]
    away = max((abs((losses[0][s] or 0) - (losses[1].get(s) or 0)) for s in losses[0]), default=0.0)
    odd = next((step for step in sorted(losses[0] | losses[1]) if losses[0].get(step) != losses[1].get(step)), None)
    detail = "" if odd is None else f"first differs at step {odd}, largest difference {away:.3g}"
    yield Check("validation", f"losses of {len(losses[0])} evaluations", odd is None, away, detail)


def _forwards(history: record.History) -> Iterator[tuple[int, int, int]]:
    """(step, first position, rows of a forward) of each update: with the seed they decide every random draw."""
    sizes = {id(event): attempt.start["micro_batch"] for attempt in history.attempts for event in attempt.events}
    for event in history.lineage():
        yield event["step"], event["positions"][0], sizes[id(event)]


def _sizes(history: record.History) -> str:
    return ", then ".join(dict.fromkeys(str(size) for _, _, size in _forwards(history)))


def _validation(history: record.History) -> dict[int, float | None]:
    """Validation losses by step, of weights that were not lost."""
    lost = {number: first for number, first, _ in history.lost}
    return {
        event["step"]: event["metrics"]["loss"]
        for attempt in history.attempts
        for event in attempt.of("evaluation")
        if event["step"] < lost.get(attempt.number, event["step"] + 1)
    }
