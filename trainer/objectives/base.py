"""What a model is asked to predict: rows of tokens in, a batch and its loss out.

An objective is a small value without state. Whatever it draws at random would be keyed by a row's position, so that
a row makes the same batch whenever and wherever it is read.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from data.reader import Rows
from trainer.models.layers import Documents


@dataclass(frozen=True)
class Batch:
    """One micro-batch on its device."""

    input_ids: Tensor
    """(B, T) int64."""
    labels: Tensor
    """(B, T) int64: what follows each input token; -100 where nothing is asked."""
    documents: Documents | None
    """Where documents begin; None: each row is one."""
    label_tokens: int
    """Labels that count, known to the host."""
    rows: int
    """Rows that are not filler."""


class Objective(Protocol):
    """How rows become a loss."""

    @property
    def name(self) -> str:
        """As the recipe calls it."""
        ...

    def row_length(self, context: int) -> int:
        """Tokens of a row for a model of `context` tokens."""
        ...

    def batch(self, rows: Rows, device: torch.device) -> Batch:
        """The batch of `rows`, on `device`; on a GPU the copy doesn't block."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the token losses, an fp32 scalar; `model` may be wrapped by an engine."""
        ...
