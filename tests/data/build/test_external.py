import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.build.external import buckets

DTYPE = np.dtype([("key", "<u8"), ("row", "<i8")])


def records(keys):
    made = np.empty(len(keys), DTYPE)
    made["key"], made["row"] = keys, np.arange(len(keys))
    return made


def through(folder, given, memory, pieces=1, expected=None):
    with buckets(folder, DTYPE, len(given) if expected is None else expected, memory) as sorting:
        for piece in np.array_split(given, pieces):
            sorting.add(piece)
        got = [piece.copy() for piece in sorting.sorted()]
    assert not list(folder.iterdir())
    return np.concatenate([np.empty(0, DTYPE), *got]), got


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 3), st.just(2**63)), max_size=300),
    memory=st.sampled_from([64, 200, 1000, 100_000]),
    pieces=st.integers(1, 4),
    expected=st.sampled_from([0, 10, 10_000]),
)
def test_records_come_back_sorted_and_stable_whatever_the_memory(tmp_path_factory, keys, memory, pieces, expected):
    given = records(np.array(keys, np.uint64))
    got, _ = through(tmp_path_factory.mktemp("sort"), given, memory, pieces, expected)
    assert np.array_equal(got, given[np.argsort(given["key"], kind="stable")])


def test_equal_keys_come_in_one_piece_if_they_fit(tmp_path):
    given = records(np.random.default_rng(0).integers(0, 50, 2000).astype(np.uint64) << np.uint64(40))
    _, pieces = through(tmp_path, given, 4000 * DTYPE.itemsize)
    assert len(pieces) > 1
    ends = [(piece["key"][0], piece["key"][-1]) for piece in pieces]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))


@pytest.mark.parametrize("equal", [False, True])
def test_sorting_takes_no_more_than_its_memory(tmp_path, equal):
    budget = 400_000
    draw = np.random.default_rng(1)
    tracemalloc.start()
    try:
        with buckets(tmp_path, DTYPE, 200_000, budget) as sorting:
            for _ in range(20):
                keys = draw.integers(0, 2**64, 10_000, np.uint64)
                sorting.add(records(keys * np.uint64(not equal)))
            tracemalloc.reset_peak()
            count = sum(len(piece) for piece in sorting.sorted())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 200_000
    assert peak < budget
