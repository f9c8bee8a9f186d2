"""The layers of a Llama-style decoder, each holding its own parameters under Hugging Face's names.

Documents are kept apart by giving each its own attention call, not by a mask. Forward and backward of 16 rows of 256
tokens (6 heads of 32, 2 key-value heads, fp32, one thread; 17, 54 and 162 documents in the rows):

    plain causal (documents mixed)                43 / 44 / 44 ms
    boolean mask                                  46 / 46 / 47 ms
    documents padded to like lengths, gathered    48 / 40 / 34 ms
    one call a document, split and joined         44 / 34 / 30 ms     <- here, on a CPU and in fp32

so attention gets cheaper with more documents. Splitting matters: one `split` has one backward, whereas slices would
each add a zero-filled gradient. On a GPU in bf16 one variable-length flash attention call takes all documents; it knows
no dropout, so with that there is a call a document there, too.
Rotary positions run on through a row: they are seen only as differences, so a document needs no restart at 0. Learned
positions do restart (`Documents.positions`).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.cache import Cache
from trainer.models.loss import summed_cross_entropy
from trainer.models.rotary import rotate
from trainer.transfer import sent


@dataclass(frozen=True)
class Documents:
    """Where documents begin in a batch of `rows` x `width` input tokens; every row begins one.

    The boundaries live on the host: no forward pass waits for the device to learn them.
    """

    cumulative: np.ndarray
    """(documents + 1,) int32: boundaries over the flattened tokens, from 0 to rows * width."""
    longest: int
    """Tokens of the longest document."""
    runs: tuple[tuple[int, int], ...]
    """(documents, tokens of each): neighbours of equal length are one run, such as rows of one document each."""
    on_device: Tensor | None = None
    """`cumulative` on the GPU, sent once a batch; None on a CPU."""

    @classmethod
    def of(cls, starts: Sequence[np.ndarray], width: int, device: torch.device | None = None) -> Self | None:
        """The documents of rows whose documents start at `starts` (ascending, in tokens from the row's start).

        Starts beyond `width` are dropped: a pretraining row's last token is only a label. None where each row holds
        one document, for which plain causal attention is the same and needs no boundaries. What follows a row's last
        real token belongs to its last document, where no real token can see it.
        """
        inner = [row[(row > 0) & (row < width)] for row in starts]
        if not any(len(row) for row in inner):
            return None
        parts = [np.concatenate(([index * width], index * width + row)) for index, row in enumerate(inner)]
        cumulative = np.concatenate([*parts, [len(inner) * width]]).astype(np.int32)
        lengths = np.diff(cumulative)
        runs = tuple((len(list(same)), length) for length, same in groupby(lengths.tolist()))
        on_device = None
        if device is not None and device.type == "cuda":
            on_device = sent(cumulative, device)
        return cls(cumulative, int(lengths.max()), runs, on_device)

    def positions(self, device: torch.device) -> Tensor:
        """(rows * width,) int64 on `device`: how many tokens of its document stand before each, in the same row."""
        if self.on_device is not None:
            index = torch.arange(int(self.cumulative[-1]), dtype=torch.int32, device=device)
            begun = torch.searchsorted(self.on_device, index, right=True) - 1
            return (index - self.on_device[begun]).long()
        starts = np.repeat(self.cumulative[:-1], np.diff(self.cumulative))
        return torch.from_numpy(np.arange(len(starts)) - starts).to(device)


class Linear(nn.Linear):
    """A projection, zero until `initialize` draws it: torch's own draw would cost time and move the global random
    state."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """Token vectors, zero until `initialize` draws them."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class RMSNorm(nn.Module):
    """Scales each token's vector to a root mean square of 1, then by a learned weight (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.size(-1),), self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query self-attention (arXiv:2305.13245) with rotary positions."""

    def __init__(
        self, hidden_size: int, heads: int, key_value_heads: int, head_size: int, dropout: float = 0.0
    ) -> None:
        """`dropout`: of attention's probabilities, in training."""
        super().__init__()
        self.head_size = head_size
        self.dropout = dropout
        self.q_proj = Linear(hidden_size, heads * self.head_size)
        self.k_proj = Linear(hidden_size, key_value_heads * self.head_size)
        self.v_proj = Linear(hidden_size, key_value_heads * self.head_size)
        self.o_proj = Linear(heads * self.head_size, hidden_size)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        documents: Documents | None = None,
        cache: Cache | None = None,
        layer: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """`x` (B, T, hidden) to (B, T, hidden); `layer` is this block's place in `cache`."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_size)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        out = self_attention(q, k, v, documents, cache, layer, self.dropout if self.training else 0.0, mask)
        return self.o_proj(out.flatten(-2))


def self_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Documents | None = None,
    cache: Cache | None = None,
    layer: int = 0,
    dropout: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """A decoder's attention of (B, T, heads, head size): with what `cache` holds, within `documents`, as `mask` says,
    or causal."""
    if cache is not None:
        k, v, held = cache.extend(layer, k, v)
        return attend(q, k, v, held if mask is None else mask, dropout)
    if documents is None:
        return attend(q, k, v, mask, dropout)
    return attend_within(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), documents, dropout).view(q.shape)


def prefix_mask(x: Tensor, attention: str, prefixes: Tensor | None, cache: Cache | None) -> Tensor | None:
    """What lets the first `prefixes` (B,) tokens of a row of `x` (B, T, ...) see one another, and every other one what
    is before it; None: causal. Prompts that go into a cache are prefixes where the model's `attention` says so.

    As numbers in the dtype of `x`, made once: of a boolean mask each block would keep its own copy in numbers.

    Returns:
        (B, 1, T, T), added to the scores: 0 or minus infinity.
    """
    if cache is not None:
        prefixes = cache.lengths if attention == "prefix" and not cache.filled else None
    if prefixes is None:
        return None
    place = torch.arange(x.size(1), device=x.device)
    seen = (place <= place[:, None]) | (place < prefixes[:, None, None])
    return torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(~seen, -torch.inf)[:, None]


def chosen(x: Tensor, cache: Cache | None = None, at: Tensor | None = None) -> Tensor:
    """What a head reads of a decoder's last hidden states `x` (B, T, hidden), after which `cache` holds their tokens.

    (B, hidden) at the places `at` (B,); with a cache (B, 1, hidden) after each row's last real token; else all.
    """
    rows = torch.arange(len(x), device=x.device)
    if at is not None:
        return x[rows, at]
    if cache is None:
        return x
    last = x if cache.filled else x[rows, cache.lengths - 1, None]
    cache.advance()
    return last


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Softmax attention of (B, T, heads, head size): where a boolean `mask` is True, or with one of numbers added;
    without one causal, or, for one token that has others before it, everywhere. Each probability is dropped with that
    of `dropout`."""
    grouped = q.size(2) != k.size(2)
    if q.size(1) == 1 < k.size(1) and grouped:
        # Heads that share keys are so many queries of one head: half the time, as no key is copied.
        shared = q.unflatten(2, (k.size(2), -1))[:, 0]
        return F.scaled_dot_product_attention(shared, k.transpose(1, 2), v.transpose(1, 2), mask).flatten(1, 2)[:, None]
    causal = mask is None and q.size(1) == k.size(1)
    if grouped and mask is not None and q.is_cuda:  # its kernel of masks knows no shared heads: all scores in memory
        k, v = (part.repeat_interleave(q.size(2) // part.size(2), 2) for part in (k, v))
        grouped = False
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)


def attend_within(q: Tensor, k: Tensor, v: Tensor, documents: Documents, dropout: float = 0.0) -> Tensor:
    """Causal attention of flattened tokens (B * T, heads, head size), each within its own document only."""
    if documents.on_device is not None and q.dtype in (torch.bfloat16, torch.float16) and not dropout:
        return _variable_length(q, k, v, documents.on_device, documents.longest)
    sizes = [count * length for count, length in documents.runs]
    parts = zip(documents.runs, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    apart = [attend(*(t.unflatten(0, run) for t in qkv), dropout=dropout) for run, *qkv in parts]
    return torch.cat([each.flatten(0, 1) for each in apart])


def _variable_length(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, longest: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # 1.5 s to import, and only a GPU needs it

    grouping = {}
    if q.size(1) != k.size(1):
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            grouping["enable_gqa"] = True
        else:
            k, v = (part.repeat_interleave(q.size(1) // k.size(1), 1) for part in (k, v))
    causal = (-1, 0)
    out = varlen_attn(q, k, v, boundaries, boundaries, longest, longest, window_size=causal, **grouping)
    assert isinstance(out, Tensor)
    return out


class SwiGLU(nn.Module):
    """The gated feed-forward layer, down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, inner_size)
        self.up_proj = Linear(hidden_size, inner_size)
        self.down_proj = Linear(inner_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LMHead(nn.Module):
    """Hidden states to logits, or straight to the loss.

    The loss is computed in here because ZeRO-3 holds a module's weights together only during that module's own
    forward and backward: reading `lm_head.weight` from outside would find an empty tensor.
    """

    def __init__(self, hidden_size: int, vocab_size: int, bias: nn.Parameter | None = None) -> None:
        """`bias`: one a word, in any shape; where it also belongs to another module, ZeRO-3 fetches it for both."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size, hidden_size))
        self.bias = bias

    def forward(
        self, hidden: Tensor, labels: Tensor | None = None, smoothing: float = 0.0, worth: Tensor | None = None
    ) -> Tensor:
        """`hidden` (..., hidden): logits (..., vocabulary), or with `labels` (...) the summed loss, in fp32.

        `worth` (...) multiplies each label's.
        """
        bias = None if self.bias is None else self.bias.flatten()
        if labels is None:
            return F.linear(hidden, self.weight, bias)
        worth = None if worth is None else worth.flatten()
        return summed_cross_entropy(hidden.flatten(0, -2), self.weight, labels.flatten(), bias, smoothing, worth)
