"""Padding, and how rows are computed without it.

Outside attention no token meets another. So projections, norms and feed-forward networks get a batch's real tokens
alone, one after the other, and only queries, keys and values are laid out in padded rows again: "unpadding", as in
MosaicBERT (arXiv:2312.17482, section 3.1.4) and flash-attn's `bert_padding`. The host makes the index beside the batch:
asking the device how many tokens are real would wait for it.

In attention a key that the mask hides has a weight of exactly 0, so what stands in padding reaches no real token, not
even in the last bit (`tests/trainer/test_encoders.py`).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from trainer.transfer import sent

WIDTH = 8
"""Tensor cores like numbers of tokens that are multiples of it. On a CPU they would be work for nothing."""


def rounded(count: int, most: int, device: torch.device) -> int:
    """`count` tokens as `device` likes them, at most `most`."""
    step = 1 if device.type == "cpu" else WIDTH
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
    """(N,) int64, distinct: which of the B * T tokens are computed, all real ones among them; None: all in their
    rows."""

    @classmethod
    def of(cls, real: np.ndarray, device: torch.device) -> Self:
        """Of (B, T) bool."""
        keys = real | ~real.any(1, keepdims=True)
        places, flat = None, real.ravel()
        count = rounded(int(flat.sum()), flat.size, device)
        if count < flat.size:
            # To a round number some of padding follow, whose results nobody reads.
            places = sent(np.argsort(~flat, kind="stable")[:count], device)
        return cls(sent(real, device), sent(keys[:, None, None], device), places)

    def longer(self, count: int) -> "Padding":
        """With `count` real tokens before each row."""
        rows, width = self.real.shape
        real = torch.nn.functional.pad(self.real, (count, 0), value=True)
        keys = torch.nn.functional.pad(self.keys, (count, 0), value=True)
        if self.places is None:
            return Padding(real, keys, None)
        device = self.real.device
        before = torch.arange(rows, device=device)[:, None] * (width + count) + torch.arange(count, device=device)
        moved = self.places + (self.places // width + 1) * count
        return Padding(real, keys, torch.cat([before.flatten(), moved]))

    def take(self, rows: Tensor) -> "Padding":
        """Of the rows `rows` (int64) in this order, all their tokens computed."""
        return Padding(self.real[rows], self.keys[rows], None)


def keys_of(padding: Padding | None) -> Tensor | None:
    """(B, 1, 1, T) bool: the keys that may be looked at; None: all."""
    return None if padding is None else padding.keys


def unpad(x: Tensor, padding: Padding | None) -> Tensor:
    """(B, T, ...) to (N, ...): the tokens that are computed; all of them, in their rows, if there are no `places`."""
    if padding is None or padding.places is None:
        return x
    return x.flatten(0, 1).index_select(0, padding.places)


def pad(x: Tensor, padding: Padding | None) -> Tensor:
    """What `unpad` gave, in its rows again, (B, T, ...): 0 where nothing was computed."""
    if padding is None or padding.places is None:
        return x
    rows = x.new_zeros(padding.real.numel(), *x.shape[1:])
    return rows.index_copy_(0, padding.places, x).unflatten(0, padding.real.shape)
