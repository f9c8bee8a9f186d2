"""The guard's judgement, without any training: what is trouble, what isn't, and which rows are passed over."""

import math
import random
import time
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data import settings
from data.errors import UserError
from trainer import guard, recipe
from trainer.feed import spans
from trainer.guard import Avoid, Guard, Trouble, median, plan, robust_z

ROWS = 4
LABELS = 1_000_000  # of an update of tokens


def chosen(**changes: object) -> recipe.Guard:
    """The recipe's defaults, with changes."""
    given_ = [f"guard.{name}={value}" for name, value in changes.items()]
    return settings.load(recipe.Recipe, None, given_).guard


def watched(
    losses: list[float], norms: list[float] | None = None, labels: int = LABELS, **changes: object
) -> list[tuple[int, Trouble]]:
    """(step, what was seen) for applied updates with these figures."""
    watching = Guard(chosen(**changes))
    found = []
    for step, (loss, norm) in enumerate(zip(losses, norms or [1.0] * len(losses), strict=True), 1):
        seen = watching.observe(step, ((step - 1) * ROWS, step * ROWS), labels, loss, norm, True)
        if seen:
            found.append((step, seen))
    return found


def curve(seed: int, steps: int, noise: str, size: float, fall: float) -> list[float]:
    """A loss that falls from 10 to 2 in about `fall` updates, under noise of a standard deviation of about `size`."""
    draw = random.Random(seed)
    tails = {
        "normal": lambda: draw.gauss(0, 1),
        "laplace": lambda: draw.expovariate(1) * draw.choice((-1, 1)),
        "student 6": lambda: draw.gauss(0, 1) / math.sqrt(draw.gammavariate(3, 2) / 6),
    }
    return [2 + 8 * math.exp(-step / fall) + size * tails[noise]() for step in range(steps)]


# -- no alarm --------------------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["normal", "laplace", "student 6"]), st.floats(0, 0.5), st.floats(5, 400))
def test_a_healthy_curve_never_alarms_whatever_its_noise(seed, noise, size, fall):
    losses = curve(seed, 300, noise, size, fall)
    norms = [math.exp(x) for x in curve(seed + 1, 300, noise, size, fall)]
    assert watched(losses, norms) == []


def test_hundreds_of_noisy_runs_raise_no_alarm():
    for seed in range(100):
        for noise in ("normal", "laplace", "student 6"):
            assert watched(curve(seed, 300, noise, 0.2, 40)) == [], (seed, noise)


@pytest.mark.parametrize("factor", [3.0, 5.0])
def test_a_gradient_norm_that_jumps_as_early_training_does_is_no_spike(factor):
    norms = [0.7 * math.exp(0.1 * math.sin(step)) * (factor if step % 17 == 0 else 1) for step in range(200)]
    assert watched([3.0] * 200, norms) == []
    stays = [0.7] * 100 + [0.7 * factor] * 100
    assert watched([3.0] * 200, stays) == []


def test_a_flat_curve_that_stirs_is_no_spike():
    assert watched([1.0] * 100 + [1.2] * 100) == []
    assert watched([1e-3] * 100 + [0.05] * 3 + [1e-3] * 50) == []


def test_a_figure_that_falls_is_never_trouble():
    assert watched([8.0] * 100 + [0.1] * 20, [50.0] * 100 + [1e-6] * 20) == []


def test_one_update_out_of_bounds_that_the_next_has_forgotten_is_no_spike():
    losses = [2.0 + 0.02 * (-1) ** step for step in range(100)]
    losses[70] += 0.8  # z = 27
    assert watched(losses) == []
    assert [step for step, _ in watched(losses, confirm=1)] == [71]


@given(st.lists(st.floats(-1e6, 1e6), min_size=32, max_size=32), st.lists(st.floats(0, 1e12), min_size=32, max_size=32))
def test_nothing_finite_is_trouble_during_the_warm_up(losses, norms):
    assert watched(losses, norms) == []


# -- alarm -----------------------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(150, 250), st.floats(0.001, 0.1), st.booleans())
def test_a_spike_that_stays_for_two_updates_is_found_at_the_second(seed, at, size, of_norm):
    losses = curve(seed, 300, "normal", size, 40)
    norms = [math.exp(x / 8) for x in curve(seed + 1, 300, "normal", size, 40)]
    for step in (at, at + 1):
        if of_norm:
            norms[step - 1] *= 1e4
        else:
            losses[step - 1] += 12
    found = watched(losses, norms)
    assert found
    assert found[0][0] in (at, at + 1)
    assert found[0][1].positions == ((at - 1) * ROWS, found[0][0] * ROWS)
    assert ("gradient norm" if of_norm else "loss") in found[0][1].reason


def test_the_spike_of_a_real_run_is_found_where_it_rose():
    tail = [0.6525, 0.6347, 0.6372, 2.6813, 2.5586, 1.8621, 2.1343]
    norms = [0.453, 0.4312, 3.1332, 3.3814, 9.136, 20.9852, 3.2472]
    steady = [0.64 + 0.012 * math.sin(3 * step) for step in range(64)]
    step, seen = watched(steady + tail, [0.45] * 64 + norms)[0]
    assert (step, seen.positions) == (68, (67 * ROWS, 68 * ROWS))
    assert seen.figures["z"] > 40
    assert plan(seen, [], chosen(), ROWS)["positions"] == [66 * ROWS, 69 * ROWS]  # with the update before it


def test_classes_that_begin_to_be_told_apart_are_no_spike_where_an_update_has_few_examples():
    """What was seen: 68 updates of 16 examples at chance, then losses and norms as of a model that learns."""
    losses = [0.6833 + 0.006 * math.sin(step) for step in range(68)] + [0.66, 1.1, 1.28, 0.5, 1.0]
    norms = [0.5 + 0.1 * math.cos(step) for step in range(68)] + [2.0, 8.0, 10.7, 5.0, 9.0]
    assert watched(losses, norms, labels=16) == []
    assert watched(losses, norms, labels=100_000)
    assert watched([*losses[:68], 3.5, 3.5], [*norms[:68], 10.0, 10.0], labels=16)


def test_updates_that_are_not_finite_are_trouble_after_so_many_in_a_row():
    watching = Guard(chosen(max_nonfinite=3))
    refused = [(math.nan, math.nan, False)] * 2 + [(2.0, 1.0, True)] + [(math.nan, math.nan, False)] * 3
    seen = [
        watching.observe(1, (number * ROWS, (number + 1) * ROWS), LABELS, *figures)
        for number, figures in enumerate(refused)
    ]
    assert seen[:5] == [None] * 5
    assert seen[5] is not None
    assert seen[5].positions == (3 * ROWS, 6 * ROWS)
    assert "3 non-finite updates in a row" in seen[5].reason


def test_a_gradient_a_hundred_times_too_large_is_trouble_at_once_also_where_everything_falls_fast():
    """What was seen: norms that scatter, a loss that falls steeply, and damage that shows itself three updates on."""
    losses = [4.2, 3.9, 3.6, 3.4, 3.2, 2.9, 2.7, 2.6, 2.4, 2.3, 2.1, 2.0, 1.9, 1.8, 1.7, 2.4, 3.2, 3.7]
    norms = [1.1, 1.1, 0.9, 1.2, 1.2, 1.2, 1.1, 0.8, 1.1, 0.9, 0.8, 0.8, 1.7, 1.3, 5669.6, 5.3, 5.2, 4.6]
    assert [step for step, _ in watched(losses, norms, window=8, warmup=8)] == [15]
    norms[14] = 60.0
    assert watched(losses, norms, window=8, warmup=8) == []


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (2.0, math.inf)])
def test_an_applied_update_that_is_not_finite_is_trouble_at_once(loss, norm):
    seen = Guard(chosen()).observe(1, (0, ROWS), LABELS, loss, norm, True)
    assert seen is not None
    assert seen.positions == (0, ROWS)


def test_what_is_suspected_is_said_until_it_has_passed():
    watching = Guard(chosen(warmup=8, window=8))
    for step in range(1, 12):
        watching.observe(step, (0, 1), LABELS, 2.0, 1.0, True)
    assert not watching.suspects
    watching.observe(12, (0, 1), LABELS, 2.5, 1.0, True)
    assert watching.suspects
    watching.observe(13, (0, 1), LABELS, 2.0, 1.0, True)
    assert not watching.suspects


# -- the figure ------------------------------------------------------------------------------------------------------


def test_the_robust_z_of_a_window_by_hand():
    assert robust_z(9.0, [1, 2, 3, 4, 5], 0.1) == pytest.approx(6 / 1.4826)  # median 3, distances 2 1 0 1 2: MAD 1
    assert robust_z(4.0, [3, 3, 3, 3], 0.5) == pytest.approx(1 / (1.4826 * 0.5))
    assert robust_z(4.0, [3, 3, 3, 3], 0.5, noise=2.0) == pytest.approx(1 / 2)
    assert robust_z(2.0, [3, 3, 3, 3], 0.5) == 0
    assert (median([3, 1, 2]), median([4, 1, 2, 3])) == (2, 2.5)


def test_watching_an_update_costs_less_than_fifty_microseconds():
    watching = Guard(chosen())
    draw = random.Random(3)
    figures = [(2 + 0.1 * draw.gauss(0, 1), math.exp(0.2 * draw.gauss(0, 1))) for _ in range(2000)]
    best = math.inf
    for _ in range(5):
        began = time.thread_time()
        for step, (loss, norm) in enumerate(figures, 1):
            watching.observe(step, (step, step + 1), LABELS, loss, norm, True)
        best = min(best, (time.thread_time() - began) / len(figures))
    assert best < 50e-6


# -- which rows ------------------------------------------------------------------------------------------------------


def trouble(first: int, last: int) -> Trouble:
    """In the updates [first, last)."""
    return Trouble("loss 9 is too much", last, (first * ROWS, last * ROWS), {})


def times_and_updates(avoid: Avoid) -> tuple[int, float, float]:
    first, last = avoid["positions"]
    return avoid["times"], first / ROWS, last / ROWS


def test_the_margin_doubles_while_the_trouble_comes_back_near_the_same_place():
    said, earlier = chosen(window=16, margin=1, max_rollbacks=4), []
    for first, last in ((100, 101), (102, 103), (104, 105), (109, 110)):
        earlier.append(plan(trouble(first, last), earlier, said, ROWS))
    assert [times_and_updates(each) for each in earlier] == [
        (1, 99, 102), (2, 100, 105), (3, 100, 109), (4, 101, 118),
    ]  # fmt: skip
    assert times_and_updates(plan(trouble(200, 201), earlier, said, ROWS)) == (1, 199, 202)  # a new place
    with pytest.raises(
        UserError, match=r"positions \[476, 480\), after 4 rollbacks within 16 updates of one another.*"
    ):
        plan(trouble(119, 120), earlier, said, ROWS)


def test_a_margin_never_grows_beyond_the_window_and_never_below_zero():
    earlier: list[Avoid] = []
    for _ in range(8):
        earlier.append(plan(trouble(3, 4), earlier, chosen(window=8, margin=2, max_rollbacks=9), ROWS))
    assert earlier[-1]["positions"] == [0, (4 + 8) * ROWS]


def test_without_any_rollback_allowed_the_first_trouble_is_an_error_with_its_mend():
    with pytest.raises(
        UserError, match=r"loss 9 is too much, at step 5, .* Lower optimizer\.lr .*guard\.max_rollbacks"
    ):
        plan(trouble(4, 5), [], chosen(max_rollbacks=0), ROWS)


@given(st.integers(0, 30), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=5))
def test_the_updates_of_a_run_go_round_each_interval_and_leave_nothing_out(consumed, intervals):
    avoid: list[Avoid] = [
        {"positions": [first * ROWS, (first + count) * ROWS], "trouble": [0, 0], "times": 1, "reason": "guard: x"}
        for first, count in intervals
    ]
    found = list(islice(spans(consumed * ROWS, ROWS, avoid), 60))
    assert [first for first, _, _ in found] == [consumed * ROWS, *(last for _, last, _ in found)][:-1]
    for first, last, passed_over in found:
        assert (passed_over is None) == (last - first == ROWS and not covered(avoid, first)) or passed_over
        for position in range(first, last, ROWS):
            assert covered(avoid, position) == (passed_over is not None)


def covered(avoid: list[Avoid], position: int) -> bool:
    return any(each["positions"][0] <= position < each["positions"][1] for each in avoid)


def test_the_floors_are_what_the_documentation_says():
    assert robust_z(2.0 + 0.29, [2.0] * 64, guard.LEAST_LOSS) < 10 < robust_z(2.0 + 0.31, [2.0] * 64, guard.LEAST_LOSS)
    assert robust_z(math.log(9), [0.0] * 64, guard.LEAST_NORM) < 10 < robust_z(math.log(10), [0.0] * 64, 0.15)
