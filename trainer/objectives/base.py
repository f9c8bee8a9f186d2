"""What a model is asked to predict: rows of tokens in, a batch and its loss out.

An objective is a small value without state. Whatever it draws at random is keyed by the seed and a row's position, so
that a row makes the same batch whenever and wherever it is read.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from data.reader import Rows
from trainer.models.head import Head
from trainer.models.layers import Documents
from trainer.models.padding import Padding


@dataclass(frozen=True)
class Batch:
    """One micro-batch on its device."""

    input_ids: Tensor
    """(B, T) int64."""
    labels: Tensor
    """(B, T or U) int64: what is asked at each token; of whole rows (B,), a class, or (B, 2), first and last token of
    an answer. -100 where nothing is asked."""
    documents: Documents | None
    """Where documents begin; None: each row is one."""
    label_tokens: int
    """What the loss is a sum over, known to the host: labels of tokens, or examples."""
    rows: int
    """Rows that are not filler."""
    padding: Padding | None = None
    """Which of `input_ids` are real; None: the model needs not know."""
    token_types: Tensor | None = None
    """(B, T) int64: which text of its example a token belongs to."""
    decoder_input_ids: Tensor | None = None
    """(B, U) int64: what an encoder-decoder's decoder reads."""
    decoder_padding: Padding | None = None
    """Which of `decoder_input_ids` are real; None: the model needs not know."""
    targets: Tensor | None = None
    """(B,) fp32: the number that a row is to predict."""
    prefixes: Tensor | None = None
    """(B,) int64: how many tokens at a row's beginning see one another in a decoder; None: each sees those before."""
    at: Tensor | None = None
    """(B,) int64: the place that a decoder's head reads."""
    allowed: Tensor | None = None
    """(B, T) bool: where an answer may begin or end; contrastive: (B,), the rows that a text may be taken for."""
    uniform: Tensor | None = None
    """(B, k, N) fp64 in [0, 1): adversarial, what the N tokens of each row's k samples are drawn by."""


class BatchMaker(Protocol):
    """How rows become a batch."""

    def partners(self, positions: np.ndarray) -> np.ndarray | None:
        """Positions (rows,) of other rows that these rows' batch needs, one each; None: it needs none."""
        ...

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """The batch of `rows`, on `device`; on a GPU the copy doesn't block."""
        ...


class Objective(BatchMaker, Protocol):
    """How rows become a loss."""

    @property
    def name(self) -> str:
        """As the recipe calls it."""
        ...

    @property
    def head(self) -> Head:
        """What the model must end in."""
        ...

    @property
    def sums(self) -> tuple[str, ...]:
        """What `measure` adds up; begins with "loss" and "labels"."""
        ...

    @property
    def token_labels(self) -> bool:
        """Whether `Batch.labels` are tokens, so that token frequencies are a yardstick."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over the batch's labels, an fp32 scalar; `model` may be wrapped by an engine."""
        ...

    def measure(self, model: nn.Module, batch: Batch) -> list[float]:
        """What an evaluation adds up over batches, in the order of `sums`; without gradients."""
        ...

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """An evaluation's figures from its sums; "loss" is the mean that training minimises."""
        ...
