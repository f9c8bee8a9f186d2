"""The learning rate at its edges and in between."""

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainer.recipe import Schedule
from trainer.schedule import learning_rate

KINDS = st.sampled_from(["cosine", "linear", "inverse_sqrt", "wsd", "constant"])


def rates(schedule: Schedule, steps: int, peak: float = 1.0) -> list[float]:
    return [learning_rate(step, schedule, peak, steps) for step in range(steps)]


@given(KINDS, st.integers(2, 80), st.integers(0, 79), st.integers(1, 79), st.floats(0, 1), st.floats(1e-6, 10))
def test_every_kind_at_its_edges(kind, steps, warmup, decay, ratio, peak):
    assume(warmup + (decay if kind == "wsd" else 0) <= steps)
    assume(warmup < steps or kind in ("constant", "inverse_sqrt"))
    schedule = Schedule(kind=kind, warmup_steps=warmup, decay_steps=decay, final_ratio=ratio)
    values = rates(schedule, steps, peak)
    assert values[0] == pytest.approx(peak / max(warmup, 1)) or (kind == "wsd" and decay == steps)
    assert all(0 <= value <= peak * (1 + 1e-12) for value in values)
    assert all(a <= b for a, b in pairwise(values[:warmup]))
    assert all(a >= b - peak * 1e-12 for a, b in pairwise(values[max(warmup - 1, 0) :]))
    if warmup:
        assert values[warmup - 1] == peak
    if warmup < steps and steps - warmup + min(warmup, 1) >= 2:
        endless = {"constant": 1.0, "inverse_sqrt": (max(warmup, 1) / steps) ** 0.5}
        assert values[-1] == pytest.approx(peak * endless.get(kind, ratio))
    assert learning_rate(steps + 7, schedule, peak, steps) == values[-1]


def test_cosine_by_hand():
    schedule = Schedule(kind="cosine", warmup_steps=2, final_ratio=0.2)
    assert rates(schedule, 6) == pytest.approx([0.5, 1, 1 - 0.8 * 0.1464466, 0.6, 0.2 + 0.8 * 0.1464466, 0.2])


def test_linear_by_hand():
    assert rates(Schedule(kind="linear", warmup_steps=2, final_ratio=0), 6) == pytest.approx(
        [0.5, 1, 0.75, 0.5, 0.25, 0]
    )
    assert rates(Schedule(kind="linear", warmup_steps=0, final_ratio=0.5), 3) == pytest.approx([1, 0.75, 0.5])


def test_wsd_stays_at_the_peak_and_falls_at_the_end():
    schedule = Schedule(kind="wsd", warmup_steps=1, decay_steps=4, final_ratio=0)
    assert rates(schedule, 8) == pytest.approx([1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert rates(Schedule(kind="wsd", warmup_steps=0, decay_steps=0), 4) == [1] * 4


def test_inverse_square_root_is_that_of_the_paper():
    width, warmup = 512, 4
    paper = [width**-0.5 * min(step**-0.5, step * warmup**-1.5) for step in range(1, 40)]
    schedule = Schedule(kind="inverse_sqrt", warmup_steps=warmup)
    assert rates(schedule, 39, peak=(width * warmup) ** -0.5) == pytest.approx(paper)


@given(st.sampled_from(["inverse_sqrt", "constant"]), st.integers(0, 50), st.integers(0, 99), st.integers(0, 10_000))
def test_without_an_end_a_steps_rate_is_the_same_however_long_the_run(kind, warmup, step, more):
    schedule = Schedule(kind=kind, warmup_steps=warmup)
    assert schedule.endless
    assert learning_rate(step, schedule, 1e-3, 100) == learning_rate(step, schedule, 1e-3, 100 + more)


def test_constant_and_a_single_update():
    assert rates(Schedule(kind="constant", warmup_steps=4), 3) == pytest.approx([0.25, 0.5, 0.75])
    assert rates(Schedule(kind="cosine", warmup_steps=0), 1) == [1]
