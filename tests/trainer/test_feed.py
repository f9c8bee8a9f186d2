"""What the ranks read together doesn't depend on how many they are."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data import reader as reading
from data import settings
from data.order.deal import deal
from data.order.order import Order
from data.reader import LocalReader, Rows, layout
from tests.data.test_shards import written
from trainer.feed import Feed, Step, row_digest
from trainer.objectives.causal import Causal
from trainer.recipe import Recipe
from trainer.shape import Shape
from trainer.sizes import MOST_ROWS
from trainer.world import WORD

CONTEXT, BATCH = 16, 10
LENGTHS = [7, 90, 1, 40, 33, 128, 200, 5, 17, 16, 2, 64, 150, 31, 80, 12, 3, 99]


def recipe(**changes: object) -> Recipe:
    """With `section__name=value` changes."""
    given = {"train__batch_rows": BATCH, "model__context": CONTEXT} | changes
    return settings.load(Recipe, None, [f"{name.replace('__', '.')}={value}" for name, value in given.items()])


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """A corpus this small has hundreds of epochs in a chunk of the usual size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "RESOLVED", 64)
        yield


@pytest.fixture(scope="module", params=["text", "examples"])
def reader(request, tmp_path_factory):
    """Makes a new reader of a small corpus."""
    _, index = written(tmp_path_factory.mktemp(request.param), LENGTHS, request.param, 300, 64)
    return lambda: LocalReader(index, Order(layout(index, CONTEXT), seed=11, window=3), CONTEXT)


def updates(reader, ranks: int, count: int, micro_batch: int = 2, consumed: int = 0) -> list[list[Step]]:
    """The first steps of an attempt, by update and rank."""
    chosen = recipe(engine__micro_batch=micro_batch)
    shape = Shape.of(chosen, ranks)
    feeds = [
        Feed(reader(), Causal(), chosen, shape, rank, ranks, torch.device("cpu"), consumed) for rank in range(ranks)
    ]
    try:
        return [[next(feed) for feed in feeds] for _ in range(count)]
    finally:
        for feed in feeds:
            feed.close()


def content(update: list[Step]) -> list[tuple[list[int], list[int]]]:
    """Inputs and labels of each row that isn't filler, by accumulation, rank and row; without their padding."""
    rows = []
    for turn in zip(*(step.batches for step in update), strict=True):
        for batch in turn:
            for inputs, labels in zip(batch.input_ids[: batch.rows], batch.labels, strict=False):
                used = max(int(inputs.nonzero().max()), *(labels != -100).nonzero().flatten().tolist(), 0) + 1
                rows.append((inputs[:used].tolist(), labels[:used].tolist()))
    return rows


# -- the shape of a batch --------------------------------------------------------------------------------------------


@hypothesis_settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.none() | st.integers(1, 40))
def test_a_batch_lies_on_any_number_of_ranks(rows, ranks, micro_batch):
    shape = Shape.of(recipe(train__batch_rows=rows, engine__micro_batch=micro_batch or "null"), ranks)
    forward = shape.micro_batch * ranks
    assert 1 <= shape.micro_batch <= min(micro_batch or MOST_ROWS, -(-rows // ranks))
    assert shape.accumulation * forward - shape.filler == rows
    assert 0 <= shape.filler < forward  # not one forward too many
    assert deal(0, rows, shape.micro_batch, ranks - 1, ranks).shape == (shape.accumulation, shape.micro_batch)


@pytest.mark.parametrize(
    ("rows", "ranks", "micro_batch", "expected"),
    [
        (32, 1, "null", Shape(16, 2, 0)),
        (32, 2, "null", Shape(16, 1, 0)),
        (32, 3, "null", Shape(11, 1, 1)),
        (32, 3, 4, Shape(4, 3, 4)),
        (4, 3, "null", Shape(2, 1, 2)),
        (2, 4, 8, Shape(1, 1, 2)),
    ],
)
def test_shapes_by_hand(rows, ranks, micro_batch, expected):
    assert Shape.of(recipe(train__batch_rows=rows, engine__micro_batch=micro_batch), ranks) == expected


@hypothesis_settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.none() | st.integers(1, 40))
def test_under_exact_any_a_micro_batch_does_not_depend_on_the_ranks(rows, ranks, micro_batch):
    chosen = recipe(train__batch_rows=rows, engine__micro_batch=micro_batch or "null", engine__exact="any")
    shape = Shape.of(chosen, ranks)
    assert shape.micro_batch == Shape.of(chosen, 1).micro_batch <= min(micro_batch or MOST_ROWS, rows)
    assert shape.accumulation * shape.micro_batch * ranks - shape.filler == rows
    dealt = [deal(0, rows, shape.micro_batch, rank, ranks) for rank in range(ranks)]
    merged = [list(part) for number in range(shape.accumulation) for part in (held[number] for held in dealt)]
    alone = [list(part) for part in deal(0, rows, shape.micro_batch, 0, 1)]
    assert merged[: len(alone)] == alone
    assert all(set(part) == {-1} for part in merged[len(alone) :])


# -- the digest of what was read -------------------------------------------------------------------------------------


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 40), st.integers(1, 30))
def test_the_digest_does_not_depend_on_how_the_rows_lie_on_the_ranks(reader, ranks, micro_batch, start, rows):
    held = reader()
    together = row_digest(held.rows(np.arange(start, start + rows)))
    parts = [
        row_digest(held.rows(positions))
        for rank in range(ranks)
        for positions in deal(start, start + rows, micro_batch, rank, ranks)
    ]
    assert sum(parts) & WORD == together
    assert row_digest(held.rows(np.arange(start, start + rows)[::-1])) == together
    assert row_digest(held.rows(np.array([-1, -1]))) == 0


def test_the_digest_tells_any_other_token_length_or_position(reader):
    rows = reader().rows(np.arange(6))
    digest = row_digest(rows)
    others = []
    for slot in range(6):
        for at in range(int(rows.lengths[slot])):
            tokens = rows.tokens.copy()
            tokens[slot, at] ^= 1
            others.append(replace(rows, tokens=tokens))
        shorter = rows.lengths.copy()
        shorter[slot] -= 1
        elsewhere = rows.positions.copy()
        elsewhere[slot] += 100
        others += [replace(rows, lengths=shorter), replace(rows, positions=elsewhere)]
    swapped = rows.positions.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    others.append(replace(rows, positions=swapped))
    digests = [row_digest(other) for other in others]
    assert digest not in digests
    assert len(set(digests)) == len(digests)


def test_what_lies_behind_the_end_of_a_row_is_not_in_its_digest(reader):
    rows = reader().rows(np.arange(4))
    padded = np.pad(rows.tokens, ((0, 0), (0, 3)), constant_values=9)
    assert row_digest(replace(rows, tokens=padded)) == row_digest(rows)


def test_the_digest_is_the_one_that_records_were_written_with():
    rows = partial(Rows, starts=(), use=None)
    tokens = np.array([[5, 70000, 9], [1, 0, 0]])
    assert row_digest(rows(tokens, np.array([3, 1]), positions=np.array([0, 2**40]))) == 9306840052064435107


# -- the feed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_one_two_and_three_ranks_read_the_same(reader, micro_batch):
    alone = updates(reader, 1, 12, micro_batch)
    for ranks in (2, 3):
        many = updates(reader, ranks, 12, micro_batch)
        for one, several in zip(alone, many, strict=True):
            assert {(step.start, step.stop) for step in several} == {(one[0].start, one[0].stop)}
            assert len({len(step.batches) for step in several}) == 1
            assert content(several) == content(one)
            assert sum(step.digest for step in several) & WORD == one[0].digest
            assert sum(step.label_tokens for step in several) == one[0].label_tokens
            assert sum(batch.rows for step in several for batch in step.batches) == BATCH


def test_nodes_that_read_lanes_of_their_own_read_the_same_micro_batches_in_turn(reader):
    """Two nodes of two ranks: each its own lane, and rank after rank across them what one rank reads alone."""
    index = reader().indexes[0]
    order = Order(layout(index, CONTEXT), seed=11, window=3, lanes=2)
    chosen = recipe(engine__micro_batch=1, train__batch_rows=8, data__lanes=2)

    def steps(rank: int, ranks: int, groups: int) -> Step:
        held = LocalReader(index, order, CONTEXT)
        feed = Feed(held, Causal(), chosen, Shape.of(chosen, ranks), rank, ranks, torch.device("cpu"), 8, (), groups)
        try:
            return next(feed)
        finally:
            feed.close()

    alone, nodes = steps(0, 1, 1), [steps(rank, 4, 2) for rank in range(4)]
    assert [nodes[rank].first[turn] for turn in range(2) for rank in (0, 2, 1, 3)] == alone.first
    assert [{first % 2 for first in step.first} for step in nodes] == [{0}, {0}, {1}, {1}]
    assert sum(step.digest for step in nodes) & WORD == alone.digest


def test_updates_follow_each_other_without_gap_and_hold_their_own_rows(reader):
    held = reader()
    for number, (step,) in enumerate(updates(reader, 1, 9, micro_batch=5)):
        assert (step.start, step.stop) == (number * BATCH, (number + 1) * BATCH)
        assert step.first == [step.start, step.start + 5]
        rows = held.rows(np.arange(step.start, step.stop))
        assert step.digest == row_digest(rows)
        assert step.label_tokens == sum(batch.label_tokens for batch in step.batches) > 0


def test_a_feed_that_starts_anywhere_goes_on_as_one_that_came_there(reader):
    through = updates(reader, 2, 6)[3:]
    fresh = updates(reader, 2, 3, consumed=3 * BATCH)
    for one, other in zip(through, fresh, strict=True):
        assert content(one) == content(other)
        assert [step.digest for step in one] == [step.digest for step in other]
        assert [step.first for step in one] == [step.first for step in other]
    odd = updates(reader, 1, 1, consumed=7)[0][0]  # a batch of another size came before
    assert (odd.start, odd.stop) == (7, 7 + BATCH)


def test_the_first_position_of_a_filler_batch_is_told_as_such(reader):
    (steps,) = updates(reader, 3, 1, micro_batch=2)
    assert [step.first for step in steps] == [[0, 6], [2, 8], [4, -1]]
    assert steps[2].batches[1].rows == steps[2].batches[1].label_tokens == 0
