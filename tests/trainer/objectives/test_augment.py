"""Augmentation: what may change, and that what it becomes is a function of seed and position."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.objectives.rows import CPU, encoded, pair, rows
from trainer.objectives.augment import Augmented
from trainer.objectives.base import BatchMaker
from trainer.objectives.classification import Classification, Texts
from trainer.objectives.seq2seq import Seq2Seq

CONTROL = np.arange(100) < 6


def augmented(drop: float, swap: float, seed: int = 1) -> Augmented:
    return Augmented(Classification(("a", "b"), Texts(False, 96)), seed, drop, swap, CONTROL)


def examples(count: int, tokens: int = 20):
    texts = [[10 + (7 * row + place) % 80 for place in range(tokens)] for row in range(count)]
    return rows(*(encoded(*text[:8], second=text[8:]) for text in texts), targets=[[0]] * count)


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 0.99), st.floats(0, 1), st.integers(0, 2**40), st.integers(1, 12))
def test_control_pieces_stay_and_each_text_keeps_a_token(drop, swap, seed, tokens):
    before = examples(4, 8 + tokens)
    after = augmented(drop, swap, seed).augmented(before)
    for row in range(4):
        old, new = (each.tokens[row, : each.lengths[row]] for each in (before, after))
        uses = after.use[row, : after.lengths[row]]
        assert new[CONTROL[new]].tolist() == old[CONTROL[old]].tolist() == [3, 4, 4]
        assert set(new) <= set(old)
        assert (after.tokens[row, after.lengths[row] :] == 0).all()
        for field in np.unique(uses):
            mine = np.flatnonzero(before.use[row] == field)
            assert set(new[uses == field]) <= set(before.tokens[row, mine])  # no token leaves its text
        for field in (3, 4):  # text_a, text_b
            assert ((uses >> 1 == field) & ~CONTROL[new]).any()


def test_it_depends_on_seed_and_position_alone():
    together = examples(6)
    one = augmented(0.3, 0.3)
    whole = one.augmented(together)
    for row in range(6):
        part = replace(
            together, tokens=together.tokens[[row]], use=together.use[[row]], lengths=together.lengths[[row]],
            starts=together.starts[:1], positions=together.positions[[row]],
        )  # fmt: skip
        assert np.array_equal(one.augmented(part).tokens[0], whole.tokens[row])
    again = replace(together, positions=together.positions + 1000)
    assert not np.array_equal(one.augmented(again).tokens, whole.tokens)
    assert not np.array_equal(augmented(0.3, 0.3, seed=2).augmented(together).tokens, whole.tokens)


def test_rates_are_what_they_say():
    many = examples(400)
    dropped = augmented(0.25, 0.0).augmented(many)
    assert abs(1 - (dropped.lengths - 3).sum() / (400 * 20) - 0.25) < 0.02
    swapped = augmented(0.0, 0.5).augmented(many)
    assert np.array_equal(swapped.lengths, many.lengths)
    moved = (swapped.tokens != many.tokens).sum() / (400 * 20)
    assert 0.3 < moved < 0.5  # of those chosen some stay by chance
    assert np.array_equal(np.sort(swapped.tokens, 1), np.sort(many.tokens, 1))


def test_labels_are_never_touched():
    held = rows(*(pair(range(10, 30), range(40, 60)) for _ in range(8)))
    maker: BatchMaker = Augmented(Seq2Seq(48, 0, 0), 1, 0.5, 0.5, CONTROL)
    batch, plain = maker.batch(held, CPU), Seq2Seq(48, 0, 0).batch(held, CPU)
    assert batch.labels.tolist() == plain.labels.tolist()
    assert batch.input_ids.tolist() != plain.input_ids.tolist()
    assert batch.padding is not None and batch.padding.real.sum() < 8 * 16


def test_filler_stays_filler():
    held = rows(encoded(10, 11, 12), [], targets=[[1]])
    after = augmented(0.9, 0.9).augmented(held)
    assert after.lengths[1] == 0
    assert not after.tokens[1].any()
