"""T5 (Raffel et al. 2019, arXiv:1910.10683), version 1.1: an encoder-decoder with relative positions.

Version 1.1 (arXiv:2002.05202) has gated GELU, no biases, and an output matrix of its own. With `tie_word_embeddings` it
is the embedding, as in version 1.0, and the decoder's output is divided by the root of its width. Parameter names and
shapes are those of Hugging Face's T5ForConditionalGeneration.

A score's bias depends on the distance alone. So the 2 T - 1 distances of T tokens are looked up, and laid out over the
T x T scores by a view: at T = 512 and 12 heads, forward and backward take 6.5 ms instead of 19 with a look-up a
score (one thread of a CPU). The causal mask, minus infinity at later tokens, is laid out with it.
"""

import math
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.models.attention import multi_head
from trainer.models.cache import Cache
from trainer.models.head import LM, Head
from trainer.models.layers import Embedding, Linear, LMHead, RMSNorm, chosen
from trainer.models.loss import LOSS_KERNEL
from trainer.models.padding import Padding, in_heads, keys_of, pad, unpad
from trainer.recipe import Model


def bucket(relative: Tensor, bidirectional: bool, buckets: int, longest: int) -> Tensor:
    """The bucket of each distance (key - query, int64): half of them exact, half logarithmic up to `longest` tokens.

    Mesh TensorFlow's `_relative_position_bucket`; later keys have buckets of their own where `bidirectional`.
    """
    found = torch.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        found += (relative > 0) * buckets
        distance = relative.abs()
    else:
        distance = -relative.clamp(max=0)
    exact = buckets // 2
    logarithm = torch.log(distance.clamp(min=1).float() / exact) / math.log(longest / exact)
    far = (exact + (logarithm * (buckets - exact)).to(torch.int64)).clamp(max=buckets - 1)
    return found + torch.where(distance < exact, distance, far)


class Attention(nn.Module):
    """Attention whose scores are not scaled; their initial spread is in `initial_std` instead."""

    def __init__(self, config: Model, buckets: int = 0) -> None:
        """With `buckets` it holds the table of biases that all layers of its stack share."""
        super().__init__()
        inner = config.num_attention_heads * config.head_size
        self.q, self.k, self.v = (Linear(config.hidden_size, inner) for _ in range(3))
        self.o = Linear(inner, config.hidden_size)
        if buckets:
            self.relative_attention_bias = Embedding(buckets, config.num_attention_heads)
        self.heads, self.dropout = config.num_attention_heads, config.attention_dropout

    def forward(
        self,
        x: Tensor,
        padding: Padding | None,
        bias: Tensor | None,
        memory: Tensor | None = None,
        memory_padding: Padding | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """`x` looks at itself, with `bias` on its scores, or at `memory` if there is one; both without their
        padding."""
        looked_at = padding if memory is None else memory_padding
        q = in_heads(self.q(x), padding, self.heads)
        mask = bias if memory is None else keys_of(looked_at)
        if cache is None:
            k, v = self._keys(x if memory is None else memory, looked_at)
        elif memory is None:
            k, v, _ = cache.extend(layer, *self._keys(x, looked_at))  # its mask is in the bias of positions already
        else:
            k, v = cache.cross(layer, lambda: self._keys(memory, looked_at))
        out = multi_head(q, k, v, mask, dropout=self.dropout if self.training else 0.0, scale=1.0)
        return self.o(unpad(out, padding))

    def _keys(self, source: Tensor, padding: Padding | None) -> tuple[Tensor, Tensor]:
        """Keys and values of what is looked at."""
        k, v = (in_heads(project(source), padding, self.heads) for project in (self.k, self.v))
        return k, v


class GatedGelu(nn.Module):
    """wo(gelu(wi_0(x)) * wi_1(x)) (arXiv:2002.05202)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (Linear(config.hidden_size, config.mlp_size) for _ in range(2))
        self.wo = Linear(config.mlp_size, config.hidden_size)
        self.dropout = config.residual_dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
        return self.wo(F.dropout(x, self.dropout, self.training))


class Sublayer(nn.Module):
    """x + f(norm(x)); f under the name that Hugging Face gives it."""

    def __init__(self, config: Model, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)
        self.layer_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.name, self.dropout = name, config.residual_dropout

    def forward(self, x: Tensor, *more: Tensor | Padding | Cache | int | None) -> Tensor:
        return x + F.dropout(self.get_submodule(self.name)(self.layer_norm(x), *more), self.dropout, self.training)


class Block(nn.Module):
    """Self-attention, in the decoder cross-attention, feed-forward."""

    def __init__(self, config: Model, decoder: bool, first: bool) -> None:
        super().__init__()
        buckets = config.relative_attention_num_buckets if first else 0
        layers = [Sublayer(config, "SelfAttention", Attention(config, buckets))]
        if decoder:
            layers.append(Sublayer(config, "EncDecAttention", Attention(config)))
        layers.append(Sublayer(config, "DenseReluDense", GatedGelu(config)))
        self.layer = nn.ModuleList(layers)

    def forward(
        self,
        x: Tensor,
        padding: Padding | None,
        bias: Tensor,
        memory: Tensor | None = None,
        memory_padding: Padding | None = None,
        cache: Cache | None = None,
        number: int = 0,
    ) -> Tensor:
        """The residual stream `x` after this block; `bias` (1 or B, heads, T, keys)."""
        x = self.layer[0](x, padding, bias, None, None, cache, number)
        if memory is not None:
            x = self.layer[1](x, padding, None, memory, memory_padding, cache, number)
        return self.layer[-1](x)


class Stack(nn.Module):
    """The encoder or the decoder, from token ids to hidden states."""

    buckets: Tensor

    def __init__(self, config: Model, embed_tokens: Embedding, decoder: bool, activation_checkpointing: bool) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        layers = config.decoder_layers if decoder else config.num_hidden_layers
        self.block = nn.ModuleList(Block(config, decoder, first=index == 0) for index in range(layers))
        self.final_layer_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.decoder, self.context, self.dropout = decoder, config.context, config.residual_dropout
        self.activation_checkpointing = activation_checkpointing
        distances = torch.arange(1 - config.context, config.context)
        longest = config.relative_attention_max_distance
        found = bucket(distances, not decoder, config.relative_attention_num_buckets, longest)
        self.register_buffer("buckets", found, persistent=False)

    def forward(
        self,
        input_ids: Tensor,
        padding: Padding | None = None,
        memory: Tensor | None = None,
        memory_padding: Padding | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """`input_ids` (B, T) to hidden states without `padding`; `memory` (B, S, hidden) has a padding of its own."""
        x = unpad(F.dropout(self.embed_tokens(input_ids), self.dropout, self.training), padding)
        begun = cache is not None and cache.filled
        bias = self._bias_of_last(cache) if cache and begun else self._bias(input_ids.size(1))
        if padding is not None and not self.decoder:
            bias = bias.masked_fill(~padding.keys, -math.inf)
        if memory is not None and not begun:  # later it is in the cache
            memory = unpad(memory, memory_padding)
        for number, block in enumerate(self.block):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, padding, bias, memory, memory_padding, use_reentrant=False)
            else:
                x = block(x, padding, bias, memory, memory_padding, cache, number)
        return F.dropout(self.final_layer_norm(x), self.dropout, self.training)

    def _bias(self, length: int) -> Tensor:
        """(1, heads, T, T) of `length` tokens among themselves."""
        first = self.context - length
        by_distance = self._looked_up(torch.arange(first, first + 2 * length - 1, device=self.buckets.device))
        return by_distance.T.unfold(1, length, 1).flip(1)[None]  # query i begins T - 1 - i places into the distances

    def _bias_of_last(self, cache: Cache) -> Tensor:
        """(rows, heads, 1, places) of each row's next token towards the places of `cache`."""
        keys = torch.arange(cache.width + 1, device=self.buckets.device)
        return self._looked_up(keys - cache.lengths[:, None] + self.context - 1).transpose(1, 2)[:, :, None]

    def _looked_up(self, index: Tensor) -> Tensor:
        """(..., heads) of distances, counted from the farthest before."""
        table = cast(Attention, cast(Block, self.block[0]).layer[0].get_submodule("SelfAttention"))
        found = table.relative_attention_bias(self.buckets[index])
        return found.masked_fill(index[..., None] >= self.context, -math.inf) if self.decoder else found


class T5(nn.Module):
    """The whole model: two sequences of token ids to logits, or with labels to the loss.

    Its weights are zero until `initialize` draws them or a checkpoint is loaded.
    """

    heads: ClassVar[tuple[str, ...]] = ("lm",)
    """Kinds of head that it may end in."""
    head_names: ClassVar[tuple[str, ...]] = ("lm_head.",)
    """What the names of its heads' parameters begin with."""

    def __init__(self, config: Model, vocab_size: int, head: Head = LM, activation_checkpointing: bool = False) -> None:
        """`vocab_size` rows of embedding; with `activation_checkpointing` a block keeps only its input for the
        backward pass and is computed twice."""
        super().__init__()
        self.config, self.vocab_size, self.head = config, vocab_size, head
        self.loss_kernel = LOSS_KERNEL
        self.shared = Embedding(vocab_size, config.hidden_size)
        self.encoder = Stack(config, self.shared, False, activation_checkpointing)
        self.decoder = Stack(config, self.shared, True, activation_checkpointing)
        self.lm_head = LMHead(config.hidden_size, vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = cast(nn.Parameter, self.shared.weight)

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        labels: Tensor | None = None,
        padding: Padding | None = None,
        smoothing: float = 0.0,
        decoder_padding: Padding | None = None,
    ) -> Tensor:
        """Logits, or the sum of the token losses.

        Args:
            input_ids: (B, S) int64, what the encoder reads; at most the model's context, as is T.
            decoder_input_ids: (B, T) int64, the target after its start token; padded on the right.
            labels: (B, T) int64, the target; -100 is left out.
            padding: of `input_ids`; None: every token is real.
            smoothing: label smoothing.
            decoder_padding: of `decoder_input_ids`, at the rows' ends, where nothing but causality hides it; None: all
                are computed.
        Returns:
            With labels: the sum over all labels, a scalar in fp32. Else the logits of `decode`.
        """
        memory = self.encode(input_ids, padding)
        x = self._decoded(decoder_input_ids, memory, padding, decoder_padding)
        if labels is None:
            return self.lm_head(pad(x, decoder_padding))
        return self.lm_head(x, unpad(labels, decoder_padding), smoothing)

    def encode(self, input_ids: Tensor, padding: Padding | None = None) -> Tensor:
        """Token ids (B, S) to what the decoder looks at, (B, S, hidden); 0 in padding."""
        return pad(self.encoder(input_ids, padding), padding)

    def decode(
        self, decoder_input_ids: Tensor, memory: Tensor, padding: Padding | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Logits (B, T, vocabulary) of a target beside `memory` (B, S, hidden).

        With a cache: (B, 1, vocabulary) after each row's last real token. It is first fed what the targets begin
        with, padded on the right, then one token a row.
        """
        return self.lm_head(self._decoded(decoder_input_ids, memory, padding, cache=cache))

    def _decoded(
        self,
        ids: Tensor,
        memory: Tensor,
        memory_padding: Padding | None,
        padding: Padding | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        x = chosen(self.decoder(ids, padding, memory, memory_padding, cache), cache)
        return x * self.config.hidden_size**-0.5 if self.config.tie_word_embeddings else x

    def initial_std(self, name: str, shape: tuple[int, ...]) -> float:
        """Mesh TensorFlow's factors: fan in ** -0.5, which for queries takes the scores' missing scale in; tokens 1.

        Unlike in Hugging Face's `_init_weights`, where it is 1, an output matrix of its own has hidden ** -0.5, as in
        T5X: logits would otherwise begin with a spread of sqrt(hidden).
        """
        if name.endswith("shared.weight"):
            return 1.0
        if name.endswith(".q.weight"):
            return (shape[1] * self.config.head_size) ** -0.5
        if name.endswith("relative_attention_bias.weight"):
            return self.config.hidden_size**-0.5
        return shape[1] ** -0.5
