"""Llama (Touvron et al. 2023, arXiv:2302.13971 and 2307.09288; Llama 3: arXiv:2407.21783), names Hugging Face's.

So export is a copy, not a conversion. Our own modules rather than transformers' classes: a rank starts in 3 s instead
of 17, document boundaries and the chunked loss fit in, and the logits agree with LlamaForCausalLM to 1e-5
(`tests/trainer/test_decoder_hf.py`).
"""

import math
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.models.head import LM, Head
from trainer.models.layers import (
    Attention,
    Cache,
    Documents,
    Embedding,
    Linear,
    LMHead,
    RMSNorm,
    SwiGLU,
    chosen,
    prefix_mask,
)
from trainer.models.loss import LOSS_KERNEL
from trainer.models.rotary import rotary_table
from trainer.recipe import Model

INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")


class Block(nn.Module):
    """Attention and feed-forward, each normalised at its input and added to the residual stream."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(
            config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_size,
            config.attention_dropout,
        )  # fmt: skip
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.mlp_size)
        self.dropout = config.residual_dropout

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        documents: Documents | None = None,
        cache: Cache | None = None,
        layer: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The residual stream `x` (B, T, hidden) after this block."""
        attended = self.self_attn(self.input_layernorm(x), rotation, documents, cache, layer, mask)
        x = x + F.dropout(attended, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)


class Stack(nn.Module):
    """Everything below the output projection (Hugging Face's `model.`)."""

    def __init__(self, config: Model, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """The whole model: token ids to logits, or with labels to the loss; with another head to what that gives.

    Its weights are zero until `initialize` draws them or a checkpoint is loaded.
    """

    heads: ClassVar[tuple[str, ...]] = ("lm", "classes", "sentence")
    """Kinds of head that it may end in."""
    head_names: ClassVar[tuple[str, ...]] = ("lm_head.", "score.")
    """What the names of its heads' parameters begin with."""
    cos: Tensor
    sin: Tensor

    def __init__(self, config: Model, vocab_size: int, head: Head = LM, activation_checkpointing: bool = False) -> None:
        """`vocab_size` rows of embedding; with `activation_checkpointing` a block keeps only its input for the
        backward pass and is computed twice: about a third more compute."""
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.head = head
        self.activation_checkpointing = activation_checkpointing
        self.loss_kernel = LOSS_KERNEL
        self.model = Stack(config, vocab_size)
        if head.kind == "lm":
            self.lm_head = LMHead(config.hidden_size, vocab_size)
            if config.tie_word_embeddings:
                self.lm_head.weight = cast(nn.Parameter, self.model.embed_tokens.weight)
        elif head.kind == "classes":
            self.score = Linear(config.hidden_size, head.outputs)
        cos, sin = rotary_table(config.context, config.head_size, config.rope_theta, config.rope_scaling)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

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
        """Logits, or the sum of the token losses, or the numbers of another head.

        Args:
            input_ids: (B, T) int64, T at most the model's context.
            labels: (B, T) int64, the token that follows each input; -100 is left out.
            documents: a token sees only its own document; None: all of its row before it.
            cache: what the rows hold already: first fed the prompts, padded on the right, then one token a row.
            at: (B,) int64, the place that the head reads in each row; None: all.
            smoothing, worth: of the labels, as `summed_cross_entropy` takes them; `worth` is (B, T).
            prefixes: (B,) int64, tokens at the beginning of each row that see one another; without documents only.
                With a cache it is the model's attention that says whether the prompts do.
        Returns:
            With labels: the sum over all labels, a scalar in fp32 (divide by their number for the mean).
            With a cache: (B, 1, vocabulary) logits after each row's last real token. Else (B, T, vocabulary), or with
            `at` (B, vocabulary). A head of classes gives its outputs in the vocabulary's place, one of sentences the
            normalised hidden states.
        """
        x = self.model.embed_tokens(input_ids)
        rotation = self._rotation(input_ids.size(1), x.dtype, cache)
        mask = prefix_mask(x, self.config.attention, prefixes, cache)
        for index, block in enumerate(self.model.layers):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rotation, documents, mask=mask, use_reentrant=False)
            else:
                x = block(x, rotation, documents, cache, index, mask)
        x = self.model.norm(chosen(x, cache, at))
        if self.head.kind == "lm":
            return self.lm_head(x, labels, smoothing, worth)
        return self.score(x) if self.head.kind == "classes" else x

    def initial_std(self, name: str, shape: tuple[int, ...]) -> float:
        """Standard deviation of the initial values of the matrix called `name`.

        `initializer_range`; what writes into the residual stream gets 1/sqrt(2 layers) of it, so that its variance
        doesn't grow with depth (GPT-2, Radford et al. 2019, section 2.3; Megatron-LM's scaled_init_method_normal).
        """
        depth = math.sqrt(2 * self.config.num_hidden_layers) if name.endswith(INTO_RESIDUAL) else 1.0
        return self.config.initializer_range / depth

    def _rotation(self, length: int, dtype: torch.dtype, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the fed tokens' positions, (1 or B, T, 1, head size / 2)."""
        if cache is not None and cache.filled:
            places = cache.lengths
            return self.cos[places, None, None].to(dtype), self.sin[places, None, None].to(dtype)
        return self.cos[None, :length, None].to(dtype), self.sin[None, :length, None].to(dtype)
