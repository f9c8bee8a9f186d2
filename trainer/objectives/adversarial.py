"""Adversarial text generation, EXPERIMENTAL: a decoder learns to write what a discriminator takes for real text.

Rows are those of causal text, each read once. Of each the generator is given the first `prompt` tokens and continues
them `samples` times; the discriminator tells these from the row itself, and what it finds is the generator's reward
(`trainer/models/adversarial.py`). The loss is a sum of three means: the discriminator's over rows, the policy's over
samples, and `mle_weight` times the cross entropy of real text, without which a generator tends to write one thing only
(mode collapse; LeakGAN, Guo et al. 2018, arXiv:1709.08624, interleaves the two for that reason).

Each token of each sample is drawn by a hash of (seed, row's position, sample, place), so that a run is the same at any
number of ranks and after any resume. One thing more than elsewhere hangs on rounding: where a number falls within a
rounding of the edge between two tokens, another micro-batch may draw the other one. On a CPU, 64 rows at once against
16, none of 3,072 texts of 24 tokens changed in fp32, and none of 1,024 in bf16; under `exact: any` micro-batches stay
what they are, and so do the tokens.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.order.permutation import keys
from data.reader import Rows
from trainer.exact import addable
from trainer.models.adversarial import discrimination
from trainer.models.head import Head
from trainer.models.loss import IGNORED
from trainer.objectives.base import Batch
from trainer.objectives.causal import Causal, token_figures, token_sums
from trainer.recipe import Model
from trainer.transfer import sent

WRITE = 28  # what a key is for


@dataclass(frozen=True)
class Adversarial:
    """Write rows that aren't told from real ones."""

    seed: int
    discriminator: Model
    row_labels: int
    """Of a full row."""
    prompt: int = 8
    """Tokens of a row that its samples begin with."""
    count: int = 24
    """Tokens that each sample adds."""
    samples: int = 4
    """Of each row."""
    mle_weight: float = 1.0
    piece_bytes: np.ndarray | None = field(default=None, compare=False)
    """UTF-8 bytes that each token stands for; None: no bits per byte."""
    name: str = "adversarial"
    sums: tuple[str, ...] = ("loss", "labels", "correct", "bytes", "judged_loss", "real_right", "sampled_right", "rows")
    token_labels: bool = True

    @property
    def head(self) -> Head:
        """A discriminator beside the generator."""
        return Head("adversarial", discriminator=self.discriminator)

    def partners(self, positions: np.ndarray) -> None:
        """A row is enough."""

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """As of causal text that sees all of its row, and what the rows' samples are drawn by."""
        shape = (len(rows.positions), self.samples, self.count)
        places = np.arange(self.samples * self.count)
        drawn = keys(self.seed, WRITE, rows.positions[:, None], places) >> np.uint64(11)
        uniform = (drawn * 2.0**-53).reshape(shape)
        return replace(Causal("full").batch(rows, device), uniform=sent(uniform, device))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the three parts, to be divided by the labels."""
        return model(batch.input_ids, batch.labels, batch.uniform, self.prompt, self.row_labels, self.mle_weight)

    def measure(self, model: nn.Module, batch: Batch) -> list[float]:
        """Of the generator on real text: loss, labels, likeliest tokens, bytes. Of the discriminator: its loss, real
        rows it took for real, samples it didn't (a row's share of them), rows."""
        assert batch.uniform is not None
        nets: Any = model
        of_text = token_sums(nets.generator(batch.input_ids), batch, self.piece_bytes)
        _, real, written = nets.judged(batch.input_ids, batch.uniform, self.prompt)
        rows = (batch.labels != IGNORED).any(1)
        real, written = real[rows], written[rows]
        judged = addable(discrimination(real, written).sum()).item()
        right = [(real > 0).sum().item(), (written <= 0).double().mean(1).sum().item()]
        return [*of_text, judged, *right, batch.rows]

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """Of the generator on real text: loss (nats a token, without the parts that discrimination adds), perplexity,
        bits_per_byte, accuracy, tokens. Of the discriminator: discriminator_loss (nats a text; ln 2: it guesses),
        discriminator_accuracy, and discriminator_advantage, 2 * accuracy - 1: 0 where it can't tell."""
        rows = sums["rows"]
        accuracy = (sums["real_right"] + sums["sampled_right"]) / (2 * rows) if rows else math.nan
        return token_figures(sums) | {
            "discriminator_loss": sums["judged_loss"] / rows if rows else math.nan,
            "discriminator_accuracy": accuracy,
            "discriminator_advantage": 2 * accuracy - 1,
        }
