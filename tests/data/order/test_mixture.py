"""A mixture: exact counts at every block, every source a prefix, limits kept to the row."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import mixture
from data.order.mixture import Mixture, divided

WEIGHTS = st.lists(st.floats(0.001, 1000, allow_nan=False), min_size=1, max_size=5)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "BLOCK", 16)
        yield


@st.composite
def mixtures(draw, limited: bool = True) -> Mixture:
    weights = draw(WEIGHTS)
    room = st.none() | st.integers(0, 200) if limited else st.none()
    limits = draw(st.lists(room, min_size=len(weights), max_size=len(weights)))
    return Mixture(weights, limits, draw(st.integers(0, 2**64 - 1)), lanes=3)


def rows_of(found: Mixture, count: int, lane: int = 0) -> tuple[list[int], list[int]]:
    """The first rows of a lane: source and number of each."""
    count = count if found.end is None else min(count, found.end)
    source, number = found.resolve(np.full(count, lane), np.arange(count))
    return source.tolist(), number.tolist()


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 3000), st.integers(0, 300))
def test_what_is_due_adds_up_and_only_grows(weights, rows, more):
    whole = [int(weight * 1000) + 1 for weight in weights]
    due, later = divided(rows, whole), divided(rows + more, whole)
    assert sum(due) == rows
    assert all(a <= b for a, b in zip(due, later, strict=True))
    for number, weight in enumerate(whole):
        assert abs(due[number] - rows * weight / sum(whole)) < len(whole)


@settings(deadline=None)
@given(mixtures(), st.integers(0, 400), st.integers(0, 2))
def test_every_source_is_read_as_a_prefix_at_any_moment(found, count, lane):
    source, number = rows_of(found, count, lane)
    seen: Counter[int] = Counter()
    for which, nth in zip(source, number, strict=True):
        assert nth == seen[which]
        seen[which] += 1
    counts = found.counts(lane, count)
    assert [seen[which] for which in range(len(counts))] == list(counts)


@settings(deadline=None)
@given(mixtures(limited=False), st.integers(1, 30))
def test_after_each_block_each_source_has_its_share_to_a_row_or_two(found, blocks):
    source, _ = rows_of(found, blocks * mixture.BLOCK)
    weights = np.array(found._weights, float)
    for block in range(1, blocks + 1):
        counts = np.bincount(source[: block * mixture.BLOCK], minlength=len(weights))
        due = block * mixture.BLOCK * weights / weights.sum()
        assert np.abs(counts - due).max() < len(weights)


@settings(deadline=None)
@given(mixtures(), st.integers(1, 20))
def test_lanes_hold_the_same_counts_in_each_block_and_other_orders(found, blocks):
    for block in range(1, blocks + 1):
        assert found.counts(0, block * mixture.BLOCK) == found.counts(2, block * mixture.BLOCK)


def test_lanes_and_blocks_are_ordered_differently():
    found = Mixture([1, 1], [None, None], 5, lanes=2)
    orders = [tuple(rows_of(found, 64, lane)[0][at : at + 16]) for lane in (0, 1) for at in range(0, 64, 16)]
    assert len(set(orders)) == 8


@settings(deadline=None)
@given(mixtures(), st.integers(0, 2), st.data())
def test_the_row_of_a_source_is_found_again(found, lane, data):
    count = 300 if found.end is None else min(found.end, 300)
    source, number = rows_of(found, count, lane)
    for row in data.draw(st.lists(st.integers(0, max(count - 1, 0)), max_size=20)) if count else ():
        assert found.row(lane, source[row], number[row]) == row
    for which, limit in enumerate(found._limits):
        assert limit is None or found.row(lane, which, limit) is None


@settings(deadline=None)
@given(mixtures())
def test_a_source_gives_all_its_limit_allows_and_never_more(found):
    finite = [limit for limit in found._limits if limit is not None]
    if len(finite) == len(found._limits):
        assert found.end == sum(finite)
        source, _ = rows_of(found, found.end)
        assert [source.count(which) for which in range(len(finite))] == finite
        with pytest.raises(IndexError):
            found.resolve(np.zeros(1, np.int64), np.array([found.end]))
        return
    assert found.end is None
    counts = found.counts(0, 10**9)
    assert sum(counts) == 10**9
    for had, limit, weight in zip(counts, found._limits, found._weights, strict=True):
        if limit is not None and 10**9 * weight // sum(found._weights) > limit:
            assert had == limit


def test_the_others_share_what_a_source_that_has_ended_would_have_had():
    found = Mixture([2, 1, 1], [20, None, None], 9)
    source, _ = rows_of(found, 32 * 16)
    assert source.count(0) == 20
    assert found.limited == [(32, 0)]
    assert all(which != 0 for which in source[48:])
    later = source[48:]
    assert abs(later.count(1) - later.count(2)) <= 1


@settings(deadline=None)
@given(mixtures(), st.lists(st.integers(0, 10**7), min_size=1, max_size=30), st.integers(0, 2))
def test_a_row_depends_on_nothing_that_is_asked_with_it(found, rows, lane):
    rows = np.array([row for row in rows if found.end is None or row < found.end], np.int64)
    source, number = found.resolve(np.full(rows.shape, lane), rows)
    for slot, row in enumerate(rows):
        fresh = Mixture(found._weights, found._limits, found._secret, 3)
        one, nth = fresh.resolve(np.array([lane]), np.array([row]))
        assert (one[0], nth[0]) == (source[slot], number[slot])
