"""Prefix language modelling for encoder-decoders (Raffel et al. 2019, arXiv:1910.10683, section 3.2.1).

The encoder reads the beginning of a row, the decoder predicts the rest. The cut is drawn, every one of them equally
likely, from a hash of (seed, purpose, position). Both sides are padded to the longest of the micro-batch, rounded up
to 32 tokens: with 16 rows that is nearly a row each, so an update costs almost twice as much as one of spans.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from data.order.permutation import keys
from data.reader import Rows
from trainer.models.head import LM, Head
from trainer.models.loss import IGNORED
from trainer.objectives.base import Batch
from trainer.objectives.encoder_decoder import EncoderDecoder, encoder_decoder_batch
from trainer.objectives.examples import rounded

CUT = 27  # what a key is for


@dataclass(frozen=True)
class Prefix(EncoderDecoder):
    """Predict the rest of a row from its beginning."""

    seed: int
    pad: int
    start: int
    """What the decoder begins with."""
    piece_bytes: np.ndarray | None = field(default=None, compare=False)
    """UTF-8 bytes that each token stands for; None: no bits per byte."""
    name: str = "prefix"
    head: Head = LM
    sums: tuple[str, ...] = ("loss", "labels", "correct", "bytes")
    token_labels: bool = True

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """Both parts of each row; a row of one token counts nothing."""
        choices = np.maximum(rows.lengths - 1, 1).astype(np.uint64)
        cut = 1 + (keys(self.seed, CUT, rows.positions) % choices).astype(np.int64)
        cut = np.where(rows.lengths > 1, cut, 0)
        rest = np.where(rows.lengths > 1, rows.lengths, 0) - cut
        longest = rows.tokens.shape[1]
        widths = [rounded(int(part.max(initial=1)), longest) for part in (cut, rest)]
        inside, asked = (np.arange(width) < part[:, None] for width, part in zip(widths, (cut, rest), strict=True))
        inputs = np.where(inside, rows.tokens[:, : widths[0]], self.pad)
        at = np.minimum(cut[:, None] + np.arange(widths[1]), longest - 1)
        labels = np.where(asked, np.take_along_axis(rows.tokens, at, 1), IGNORED)
        return encoder_decoder_batch(inputs, labels, inside, self.start, self.pad, device)
