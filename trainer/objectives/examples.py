"""Examples as sequences: as wide as the longest of the micro-batch, on a GPU rounded up to a multiple of 8."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from data.reader import Rows
from data.shards import FIELDS
from trainer.models.padding import rounded
from trainer.objectives.base import Batch

SECOND = (FIELDS.index("text_b"), FIELDS.index("context"))
"""Fields of token type 1; what is before them, and the padding, has type 0."""


@dataclass(frozen=True)
class Sequences:
    """One a row; (rows, width) each."""

    tokens: np.ndarray
    """int64; zeros after a row's end."""
    real: np.ndarray
    """bool: True at tokens, False at padding."""
    fields: np.ndarray
    """uint8: where in FIELDS the text is that a token belongs to."""
    marked: np.ndarray
    """bool: what the loss looks at."""

    @classmethod
    def of(cls, rows: Rows, most: int, device: torch.device) -> Self:
        """The rows of a dataset of examples, each in a sequence of at most `most` tokens, as `device` likes them."""
        assert rows.use is not None
        width = rounded(int(rows.lengths.max(initial=0)), most, device)
        tokens, use = (_wide(each, width) for each in (rows.tokens, rows.use))
        real = np.arange(width) < rows.lengths[:, None]
        return cls(tokens, real, use >> 1, (use & 1).astype(bool) & real)

    @property
    def types(self) -> np.ndarray:
        """Token types, int64."""
        return (np.isin(self.fields, SECOND) & self.real).astype(np.int64)


def _wide(array: np.ndarray, width: int) -> np.ndarray:
    missing = width - array.shape[1]
    return np.pad(array, ((0, 0), (0, missing))) if missing > 0 else array[:, :width]


def read(model: nn.Module | Any, batch: Batch) -> Tensor:
    """What the head of an encoder, or of a decoder at `batch.at`, makes of sequences."""
    if batch.padding is None:
        return model(batch.input_ids, at=batch.at)
    return model(batch.input_ids, padding=batch.padding, token_types=batch.token_types)
