"""Rows computed without their padding: the same numbers, for less work."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.trainer.families import ENCODER_DECODERS, built, gradients, in_rows, padded, real, tokens, with_some_of
from trainer.models.layers import LMHead
from trainer.models.padding import TOKENS, Padding, pad, unpad

WIDTH = 12
LENGTHS = st.lists(st.integers(0, WIDTH), min_size=1, max_size=5)
FAMILIES = ("bert", *ENCODER_DECODERS)


def loss_of(model: Any, padding: Padding, decoder_padding: Padding, seed: int) -> Tensor:
    ids, more = (tokens(len(padding.real), WIDTH, seed + part) for part in (0, 1))
    if model.config.family == "bert":
        return model(ids, more.masked_fill(~padding.real, -100), padding)
    labels = more.masked_fill(~decoder_padding.real, -100)
    return model(ids, more.roll(1, 1), labels, padding, 0.1, decoder_padding)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FAMILIES), LENGTHS, st.data(), st.integers(0, 3), st.booleans(), st.integers(0, 99))
def test_without_padding_losses_and_gradients_are_those_of_padded_rows(family, lengths, data, some, recompute, seed):
    model = built(family, activation_checkpointing=recompute)
    targets = [data.draw(st.integers(0, WIDTH)) if length else 0 for length in lengths]
    paddings = [padded(real(each, WIDTH)) for each in (lengths, targets)]
    expected = loss_of(model, *map(in_rows, paddings), seed)
    expected_gradients = gradients(model, expected)
    found = loss_of(model, *(with_some_of(each, some) for each in paddings), seed)
    found_gradients = gradients(model, found)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert found_gradients.keys() == expected_gradients.keys()
    whole = nn.utils.get_total_norm(list(expected_gradients.values()))
    for name, gradient in expected_gradients.items():
        # Where a query sees one key alone, its gradient is nothing but rounding.
        assert (found_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6 * whole, name


@pytest.mark.parametrize("family", FAMILIES)
def test_projections_and_heads_meet_no_padding(family):
    model, met = built(family), set()
    for module in model.modules():
        if isinstance(module, nn.Linear | LMHead):
            module.register_forward_hook(lambda _, inputs, __: met.add(tuple(inputs[0].shape[:-1])))
    loss_of(model, padded(real([12, 3, 0], WIDTH)), padded(real([5, 7, 1], WIDTH)), 0)
    assert met == ({(15,)} if family == "bert" else {(15,), (13,)})


@given(LENGTHS)
def test_padding_comes_back_as_zeros(lengths):
    padding, x = padded(real(lengths, WIDTH)), torch.randn(len(lengths), WIDTH, 3)
    alone = unpad(x, padding)
    if padding.places is not None and sum(lengths):
        assert len(alone) == sum(lengths)
        assert not pad(alone, padding)[~padding.real].any()
    assert torch.equal(pad(alone, padding)[padding.real], x[padding.real])
    assert unpad(x, None) is x
    assert pad(x, None) is x


def test_little_padding_is_computed_and_so_are_a_few_tokens_for_round_numbers_on_a_gpu():
    assert padded(real([10, 10], WIDTH)).places is None
    few = padded(real([10, 9], WIDTH)).places
    assert few is not None and len(few) == 19
    inside = real([100, 1, 40], 100).numpy()
    found = Padding.of(inside, torch.device("meta"))  # rounds as for a GPU
    assert found.places is not None and len(found.places) == 192 and 192 % TOKENS == 0
    assert set(np.flatnonzero(inside)) <= set(found.places.tolist())
    assert len(set(found.places.tolist())) == 192


@given(LENGTHS, st.integers(1, 5))
def test_tokens_before_each_row_are_as_if_they_had_been_there(lengths, count):
    inside = real(lengths, WIDTH)
    longer = padded(inside).longer(count)
    whole = torch.cat([torch.ones(len(lengths), count, dtype=torch.bool), inside], 1)
    assert torch.equal(longer.real, whole)
    filler = np.array(lengths) == 0
    assert torch.equal(longer.keys[~filler], padded(whole).keys[~filler])
    assert longer.keys[filler].all()
    assert (longer.places is None) == (padded(inside).places is None)
    x = torch.randn(*whole.shape, 3)
    found = pad(unpad(x, longer), longer)
    assert torch.equal(found[whole], x[whole])
    if longer.places is not None and sum(lengths):
        assert len(longer.places) == int(whole.sum())
        assert not found[~whole].any()


def test_chosen_rows_keep_their_keys():
    padding = padded(real([3, 0, 12], WIDTH)).take(torch.tensor([2, 0, 0]))
    assert padding.real.sum(1).tolist() == [12, 3, 3]
    assert padding.keys[:, 0, 0].sum(1).tolist() == [12, 3, 3]
    assert padding.places is None
