"""Prompt tuning (Lester, Al-Rfou and Constant 2021, arXiv:2104.08691): learned vectors before each input, nothing else.

The virtual tokens have ids of their own, those after the vocabulary, and the embedding looks them up in a table of its
own. So a prompted input is nothing but a longer row of ids: models, caches and beams need not know, and the
positions are those that `peft` gives. An input is one example a row; rows of several documents are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import UserError
from data.reader import Rows
from trainer.adapters.shapes import PROMPT
from trainer.models.head import Head
from trainer.models.initialize import generator
from trainer.models.layers import Embedding
from trainer.models.loss import IGNORED
from trainer.objectives.base import Batch, Objective
from trainer.recipe_adapter import Adapter

KINDS = ("causal", "seq2seq", "classification", "regression")
"""Objectives that say what they ask of an example without counting its tokens' places."""


class Prompted(nn.Module):
    """What the input embedding becomes, together with its own class."""

    prompt: nn.Embedding
    num_embeddings: int

    def forward(self, ids: Tensor) -> Tensor:
        """`ids` (..., T), those of virtual tokens from `num_embeddings` on, to (..., T, hidden)."""
        place = ids - self.num_embeddings
        words = super().forward(torch.where(place < 0, ids, 0))
        return torch.where((place < 0)[..., None], words, self.prompt(place.clamp(min=0)))


def add(model: Any, adapter: Adapter) -> None:
    """Give the input embedding of `model` a table of `adapter.tokens` rows, zero until `draw` or a load; in place."""
    layer = embedding(model)[1]
    kind = type(layer)
    layer.__class__ = type(f"Prompted{kind.__name__}", (Prompted, kind), {})
    layer.prompt = Embedding(adapter.tokens, layer.embedding_dim)
    model.prefix = list(range(model.vocab_size, model.vocab_size + adapter.tokens))


def embedding(model: Any) -> tuple[str, Any]:
    """The table of the model's tokens, and its name."""
    return next(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == model.vocab_size
    )


def draw(model: Any, seed: int) -> None:
    """Begin as the embeddings of tokens drawn from the vocabulary ("sampled vocab", section 3.2), by (seed, name)."""
    name, layer = embedding(model)
    drawn = torch.randint(
        model.vocab_size, (layer.prompt.num_embeddings,), generator=generator(f"{name}.{PROMPT}", seed)
    )
    with torch.no_grad():
        layer.prompt.weight.copy_(layer.weight[drawn])


def prefixed(batch: Batch, prefix: Sequence[int]) -> Batch:
    """`batch` with the ids `prefix` before each input, of which nothing is asked.

    Raises:
        UserError: a row holds several documents.
    """
    if batch.documents is not None:
        raise UserError(
            "adapter.kind prompt puts its tokens before each input, and these rows hold several documents: take "
            "examples, a row each (data.packing=chop), or model.attention=full"
        )
    rows, count = len(batch.input_ids), len(prefix)
    virtual = torch.tensor(prefix, device=batch.input_ids.device).expand(rows, count)
    longer: dict[str, Any] = {"input_ids": torch.cat([virtual, batch.input_ids], 1)}
    if batch.decoder_input_ids is None and batch.labels.shape == batch.input_ids.shape:
        longer["labels"] = F.pad(batch.labels, (count, 0), value=IGNORED)
    if batch.padding is not None:
        longer["padding"] = batch.padding.longer(count)
    if batch.token_types is not None:
        longer["token_types"] = F.pad(batch.token_types, (count, 0))
    if batch.at is not None:
        longer["at"] = batch.at + count
    if batch.prefixes is not None:
        longer["prefixes"] = batch.prefixes + count
    return replace(batch, **longer)


@dataclass(frozen=True)
class PromptedObjective:
    """An objective whose inputs begin with the virtual tokens."""

    inner: Objective
    prefix: tuple[int, ...]

    @property
    def name(self) -> str:
        """The inner one's."""
        return self.inner.name

    @property
    def head(self) -> Head:
        """The inner one's."""
        return self.inner.head

    @property
    def sums(self) -> tuple[str, ...]:
        """The inner one's."""
        return self.inner.sums

    @property
    def token_labels(self) -> bool:
        """The inner one's."""
        return self.inner.token_labels

    def partners(self, positions: np.ndarray) -> np.ndarray | None:
        """The inner one's."""
        return self.inner.partners(positions)

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """The inner one's, `prefixed`."""
        return prefixed(self.inner.batch(rows, device, partners), self.prefix)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The inner one's."""
        return self.inner.loss(model, batch)

    def measure(self, model: nn.Module, batch: Batch) -> list[float]:
        """The inner one's."""
        return self.inner.measure(model, batch)

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """The inner one's."""
        return self.inner.figures(sums)
