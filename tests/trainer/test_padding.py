"""Rows computed without their padding: the same numbers, for less work."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.trainer.families import ENCODER_DECODERS, built, gradients, padded, real, tokens
from trainer.models.padding import Padding, pad, unpad

WIDTH = 12
LENGTHS = st.lists(st.integers(0, WIDTH), min_size=1, max_size=5)


def loss_of(model: Any, padding: Padding, decoder_padding: Padding, seed: int) -> Tensor:
    ids, more = (tokens(len(padding.real), WIDTH, seed + part) for part in (0, 1))
    if model.config.family == "bert":
        return model(ids, more.masked_fill(~padding.real, -100), padding)
    return model(ids, more.roll(1, 1), more.masked_fill(~decoder_padding.real, -100), padding, 0.1, decoder_padding)


def with_some_of(padding: Padding, count: int) -> Padding:
    """Computes `count` tokens of padding, too, as a GPU's round numbers have it."""
    if padding.places is None:
        return padding
    others = padding.real.flatten().logical_not().nonzero()[:, 0]
    others = others[~torch.isin(others, padding.places)]
    return replace(padding, places=torch.cat([padding.places, others[:count]]))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["bert", *ENCODER_DECODERS]), LENGTHS, st.data(), st.integers(0, 3), st.integers(0, 99))
def test_without_padding_losses_and_gradients_are_those_of_padded_rows(family, lengths, data, some, seed):
    model = built(family)
    targets = [data.draw(st.integers(0, WIDTH)) if length else 0 for length in lengths]
    paddings = [padded(real(each, WIDTH)) for each in (lengths, targets)]
    expected = loss_of(model, *(replace(each, places=None) for each in paddings), seed)
    expected_gradients = gradients(model, expected)
    found = loss_of(model, *(with_some_of(each, some) for each in paddings), seed)
    found_gradients = gradients(model, found)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (found_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("family", ["bert", *ENCODER_DECODERS])
def test_feed_forward_networks_meet_no_padding(family):
    model, met = built(family), set()
    size = model.config.mlp_size
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.in_features == size:
            module.register_forward_hook(lambda _, inputs, __: met.add(tuple(inputs[0].shape)))
    loss_of(model, padded(real([12, 3, 0], WIDTH)), padded(real([5, 7, 1], WIDTH)), 0)
    assert met == ({(15, size)} if family == "bert" else {(15, size), (13, size)})


@given(LENGTHS)
def test_padding_comes_back_as_zeros(lengths):
    padding, x = padded(real(lengths, WIDTH)), torch.randn(len(lengths), WIDTH, 3)
    alone = unpad(x, padding)
    if sum(lengths):
        assert alone.numel() == sum(lengths) * 3
    assert torch.equal(pad(alone, padding)[padding.real], x[padding.real])
    assert pad(alone, padding).count_nonzero() == alone.count_nonzero()
    assert unpad(x, None) is x
    assert pad(x, None) is x


@given(LENGTHS, st.integers(1, 5))
def test_tokens_before_each_row_are_as_if_they_had_been_there(lengths, count):
    inside = real(lengths, WIDTH)
    longer = padded(inside).longer(count)
    whole = torch.cat([torch.ones(len(lengths), count, dtype=torch.bool), inside], 1)
    assert torch.equal(longer.real, whole)
    filler = np.array(lengths) == 0
    expected = padded(whole)
    assert torch.equal(longer.keys[~filler], expected.keys[~filler])
    assert longer.keys[filler].all()
    if longer.places is not None:
        assert len(set(longer.places.tolist())) == len(longer.places)
        assert set(whole.flatten().nonzero()[:, 0].tolist()) <= set(longer.places.tolist())
    else:
        assert inside.all()


def test_chosen_rows_keep_their_keys():
    padding = padded(real([3, 0, 12], WIDTH)).take(torch.tensor([2, 0, 0]))
    assert padding.real.sum(1).tolist() == [12, 3, 3]
    assert padding.keys[:, 0, 0].sum(1).tolist() == [12, 3, 3]
    assert padding.places is None
