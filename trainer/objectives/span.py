"""Span corruption (T5: Raffel et al. 2019, arXiv:1910.10683, section 3.1.4): cut spans out, predict them.

    text      Thank you for inviting me to your party last week <eos>
    input     Thank you <0> me to your party <1> week <eos>
    target    <0> for inviting <1> last <eos>

The arithmetic is that of T5's `random_spans_noise_mask`: a row of a given length always has the same number of cut
tokens and spans, so all rows have one input and one target length, without padding; only where the spans lie is drawn,
all divisions being equally likely. A row begins with what is kept and ends in a span. As there, documents follow one
another in a row, the ends between them are tokens like others, and each sentinel is used in the order of the spans.

Whatever is drawn is a hash of (seed, purpose, position, place), in a few array operations a batch: 0.7 ms
for 16 rows of 568 tokens.
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
from trainer.objectives.rows import span_counts

NOISE, KEPT = 25, 26  # what a key is for


@dataclass(frozen=True)
class Span(EncoderDecoder):
    """Predict the spans that were cut out of a row, each after its sentinel."""

    seed: int
    sentinels: np.ndarray = field(compare=False)
    """Ids, the first span's first (int64)."""
    eos: int
    pad: int
    start: int
    """What the decoder begins with."""
    density: float = 0.15
    mean_span: float = 3.0
    piece_bytes: np.ndarray | None = field(default=None, compare=False)
    """UTF-8 bytes that each token stands for; None: no bits per byte."""
    smoothing: float = 0.0
    """Label smoothing, in training."""
    name: str = "span"
    head: Head = LM
    sums: tuple[str, ...] = ("loss", "labels", "correct", "bytes")
    token_labels: bool = True

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """What is left for the encoder, what was cut out for the decoder; a row of one token counts nothing."""
        count, width = rows.tokens.shape
        noise, spans = span_counts(width, self.density, self.mean_span)
        inputs = np.full((count, width - noise + spans + 1), self.pad, np.int64)
        labels = np.full((count, noise + spans + 1), IGNORED, np.int64)
        real = np.zeros(inputs.shape, bool)
        for length in np.unique(rows.lengths[rows.lengths > 1]).tolist():
            here = np.flatnonzero(rows.lengths == length)
            left, cut = self.corrupted(rows.tokens[here, :length], rows.positions[here])
            inputs[here, : left.shape[1]], labels[here, : cut.shape[1]] = left, cut
            real[here, : left.shape[1]] = True
        return encoder_decoder_batch(inputs, labels, real, self.start, self.pad, device)

    def corrupted(self, tokens: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of rows of one length, ends included.

        Args:
            tokens: (rows, length) int64, length at least 2.
            positions: (rows,) int64.
        """
        noise = self.noise(tokens.shape[1], positions)
        end = np.full((len(tokens), 1), self.eos)
        return (np.hstack([self._sentinels_for(tokens, held), end]) for held in (noise, ~noise))  # type: ignore[return-value]

    def noise(self, length: int, positions: np.ndarray) -> np.ndarray:
        """Which tokens are cut out: (rows, length) bool."""
        noise, spans = span_counts(length, self.density, self.mean_span)
        kept = _divided(length - noise, keys(self.seed, KEPT, positions[:, None], np.arange(length - noise - 1)), spans)
        cut = _divided(noise, keys(self.seed, NOISE, positions[:, None], np.arange(noise - 1)), spans)
        edges = np.stack([kept, cut], 2).reshape(len(positions), -1).cumsum(1)[:, :-1]  # kept, cut, kept, cut ...
        begins = np.zeros((len(positions), length), np.int64)
        np.put_along_axis(begins, edges, 1, 1)
        return begins.cumsum(1) % 2 == 1

    def _sentinels_for(self, tokens: np.ndarray, gone: np.ndarray) -> np.ndarray:
        """`tokens` with a sentinel for each run of `gone`."""
        first = gone & ~np.pad(gone, ((0, 0), (1, 0)))[:, :-1]
        marked = np.where(first, self.sentinels[np.maximum(first.cumsum(1) - 1, 0)], tokens)
        return marked[~gone | first].reshape(len(tokens), -1)


def _divided(items: int, drawn: np.ndarray, segments: int) -> np.ndarray:
    """`items` divided into `segments` lengths of at least 1, all divisions equally likely: (rows, segments) int64.

    T5's `_random_segmentation`.

    Args:
        drawn: (rows, items - 1) random numbers; a segment begins at the lowest of them.
    """
    borders = np.sort(np.argsort(drawn, axis=1, kind="stable")[:, : segments - 1], axis=1) + 1
    return np.diff(borders, axis=1, prepend=0, append=items)
