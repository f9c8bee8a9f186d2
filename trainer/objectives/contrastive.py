"""Sentence vectors by contrast: a text lies near what means the same, and far from the others of its group.

InfoNCE over cosines (SimCSE, Gao et al. 2021, arXiv:2104.08821, equations 1 and 4, without its projection of <|cls|>).
What is alike: a text read twice under different dropout, or the two texts of a pair. The negatives are the other rows
of a fixed group of consecutive positions, which never spans micro-batches: the loss is then a function of positions
alone, and the run the same at any number of ranks. Both readings are one forward, so that ZeRO 3 gathers weights once.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from data.reader import Rows
from data.shards import FIELDS
from trainer.exact import addable
from trainer.models.head import Head
from trainer.models.loss import IGNORED
from trainer.models.padding import Padding, rounded
from trainer.objectives.base import Batch
from trainer.objectives.classification import Texts, row_targets
from trainer.objectives.examples import Sequences, read
from trainer.transfer import sent

SECOND = FIELDS.index("text_b")
SENTENCE = Head("sentence")


@dataclass(frozen=True)
class Contrastive:
    """Each row's text is told from those of its group."""

    texts: Texts
    group: int
    """Rows that are each other's negatives; micro-batches are multiples of it."""
    temperature: float = 0.05
    pooling: Literal["mean", "cls"] = "mean"
    positive_class: int | None = None
    """Of pairs: the class of those that are alike. None: each text is its own positive, under other dropout."""
    cls_id: int = 0
    gather: bool = False
    """Negatives are what all ranks read at once."""
    name: str = "contrastive"
    head: Head = SENTENCE
    sums: tuple[str, ...] = ("loss", "labels", "correct", "guess", "cosine")
    token_labels: bool = False

    def partners(self, positions: np.ndarray) -> None:
        """A row is enough."""

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """Rows 0 to B - 1 are the texts, B to 2 B - 1 what they are to be told by.

        Labels (B,) are a row's place in its group; -100 where its pair isn't alike, and in filler.
        """
        count = len(rows.lengths)
        if count % self.group:
            raise ValueError(f"{count} rows are no multiple of the group of {self.group}")
        tokens, lengths = self._views(rows, device)
        real = np.arange(tokens.shape[1]) < lengths[:, None]
        rank = np.arange(count) % self.group
        alike = rows.lengths > 0
        if self.positive_class is not None:
            alike = alike & (row_targets(rows, IGNORED)[:, 0] == self.positive_class)
        allowed = (rows.lengths > 0).reshape(-1, self.group)
        allowed = allowed | ~allowed.any(1, keepdims=True)  # a group of filler: a softmax over nothing would be NaN
        return Batch(
            input_ids=sent(tokens, device),
            labels=sent(np.where(alike, rank, IGNORED), device),
            documents=None,
            label_tokens=int(alike.sum()),
            rows=int((rows.lengths > 0).sum()),
            padding=Padding.of(real, device),
            at=sent(np.maximum(lengths - 1, 0) if self.texts.decoder else np.zeros_like(lengths), device),
            allowed=sent(allowed.reshape(-1), device),
        )

    def _views(self, rows: Rows, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (2 B, T) and lengths (2 B,) of what is compared."""
        held = Sequences.of(rows, self.texts.context, device)
        if self.positive_class is None:
            return np.concatenate([held.tokens, held.tokens]), np.concatenate([rows.lengths, rows.lengths])
        second = (held.fields == SECOND) & held.real
        parts = [
            self._one(tokens[chosen])
            for mask in (held.real & ~second, second)
            for tokens, chosen in zip(held.tokens, mask, strict=True)
        ]
        lengths = np.array([len(part) for part in parts])
        width = rounded(int(lengths.max(initial=1)), self.texts.context, device)
        tokens = np.zeros((len(parts), width), np.int64)
        tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.concatenate(parts)
        return tokens, lengths

    def _one(self, tokens: np.ndarray) -> np.ndarray:
        """One text of a pair with a <|cls|> of its own: first for an encoder, last for a decoder."""
        if self.cls_id in tokens or not len(tokens):
            return tokens
        return np.append(tokens, self.cls_id) if self.texts.decoder else np.insert(tokens, 0, self.cls_id)

    def vectors(self, model: nn.Module, batch: Batch) -> Tensor:
        """(2 B, hidden) fp32, of length 1."""
        assert batch.padding is not None and batch.at is not None
        hidden = model(batch.input_ids) if self.texts.decoder else read(model, batch)
        if self.pooling == "cls":
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), batch.at].float()
        else:
            real = batch.padding.real[..., None]
            pooled = (hidden.float() * real).sum(1) / real.sum(1).clamp(min=1)
        return F.normalize(pooled, dim=-1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over the texts that have a positive."""
        vectors = self.vectors(model, batch)
        if self.gather and dist.is_initialized():
            return self._gathered(vectors, batch)
        return self._cross_entropy(self._cosines(vectors, batch), batch.labels)

    def _cosines(self, vectors: Tensor, batch: Batch) -> Tensor:
        """(B, group): of each text with the second readings of its group; -inf where these are filler."""
        assert batch.allowed is not None
        first, second = (part.unflatten(0, (-1, self.group)) for part in vectors.chunk(2))
        cosines = first @ second.transpose(1, 2)
        return cosines.masked_fill(~batch.allowed.view(-1, 1, self.group), -math.inf).flatten(0, 1)

    def _cross_entropy(self, cosines: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(cosines / self.temperature, labels, reduction="sum", ignore_index=IGNORED)

    def _gathered(self, vectors: Tensor, batch: Batch) -> Tensor:
        """The loss among all that the ranks read at once; each rank has its own rows' part."""
        assert batch.allowed is not None
        first, second = vectors.chunk(2)
        everything = _AllGather.apply(second)
        assert isinstance(everything, Tensor)
        filled = [torch.empty_like(batch.allowed) for _ in range(dist.get_world_size())]
        dist.all_gather(filled, batch.allowed)
        cosines = (first @ everything.T).masked_fill(~torch.cat(filled), -math.inf)
        own = torch.arange(len(first), device=first.device) + dist.get_rank() * len(first)
        return self._cross_entropy(cosines, torch.where(batch.labels == IGNORED, IGNORED, own))

    def measure(self, model: nn.Module, batch: Batch) -> list[float]:
        """Within groups, also where training gathers: a figure is then the same at any number of ranks."""
        assert batch.allowed is not None
        cosines = self._cosines(self.vectors(model, batch), batch)
        asked = batch.labels != IGNORED
        labels, mine = batch.labels[asked], cosines[asked]
        own = mine.gather(1, labels[:, None])[:, 0]
        choices = batch.allowed.view(-1, self.group).sum(1).repeat_interleave(self.group)[asked]
        return [
            addable(self._cross_entropy(cosines, batch.labels)).item(),
            batch.label_tokens,
            float((mine.argmax(1) == labels).sum()),
            addable(choices.double().log().sum()).item(),
            addable(own.double().sum()).item(),
        ]

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """loss (nats a text), accuracy (its own is the nearest of its group), cosine (with its own), examples."""
        texts = sums["labels"]
        means = {name: sums[of] / texts if texts else math.nan for name, of in _MEANS.items()}
        return means | {"examples": texts}


_MEANS = {"loss": "loss", "accuracy": "correct", "cosine": "cosine"}


class _AllGather(torch.autograd.Function):
    """The ranks' rows, one rank after the other; a row's gradient is the sum of what every rank's loss says of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        gradient = grad_outputs[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
