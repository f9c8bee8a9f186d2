"""Positions -> rows -> batches, one update after the other, made ready by one thread while the device computes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from data.order.deal import deal
from data.order.permutation import WORD
from data.reader import LocalReader, Prefetch, Rows
from trainer.guard import Avoid
from trainer.objectives.base import Batch, BatchMaker
from trainer.recipe import Recipe
from trainer.shape import Shape


@dataclass(frozen=True)
class Step:
    """One rank's part of one update."""

    start: int
    stop: int
    """The update's positions are [start, stop), over all ranks."""
    batches: list[Batch]
    first: list[int]
    """Position of the first row of each batch: with the seed it decides every random draw of that forward."""
    label_tokens: int
    """Of this rank."""
    digest: int
    """Sum over this rank's rows of a 64-bit hash of each row's position and tokens, modulo 2**64."""
    passed_over: str | None = None
    """Why none of its rows was read."""


class Feed:
    """The updates of an attempt, in order, from a position on. Iterate it; `close` it."""

    def __init__(self, reader: LocalReader, objective: BatchMaker, recipe: Recipe, shape: Shape, rank: int, ranks: int,
                 device: torch.device, consumed: int, avoid: Sequence[Avoid] = (), groups: int = 1):  # fmt: skip
        self._reader, self._objective, self._device = reader, objective, device
        self._shape, self._rank, self._ranks = shape, rank, ranks
        self._lanes, self._groups = recipe.data.lanes, groups
        self._spans = spans(consumed, recipe.train.batch_rows, avoid)
        self._prefetch = Prefetch(self._produce, 2**62, recipe.data.prefetch)

    def __next__(self) -> Step:
        return next(self._prefetch)

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.cancel()
        self._prefetch.close()
        self._reader.close()

    def _produce(self, number: int) -> Step:
        start, stop, passed_over = next(self._spans)
        if passed_over:
            return Step(start, stop, [], [], 0, 0, passed_over)
        mine = deal(start, stop, self._shape.micro_batch, self._rank, self._ranks, self._lanes, self._groups)
        read = [read_batch(self._reader, self._objective, positions, self._device) for positions in mine]
        batches = [batch for _, batch in read]
        digest = sum(row_digest(rows) for rows, _ in read) & WORD
        first = [int(positions[0]) for positions in mine]
        return Step(start, stop, batches, first, sum(batch.label_tokens for batch in batches), digest)


def read_batch(
    reader: LocalReader, objective: BatchMaker, positions: np.ndarray, device: torch.device
) -> tuple[Rows, Batch]:
    """The rows at `positions`, and what `objective` makes of them on `device`."""
    rows = reader.rows(positions)
    others = objective.partners(positions)
    return rows, objective.batch(rows, device, None if others is None else reader.rows(others))


def spans(consumed: int, rows: int, avoid: Sequence[Avoid]) -> Iterator[tuple[int, int, str | None]]:
    """The updates from `consumed` on, for ever: (first position, one past the last, why they are passed over).

    Args:
        rows: of one update.
        avoid: intervals of whole updates; they may overlap.
    """
    while True:
        inside = next((each for each in avoid if each["positions"][0] <= consumed < each["positions"][1]), None)
        stop = inside["positions"][1] if inside else consumed + rows
        yield consumed, stop, inside["reason"] if inside else None
        consumed = stop


def row_digest(rows: Rows) -> int:
    """The sum over rows of xxh3 of the row's tokens, seeded by its position, modulo 2**64; fillers count nothing.

    A sum, so that it doesn't depend on which rank read which row.
    """
    total = 0
    for tokens, length, position in zip(rows.tokens.astype(np.uint32), rows.lengths, rows.positions, strict=True):
        if position >= 0:
            total += xxhash.xxh3_64_intdigest(tokens[:length].tobytes(), seed=int(position))
    return total & WORD
