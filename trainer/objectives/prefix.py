"""Prefix language modelling: predict the rest of a row from its beginning, which is read in both directions
(Raffel et al. 2019, arXiv:1910.10683, section 3.2.1; UniLM, arXiv:1905.03197).

The cut is drawn, every one of them equally likely, from a hash of (seed, purpose, position).
Encoder-decoders: the encoder reads the beginning, the decoder predicts the rest. Both sides are as wide as the longest
of the micro-batch, with 16 rows nearly a row each, and half of them is padding. That is computed in attention only: an
update costs 1.6 times as much as one of spans, and would 1.9 times (T5, preset tiny, 512 tokens, one CPU thread).
Decoders: one row through one stack, under a mask; half of its tokens are labels. Rows follow one another without
overlap, and a row is one text: documents in it see one another, as in T5. A mask keeps the kernels from skipping
what it hides, and a GPU from flash attention: a step of the default model takes 1.03 times that of causal attention
with as many labels in a context of 256, 1.22 times in one of 1,024 (one CPU thread, fp32; on a GPU it wasn't measured).
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from data.order.permutation import keys
from data.reader import Rows
from trainer.models.head import LM, Head
from trainer.models.loss import IGNORED
from trainer.models.padding import rounded
from trainer.objectives.base import Batch
from trainer.objectives.causal import Causal
from trainer.objectives.encoder_decoder import EncoderDecoder, encoder_decoder_batch
from trainer.transfer import sent

CUT = 27  # what a key is for


def cuts(seed: int, rows: Rows) -> np.ndarray:
    """(rows,) int64: the first token that is asked, from 1 to the row's last; 0 where a row has no two tokens."""
    choices = np.maximum(rows.lengths - 1, 1).astype(np.uint64)
    return np.where(rows.lengths > 1, 1 + (keys(seed, CUT, rows.positions) % choices).astype(np.int64), 0)


@dataclass(frozen=True)
class Prefix(EncoderDecoder):
    """Of encoder-decoders."""

    seed: int
    pad: int
    start: int
    """What the decoder begins with."""
    piece_bytes: np.ndarray | None = field(default=None, compare=False)
    """UTF-8 bytes that each token stands for; None: no bits per byte."""
    smoothing: float = 0.0
    """Label smoothing, in training."""
    name: str = "prefix"
    head: Head = LM
    sums: tuple[str, ...] = ("loss", "labels", "correct", "bytes")
    token_labels: bool = True

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """Both parts of each row; a row of one token counts nothing."""
        cut = cuts(self.seed, rows)
        rest = np.where(rows.lengths > 1, rows.lengths, 0) - cut
        longest = rows.tokens.shape[1]
        widths = [rounded(int(part.max(initial=1)), longest, device) for part in (cut, rest)]
        inside, asked = (np.arange(width) < part[:, None] for width, part in zip(widths, (cut, rest), strict=True))
        inputs = np.where(inside, rows.tokens[:, : widths[0]], self.pad)
        at = np.minimum(cut[:, None] + np.arange(widths[1]), longest - 1)
        labels = np.where(asked, np.take_along_axis(rows.tokens, at, 1), IGNORED)
        return encoder_decoder_batch(inputs, labels, inside, self.start, self.pad, device)


@dataclass(frozen=True)
class PrefixDecoder(Causal):
    """Of decoders whose attention is `prefix`."""

    seed: int = 0
    name: str = "prefix"

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """Inputs are a row's tokens but the last, labels those from the cut on; a row of one token counts nothing."""
        cut, place = cuts(self.seed, rows), np.arange(1, rows.tokens.shape[1])
        asked = (place >= cut[:, None]) & (place < rows.lengths[:, None])
        return Batch(
            input_ids=sent(rows.tokens[:, :-1], device),
            labels=sent(np.where(asked, rows.tokens[:, 1:], IGNORED), device),
            documents=None,
            label_tokens=int(asked.sum()),
            rows=int((rows.lengths > 0).sum()),
            prefixes=sent(cut, device),
        )
