"""BERT (Devlin et al. 2018, arXiv:1810.04805): a bidirectional encoder, normalised after each sublayer.

Parameter names and shapes are those of Hugging Face's BertForPreTraining, BertForMaskedLM,
BertForSequenceClassification, BertForQuestionAnswering and BertModel, one for each head; which has a pooler differs as
there. Blocks compute padding in attention only (`padding.py`), and only tokens that have a label meet the vocabulary:
with 15 % of them, forward and backward of 8 rows of 128 tokens take 395 ms instead of 1150 (4 layers of 256 features,
30,592 words, one thread of a CPU). On a CPU the loss kernel alone would do for that (388 ms); on a GPU it is the head
that leaves the others out, and the host must know how many have one (`labelled`), or it would wait for the device.
"""

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.models.attention import multi_head
from trainer.models.head import LM, Head
from trainer.models.layers import Embedding, Linear, LMHead
from trainer.models.loss import IGNORED, LOSS_KERNEL
from trainer.models.padding import Padding, in_heads, keys_of, pad, unpad
from trainer.recipe import Model

POOLED = ("classes", "pretraining")
"""The heads that read the pooled first token."""


class Embeddings(nn.Module):
    """Word + position + token type, normalised (section 3.2)."""

    def __init__(self, config: Model, vocab_size: int) -> None:
        super().__init__()
        self.word_embeddings = Embedding(vocab_size, config.hidden_size)
        self.position_embeddings = Embedding(config.context, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = config.residual_dropout

    def forward(self, input_ids: Tensor, token_types: Tensor | None) -> Tensor:
        """`input_ids` and `token_types` (B, T) to (B, T, hidden); no types: all are 0."""
        places = torch.arange(input_ids.size(1), device=input_ids.device)
        types = torch.zeros_like(places) if token_types is None else token_types
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(types) + self.position_embeddings(places)
        return F.dropout(self.LayerNorm(x), self.dropout, self.training)


class SelfAttention(nn.Module):
    """Every token looks at every real one."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.query, self.key, self.value = (Linear(config.hidden_size, config.hidden_size, True) for _ in range(3))
        self.heads, self.dropout = config.num_attention_heads, config.attention_dropout

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        """`x` without padding."""
        q, k, v = (in_heads(project(x), padding, self.heads) for project in (self.query, self.key, self.value))
        out = multi_head(q, k, v, keys_of(padding), dropout=self.dropout if self.training else 0.0)
        return unpad(out, padding)


class Output(nn.Module):
    """Back to the hidden size, added to the sublayer's input, normalised."""

    def __init__(self, inputs: int, config: Model) -> None:
        super().__init__()
        self.dense = Linear(inputs, config.hidden_size, True)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = config.residual_dropout

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(F.dropout(self.dense(x), self.dropout, self.training) + residual)


class Attention(nn.Module):
    """Self-attention and its output."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Output(config.hidden_size, config)

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        return self.output(self.self(x, padding), x)


class Dense(nn.Module):
    """A projection and GELU (arXiv:1606.08415)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = Linear(inputs, outputs, True)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Attention, then the feed-forward network."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Dense(config.hidden_size, config.mlp_size)
        self.output = Output(config.mlp_size, config)

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        x = self.attention(x, padding)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, config: Model, activation_checkpointing: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.activation_checkpointing = activation_checkpointing

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        """`x` (B, T, hidden); in padding, where it isn't computed, 0 comes out."""
        x = unpad(x, padding)
        for layer in self.layer:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, padding, use_reentrant=False)
            else:
                x = layer(x, padding)
        return pad(x, padding)


class Pooler(nn.Module):
    """The first token's vector through a layer of its own: what stands for the whole sequence."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, True)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, T, hidden) to (B, hidden)."""
        return self.dense(x[:, 0]).tanh()


class Body(nn.Module):
    """Everything below the heads (Hugging Face's `bert.`)."""

    def __init__(self, config: Model, vocab_size: int, pooled: bool, activation_checkpointing: bool) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, vocab_size)
        self.encoder = Encoder(config, activation_checkpointing)
        self.pooler = Pooler(config) if pooled else None

    def forward(self, input_ids: Tensor, padding: Padding | None, token_types: Tensor | None) -> Tensor:
        return self.encoder(self.embeddings(input_ids, token_types), padding)


class Transform(Dense):
    """What a token's vector passes before it meets the vocabulary."""

    def __init__(self, config: Model) -> None:
        super().__init__(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(super().forward(x))


class Predictions(nn.Module):
    """The masked-token head. Its matrix is the word embeddings', its bias its own, held by the decoder as well."""

    def __init__(self, config: Model, vocab_size: int, tied: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.transform = Transform(config)
        self.decoder = LMHead(config.hidden_size, vocab_size, self.bias)
        if tied is not None:
            self.decoder.weight = tied

    def forward(self, x: Tensor, labels: Tensor | None, labelled: int | None) -> Tensor:
        """(B, T, vocabulary) logits, or with labels (B, T) the summed loss of those that have one."""
        if labels is None:
            return self.decoder(self.transform(x))
        x, labels = x.flatten(0, 1), labels.flatten()
        used = labels != IGNORED
        if labelled is not None:
            chosen = used.nonzero_static(size=labelled)[:, 0]
        elif x.device.type == "cpu":
            chosen = used.nonzero()[:, 0]
        else:
            return self.decoder(self.transform(x), labels)
        return self.decoder(self.transform(x.index_select(0, chosen)), labels.index_select(0, chosen))


class Heads(nn.Module):
    """Masked tokens and, in pretraining with pairs, whether the second sentence follows the first."""

    def __init__(self, config: Model, vocab_size: int, tied: nn.Parameter | None, pairs: bool) -> None:
        super().__init__()
        self.predictions = Predictions(config, vocab_size, tied)
        self.seq_relationship = Linear(config.hidden_size, 2, True) if pairs else None


class Bert(nn.Module):
    """The encoder under one of its heads.

    Its weights are zero until `initialize` draws them or a checkpoint is loaded.
    """

    heads: ClassVar[tuple[str, ...]] = ("lm", "pretraining", "classes", "span", "sentence")
    """Kinds of head that it may end in."""
    head_names: ClassVar[tuple[str, ...]] = ("cls.", "classifier.", "qa_outputs.", "bert.pooler.")
    """What the names of its heads' parameters begin with."""

    def __init__(self, config: Model, vocab_size: int, head: Head = LM, activation_checkpointing: bool = False) -> None:
        """`vocab_size` rows of word embedding; with `activation_checkpointing` a layer keeps only its input for the
        backward pass and is computed twice."""
        super().__init__()
        self.config, self.vocab_size, self.head = config, vocab_size, head
        self.loss_kernel = LOSS_KERNEL
        self.dropout = config.residual_dropout
        self.bert = Body(config, vocab_size, head.kind in POOLED, activation_checkpointing)
        words = cast(nn.Parameter, self.bert.embeddings.word_embeddings.weight)
        match head.kind:
            case "lm" | "pretraining":
                tied = words if config.tie_word_embeddings else None
                self.cls = Heads(config, vocab_size, tied, pairs=head.kind == "pretraining")
            case "classes":
                self.classifier = Linear(config.hidden_size, head.outputs, True)
            case "span":
                self.qa_outputs = Linear(config.hidden_size, 2, True)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        padding: Padding | None = None,
        token_types: Tensor | None = None,
        next_sentence: Tensor | None = None,
        next_weight: float = 0.0,
        labelled: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What the head makes of the sequences.

        Args:
            input_ids: (B, T) int64, T at most the model's context.
            labels: (B, T) int64, the token that stood in each place; -100 is left out.
            padding: of `input_ids`; None: every token is real.
            token_types: (B, T) int64, 0 in the first sentence, 1 in the second; None: all 0.
            next_sentence: (B,) int64, 0 where the second sentence follows the first, 1 where it doesn't; -100: neither.
            next_weight: what a nat of next-sentence loss weighs beside one of the tokens'.
            labelled: labels that aren't -100, if the host knows: spares a GPU all the others.
        Returns:
            lm, pretraining: with labels the sum of all losses, a scalar in fp32; else logits (B, T, vocabulary), in
            pretraining with those of the next sentence, (B, 2). classes: (B, outputs). span: (B, T, 2), start and end.
            sentence: hidden states (B, T, hidden).
        """
        x = self.bert(input_ids, padding, token_types)
        match self.head.kind:
            case "sentence":
                return x
            case "span":
                return self.qa_outputs(x)
            case "classes":
                return self.classifier(F.dropout(self._pooled(x), self.dropout, self.training))
        found = self.cls.predictions(x, labels, labelled)
        if self.cls.seq_relationship is None:
            return found
        if labels is None:
            return found, self.cls.seq_relationship(self._pooled(x))
        if next_sentence is None:
            return found
        follows = self.cls.seq_relationship(self._pooled(x)).float()
        return found + next_weight * F.cross_entropy(follows, next_sentence, ignore_index=IGNORED, reduction="sum")

    def _pooled(self, x: Tensor) -> Tensor:
        assert self.bert.pooler is not None
        return self.bert.pooler(x)

    def initial_std(self, name: str, shape: tuple[int, ...]) -> float:
        """Of every matrix: `initializer_range`, 0.02 in the paper's code, at any depth."""
        return self.config.initializer_range
