"""A class, or a number, for a text or a pair of texts (BERT, arXiv:1810.04805, section 4.1; GPT, section 3.2).

The head reads <|cls|>: an encoder's first token, a decoder's last. The loss is a sum over examples; validation adds up
per class how many were right, said and held, which is all that accuracy, precision, recall and F1 need, so that these
are exact over ranks.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.reader import Rows
from trainer.exact import addable
from trainer.models.head import Head
from trainer.models.loss import IGNORED
from trainer.models.padding import Padding
from trainer.objectives.base import Batch
from trainer.objectives.examples import Sequences, read
from trainer.transfer import sent

COUNTED = ("right", "said", "held")
NUMBER = Head("classes", 1)


@dataclass(frozen=True)
class Texts:
    """How a family reads an example as one sequence."""

    decoder: bool
    context: int
    """Tokens of the longest sequence."""
    types: bool = True
    """Whether the model tells the second text from the first."""

    def batch(self, rows: Rows, labels: np.ndarray, device: torch.device, targets: np.ndarray | None = None) -> Batch:
        """The rows with their `labels` (rows,) int64."""
        held = Sequences.of(rows, self.context, device)
        return Batch(
            input_ids=sent(held.tokens, device),
            labels=sent(labels, device),
            documents=None,
            label_tokens=int((labels != IGNORED).sum()),
            rows=int((rows.lengths > 0).sum()),
            padding=None if self.decoder else Padding.of(held.real, device),
            token_types=sent(held.types, device) if self.types and not self.decoder else None,
            targets=None if targets is None else sent(targets, device),
            at=sent(held.marked.argmax(1), device) if self.decoder else None,
        )


def row_targets(rows: Rows, filler: float) -> np.ndarray:
    """(rows, columns): each row's targets, and `filler` in those that are filler."""
    assert rows.targets is not None
    targets = np.full((len(rows.lengths), rows.targets.shape[1]), filler, rows.targets.dtype)
    targets[rows.lengths > 0] = rows.targets
    return targets


@dataclass(frozen=True)
class Classification:
    """One of `classes` for each example."""

    classes: tuple[str, ...]
    texts: Texts
    smoothing: float = 0.0
    name: str = "classification"
    token_labels: bool = False

    @property
    def head(self) -> Head:
        """A logit a class."""
        return Head("classes", len(self.classes))

    @property
    def sums(self) -> tuple[str, ...]:
        """Loss and labels; then of each class: right answers, answers, examples."""
        counted = (f"{what} {number}" for what in COUNTED for number in range(len(self.classes)))
        return ("loss", "labels", *counted)

    def partners(self, positions: np.ndarray) -> None:
        """A row is enough."""

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """Labels are class ids."""
        return self.texts.batch(rows, row_targets(rows, IGNORED)[:, 0].astype(np.int64), device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the examples' cross entropies."""
        return _cross_entropy(read(model, batch), batch.labels, self.smoothing)

    def measure(self, model: nn.Module, batch: Batch) -> list[float]:
        """Without label smoothing."""
        logits = read(model, batch)
        loss = addable(_cross_entropy(logits, batch.labels)).item()
        real = batch.labels != IGNORED
        labels, said = batch.labels[real].cpu(), logits[real].argmax(-1).cpu()
        counts = [torch.bincount(each, minlength=len(self.classes)) for each in (labels[labels == said], said, labels)]
        return [loss, batch.label_tokens, *torch.cat(counts).double().tolist()]

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """loss (nats an example), accuracy, macro_f1, of two classes the second's f1, examples.

        macro_f1 is the mean over the classes that occur among labels or answers (scikit-learn's default).
        """
        examples = sums["labels"]
        right, said, held = (_per_class(sums, what) for what in COUNTED)
        f1 = _f1(right, said, held)
        found = {
            "loss": sums["loss"] / examples if examples else math.nan,
            "accuracy": float(right.sum()) / examples if examples else math.nan,
            "macro_f1": float(f1[said + held > 0].mean()) if examples else math.nan,
        }
        if len(self.classes) == 2:
            found["f1"] = float(f1[1])
        return found | {"examples": examples}

    def table(self, sums: dict[str, float]) -> list[tuple[str, float, float, float, int]]:
        """(class, precision, recall, F1, examples) of each class; NaN where it isn't defined."""
        right, said, held = (_per_class(sums, what) for what in COUNTED)
        with np.errstate(invalid="ignore"):
            precision, recall = right / said, right / held
        f1 = _f1(right, said, held)
        return [
            (name, float(precision[number]), float(recall[number]), float(f1[number]), int(held[number]))
            for number, name in enumerate(self.classes)
        ]

    def constant(self, sums: dict[str, float], number: int, shares: np.ndarray) -> dict[str, float]:
        """The figures of a model that always says class `number`, with probabilities `shares` (classes,)."""
        held = _per_class(sums, "held")
        said = np.zeros_like(held)
        said[number] = sums["labels"]
        counts = {f"said {c}": float(count) for c, count in enumerate(said)}
        counts |= {f"right {c}": float(min(count, held[c])) for c, count in enumerate(said)}
        present = held > 0
        loss = -float((held[present] * np.log(shares[present])).sum())
        return self.figures(sums | counts | {"loss": loss})


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(
        logits.float(), labels, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing
    )  # fmt: skip


def _per_class(sums: dict[str, float], what: str) -> np.ndarray:
    return np.array([count for name, count in sums.items() if name.startswith(f"{what} ")])


def _f1(right: np.ndarray, said: np.ndarray, held: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN); 0 where a class neither occurs nor is said."""
    return 2 * right / np.maximum(said + held, 1)


@dataclass(frozen=True)
class Regression:
    """A number for each example, by squared error (BERT on STS-B)."""

    texts: Texts
    name: str = "regression"
    head: Head = NUMBER
    sums: tuple[str, ...] = ("loss", "labels", "y", "yy", "p", "pp", "yp")
    token_labels: bool = False

    def partners(self, positions: np.ndarray) -> None:
        """A row is enough."""

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """Targets are the numbers; labels are 0 where there is one."""
        labels = np.where(rows.lengths > 0, 0, IGNORED)
        return self.texts.batch(rows, labels, device, row_targets(rows, 0.0)[:, 0].astype(np.float32))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the examples' squared errors."""
        assert batch.targets is not None
        errors = read(model, batch)[:, 0].float() - batch.targets
        return (errors.square() * (batch.labels != IGNORED)).sum()

    def measure(self, model: nn.Module, batch: Batch) -> list[float]:
        """Squared errors, and the moments that a correlation needs: y the number, p its prediction."""
        assert batch.targets is not None
        real = batch.labels != IGNORED
        y, p = (each[real].double() for each in (batch.targets, read(model, batch)[:, 0]))
        moments = (y, y * y, p, p * p, y * p)
        return [float((y - p).square().sum()), batch.label_tokens, *(float(each.sum()) for each in moments)]

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """loss (mean squared error), pearson (NaN where one side doesn't vary), examples."""
        n = sums["labels"]
        if not n:
            return {"loss": math.nan, "pearson": math.nan, "examples": 0.0}
        y, p = sums["y"] / n, sums["p"] / n
        spread = (sums["yy"] / n - y * y) * (sums["pp"] / n - p * p)
        pearson = (sums["yp"] / n - y * p) / math.sqrt(spread) if spread > 1e-18 else math.nan
        return {"loss": sums["loss"] / n, "pearson": pearson, "examples": n}

    def constant(self, sums: dict[str, float]) -> dict[str, float]:
        """The figures of the best constant: the mean of these very numbers."""
        n = sums["labels"]
        spread = sums["yy"] - sums["y"] ** 2 / n if n else math.nan
        return self.figures(sums | {"loss": spread, "p": sums["y"], "pp": sums["y"] ** 2 / max(n, 1), "yp": 0.0})
