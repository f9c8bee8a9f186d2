"""The chunked cross entropy with a bias and label smoothing, against torch's own in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.models import loss as loss_module
from trainer.models.layers import LMHead
from trainer.models.loss import IGNORED, summed_cross_entropy

VOCABULARY = 96


def inputs(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, bias, and labels of which some are left out."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((tokens, 16), (VOCABULARY, 16), (VOCABULARY,))
    )
    labels = torch.randint(VOCABULARY, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < 0.3] = IGNORED
    return hidden, weight, bias, labels


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float, worth: Tensor | None = None
) -> Tensor:
    logits = F.linear(hidden.double(), weight.double(), bias.double())
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return (losses if worth is None else losses * worth).sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 70), st.floats(0, 1), st.integers(1, 40), st.integers(0, 2**31), st.booleans())
@example(21, 0.6560951046557345, 11, 75770, True)
def test_loss_and_gradients_with_bias_smoothing_and_worth_are_those_of_torch(tokens, smoothing, rows, seed, weighted):
    hidden, weight, bias, labels = inputs(tokens, seed)
    worth = torch.randn(tokens, generator=torch.Generator().manual_seed(seed)) if weighted else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss_module.CHUNK_LOGITS, "cpu", rows * VOCABULARY)
        patch.setattr(loss_module, "LEAST_CHUNK_ROWS", 1)
        ours = summed_cross_entropy(hidden, weight, labels, bias, smoothing, worth)
        with torch.no_grad():
            assert summed_cross_entropy(hidden, weight, labels, bias, smoothing, worth).item() == ours.item()
    theirs = plain(hidden, weight, bias, labels, smoothing, worth)
    assert ours.dtype == torch.float32
    largest = theirs if worth is None else plain(hidden, weight, bias, labels, smoothing, worth.abs())
    assert abs(ours.item() - theirs.item()) <= 1e-6 * largest.item()  # losses cancel, their rounding doesn't
    parameters = hidden, weight, bias
    found, expected = (torch.autograd.grad(3 * loss, parameters) for loss in (ours, theirs))
    for mine, their in zip(found, expected, strict=True):
        assert torch.allclose(mine, their, rtol=1e-4, atol=1e-4)


def test_labels_left_out_in_place_as_on_a_gpu_give_the_same_smoothed_loss():
    hidden, weight, bias, labels = inputs(40)
    value: Any = loss_module._SummedCrossEntropy.apply(hidden, weight, labels, bias, 0.1)
    expected = plain(hidden, weight, bias, labels, 0.1)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    parameters = hidden, weight, bias
    for mine, their in zip(*(torch.autograd.grad(loss, parameters) for loss in (value, expected)), strict=True):
        assert torch.allclose(mine, their, atol=1e-5)


def test_smoothed_loss_of_bf16_is_summed_in_fp32():
    hidden, weight, bias, labels = inputs(3000, dtype=torch.bfloat16)
    ours, theirs = summed_cross_entropy(hidden, weight, labels, bias, 0.1), plain(hidden, weight, bias, labels, 0.1)
    assert ours.dtype == torch.float32
    assert abs(ours.item() / theirs.item() - 1) < 1e-4
    parameters = hidden, weight, bias
    for mine, their in zip(*(torch.autograd.grad(loss, parameters) for loss in (ours, theirs)), strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - their.float()).norm() < 0.01 * their.float().norm()


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient_beside_a_bias(frozen):
    hidden, weight, bias, labels = inputs(20)
    parameters = hidden, weight, bias
    parameters[frozen].requires_grad_(False)
    loss: Any = summed_cross_entropy(hidden, weight, labels, bias, 0.1)
    assert [kept is None for kept in loss.grad_fn.saved_tensors] == [index == frozen for index in range(3)]
    loss.backward()
    assert [each.grad is None for each in parameters] == [index == frozen for index in range(3)]


def test_a_head_with_a_bias_gives_the_logits_that_its_loss_is_of():
    hidden, weight, bias, labels = inputs(20)
    head = LMHead(16, VOCABULARY, torch.nn.Parameter(bias.detach()[None]))
    head.weight = torch.nn.Parameter(weight.detach())
    expected = F.cross_entropy(head(hidden), labels, reduction="sum", label_smoothing=0.2)
    assert head(hidden, labels, 0.2).item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(head(hidden), F.linear(hidden, weight, bias))
