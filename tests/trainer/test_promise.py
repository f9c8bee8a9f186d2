"""What a resume promises is a function of the recipe and of what changed."""

import pytest

from data import settings
from trainer.promise import JUDGED, TOLERANCE, Promise, Topology, promised, rulings
from trainer.recipe import Recipe
from trainer.verify import Check

TWO, ONE = Topology(2, 2), Topology(1, 2)


def kind(after: Topology, *given: str) -> str:
    return promised(settings.load(Recipe, None, given), TWO, after, 4, False).kind


@pytest.mark.parametrize("other", [ONE, Topology(2, 3), Topology(3, 1)])
def test_bits_are_promised_on_the_same_topology_or_by_exact_any(other: Topology) -> None:
    assert kind(TWO) == "bitwise"
    assert kind(other) == "close"
    assert kind(TWO, "engine.exact=any") == kind(other, "engine.exact=any") == "bitwise"
    assert kind(TWO, "engine.exact=samples") == kind(other, "engine.exact=samples") == "samples"


def test_exact_any_says_nothing_of_stage_0() -> None:
    assert kind(Topology(2, 0), "engine.exact=any") == "close"


def test_dropout_is_comparable_only_with_the_same_forwards() -> None:
    drops = ("model.residual_dropout=0.1", "train.batch_rows=12")
    assert kind(ONE, *drops) == "samples"
    assert kind(ONE, *drops, "engine.micro_batch=6") == "close"
    assert kind(TWO, *drops) == "bitwise"


def test_the_tolerance_is_that_of_the_precision_from_the_resume_on() -> None:
    for bf16, precision in ((False, "fp32"), (True, "bf16")):
        promise = promised(settings.load(Recipe), TWO, ONE, 4, bf16)
        assert (promise.killed_at, promise.precision) == (4, precision)
        assert f"losses differ by at most {TOLERANCE[precision]['loss']:g} of their size" in str(promise)


def steps(losses: list[float | None]) -> list[dict]:
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("at", "loss", "broken"),
    [
        (5, 2 * (1 + 0.9e-5), False),
        (5, 2 * (1 + 1.2e-5), True),
        (5, None, True),
        (4, 2 * (1 + 1e-9), True),  # before the kill nothing may differ
        (4 + JUDGED, 2.1, True),
        (5 + JUDGED, 2.1, False),
    ],
)
def test_a_loss_is_close_within_the_tolerance_for_so_many_updates(at: int, loss: float | None, broken: bool) -> None:
    promise = Promise("close", "", killed_at=4)
    straight: list[float | None] = [2.0] * (10 + JUDGED)
    moved = [*straight[: at - 1], loss, *straight[at:]]
    (ruling,) = rulings(promise, [Check("loss of each step", "", False)], steps(straight), steps(moved))
    assert ruling.broken is broken
    assert not broken or f"first at step {at}" in ruling.check.detail


def test_what_was_read_must_be_the_same_under_every_promise() -> None:
    checks = [Check(name, "", False) for name in ("rows of each step", "lr of each step", "order", "counters")]
    for name in ("bitwise", "close", "samples"):
        assert all(ruling.broken for ruling in rulings(Promise(name, ""), checks, [], []))
    (weights,) = rulings(Promise("close", ""), [Check("weights", "", False)], [], [])
    assert not weights.broken
    (weights,) = rulings(Promise("bitwise", ""), [Check("weights", "", False)], [], [])
    assert weights.broken
