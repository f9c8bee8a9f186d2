"""Masked tokens and next sentences: rates, what may be hidden, what comes back, and that only a position decides."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from data.reader import Rows
from trainer.models.build import build
from trainer.models.head import LM, Head
from trainer.models.initialize import initialize
from trainer.objectives.base import Batch
from trainer.objectives.masked import Masked, Vocabulary
from trainer.recipe import Model

CPU = torch.device("cpu")
PIECES, CONTROL = 64, 8
PAD, EOS, MASK, CLS, SEP = range(5)
BEGINS = np.arange(PIECES) % 3 == 0


def vocabulary(words: bool = False) -> Vocabulary:
    """Ids below 8 are control pieces; with `words`, one begins with every third id."""
    ids = np.arange(PIECES)
    return Vocabulary(MASK, CLS, SEP, PAD, ids < CONTROL, ids[CONTROL:], BEGINS if words else None)


def text(positions: list[int], length: int, lengths: list[int] | None = None, seed: int = 0) -> Rows:
    """Rows of random pieces with a few ends of documents in them; the same position has the same row."""
    held = np.array(lengths or [length] * len(positions)) * (np.array(positions) >= 0)
    tokens = np.zeros((len(positions), length), np.int64)
    starts = []
    for slot, position in enumerate(positions):
        if position < 0:
            starts.append(np.zeros(0, np.int64))
            continue
        drawn = np.random.default_rng([seed, position])
        row = drawn.integers(CONTROL, PIECES, length)
        row[drawn.random(length) < 0.05] = EOS
        tokens[slot, : held[slot]] = row[: held[slot]]
        ends = np.flatnonzero(row[: held[slot] - 1] == EOS) + 1
        starts.append(np.concatenate([[0], ends]))
    return Rows(tokens, held, tuple(starts), None, np.array(positions, np.int64))


def batch_of(objective: Masked, positions: list[int], length: int, seed: int = 0) -> Batch:
    rows = text(positions, length, seed=seed)
    partners = objective.partners(rows.positions)
    return objective.batch(rows, CPU, None if partners is None else text(partners.tolist(), length, seed=seed))


def original(batch: Batch) -> np.ndarray:
    return torch.where(batch.labels == -100, batch.input_ids, batch.labels).numpy()


POSITIONS = st.lists(st.integers(0, 400), min_size=1, max_size=6, unique=True)


@settings(max_examples=60, deadline=None)
@given(POSITIONS, st.integers(4, 70), st.floats(0.01, 0.9), st.booleans(), st.integers(0, 2**62))
def test_inputs_and_labels_give_the_text_back(positions, length, rate, words, seed):
    rows = text(positions, length)
    batch = Masked(seed, vocabulary(words), rate).batch(rows, CPU)
    assert (original(batch)[:, 1:-1] == rows.tokens).all()
    assert (batch.input_ids[:, 0] == CLS).all()
    assert (batch.input_ids[:, -1] == SEP).all()
    assert batch.padding is None
    labels = batch.labels.numpy()
    assert not np.isin(labels, np.arange(CONTROL)).any()  # no control piece is hidden
    able = (rows.tokens >= CONTROL).sum(1)
    wanted = np.minimum(np.maximum(1, np.rint(length * rate)), able)
    found = (labels != -100).sum(1)
    assert (found <= wanted).all() if words else (found == wanted).all()
    assert batch.label_tokens == found.sum()
    assert batch.rows == len(positions)


def test_of_the_predicted_tokens_80_percent_are_masked_10_are_others_and_10_stay():
    batch = batch_of(Masked(3, vocabulary()), list(range(400)), 100)
    labels, inputs = batch.labels.numpy(), batch.input_ids.numpy()
    chosen = labels != -100
    assert chosen.sum() == 400 * 15
    shares = [(inputs == MASK)[chosen].mean(), (inputs == labels)[chosen].mean()]
    assert shares == pytest.approx([0.8, 0.1 + 0.1 / 56], abs=0.015)  # another token may be the same one by chance
    others = inputs[chosen & (inputs != MASK) & (inputs != labels)]
    assert set(others.tolist()) == set(range(CONTROL, PIECES))  # any ordinary piece, never a control piece
    assert (inputs[~chosen] != MASK).all()
    places = chosen[:, 1:-1].mean(0)
    assert places.min() > 0.05  # no place is spared
    assert places.max() < 0.27


def words_of(row: np.ndarray) -> np.ndarray:
    """The number of each token's word, by the plain definition; -1 for a control piece."""
    found, word, fresh = [], 0, True
    for token in row.tolist():
        if token < CONTROL:
            found.append(-1)
            fresh = True
            continue
        word += fresh or bool(BEGINS[token])
        fresh = False
        found.append(word)
    return np.array(found)


@settings(max_examples=60, deadline=None)
@given(POSITIONS, st.integers(4, 70), st.floats(0.05, 0.9))
def test_whole_words_are_hidden_whole_and_as_many_as_fit(positions, length, rate):
    rows = text(positions, length)
    labels = Masked(1, vocabulary(words=True), rate).batch(rows, CPU).labels.numpy()[:, 1:-1]
    for row, label in zip(rows.tokens, labels, strict=True):
        words, chosen = words_of(row), label != -100
        taken, left = set(words[chosen].tolist()), set(words[~chosen].tolist()) - {-1}
        assert not taken & left
        room = max(1, round(length * rate)) - int(chosen.sum())
        assert all((words == word).sum() > room for word in left)  # whatever is left doesn't fit


def test_packed_documents_begin_words_where_no_end_stands_between_them():
    rows = Rows(np.full((1, 6), 10), np.array([6]), (np.array([0, 3]),), None, np.array([5]), packed=True)
    assert not BEGINS[10]
    halves = set()
    for seed in range(20):
        chosen = Masked(seed, vocabulary(words=True), 0.5).batch(rows, CPU).labels.numpy()[0] != -100
        halves.add(tuple(np.flatnonzero(chosen).tolist()))
    assert halves == {(1, 2, 3), (4, 5, 6)}


@settings(max_examples=40, deadline=None)
@given(POSITIONS, st.booleans(), st.booleans(), st.integers(1, 3), st.data())
def test_a_row_is_the_same_whatever_it_is_read_with(positions, words, pairs, lanes, data):
    objective = Masked(9, vocabulary(words), pairs=pairs, pair_weight=1.0, lanes=lanes)
    whole = batch_of(objective, positions, 40)
    order = data.draw(st.permutations(range(len(positions))))
    mixed = batch_of(objective, [positions[slot] for slot in order] + [-1], 40)
    for slot, place in enumerate(order):
        assert torch.equal(mixed.input_ids[slot], whole.input_ids[place])
        assert torch.equal(mixed.labels[slot], whole.labels[place])
        if mixed.targets is not None and whole.targets is not None:
            assert mixed.targets[slot] == whole.targets[place]
    assert mixed.label_tokens == whole.label_tokens
    assert mixed.rows == len(positions)
    assert (mixed.labels[-1] == -100).all()  # filler
    assert mixed.padding is None
    other = batch_of(Masked(10, vocabulary(words), pairs=pairs, pair_weight=1.0, lanes=lanes), positions, 40)
    assert not torch.equal(other.labels, whole.labels)


def test_shorter_rows_are_padded_after_their_separator():
    objective = Masked(1, vocabulary())
    batch = objective.batch(text([4, 9, -1], 12, [12, 5, 0]), CPU)
    assert batch.padding is not None
    assert batch.padding.real.sum(1).tolist() == [14, 7, 0]
    assert batch.input_ids[1, 6] == SEP
    assert (batch.input_ids[1, 7:] == PAD).all()
    assert (batch.input_ids[2] == PAD).all()
    assert (batch.labels[1, 6:] == -100).all()
    assert batch.label_tokens == 2 + 1


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 60), st.integers(1, 4), st.integers(0, 2**62))
def test_pairs_trade_their_second_parts_so_that_each_token_is_read_once(length, lanes, seed):
    objective = Masked(seed, vocabulary(), pairs=True, pair_weight=1.0, lanes=lanes)
    positions = np.arange(40 * lanes)
    partners = objective.partners(positions)
    assert partners is not None
    assert (objective.partners(partners) == positions).all()
    assert ((partners - positions) % lanes == 0).all()  # of the same lane
    assert (partners // (2 * lanes) == positions // (2 * lanes)).all()  # of the same update
    batch = batch_of(objective, positions.tolist(), length)
    assert batch.token_types is not None
    assert batch.targets is not None
    laid, types, traded = original(batch), batch.token_types.numpy(), batch.targets[:, 0].numpy()
    assert (traded == traded[partners]).all()
    assert (laid[:, 0] == CLS).all()
    assert (laid[:, -1] == SEP).all()
    assert laid.shape[1] == length + 3
    rows = text(positions.tolist(), length).tokens
    for position in positions.tolist():
        second = types[position] == 1
        cut = int(second.argmax()) - 2  # tokens of the first part
        assert min(length // 4, length - 1) <= cut <= length - length // 4
        assert laid[position, cut + 1] == SEP
        assert second[cut + 2 :].all()
        source = rows[partners[position] if traded[position] else position]
        assert (laid[position, 1 : cut + 1] == rows[position, :cut]).all()
        assert (laid[position, cut + 2 : -1] == source[cut:]).all()
    assert sorted(np.concatenate(laid[:, 1:]).tolist()) == sorted([*rows.ravel().tolist(), *[SEP] * 2 * len(laid)])


def test_half_of_the_pairs_trade():
    objective = Masked(5, vocabulary(), pairs=True, pair_weight=1.0)
    targets = batch_of(objective, list(range(2000)), 8).targets
    assert targets is not None
    assert 0.45 < targets.float().mean() < 0.55


def test_rows_of_different_lengths_and_filler_trade_nothing():
    objective = Masked(5, vocabulary(), pairs=True, pair_weight=1.0)
    positions = list(range(40))
    rows, partners = text(positions, 9), text([position ^ 1 for position in positions], 9, [7] * 40)
    targets = objective.batch(rows, CPU, partners).targets
    assert targets is not None
    assert not targets.any()
    assert objective.partners(np.array([-1, 6])) .tolist() == [-1, 7]  # type: ignore[union-attr]  # fmt: skip
    filler = objective.batch(text([-1], 9), CPU, text([-1], 9))
    assert filler.targets is not None
    assert filler.targets.tolist() == [[-100]]
    assert filler.label_tokens == filler.rows == 0


def bert(head: Head) -> torch.nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.3}
    model = build(Model(family="bert", context=64, **sizes), PIECES, head)
    initialize(model, 1)
    return model


@pytest.mark.parametrize("pairs", [False, True])
def test_the_loss_is_the_sum_over_tokens_and_the_weighted_sum_over_rows(pairs):
    objective = Masked(2, vocabulary(), pairs=pairs, pair_weight=2.5 if pairs else 0.0)
    assert objective.head == (Head("pretraining") if pairs else LM)
    model = bert(objective.head)
    batch = batch_of(objective, [0, 1, 2, 3, 4, 5, -1], 40)
    found = model(batch.input_ids, padding=batch.padding, token_types=batch.token_types)
    tokens, follows = found if pairs else (found, None)
    expected = F.cross_entropy(tokens.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="sum")
    alone = float(expected.detach())
    if follows is not None:
        assert batch.targets is not None
        rows = F.cross_entropy(follows[:6], batch.targets[:6, 0], reduction="sum")
        expected = expected + 2.5 * rows
    loss = objective.loss(model, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    with torch.no_grad():
        sums = dict(zip(objective.sums, objective.measure(model, batch), strict=True))
    figures = objective.figures(sums)
    assert figures["loss"] == pytest.approx(expected.item() / 36, rel=1e-5)
    assert figures["tokens"] == 36 == batch.label_tokens
    right = (tokens.argmax(-1) == batch.labels).sum().item()
    assert figures["accuracy"] == right / 36
    if follows is not None and batch.targets is not None:
        assert figures["masked_loss"] == pytest.approx(alone / 36, rel=1e-5)
        assert figures["next_sentence_accuracy"] == (follows.argmax(-1) == batch.targets[:, 0])[:6].sum().item() / 6
