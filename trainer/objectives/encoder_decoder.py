"""What the objectives of encoder-decoders share: a source, a target shifted right, and the loss of the target."""

import numpy as np
import torch
from torch import Tensor, nn

from trainer.models.loss import IGNORED
from trainer.models.padding import Padding
from trainer.objectives.base import Batch
from trainer.objectives.causal import token_figures, token_sums
from trainer.transfer import sent


class EncoderDecoder:
    """All of an objective but its batch."""

    smoothing: float = 0.0
    """Label smoothing, in training."""
    piece_bytes: np.ndarray | None = None
    """UTF-8 bytes that each token stands for; None: no bits per byte."""

    def partners(self, positions: np.ndarray) -> None:
        """A row is enough."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over the batch's labels."""
        return self._read(model, batch, batch.labels)

    def measure(self, model: nn.Module, batch: Batch) -> list[float]:
        """Loss without label smoothing, labels, how many are the likeliest token, and their bytes."""
        return token_sums(self._read(model, batch, None), batch, self.piece_bytes)

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """loss (nats a label), perplexity, bits_per_byte, accuracy, tokens; sentinels and ends count as labels."""
        return token_figures(sums)

    def _read(self, model: nn.Module, batch: Batch, labels: Tensor | None) -> Tensor:
        ids = batch.input_ids, batch.decoder_input_ids
        return model(*ids, labels, batch.padding, smoothing=self.smoothing, decoder_padding=batch.decoder_padding)


def encoder_decoder_batch(
    inputs: np.ndarray, labels: np.ndarray, real: np.ndarray, start: int, pad: int, device: torch.device
) -> Batch:
    """The encoder reads `inputs`; the decoder reads `start` and the labels before each label.

    Args:
        inputs: (B, S) int64.
        labels: (B, U) int64; -100 where nothing is asked, at a row's end.
        real: (B, S) bool: which inputs are not padding.
    """
    shifted = np.pad(labels, ((0, 0), (1, 0)), constant_values=start)[:, :-1]
    asked = labels != IGNORED
    whole = real.any(1)
    return Batch(
        input_ids=sent(inputs, device),
        labels=sent(labels, device),
        documents=None,
        label_tokens=int(asked.sum()),
        rows=int(whole.sum()),
        padding=None if real[whole].all() else Padding.of(real, device),
        decoder_input_ids=sent(np.where(shifted == IGNORED, pad, shifted), device),
        decoder_padding=Padding.of(asked, device),
    )
