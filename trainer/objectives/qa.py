"""Extractive question answering: where in its context an answer begins and ends (BERT, section 4.2 and 4.3).

The loss of a window is the mean of two cross entropies, each over the places where an answer may stand: the context's
tokens, and <|cls|>, which is "no answer in this window". Question and padding are no choice.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.reader import Rows
from trainer.exact import addable
from trainer.models.head import Head
from trainer.models.loss import IGNORED
from trainer.models.padding import Padding
from trainer.objectives.base import Batch
from trainer.objectives.classification import row_targets
from trainer.objectives.examples import Sequences, read
from trainer.transfer import sent

SPAN = Head("span")


@dataclass(frozen=True)
class QuestionAnswering:
    """First and last token of the answer to each window's question."""

    context: int
    """Tokens of the longest window."""
    types: bool = True
    """Whether the model tells the context from the question."""
    name: str = "qa"
    head: Head = SPAN
    sums: tuple[str, ...] = ("loss", "labels", "exact", "guess")
    token_labels: bool = False

    def partners(self, positions: np.ndarray) -> None:
        """A row is enough."""

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """Labels (B, 2) are first and last token."""
        held = Sequences.of(rows, self.context, device)
        allowed = held.marked.copy()
        allowed[rows.lengths == 0, 0] = True  # of filler: a softmax over nothing would spoil every gradient
        real = int((rows.lengths > 0).sum())
        return Batch(
            input_ids=sent(held.tokens, device),
            labels=sent(row_targets(rows, IGNORED).astype(np.int64), device),
            documents=None,
            label_tokens=real,
            rows=real,
            padding=Padding.of(held.real, device),
            token_types=sent(held.types, device) if self.types else None,
            allowed=sent(allowed, device),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over the windows."""
        return self._loss(self.scores(model, batch), batch)

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, T, 2) fp32 logits of an answer's first and last token; -inf where none may stand."""
        assert batch.allowed is not None
        return read(model, batch).float().masked_fill(~batch.allowed[..., None], -math.inf)

    def _loss(self, scores: Tensor, batch: Batch) -> Tensor:
        losses = [
            F.cross_entropy(scores[..., end], batch.labels[:, end], reduction="sum", ignore_index=IGNORED)
            for end in (0, 1)
        ]
        return (losses[0] + losses[1]) / 2

    def measure(self, model: nn.Module, batch: Batch) -> list[float]:
        """Windows whose likeliest first and last token are both right; and what guessing among all places costs."""
        assert batch.allowed is not None
        scores = self.scores(model, batch)
        real = batch.labels[:, 0] != IGNORED
        exact = ((scores.argmax(1) == batch.labels).all(1) & real).sum().item()
        guess = addable(batch.allowed.sum(1)[real].double().log().sum()).item()
        return [addable(self._loss(scores, batch)).item(), batch.label_tokens, exact, guess]

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """loss (nats a window), accuracy (both ends right), windows. Answers, over all windows of a question, are for
        `trainer/qa_scores.py`."""
        windows = sums["labels"]
        return {
            "loss": sums["loss"] / windows if windows else math.nan,
            "accuracy": sums["exact"] / windows if windows else math.nan,
            "windows": windows,
        }
