"""Next-token prediction, for text and for examples.

Text: a row is context + 1 tokens and overlaps the next one by a token, so each token is a label once; also a
document's first token, predicted from the end of the one before, which teaches what documents begin with.
Packed text: a document's first token is no label, since what stands before it is any other document's end.
Examples: one a row or packed, and only the tokens marked at build time are labels. Rows are cut to the longest of the
micro-batch, on a GPU rounded up to 8 tokens, so that few widths occur: a batch of 60-token examples in a context of 256
costs a quarter of padding to the context.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.reader import Rows
from trainer.exact import addable
from trainer.meters import perplexity
from trainer.models.head import LM, Head
from trainer.models.layers import Documents
from trainer.models.loss import IGNORED
from trainer.models.padding import rounded
from trainer.objectives.base import Batch
from trainer.transfer import sent


@dataclass(frozen=True)
class Causal:
    """Predict each token from those before it: of its own `document`, or of the `full` row; `prefix`: those of an
    example's prompt see one another."""

    attention: Literal["document", "full", "prefix"] = "document"
    piece_bytes: np.ndarray | None = field(default=None, compare=False)
    """UTF-8 bytes that each token stands for; None: no bits per byte."""
    smoothing: float = 0.0
    """Label smoothing, in training."""
    name: str = "causal"
    head: Head = LM
    sums: tuple[str, ...] = ("loss", "labels", "correct", "bytes")
    token_labels: bool = True

    def partners(self, positions: np.ndarray) -> None:
        """A row is enough."""

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """Inputs are a row's tokens but the last, labels its tokens but the first; filler and padding count nothing."""
        width = rows.tokens.shape[1] - 1
        if rows.use is not None:
            width = rounded(int(rows.lengths.max(initial=0)) - 1, width, device)
        asked = np.arange(1, width + 1) < rows.lengths[:, None]
        if rows.use is not None:
            asked &= (rows.use[:, 1 : width + 1] & 1).astype(bool)
        if rows.packed:  # neighbours are unrelated: nothing says what a document begins with
            for row, starts in zip(asked, rows.starts, strict=True):
                row[starts[(starts > 0) & (starts <= width)] - 1] = False
        labels = np.where(asked, rows.tokens[:, 1 : width + 1], IGNORED)
        documents = Documents.of(rows.starts, width, device) if self.attention == "document" else None
        prompts = asked.argmax(1) + 1  # up to the token that the first label follows
        return Batch(
            input_ids=sent(rows.tokens[:, :width], device),
            labels=sent(labels, device),
            documents=documents,
            label_tokens=int(asked.sum()),
            rows=int((rows.lengths > 0).sum()),
            prefixes=sent(prompts, device) if self.attention == "prefix" else None,
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over the batch's labels."""
        return model(batch.input_ids, batch.labels, batch.documents, smoothing=self.smoothing, prefixes=batch.prefixes)

    def measure(self, model: nn.Module, batch: Batch) -> list[float]:
        """Loss, labels, how many are the likeliest token, and their bytes."""
        logits = model(batch.input_ids, None, batch.documents, prefixes=batch.prefixes)
        return token_sums(logits, batch, self.piece_bytes)

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """loss (nats a label), perplexity, bits_per_byte, accuracy, tokens."""
        return token_figures(sums)


def token_sums(logits: Tensor, batch: Batch, piece_bytes: np.ndarray | None) -> list[float]:
    """loss, labels, correct and bytes of a batch whose labels are tokens, from `logits` (B, T, vocabulary)."""
    logits, targets = logits.float().flatten(0, 1), batch.labels.flatten()
    counted = targets != IGNORED
    loss = addable(nn.functional.cross_entropy(logits, targets, reduction="sum")).item() if batch.label_tokens else 0.0
    correct = ((logits.argmax(-1) == targets) & counted).sum().item()
    text_bytes = 0.0 if piece_bytes is None else float(piece_bytes[targets[counted].cpu().numpy()].sum())
    return [loss, batch.label_tokens, correct, text_bytes]


def token_figures(sums: dict[str, float]) -> dict[str, float]:
    """loss (nats a label token), perplexity, bits_per_byte, accuracy, tokens; NaN where nothing is counted."""
    labels, text_bytes = sums["labels"], sums["bytes"]
    mean = sums["loss"] / labels if labels else math.nan
    return {
        "loss": mean,
        "perplexity": perplexity(mean),
        "bits_per_byte": sums["loss"] / math.log(2) / text_bytes if text_bytes else math.nan,
        "accuracy": sums["correct"] / labels if labels else math.nan,
        "tokens": labels,
    }
