"""A target for a source, by an encoder-decoder: translation, summarisation (arXiv:1706.03762, section 3 and 5.4).

A row is source <|eos|> target <|eos|>; the encoder reads the first part, the decoder the second, shifted right behind
the token that it begins with. Both are as wide as the longest of the micro-batch, on a GPU rounded up to 8 tokens;
padding is computed in attention only.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from data.reader import Rows
from data.shards import FIELDS
from trainer.models.head import LM, Head
from trainer.models.loss import IGNORED
from trainer.models.padding import rounded
from trainer.objectives.base import Batch
from trainer.objectives.encoder_decoder import EncoderDecoder, encoder_decoder_batch

SOURCE = FIELDS.index("source")


@dataclass(frozen=True)
class Seq2Seq(EncoderDecoder):
    """Predict a target's tokens from its source and from those before."""

    context: int
    """Tokens of the longest source, and of the longest target."""
    start_id: int
    """What the decoder reads first."""
    pad_id: int
    piece_bytes: np.ndarray | None = field(default=None, compare=False)
    """UTF-8 bytes that each token stands for; None: no bits per byte."""
    smoothing: float = 0.0
    name: str = "seq2seq"
    head: Head = LM
    sums: tuple[str, ...] = ("loss", "labels", "correct", "bytes")
    token_labels: bool = True

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """Labels are the target's tokens, its end included."""
        assert rows.use is not None
        width = rows.tokens.shape[1]
        inside = np.arange(width) < rows.lengths[:, None]
        sources = ((rows.use >> 1 == SOURCE) & inside).sum(1)
        targets = rows.lengths - sources
        source = rounded(int(sources.max(initial=0)), self.context, device)
        target = rounded(int(targets.max(initial=0)), self.context, device)
        read = np.arange(source) < sources[:, None]
        asked = np.arange(target) < targets[:, None]
        places = np.minimum(sources[:, None] + np.arange(target), width - 1)
        labels = np.where(asked, np.take_along_axis(rows.tokens, places, 1), IGNORED)
        inputs = np.where(read, _wide(rows.tokens, source), self.pad_id)
        return encoder_decoder_batch(inputs, labels, read, self.start_id, self.pad_id, device)


def _wide(tokens: np.ndarray, width: int) -> np.ndarray:
    return np.pad(tokens, ((0, 0), (0, max(0, width - tokens.shape[1]))))[:, :width]
