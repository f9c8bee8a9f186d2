"""Text augmentation for fine-tuning: tokens left out, tokens that change places (random deletion and swap of EDA,
Wei and Zou 2019, arXiv:1901.11196, over tokens instead of words).

Around an objective, for training rows only. What a row becomes is a function of (seed, position), so a resumed run, or
one on other ranks, reads the same; a row comes again at another position in the next epoch, and changes otherwise.
Control pieces stay where they are, and so does every token that the loss looks at.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from data.order.permutation import key
from data.reader import Rows
from trainer.objectives.base import Batch, Objective

AUGMENT = 23  # what a key is for


@dataclass(frozen=True)
class Augmented:
    """What a feed needs of an objective, over augmented rows."""

    objective: Objective
    seed: int
    drop: float
    """Probability that a token is left out."""
    swap: float
    """Probability that a token is among those of its text that change places."""
    is_control: np.ndarray = field(compare=False)
    """(vocabulary,) bool: control pieces."""

    def partners(self, positions: np.ndarray) -> np.ndarray | None:
        """As the objective's."""
        return self.objective.partners(positions)

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """As the objective's, of augmented rows."""
        return self.objective.batch(self.augmented(rows), device, partners)

    def augmented(self, rows: Rows) -> Rows:
        """The rows of a dataset of examples, changed; they may be shorter."""
        assert rows.use is not None
        tokens, use, lengths = rows.tokens.copy(), rows.use.copy(), rows.lengths.copy()
        for row, (position, length) in enumerate(zip(rows.positions.tolist(), rows.lengths.tolist(), strict=True)):
            if position < 0:
                continue
            draw = np.random.Generator(np.random.Philox(key(self.seed, AUGMENT, position)))
            changed = self._changed(rows.tokens[row, :length], rows.use[row, :length], draw)
            lengths[row] = len(changed[0])
            for held, new in zip((tokens, use), changed, strict=True):
                held[row, : len(new)], held[row, len(new) :] = new, 0
        return replace(rows, tokens=tokens, use=use, lengths=lengths)

    def _changed(self, tokens: np.ndarray, use: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One row's tokens and their use."""
        free = ((use & 1) == 0) & ~self.is_control[tokens]
        swapped, dropped = draw.random((2, len(tokens)))
        moving = free & (swapped < self.swap)
        kept = ~(free & (dropped < self.drop))
        tokens = tokens.copy()
        for text in np.unique(use[free]):  # one or two texts
            inside = np.flatnonzero(free & (use == text))
            places = inside[moving[inside]]
            tokens[places] = tokens[draw.permutation(places)]
            if not kept[inside].any():
                kept[draw.choice(inside)] = True
        return tokens[kept], use[kept]
