"""GPT-2 (Radford et al. 2019, Language Models are Unsupervised Multitask Learners), also DialoGPT (arXiv:1911.00536).

Learned positions, LayerNorm at each block's input, a feed-forward layer of four times the width with the tanh form of
GELU. Names and shapes are those of Hugging Face's GPT2LMHeadModel, whose projections are stored (inputs, outputs),
against torch's Linear; so import and export copy. Logits agree with it to 1e-5 (`tests/trainer/test_decoder_hf.py`).

GPT-2's positions are absolute. A document that shares its row counts them from its own beginning: what it computes is
then what it computes alone, as in a prompt. A document cut by a row's end begins anew in the next row, and only
documents as long as the context train its last positions; `attention: full` numbers the row through instead.
"""

import math
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.models.head import LM, Head
from trainer.models.layers import Cache, Documents, Embedding, Linear, LMHead, chosen, prefix_mask, self_attention
from trainer.models.loss import LOSS_KERNEL
from trainer.recipe import Model


class Conv1D(nn.Module):
    """x @ weight + bias with a weight of (inputs, outputs), zero until `initialize` draws it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


class Attention(nn.Module):
    """Multi-head self-attention; one projection makes queries, keys and values."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.dropout = config.attention_dropout
        self.c_attn = Conv1D(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = Conv1D(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, documents: Documents | None, cache: Cache | None, layer: int, mask: Tensor | None
    ) -> Tensor:
        """`x` (B, T, hidden) to (B, T, hidden)."""
        q, k, v = (part.unflatten(-1, (-1, self.head_size)) for part in self.c_attn(x).chunk(3, -1))
        out = self_attention(q, k, v, documents, cache, layer, self.dropout if self.training else 0.0, mask)
        return self.c_proj(out.flatten(-2))


class MLP(nn.Module):
    """c_proj(gelu(c_fc(x)))."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.hidden_size, config.mlp_size)
        self.c_proj = Conv1D(config.mlp_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward, each normalised at its input and added to the residual stream."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)
        self.dropout = config.residual_dropout

    def forward(
        self,
        x: Tensor,
        documents: Documents | None = None,
        cache: Cache | None = None,
        layer: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The residual stream `x` (B, T, hidden) after this block."""
        x = x + F.dropout(self.attn(self.ln_1(x), documents, cache, layer, mask), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.ln_2(x)), self.dropout, self.training)


class Transformer(nn.Module):
    """Everything below the output projection (Hugging Face's `transformer.`)."""

    def __init__(self, config: Model, vocab_size: int) -> None:
        super().__init__()
        self.wte = Embedding(vocab_size, config.hidden_size)
        self.wpe = Embedding(config.context, config.hidden_size)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class GPT2(nn.Module):
    """The whole model: token ids to logits, or with labels to the loss; with another head to what that gives.

    Its weights are zero until `initialize` draws them or a checkpoint is loaded.
    """

    heads: ClassVar[tuple[str, ...]] = ("lm", "classes", "sentence")
    """Kinds of head that it may end in."""
    head_names: ClassVar[tuple[str, ...]] = ("lm_head.", "score.")
    """What the names of its heads' parameters begin with."""

    def __init__(self, config: Model, vocab_size: int, head: Head = LM, activation_checkpointing: bool = False) -> None:
        """`vocab_size` rows of embedding; with `activation_checkpointing` a block keeps only its input for the
        backward pass and is computed twice: about a third more compute."""
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.head = head
        self.activation_checkpointing = activation_checkpointing
        self.loss_kernel = LOSS_KERNEL
        self.transformer = Transformer(config, vocab_size)
        if head.kind == "lm":
            self.lm_head = LMHead(config.hidden_size, vocab_size)
            if config.tie_word_embeddings:
                self.lm_head.weight = cast(nn.Parameter, self.transformer.wte.weight)
        elif head.kind == "classes":
            self.score = Linear(config.hidden_size, head.outputs)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        documents: Documents | None = None,
        cache: Cache | None = None,
        at: Tensor | None = None,
        smoothing: float = 0.0,
        worth: Tensor | None = None,
        prefixes: Tensor | None = None,
    ) -> Tensor:
        """As `Decoder.forward`."""
        stack = self.transformer
        x = stack.wte(input_ids) + stack.wpe(self._positions(input_ids, documents, cache))
        x = F.dropout(x, self.config.residual_dropout, self.training)
        mask = prefix_mask(x, self.config.attention, prefixes, cache)
        for index, block in enumerate(stack.h):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, documents, mask=mask, use_reentrant=False)
            else:
                x = block(x, documents, cache, index, mask)
        x = stack.ln_f(chosen(x, cache, at))
        if self.head.kind == "lm":
            return self.lm_head(x, labels, smoothing, worth)
        return self.score(x) if self.head.kind == "classes" else x

    def _positions(self, input_ids: Tensor, documents: Documents | None, cache: Cache | None) -> Tensor:
        """Each token's place in its document, (T,) or (B, T)."""
        if cache is not None and cache.filled:
            return cache.lengths[:, None]
        if documents is not None:
            return documents.positions(input_ids.device).view(input_ids.shape)
        return torch.arange(input_ids.size(1), device=input_ids.device)

    def initial_std(self, name: str, shape: tuple[int, ...]) -> float:
        """Standard deviation of the initial values of the matrix called `name`: `initializer_range`; what writes into
        the residual stream gets 1/sqrt(2 layers) of it (section 2.3 of the paper)."""
        depth = math.sqrt(2 * self.config.num_hidden_layers) if name.endswith("c_proj.weight") else 1.0
        return self.config.initializer_range / depth
