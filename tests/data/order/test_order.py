"""The order of samples: every row once an epoch, whoever reads, and never another order than yesterday's."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.order.deal import deal
from data.order.layout import Layout
from data.order.order import Order
from data.order.permutation import WORD, key, permute_each

SEEDS = st.integers(0, 2**63 - 1)
BATCHES = {"start": st.integers(0, 10**12), "rows": st.integers(1, 60), "micro_batch": st.integers(1, 9)}


@st.composite
def chopped(draw) -> tuple[Order, list[int]]:
    """An order over shards of text, and their tokens; some shards are too short for a row."""
    context = draw(st.integers(1, 12))
    tokens = draw(st.lists(st.integers(0, 90), min_size=1, max_size=9))
    assume(max(tokens) > context)
    return Order(Layout.chopped("f", tokens, context), draw(SEEDS), draw(st.integers(1, 11))), tokens


@st.composite
def orders(draw) -> Order:
    """Any order, over text or over examples."""
    if draw(st.booleans()):
        return draw(chopped())[0]
    documents = draw(st.lists(st.integers(0, 40), min_size=1, max_size=9))
    assume(sum(documents))
    return Order(Layout.documents("f", documents), draw(SEEDS), draw(st.integers(1, 11)))


def epoch_positions(order: Order, epoch: int) -> np.ndarray:
    return np.arange(epoch * order.rows_per_epoch, (epoch + 1) * order.rows_per_epoch)


def every_row(order: Order) -> list[tuple[int, int]]:
    return [(shard, row) for shard, rows in enumerate(order.layout.rows) for row in range(rows)]


def pairs(order: Order, positions: np.ndarray) -> list[tuple[int, int]]:
    """(shard, row) at each position."""
    places = order.places(positions)
    return list(zip(places.shard.tolist(), places.row.tolist(), strict=True))


# -- the permutation -------------------------------------------------------------------------------------------------


def permute(values: np.ndarray, size: int, seed: int, inverse: bool = False) -> np.ndarray:
    """One group's permutation of [0, size), applied to each of `values`."""
    group = np.zeros(values.shape, np.int64)
    return permute_each(values, group, np.array([size]), np.array([seed & WORD], np.uint64), inverse)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_the_permutation_is_a_bijection_with_an_inverse(size, seed):
    values = np.arange(size)
    permuted = permute(values, size, seed)
    assert permuted.dtype == np.int64
    assert np.array_equal(np.sort(permuted), values)
    assert np.array_equal(permute(permuted, size, seed, inverse=True), values)
    assert np.array_equal(permute(permute(values, size, seed, inverse=True), size, seed), values)


@settings(deadline=None)
@given(st.integers(2**31, 2**62), SEEDS, st.data())
def test_a_huge_permutation_stays_inside_and_turns_back(size, seed, data):
    values = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=50)))
    permuted = permute(values, size, seed)
    assert permuted.min() >= 0 and permuted.max() < size
    assert np.array_equal(permute(permuted, size, seed, inverse=True), values)


@pytest.mark.parametrize("size", [1000, 1024, 4095, 4097])
def test_the_permutation_shuffles(size):
    values = np.arange(size)
    for seed in range(20):
        permuted = permute(values, size, seed)
        assert abs(np.corrcoef(values, permuted)[0, 1]) < 5 / math.sqrt(size)
        assert (np.abs(np.diff(permuted)) == 1).sum() < 30  # 2 to 3 are expected, where the identity has all of them
        assert (permuted == values).sum() < 9  # 1 is expected
        assert (permuted == permute(values, size, seed + 20)).sum() < 9


def test_keys_are_for_ever_and_depend_on_every_part():
    pinned = [0, 0xE220A8397B1DCDAF, 0xD0734750FDE362B3, 0xE4D971771B652C20]
    assert [key(), key(0), key(1, 2, 3), key(-1)] == pinned
    assert len({key(a, b, c) for a in range(8) for b in range(8) for c in range(8)}) == 512


# -- places ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(orders(), st.integers(0, 10**6))
def test_every_row_is_read_exactly_once_in_every_epoch(order, epoch):
    for number in (epoch, epoch + 1):
        assert sorted(pairs(order, epoch_positions(order, number))) == every_row(order)


@settings(deadline=None)
@given(orders(), st.integers(0, 10**6))
def test_positions_are_the_inverse_of_places(order, epoch):
    positions = epoch_positions(order, epoch)
    places = order.places(positions)
    assert (places.epoch == epoch).all()
    assert np.array_equal(order.positions(epoch, places.shard, places.row), positions)


@settings(deadline=None)
@given(orders(), st.data())
def test_a_place_depends_on_its_position_alone(order, data):
    """Neither on what is asked with it, nor on what was asked before."""
    positions = np.array(data.draw(st.lists(st.integers(0, 6 * order.rows_per_epoch), min_size=1, max_size=40)))
    together = pairs(order, positions)
    fresh = Order(order.layout, order.seed, order.stages[0].window)
    assert [pairs(fresh, positions[slot : slot + 1])[0] for slot in range(len(positions))] == together


@settings(deadline=None)
@given(chopped(), st.integers(0, 1000))
def test_no_row_straddles_two_shards(drawn, epoch):
    order, tokens = drawn
    places = order.places(epoch_positions(order, epoch))
    assert (places.start >= 0).all()
    assert (places.start + order.layout.stride + 1 <= np.array(tokens)[places.shard]).all()


@settings(deadline=None)
@given(chopped(), st.integers(0, 1000))
def test_the_rows_of_a_shard_follow_each_other_without_gap_or_overlap(drawn, epoch):
    order, tokens = drawn
    places = order.places(epoch_positions(order, epoch))
    for shard in range(len(tokens)):
        mine = places.shard == shard
        starts = places.start[mine][np.argsort(places.row[mine])]
        assert (np.diff(starts) == order.layout.stride).all()
        assert not len(starts) or starts[0] <= order.layout.tail[shard]


@settings(deadline=None)
@given(chopped())
def test_tokens_left_unread_in_an_epoch_are_counted(drawn):
    order, tokens = drawn
    labels = sum(max(0, count - 1) for count in tokens)
    assert order.unread() == labels - order.rows_per_epoch * order.layout.stride


@settings(deadline=None)
@given(orders())
def test_the_rows_of_a_window_come_from_no_more_shards_than_a_window_has(order):
    """The smallest stretches of the epoch that hold their shards whole are parts of windows."""
    left = list(order.layout.rows)
    opened: set[int] = set()
    for shard, _ in pairs(order, epoch_positions(order, 3)):
        opened.add(shard)
        left[shard] -= 1
        assert len(opened) <= order.stages[0].window
        if not any(left[held] for held in opened):
            opened.clear()


FIXED = Layout.chopped("f" * 64, [101, 57, 9, 88, 204, 33, 120, 64, 5, 71, 142, 99], 8)


def shards_by_window(order: Order, epoch: int, window: int) -> list[set[int]]:
    """The shards of each window of an epoch, for shards with equally many rows."""
    shards = [shard for shard, _ in pairs(order, epoch_positions(order, epoch))]
    size = window * order.layout.rows[0]
    return [set(shards[start : start + size]) for start in range(0, len(shards), size)]


def test_a_window_mixes_its_shards_and_every_epoch_groups_others():
    order = Order(Layout.documents("f", [10] * 16), seed=5, window=4)
    groups = {epoch: shards_by_window(order, epoch, 4) for epoch in range(8)}
    for windows in groups.values():
        assert [len(shards) for shards in windows] == [4] * 4
        assert set().union(*windows) == set(range(16))
    assert len({frozenset(map(frozenset, windows)) for windows in groups.values()}) == 8
    first = [shard for shard, _ in pairs(order, np.arange(40))]
    assert sum(a != b for a, b in pairwise(first)) > 20  # 29 expected; 3 were they not mixed


@pytest.mark.parametrize("window", [1, 3, 100])
def test_other_epochs_and_other_seeds_give_other_orders(window):
    order = Order(FIXED, seed=7, window=window)
    seen = [pairs(order, epoch_positions(order, epoch)) for epoch in range(4)]
    seen += [pairs(Order(FIXED, seed, window), epoch_positions(order, 0)) for seed in (8, 9, 7 + 2**40)]
    for number, one in enumerate(seen):
        for other in seen[number + 1 :]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 0.4 * len(one)


def test_the_phase_moves_within_the_tail_until_every_token_was_read():
    tokens = [101, 57, 30, 88]
    order = Order(Layout.chopped("f", tokens, 8), seed=3, window=2)
    read = [np.zeros(count, bool) for count in tokens]
    phases: list[set[int]] = [set() for _ in tokens]
    for epoch in range(60):
        places = order.places(epoch_positions(order, epoch))
        for shard, row, start in zip(places.shard, places.row, places.start, strict=True):
            read[shard][start : start + 9] = True
            phases[shard].add(int(start - row * 8))
    assert order.layout.tail == (4, 0, 5, 7)
    assert phases == [set(range(tail + 1)) for tail in order.layout.tail]
    assert all(seen.all() for seen in read)


def test_the_order_is_the_one_that_was_pinned():
    """Checkpoints and proofs rely on it: if this fails, it is a new order and needs a new VERSION."""
    order = Order(FIXED, seed=2026, window=5)
    places = order.places(np.array([0, 1, 2, 3, 4, 5, 60, 61, 116, 117, 118, 1_000_000_007]))
    assert order.rows_per_epoch == 117
    assert places.epoch.tolist() == [0] * 9 + [1] * 2 + [8_547_008]
    assert list(zip(places.shard.tolist(), places.row.tolist(), places.start.tolist(), strict=True)) == [
        (4, 20, 160),
        (6, 13, 109),
        (5, 3, 24),
        (11, 8, 65),
        (5, 2, 16),
        (0, 0, 4),
        (4, 14, 112),
        (6, 3, 29),
        (3, 3, 29),
        (10, 5, 45),
        (4, 17, 136),
        (6, 7, 63),
    ]


def test_the_description_differs_wherever_the_order_does():
    def said(tokens=(101, 57), context=8, fingerprint="f", seed=1, window=2):
        return Order(Layout.chopped(fingerprint, tokens, context), seed, window).describe()

    assert said() == said()
    others = [said(context=9), said(fingerprint="g"), said(seed=2), said(window=3)]
    assert all(other != said() for other in others)
    assert (said()["format"], said()["version"]) == ("luban-order", 2)


def test_a_context_longer_than_the_corpus_is_an_error_naming_both_numbers():
    with pytest.raises(UserError, match=r"context of 100 tokens needs shards of at least 101.* longest of 3 has 97"):
        Layout.chopped("f", [12, 97, 40], 100)
    assert Layout.chopped("f", [12, 101, 40], 100).rows == (0, 1, 0)
    with pytest.raises(UserError, match=r"context of 100 .* has 0"):
        Layout.chopped("f", [], 100)
    with pytest.raises(UserError, match="no examples"):
        Layout.documents("f", [0, 0])


# -- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@settings(deadline=None)
@given(**BATCHES)
def test_ranks_share_a_batch_each_position_once_and_equally_many_rows(world, start, rows, micro_batch):
    dealt = [deal(start, start + rows, micro_batch, rank, world) for rank in range(world)]
    assert {held.shape for held in dealt} == {(-(-rows // (micro_batch * world)), micro_batch)}
    everything = np.concatenate([held.ravel() for held in dealt])
    assert sorted(everything[everything != -1].tolist()) == list(range(start, start + rows))


@settings(deadline=None)
@given(world=st.integers(2, 9), **BATCHES)
def test_what_a_micro_batch_holds_does_not_depend_on_the_number_of_ranks(world, start, rows, micro_batch):
    def filled(ranks: int) -> list[list[int]]:
        """Micro-batches that hold anything, in the order of accumulation and rank."""
        dealt = np.stack([deal(start, start + rows, micro_batch, rank, ranks) for rank in range(ranks)], axis=1)
        return [held for held in dealt.reshape(-1, micro_batch).tolist() if held != [-1] * micro_batch]

    assert filled(world) == filled(1)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@settings(max_examples=40, deadline=None)
@given(orders(), st.integers(1, 50), st.integers(1, 9))
def test_an_epoch_is_read_exactly_once_by_any_ranks_with_any_batch(world, order, batch, micro_batch):
    read = []
    for start in range(0, order.rows_per_epoch, batch):
        for rank in range(world):
            positions = deal(start, start + batch, micro_batch, rank, world).ravel()
            places = order.places(positions[positions >= 0])
            first = places.epoch == 0
            read += zip(places.shard[first].tolist(), places.row[first].tolist(), strict=True)
    assert sorted(read) == every_row(order)
