"""Processors of scores: against their definitions, row by row in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.generation.processors import penalised, processors, without_repeats
from trainer.generation.settings import Decoding

KNOWN = 6
HISTORIES = st.lists(st.lists(st.integers(0, KNOWN - 1), min_size=1, max_size=12), min_size=1, max_size=4)


def aligned(rows: list[list[int]]) -> torch.Tensor:
    widest = max(map(len, rows))
    return torch.tensor([[KNOWN] * (widest - len(row)) + row for row in rows])


@settings(max_examples=80, deadline=None)
@given(HISTORIES, st.integers(1, 4))
def test_no_tokens_come_twice_in_a_row_of_so_many(rows, size):
    scores = torch.randn(len(rows), KNOWN, generator=torch.Generator().manual_seed(1))
    made = without_repeats(scores, aligned(rows), size)
    for row, before, after in zip(rows, scores.tolist(), made.tolist(), strict=True):
        held = {tuple(row[at : at + size]) for at in range(len(row) - size + 1)}
        begun = row[len(row) - size + 1 :] if size > 1 else []
        for token in range(KNOWN):
            banned = len(begun) == size - 1 and (*begun, token) in held
            assert after[token] == (-math.inf if banned else before[token])


@settings(max_examples=40, deadline=None)
@given(HISTORIES, st.floats(0.5, 2))
def test_held_tokens_are_penalised_once_each(rows, penalty):
    scores = torch.randn(len(rows), KNOWN, generator=torch.Generator().manual_seed(2))
    made = penalised(scores, aligned(rows), penalty)
    for row, before, after in zip(rows, scores.tolist(), made.tolist(), strict=True):
        for token in range(KNOWN):
            score = before[token]
            expected = score if token not in row else score * penalty if score < 0 else score / penalty
            assert after[token] == pytest.approx(expected, rel=1e-6)


def test_no_end_before_the_least_number_of_tokens():
    [process] = processors(Decoding(9, min_new_tokens=2), (1, 4), begun=3)
    scores = torch.zeros(2, KNOWN)
    for new in range(4):
        made = process(scores, torch.zeros(2, 3 + new, dtype=torch.int64))
        ends = -math.inf if new < 2 else 0
        assert made.tolist() == [[0, ends, 0, 0, ends, 0]] * 2
    assert processors(Decoding(9, min_new_tokens=2), (), begun=3) == []
