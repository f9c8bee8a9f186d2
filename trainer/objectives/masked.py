"""Masked tokens, with or without next-sentence prediction (BERT: Devlin et al. 2018, arXiv:1810.04805, section 3.1).

A row is `<|cls|> text <|sep|>`; rows share no token. Of its text exactly `mask_rate` is predicted, as in the paper's
code: 80 % of that behind `<|mask|>`, 10 % as another token, 10 % as it is. Control pieces, such as the end of a
document, are never predicted. A row may hold several documents and sees all of them, as RoBERTa's FULL-SENTENCES
(arXiv:1907.11692, section 4.2), which cost it nothing measurable against one document a row.

Next sentence: `<|cls|> A <|sep|> B <|sep|>`, cut somewhere in the middle half of the row. Neighbouring rows of a lane
form pairs; half of the pairs trade their B. So a negative comes from the same window and update, and every token is
still read once in an epoch, where drawing B elsewhere would read some twice and others never. The loss is

    (sum of token losses + next_sentence_weight * n * sum of rows' losses) / labels,    n: labels of a full row

which for full rows is BERT's: the mean over tokens plus the weighted mean over rows. n is a constant, so the sum is
exact over any ranks and micro-batches.

Whatever is drawn is a hash of (seed, purpose, position, place in the row), in a few array operations a batch:
0.6 ms for 16 rows of 512 tokens on one core, 1.1 ms with whole words.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from data.order.permutation import WORD, keys
from data.reader import Rows
from trainer.exact import addable
from trainer.models.head import LM, Head
from trainer.models.loss import IGNORED
from trainer.models.padding import Padding
from trainer.objectives.base import Batch
from trainer.objectives.causal import token_figures, token_sums
from trainer.objectives.rows import masks
from trainer.transfer import sent

CHOOSE, REPLACE, TRADE, CUT = 21, 22, 23, 24  # what a key is for


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of a tokenizer."""

    mask: int
    cls: int
    sep: int
    pad: int
    control: np.ndarray
    """Whether each id is a control piece (bool)."""
    ordinary: np.ndarray
    """Ids that may stand in for another (int64)."""
    word_starts: np.ndarray | None = None
    """Whether a word begins with each id (bool); None: every token for itself."""


@dataclass(frozen=True)
class Masked:
    """Predict hidden tokens from both sides; with `pairs` also whether the second part of a row follows the first."""

    seed: int
    vocabulary: Vocabulary = field(compare=False)
    rate: float = 0.15
    pairs: bool = False
    pair_weight: float = 0.0
    """What a row's next-sentence loss weighs beside one token's."""
    lanes: int = 1
    piece_bytes: np.ndarray | None = field(default=None, compare=False)
    """UTF-8 bytes that each token stands for; None: no bits per byte."""
    name: str = "masked"
    token_labels: bool = True

    @property
    def head(self) -> Head:
        """BERT's two pretraining heads, or the first of them."""
        return Head("pretraining") if self.pairs else LM

    @property
    def sums(self) -> tuple[str, ...]:
        """Loss, labels, tokens right, their bytes; with pairs also their own loss, how many are right, how many."""
        return ("loss", "labels", "correct", "bytes", *(("next_loss", "next_correct", "pairs") if self.pairs else ()))

    def partners(self, positions: np.ndarray) -> np.ndarray | None:
        """The other row of each row's pair, the next or the one before in its lane; -1 for filler."""
        if not self.pairs:
            return None
        row, lane = np.divmod(positions, self.lanes)
        return np.where(positions < 0, -1, (row ^ 1) * self.lanes + lane)

    def batch(self, rows: Rows, device: torch.device, partners: Rows | None = None) -> Batch:
        """Rows as the model sees them; a label is the token that stood in a place before."""
        if self.pairs:
            assert partners is not None
            laid = self._pairs(rows, partners)
        else:
            laid = self._rows(rows)
        chosen = self._chosen(rows, laid)
        drawn = keys(self.seed, REPLACE, rows.positions[:, None], np.arange(laid.ids.shape[1]))
        kind, other = drawn % np.uint64(10), drawn // np.uint64(10) % np.uint64(len(self.vocabulary.ordinary))
        hidden = np.where(kind < 8, self.vocabulary.mask, self.vocabulary.ordinary[other.astype(np.int64)])
        real = rows.lengths > 0
        return Batch(
            input_ids=sent(np.where(chosen & (kind < 9), hidden, laid.ids), device),
            labels=sent(np.where(chosen, laid.ids, IGNORED), device),
            documents=None,
            label_tokens=int(chosen.sum()),
            rows=int(real.sum()),
            padding=None if laid.real[real].all() else Padding.of(laid.real, device),
            token_types=None if laid.types is None else sent(laid.types, device),
            targets=None if laid.follows is None else sent(laid.follows[:, None], device),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over tokens, plus `pair_weight` times that over rows."""
        told = {"padding": batch.padding, "token_types": batch.token_types, "labelled": batch.label_tokens}
        if batch.targets is not None:
            told |= {"next_sentence": batch.targets[:, 0], "next_weight": self.pair_weight}
        return model(batch.input_ids, batch.labels, **told)

    def measure(self, model: nn.Module, batch: Batch) -> list[float]:
        """In the order of `sums`."""
        found = model(batch.input_ids, padding=batch.padding, token_types=batch.token_types)
        if batch.targets is None:
            return token_sums(found, batch, self.piece_bytes)
        tokens, follows = found
        loss, *others = token_sums(tokens, batch, self.piece_bytes)
        targets, follows = batch.targets[:, 0], follows.float()
        counted = targets != IGNORED
        next_loss = addable(nn.functional.cross_entropy(follows, targets, ignore_index=IGNORED, reduction="sum")).item()
        right = ((follows.argmax(-1) == targets) & counted).sum().item()
        return [loss + self.pair_weight * next_loss, *others, next_loss, right, counted.sum().item()]

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """loss; perplexity, bits_per_byte and accuracy of the masked tokens; tokens. With pairs also masked_loss,
        next_sentence_loss (nats a row) and next_sentence_accuracy."""
        if not self.pairs:
            return token_figures(sums)
        masked = token_figures(sums | {"loss": sums["loss"] - self.pair_weight * sums["next_loss"]})
        pairs = sums["pairs"]
        return masked | {
            "loss": sums["loss"] / sums["labels"] if sums["labels"] else math.nan,
            "masked_loss": masked["loss"],
            "next_sentence_loss": sums["next_loss"] / pairs if pairs else math.nan,
            "next_sentence_accuracy": sums["next_correct"] / pairs if pairs else math.nan,
        }

    def _rows(self, rows: Rows) -> "_Laid":
        """`<|cls|> text <|sep|>`."""
        count, width = rows.tokens.shape
        ids = np.full((count, width + 2), self.vocabulary.pad, np.int64)
        lengths, place = rows.lengths[:, None], np.arange(width + 2)
        text = (place > 0) & (place <= lengths)
        ids[text] = rows.tokens[text[:, 1:-1]]
        real = (lengths > 0) & (place <= lengths + 1)
        ids[real & (place == 0)] = self.vocabulary.cls
        ids[real & (place == lengths + 1)] = self.vocabulary.sep
        return _Laid(ids, text, real)

    def _pairs(self, rows: Rows, partners: Rows) -> "_Laid":
        """`<|cls|> A <|sep|> B <|sep|>`; B is the partner's in half of the pairs, if the two are of one length."""
        width = rows.tokens.shape[1]
        pair = np.minimum(rows.positions, partners.positions)
        traded = (keys(self.seed, TRADE, pair) & np.uint64(1)).astype(bool)
        traded &= (rows.lengths == partners.lengths) & (rows.positions >= 0)
        lengths, place = rows.lengths[:, None], np.arange(width + 3)
        quarter = rows.lengths // 4
        middle = np.maximum(rows.lengths - 2 * quarter, 1).astype(np.uint64)
        cut = (quarter + (keys(self.seed, CUT, pair) % middle).astype(np.int64))[:, None]
        cut = np.clip(cut, 1, np.maximum(lengths - 1, 1))
        second = place > cut + 1
        at = place - 1 - second
        real = (lengths > 0) & (place <= lengths + 2)
        text = real & (place > 0) & (place != cut + 1) & (place <= lengths + 1)
        at = np.broadcast_to(np.clip(at, 0, width - 1), text.shape)
        others = np.take_along_axis(partners.tokens[:, :width], at, 1)
        source = np.where(second & traded[:, None], others, np.take_along_axis(rows.tokens, at, 1))
        ids = np.where(text, source, np.where(real, self.vocabulary.sep, self.vocabulary.pad))
        ids[rows.lengths > 0, 0] = self.vocabulary.cls
        follows = np.where(rows.lengths > 0, traded.astype(np.int64), IGNORED)
        return _Laid(ids, text, real, (second & real).astype(np.int64), follows)

    def _chosen(self, rows: Rows, laid: "_Laid") -> np.ndarray:
        """Which places are predicted: (rows, width) bool."""
        able = laid.text & ~self.vocabulary.control[laid.ids]
        wanted = [min(masks(length, self.rate), held) for length, held in zip(rows.lengths, able.sum(1), strict=True)]
        drawn = keys(self.seed, CHOOSE, rows.positions[:, None], np.arange(able.shape[1])) >> np.uint64(1)
        if self.vocabulary.word_starts is None:
            order = np.argsort(np.where(able, drawn, WORD), axis=1, kind="stable")
            chosen = np.zeros(able.shape, bool)
            np.put_along_axis(chosen, order, np.arange(able.shape[1]) < np.array(wanted)[:, None], 1)
            return chosen
        begins = self.vocabulary.word_starts[laid.ids]
        begins[:, 0] = True
        begins[:, 1:] |= ~able[:, :-1]
        if rows.packed:
            for row, starts in zip(begins, rows.starts, strict=True):
                row[starts + 1] = True
        begins |= ~able
        return np.stack([_words(*row) for row in zip(begins, able, drawn, wanted, strict=True)])


@dataclass(frozen=True)
class _Laid:
    """Rows in their places; (rows, width) each."""

    ids: np.ndarray
    text: np.ndarray
    """Whether a place holds a token of the text."""
    real: np.ndarray
    """Whether it holds anything."""
    types: np.ndarray | None = None
    follows: np.ndarray | None = None
    """(rows,): 0, the second part follows the first; 1, it is another row's; -100, filler."""


def _words(begins: np.ndarray, able: np.ndarray, drawn: np.ndarray, wanted: int) -> np.ndarray:
    """One row's places: words in drawn order, each of them unless it is longer than what is left of `wanted`.

    That is the loop of BERT's create_pretraining_data.py, in as many steps as words have different lengths.
    """
    word = np.cumsum(begins) - 1
    sizes = np.bincount(word, able).astype(np.int64)
    waiting = np.argsort(drawn[np.flatnonzero(begins)], kind="stable")
    waiting = waiting[sizes[waiting] > 0]
    taken = np.zeros(len(sizes), bool)
    while wanted:
        waiting = waiting[sizes[waiting] <= wanted]
        fits = int(np.searchsorted(np.cumsum(sizes[waiting]), wanted, "right"))
        if not fits:
            break
        taken[waiting[:fits]] = True
        wanted -= int(sizes[waiting[:fits]].sum())
        waiting = waiting[fits:]
    return taken[word] & able
