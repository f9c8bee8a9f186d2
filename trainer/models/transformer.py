"""The Transformer of 2017 (Vaswani et al., arXiv:1706.03762): an encoder-decoder, normalised after each sublayer.

Sinusoidal positions, ReLU, and one matrix for both embeddings, scaled by the root of their width, and the output.
Parameter names and shapes are those of Hugging Face's MarianMTModel, whose sines stand before its cosines (the paper
interleaves them: the same up to an order of features). Beside the paper's it has Marian's bias of the output, which
learns here as it does in Marian. The positions are a table that doesn't learn and isn't stored.
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
from trainer.models.layers import Embedding, Linear, LMHead, chosen
from trainer.models.loss import LOSS_KERNEL
from trainer.models.padding import Padding, in_heads, keys_of, pad, unpad
from trainer.recipe import Model


def sinusoids(positions: int, size: int) -> Tensor:
    """(positions, size): the sines of position / 10000^(2i / size), then their cosines (section 3.5)."""
    frequency = 10000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequency)
    return torch.cat((angle.sin(), angle.cos()), 1).float()


class Attention(nn.Module):
    """Multi-head attention, to itself or to a memory (section 3.2)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        size = config.hidden_size
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (Linear(size, size, True) for _ in range(4))
        self.heads, self.dropout = config.num_attention_heads, config.attention_dropout

    def forward(
        self,
        x: Tensor,
        padding: Padding | None = None,
        memory: Tensor | None = None,
        memory_padding: Padding | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """`x` looks at itself, or at `memory` if there is one; both without their padding."""
        looked_at = padding if memory is None else memory_padding
        q = in_heads(self.q_proj(x), padding, self.heads)
        mask = None if causal else keys_of(looked_at)
        if cache is None:
            k, v = self._keys(x if memory is None else memory, looked_at)
        elif memory is None:
            k, v, mask = cache.extend(layer, *self._keys(x, looked_at))
            causal = mask is None and not cache.filled
        else:
            k, v = cache.cross(layer, lambda: self._keys(memory, looked_at))
        out = multi_head(q, k, v, mask, causal, self.dropout if self.training else 0.0)
        return self.out_proj(unpad(out, padding))

    def _keys(self, source: Tensor, padding: Padding | None) -> tuple[Tensor, Tensor]:
        """Keys and values of what is looked at."""
        k, v = (in_heads(project(source), padding, self.heads) for project in (self.k_proj, self.v_proj))
        return k, v


class Layer(nn.Module):
    """Self-attention, in the decoder attention to the memory, feed-forward; norm(x + f(x)) each (section 3.1)."""

    def __init__(self, config: Model, decoder: bool) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        if decoder:
            self.encoder_attn = Attention(config)
            self.encoder_attn_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.fc1 = Linear(config.hidden_size, config.mlp_size, True)
        self.fc2 = Linear(config.mlp_size, config.hidden_size, True)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.decoder, self.dropout = decoder, config.residual_dropout

    def forward(
        self,
        x: Tensor,
        padding: Padding | None = None,
        memory: Tensor | None = None,
        memory_padding: Padding | None = None,
        cache: Cache | None = None,
        number: int = 0,
    ) -> Tensor:
        """`x` after this layer."""
        seen = self.self_attn(x, padding, causal=self.decoder, cache=cache, layer=number)
        x = self.self_attn_layer_norm(x + self._dropped(seen))
        if memory is not None:
            seen = self.encoder_attn(x, padding, memory, memory_padding, cache=cache, layer=number)
            x = self.encoder_attn_layer_norm(x + self._dropped(seen))
        return self.final_layer_norm(x + self._dropped(self.fc2(self.fc1(x).relu())))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Stack(nn.Module):
    """The encoder or the decoder, from token ids to hidden states."""

    positions: Tensor

    def __init__(self, config: Model, embed_tokens: Embedding, decoder: bool, activation_checkpointing: bool) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        layers = config.decoder_layers if decoder else config.num_hidden_layers
        self.layers = nn.ModuleList(Layer(config, decoder) for _ in range(layers))
        self.scale, self.dropout = math.sqrt(config.hidden_size), config.residual_dropout
        self.activation_checkpointing = activation_checkpointing
        self.register_buffer("positions", sinusoids(config.context, config.hidden_size), persistent=False)

    def forward(
        self,
        input_ids: Tensor,
        padding: Padding | None = None,
        memory: Tensor | None = None,
        memory_padding: Padding | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """`input_ids` (B, T) to hidden states without `padding`; `memory` (B, S, hidden) has a padding of its own."""
        begun = cache is not None and cache.filled
        places = self.positions[cache.lengths, None] if cache and begun else self.positions[: input_ids.size(1)]
        x = self.embed_tokens(input_ids) * self.scale
        x = unpad(F.dropout(x + places.to(x.dtype), self.dropout, self.training), padding)
        if memory is not None and not begun:  # later it is in the cache
            memory = unpad(memory, memory_padding)
        for number, layer in enumerate(self.layers):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, padding, memory, memory_padding, use_reentrant=False)
            else:
                x = layer(x, padding, memory, memory_padding, cache, number)
        return x


class Pair(nn.Module):
    """Encoder and decoder over one embedding (Hugging Face's `model.`)."""

    def __init__(self, config: Model, vocab_size: int, activation_checkpointing: bool) -> None:
        super().__init__()
        self.shared = Embedding(vocab_size, config.hidden_size)
        self.encoder = Stack(config, self.shared, False, activation_checkpointing)
        self.decoder = Stack(config, self.shared, True, activation_checkpointing)


class Transformer(nn.Module):
    """The whole model: two sequences of token ids to logits, or with labels to the loss.

    Its weights are zero until `initialize` draws them or a checkpoint is loaded.
    """

    heads: ClassVar[tuple[str, ...]] = ("lm",)
    """Kinds of head that it may end in."""
    head_names: ClassVar[tuple[str, ...]] = ()
    """What the names of its heads' parameters begin with."""

    def __init__(self, config: Model, vocab_size: int, head: Head = LM, activation_checkpointing: bool = False) -> None:
        """`vocab_size` rows of embedding; with `activation_checkpointing` a layer keeps only its input for the
        backward pass and is computed twice."""
        super().__init__()
        self.config, self.vocab_size, self.head = config, vocab_size, head
        self.loss_kernel = LOSS_KERNEL
        self.final_logits_bias = nn.Parameter(torch.zeros(1, vocab_size))
        self.model = Pair(config, vocab_size, activation_checkpointing)
        self.lm_head = LMHead(config.hidden_size, vocab_size, self.final_logits_bias)
        self.lm_head.weight = cast(nn.Parameter, self.model.shared.weight)

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
            smoothing: label smoothing (section 5.4: 0.1).
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
        return pad(self.model.encoder(input_ids, padding), padding)

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
        return chosen(self.model.decoder(ids, padding, memory, memory_padding, cache), cache)

    def initial_std(self, name: str, shape: tuple[int, ...]) -> float:
        """Embeddings hidden ** -0.5, so that they begin at 1 when scaled (tensor2tensor, the paper's code); else
        Glorot's (Glorot and Bengio 2010, equation 16). Marian's constant 0.02 would leave them smaller than the
        positions that are added to them."""
        if name == "final_logits_bias":
            return 0.0
        if name.endswith("shared.weight"):
            return self.config.hidden_size**-0.5
        return math.sqrt(2 / (shape[0] + shape[1]))
