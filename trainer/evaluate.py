"""Validation: the same rows every time, the same number of forwards on every rank, no effect on anything else.

Bits per byte divides the loss by the UTF-8 bytes that the label tokens stand for, counted piece by piece, so it is
exact for completions too and compares models with different tokenizers. The yardstick beside it is the unigram model:
the training split's token frequencies, with one added to each count.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from data.dataset import Dataset
from data.order.deal import deal
from data.reader import LocalReader
from data.tokenizer.tokenizer import Tokenizer
from trainer import watchdog
from trainer.feed import read_batch
from trainer.meters import perplexity
from trainer.models.loss import IGNORED
from trainer.objectives.base import Batch, Objective
from trainer.objectives.causal import token_figures
from trainer.sizes import EVALUATION_LOGITS
from trainer.world import World

COUNTS = ("tokens", "examples", "windows")
"""Figures that add up over sources."""


@dataclass(frozen=True)
class FixedSet:
    """Rows that are always the same ones."""

    reader: LocalReader
    rows: int
    objective: Objective
    tokenizer: Tokenizer
    micro_batch: int
    """Rows of one forward."""

    def measure(self, model: nn.Module, world: World) -> dict[str, float]:
        """The objective's figures, "loss" among them. Collective; rows divided by rank."""
        return self.objective.figures(self.sums(model, world))

    def sums(self, model: nn.Module, world: World) -> dict[str, float]:
        """What the objective's figures are made of, over all rows. Collective."""
        totals = [0.0] * len(self.objective.sums)
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for positions in deal(0, self.rows, self.micro_batch, world.rank, world.size):
                watchdog.enter("evaluation")
                measured = self.objective.measure(model, self.batch(positions, world.device))
                totals = [total + part for total, part in zip(totals, measured, strict=True)]
        model.train(was_training)
        return dict(zip(self.objective.sums, world.total_floats(totals), strict=True))

    def batch(self, positions: np.ndarray, device: torch.device) -> Batch:
        """The rows at `positions` of the set, as the model takes them."""
        return read_batch(self.reader, self.objective, positions, device)[1]


def mixed(figures: Mapping[str, dict[str, float]], weights: Mapping[str, float]) -> dict[str, float]:
    """The figures of one set, or of a stage's sources together: their means by weight, and the sums of counts.

    Args:
        figures: by source.
        weights: of the stage's sources; those without a set count nothing, and where none has one all count alike.
    """
    if len(figures) == 1:
        return next(iter(figures.values()))
    shares = {name: weights.get(name, 0.0) for name in figures}
    shares = shares if any(shares.values()) else dict.fromkeys(figures, 1.0)
    total = sum(shares.values())
    held = {}
    for name in next(iter(figures.values())):
        if name in COUNTS:
            held[name] = sum(each[name] for each in figures.values())
        elif name == "perplexity":
            logs = (share * math.log(figures[source][name]) for source, share in shares.items() if share)
            held[name] = perplexity(sum(logs) / total)
        else:
            held[name] = sum(share * figures[source][name] for source, share in shares.items() if share) / total
    return held


def forward_rows(micro_batch: int, context: int, vocab_size: int, together: int = 1) -> int:
    """Rows of one evaluation forward, so that its logits stay within bounds; a multiple of `together`."""
    rows = max(1, min(micro_batch, EVALUATION_LOGITS // (context * vocab_size)))
    return max(together, rows // together * together)


def unigram_baseline(datasets: Sequence[Dataset], fixed: FixedSet) -> dict[str, float]:
    """What a model that knows only the training splits' token frequencies reaches on the fixed set."""
    counts = np.ones(fixed.tokenizer.padded_vocab_size)
    for dataset in datasets:
        train = dataset.index("train")
        for number, shard in enumerate(train.shards):
            held = dataset.shard(train, number).tokens(0, shard.tokens)
            counts += np.bincount(held, minlength=len(counts))
    surprise = -np.log(counts / counts.sum())
    best = int(counts.argmax())
    sums = {"loss": 0.0, "labels": 0.0, "correct": 0.0, "bytes": 0.0}
    for positions in deal(0, fixed.rows, fixed.micro_batch, 0, 1):
        targets = fixed.batch(positions, torch.device("cpu")).labels.numpy()
        targets = targets[targets != IGNORED]
        sums["loss"] += float(surprise[targets].sum())
        sums["correct"] += float((targets == best).sum())
        sums["labels"] += len(targets)
        sums["bytes"] += float(fixed.tokenizer.piece_bytes[targets].sum())
    return token_figures(sums)
