"""Span corruption and prefixes: lengths as T5's, what comes back, and that only a position decides."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.reader import Rows
from trainer.objectives.base import Batch
from trainer.objectives.prefix import Prefix
from trainer.objectives.rows import span_counts, span_row
from trainer.objectives.span import Span

CPU = torch.device("cpu")
PAD, EOS, START = 0, 1, 2
SENTINELS = np.arange(999, 899, -1)  # descending, as T5's
FIRST = 10  # ordinary ids: 10 to 799


def text(positions: list[int], length: int, lengths: list[int] | None = None) -> Rows:
    held = np.array(lengths or [length] * len(positions)) * (np.array(positions) >= 0)
    tokens = np.zeros((len(positions), length), np.int64)
    for slot, position in enumerate(positions):
        if position >= 0:
            tokens[slot, : held[slot]] = np.random.default_rng(position).integers(FIRST, 800, length)[: held[slot]]
    return Rows(tokens, held, tuple(np.zeros(1, np.int64) for _ in positions), None, np.array(positions, np.int64))


def span(seed: int = 1, density: float = 0.15, mean: float = 3.0) -> Span:
    return Span(seed, SENTINELS, EOS, PAD, START, density, mean)


def joined(inputs: list[int], targets: list[int]) -> list[int]:
    """The text, by hand: each sentinel of the input gives way to what follows it in the target."""
    pieces: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token >= 900:
            pieces[token] = []
        else:
            pieces[list(pieces)[-1]].append(token)
    assert targets[-1] == inputs[-1] == EOS
    assert list(pieces) == SENTINELS[: len(pieces)].tolist()
    assert [token for token in inputs if token >= 900] == list(pieces)
    return [each for token in inputs[:-1] for each in pieces.get(token, [token])]


POSITIONS = st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True)


@settings(max_examples=80, deadline=None)
@given(POSITIONS, st.integers(2, 150), st.floats(0.01, 0.99), st.floats(1, 9), st.integers(0, 2**62))
def test_inputs_and_targets_give_the_text_back(positions, length, density, mean, seed):
    noise, spans = span_counts(length, density, mean)
    assume(spans <= len(SENTINELS))
    rows = text(positions, length)
    batch = span(seed, density, mean).batch(rows, CPU)
    assert batch.input_ids.shape == (len(positions), length - noise + spans + 1)
    assert batch.labels.shape == (len(positions), noise + spans + 1)
    assert batch.label_tokens == batch.labels.numel()
    assert batch.padding is None
    assert batch.decoder_input_ids is not None
    assert (batch.decoder_input_ids[:, 0] == START).all()
    assert torch.equal(batch.decoder_input_ids[:, 1:], batch.labels[:, :-1])
    for row, inputs, targets in zip(rows.tokens, batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        assert joined(inputs, targets) == row.tolist()
        assert inputs[0] < 900  # a row begins with what is kept


def t5_lengths(row: int, density: float, mean: float) -> tuple[int, int]:
    """(inputs, targets) as t5.data.preprocessors counts them."""
    noise = round(row * density)
    spans = round(noise / mean)
    return row - noise + spans + 1, noise + spans + 1


@pytest.mark.parametrize("inputs", [32, 64, 128, 256, 512, 513, 1024])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.15, 8.0), (0.5, 3.0), (0.3, 10.0)])
def test_row_lengths_are_those_of_t5(inputs, density, mean):
    row = inputs - 1  # t5.data.preprocessors.random_spans_helper
    while t5_lengths(row + 1, density, mean)[0] <= inputs:
        row += 1
    if density == 0.5 and t5_lengths(row, density, mean)[1] > t5_lengths(row, density, mean)[0]:
        row -= 1
    assert span_row(inputs, density, mean) == row
    noise, spans = span_counts(row, density, mean)
    assert noise + spans + 1 == t5_lengths(row, density, mean)[1]


def test_512_inputs_are_made_of_568_tokens_and_ask_for_114():
    assert span_row(512, 0.15, 3.0) == 568  # arXiv:1910.10683's own code says so in a comment
    assert sum(span_counts(568, 0.15, 3.0)) + 1 == 114


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 400), st.floats(0.02, 0.9), st.floats(1, 20))
def test_a_row_is_as_long_as_the_context_lets_it_be(context, density, mean):
    row = span_row(context, density, mean)
    counts = [span_counts(each, density, mean) for each in (row, row + 1)]
    inputs = [row + more - noise + spans + 1 for more, (noise, spans) in enumerate(counts)]
    assert inputs[0] <= context
    assert inputs[1] > context or density == 0.5


def test_spans_have_the_asked_density_and_mean_length_and_lie_anywhere():
    noise = span().noise(200, np.arange(3000))
    assert (noise.sum(1) == 30).all()
    firsts = noise & ~np.pad(noise, ((0, 0), (1, 0)))[:, :-1]
    assert (firsts.sum(1) == 10).all()
    inner = noise[:, 20:180].mean(0)
    assert inner.min() > 0.1
    assert inner.max() < 0.2
    # all divisions of 30 tokens into 10 spans are equally likely: a span has 1 with probability 9/29
    ends = np.flatnonzero(np.diff(np.pad(noise, ((0, 0), (1, 1))).astype(int).ravel()) == -1)
    begins = np.flatnonzero(np.diff(np.pad(noise, ((0, 0), (1, 1))).astype(int).ravel()) == 1)
    assert np.mean(ends - begins == 1) == pytest.approx(9 / 29, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(POSITIONS, st.booleans(), st.data())
def test_a_row_is_the_same_whatever_it_is_read_with(positions, prefix, data):
    def made(seed: int) -> Span | Prefix:
        return Prefix(seed, PAD, START) if prefix else span(seed)

    whole = made(4).batch(text(positions, 60), CPU)
    order = data.draw(st.permutations(range(len(positions))))
    mixed = made(4).batch(text([positions[slot] for slot in order] + [-1], 60), CPU)
    for slot, place in enumerate(order):
        assert content(mixed, slot) == content(whole, place)
    assert mixed.label_tokens == whole.label_tokens
    assert mixed.rows == len(positions)
    assert (mixed.labels[-1] == -100).all()  # filler
    other = made(5).batch(text(list(range(9)), 60), CPU)
    same = made(4).batch(text(list(range(9)), 60), CPU)
    assert [content(other, slot) for slot in range(9)] != [content(same, slot) for slot in range(9)]


def content(batch: Batch, slot: int) -> tuple[list[int], list[int], list[int]]:
    """What a row's encoder reads, what is asked, and what its decoder reads where it is asked."""
    assert batch.decoder_input_ids is not None
    inputs, labels = batch.input_ids[slot], batch.labels[slot]
    if batch.padding is not None:
        inputs = inputs[batch.padding.real[slot]]
    asked = labels != -100
    return inputs.tolist(), labels[asked].tolist(), batch.decoder_input_ids[slot][asked].tolist()


def test_shorter_rows_are_padded():
    batch = span().batch(text([3, 8, 5, -1], 60, [60, 20, 1, 0]), CPU)
    assert batch.padding is not None
    assert batch.padding.real.sum(1).tolist() == [60 - 9 + 3 + 1, 20 - 3 + 1 + 1, 0, 0]
    assert (batch.labels != -100).sum(1).tolist() == [9 + 3 + 1, 3 + 1 + 1, 0, 0]
    assert batch.rows == 2
    inputs, labels, fed = content(batch, 1)
    assert joined(inputs, labels) == text([8], 20).tokens[0].tolist()
    assert fed == [START, *labels[:-1]]


@settings(max_examples=60, deadline=None)
@given(POSITIONS, st.integers(2, 150), st.integers(0, 2**62))
def test_a_prefix_and_its_rest_are_the_row(positions, length, seed):
    rows = text(positions, length)
    batch = Prefix(seed, PAD, START).batch(rows, CPU)
    assert batch.input_ids.shape[1] <= length
    assert batch.labels.shape[1] <= length
    for slot, row in enumerate(rows.tokens.tolist()):
        inputs, labels, fed = content(batch, slot)
        assert inputs + labels == row
        assert inputs
        assert fed == [START, *labels[:-1]]


def test_prefixes_are_cut_anywhere():
    batch = Prefix(1, PAD, START).batch(text(list(range(4000)), 11), CPU)
    cuts = np.bincount((batch.labels != -100).sum(1).numpy(), minlength=11)
    assert cuts[0] == 0
    assert cuts[1:11].min() > 300
