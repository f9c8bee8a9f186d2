"""Padding, and how blocks are computed without it.

Outside attention no token meets another. So projections, norms and feed-forward networks get a batch's real tokens
alone, one after the other, and only queries, keys and values are laid out in padded rows again: "unpadding", as in
MosaicBERT (arXiv:2312.17482, section 3.1.4) and flash-attn's `bert_padding`. The host makes the indices beside the
batch: asking the device how many tokens are real would wait for it. Both ways are gathers, each the other's backward
pass: a scatter would keep what it scatters, and on a GPU, where algorithms are deterministic, it would sort.

In attention a key that the mask hides has a weight of exactly 0, so what stands in padding reaches no real token, not
even in the last bit, wherever it is computed (`tests/trainer/test_encoders.py`).
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from trainer.transfer import sent

WIDTH = 8
"""Tensor cores like numbers of tokens that are multiples of it. On a CPU they would be work for nothing."""
TOKENS = 64
"""As `WIDTH`, for tokens without padding: their number differs in every batch, and here few of them occur."""
WORTH = 0.8
"""Share of real tokens above which padding is computed, too: the copies around attention would keep more memory than
it does, and than the plan says (`tests/cluster/test_plan_activations.py`)."""


def rounded(count: int, most: int, device: torch.device, step: int = WIDTH) -> int:
    """`count` tokens as `device` likes them, at most `most`."""
    step = 1 if device.type == "cpu" else step
    return min(most, max(step, -(-count // step) * step))


@dataclass(frozen=True)
class Padding:
    """Which tokens of (B, T) are real."""

    real: Tensor
    """(B, T) bool: True at real tokens, False at padding."""
    keys: Tensor
    """(B, 1, 1, T) bool: what may be looked at. A row without a real token (filler) sees all of itself: a softmax over
    nothing is NaN in some kernels, and NaN times a loss of 0 would still spoil every gradient."""
    places: Tensor | None
    """(N,) int64, distinct: which of the B * T tokens are computed, all real ones among them; None: all, in their
    rows."""
    slots: Tensor | None
    """(B * T,) int64: where among the N each token is; N: nowhere."""

    @classmethod
    def of(cls, real: np.ndarray, device: torch.device) -> Self:
        """Of (B, T) bool."""
        keys = real | ~real.any(1, keepdims=True)
        places = slots = None
        flat = real.ravel()
        count = rounded(int(flat.sum()), flat.size, device, TOKENS)
        if count <= WORTH * flat.size:
            # To a round number some of padding follow, whose results nobody reads.
            chosen = np.argsort(~flat, kind="stable")[:count]
            where = np.full(flat.size, count)
            where[chosen] = np.arange(count)
            places, slots = sent(chosen, device), sent(where, device)
        return cls(sent(real, device), sent(keys[:, None, None], device), places, slots)

    def longer(self, count: int) -> Self:
        """With `count` real tokens before each row."""
        rows, width = self.real.shape
        real, keys = (torch.nn.functional.pad(each, (count, 0), value=True) for each in (self.real, self.keys))
        if self.places is None or self.slots is None:
            return type(self)(real, keys, None, None)
        device = self.real.device
        before = torch.arange(rows, device=device)[:, None] * (width + count) + torch.arange(count, device=device)
        places = torch.cat([self.places + (self.places // width + 1) * count, before.flatten()])
        added = torch.arange(len(self.places), len(places), device=device).view(rows, count)
        slots = self.slots.masked_fill(self.slots == len(self.places), len(places)).view(rows, width)
        return type(self)(real, keys, places, torch.cat([added, slots], 1).flatten())

    def take(self, rows: Tensor) -> Self:
        """Of the rows `rows` (int64) in this order, all their tokens computed."""
        return type(self)(self.real[rows], self.keys[rows], None, None)


def keys_of(padding: Padding | None) -> Tensor | None:
    """(B, 1, 1, T) bool: the keys that may be looked at; None: all."""
    return None if padding is None else padding.keys


def unpad(x: Tensor, padding: Padding | None) -> Tensor:
    """(B, T, ...) to (N, ...): the tokens that are computed; all of them, in their rows, if there are no `places`."""
    if padding is None or padding.places is None:
        return x
    found = _Gathered.apply(x.flatten(0, 1), padding.places, padding.slots)
    assert isinstance(found, Tensor)
    return found


def pad(x: Tensor, padding: Padding | None) -> Tensor:
    """What `unpad` gave, in its rows again, (B, T, ...): 0 where nothing was computed."""
    if padding is None or padding.places is None:
        return x
    found = _Gathered.apply(x, padding.slots, padding.places)
    assert isinstance(found, Tensor)
    return found.unflatten(0, padding.real.shape)


def in_heads(x: Tensor, padding: Padding | None, heads: int) -> Tensor:
    """A projection of tokens without padding as attention reads it, (B, T, heads, head size)."""
    return pad(x, padding).unflatten(-1, (heads, -1))


class _Gathered(torch.autograd.Function):
    """x[index], where an index of len(x) gives 0; and back by the index that undoes it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return _gathered(x, index)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _gathered(grad_outputs[0], inverse), None, None


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    if len(index) > len(x):  # of fewer tokens than there are places
        x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
    return x.index_select(0, index)
