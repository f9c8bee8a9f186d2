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
from trainer.exact import addable
from trainer.meters import perplexity
from trainer.models.loss import IGNORED
from trainer.objectives.base import Objective
from trainer.sizes import EVALUATION_LOGITS
from trainer.world import World


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
        """loss (nats a label token), perplexity, bits_per_byte, accuracy, tokens. Collective; rows divided by rank."""
        piece_bytes = torch.from_numpy(self.tokenizer.piece_bytes)
        loss = correct = labels = text_bytes = 0.0
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for positions in deal(0, self.rows, self.micro_batch, world.rank, world.size):
                watchdog.enter("evaluation")
                batch = self.objective.batch(self.reader.rows(positions), world.device)
                logits = model(batch.input_ids, None, batch.documents).float().flatten(0, 1)
                targets = batch.labels.flatten()
                counted = targets != IGNORED
                if batch.label_tokens:
                    loss += addable(nn.functional.cross_entropy(logits, targets, reduction="sum")).item()
                correct += ((logits.argmax(-1) == targets) & counted).sum().item()
                labels += batch.label_tokens
                text_bytes += piece_bytes[targets[counted].cpu()].sum().item()
        model.train(was_training)
        return _figures(*world.total_floats([loss, correct, labels, text_bytes]))


def mixed(figures: Mapping[str, dict[str, float]], weights: Mapping[str, float]) -> dict[str, float]:
    """The figures of one set, or of a stage's sources together: their means by weight, and all their tokens.

    Args:
        figures: by source.
        weights: of the stage's sources; those without a set count nothing, and where none has one all count alike.
    """
    if len(figures) == 1:
        return next(iter(figures.values()))
    shares = {name: weights.get(name, 0.0) for name in figures}
    shares = shares if any(shares.values()) else dict.fromkeys(figures, 1.0)
    total = sum(shares.values())
    held = {
        name: sum(share * figures[source][name] for source, share in shares.items() if share) / total
        for name in ("loss", "bits_per_byte", "accuracy")
    }
    tokens = sum(each["tokens"] for each in figures.values())
    return {"loss": held["loss"], "perplexity": perplexity(held["loss"])} | held | {"tokens": tokens}


def forward_rows(micro_batch: int, context: int, vocab_size: int) -> int:
    """Rows of one evaluation forward, so that its logits stay within bounds."""
    return max(1, min(micro_batch, EVALUATION_LOGITS // (context * vocab_size)))


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
    loss = correct = labels = text_bytes = 0.0
    for positions in deal(0, fixed.rows, fixed.micro_batch, 0, 1):
        targets = fixed.objective.batch(fixed.reader.rows(positions), torch.device("cpu")).labels.numpy()
        targets = targets[targets != IGNORED]
        loss += float(surprise[targets].sum())
        correct += float((targets == best).sum())
        labels += len(targets)
        text_bytes += float(fixed.tokenizer.piece_bytes[targets].sum())
    return _figures(loss, correct, labels, text_bytes)


def _figures(loss: float, correct: float, labels: float, text_bytes: float) -> dict[str, float]:
    mean = loss / labels if labels else math.nan
    return {
        "loss": mean,
        "perplexity": perplexity(mean),
        "bits_per_byte": loss / math.log(2) / text_bytes if text_bytes else math.nan,
        "accuracy": correct / labels if labels else math.nan,
        "tokens": labels,
    }
