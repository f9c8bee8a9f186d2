"""Next-token prediction, for text and for examples.

Text: a row is context + 1 tokens and overlaps the next one by a token, so each token is a label once; also a
document's first token, predicted from the end of the one before, which teaches what documents begin with.
Packed text: a document's first token is no label, since what stands before it is any other document's end.
Examples: one a row or packed, and only the tokens marked at build time are labels. Rows are cut to the longest of the
micro-batch rounded up to 32 tokens, so that few widths occur: a batch of 60-token examples in a context of 256 costs
a quarter of padding to the context.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.reader import Rows
from trainer.models.layers import Documents
from trainer.models.loss import IGNORED
from trainer.objectives.base import Batch

WIDTH = 32  # examples are padded to a multiple of this many tokens


@dataclass(frozen=True)
class Causal:
    """Predict each token from those before it: of its own `document`, or of the `full` row."""

    attention: Literal["document", "full"] = "document"
    name: str = "causal"

    def row_length(self, context: int) -> int:
        """One token more than the model reads: the last is only a label."""
        return context + 1

    def batch(self, rows: Rows, device: torch.device) -> Batch:
        """Inputs are a row's tokens but the last, labels its tokens but the first; filler and padding count nothing."""
        width = rows.tokens.shape[1] - 1
        if rows.use is not None:
            longest = int(rows.lengths.max(initial=0)) - 1
            width = min(width, max(WIDTH, -(-longest // WIDTH) * WIDTH))
        asked = np.arange(1, width + 1) < rows.lengths[:, None]
        if rows.use is not None:
            asked &= (rows.use[:, 1 : width + 1] & 1).astype(bool)
        if rows.packed:  # neighbours are unrelated: nothing says what a document begins with
            for row, starts in zip(asked, rows.starts, strict=True):
                row[starts[(starts > 0) & (starts <= width)] - 1] = False
        labels = np.where(asked, rows.tokens[:, 1 : width + 1], IGNORED)
        documents = Documents.of(rows.starts, width, device) if self.attention == "document" else None
        return Batch(
            input_ids=_sent(rows.tokens[:, :width], device),
            labels=_sent(labels, device),
            documents=documents,
            label_tokens=int(asked.sum()),
            rows=int((rows.lengths > 0).sum()),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over the batch's labels."""
        return model(batch.input_ids, batch.labels, batch.documents)


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
