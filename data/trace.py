"""Which documents lie in which rows: from positions back to the ids that the corpus gave.

The order says where a row's tokens lie, the document table beside each shard says whose tokens those are; a table is
read only for a shard that one of the rows lies in.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.dataset import Dataset
from data.errors import UserError
from data.order import Order


@dataclass(frozen=True)
class Traced:
    """One document, and the rows that hold tokens of it."""

    id: str
    source: str
    shard: str
    """File name."""
    start: int
    """First token, counted from the shard's."""
    tokens: int
    """Of the whole document."""
    positions: tuple[int, ...]
    """Of those asked for, ascending."""


def documents_at(dataset: Dataset, split: str, order: Order, positions: np.ndarray) -> Iterator[Traced]:
    """The documents of which the rows at `positions` (int64, each >= 0) hold a token, in the order of the shards.

    Raises:
        UserError: a document table is missing or can't be read.
    """
    index = dataset.index(split)
    places = order.places(positions)
    for shard in np.unique(places.shard).tolist():
        entry = index.shards[shard]
        table = _table(dataset, entry.url)
        starts = np.array(table["start"], np.int64)
        mine = np.flatnonzero(places.shard == shard)
        first = places.start[mine]
        if order.layout.stride:
            ends = np.minimum(first + order.layout.stride + 1, entry.tokens)
            low, high = np.searchsorted(starts, first, side="right") - 1, np.searchsorted(starts, ends)
        else:  # a row is a document, and its place is the document's number
            low, high = first, first + 1
        holders: dict[int, list[int]] = {}
        for position, begin, end in zip(positions[mine].tolist(), low.tolist(), high.tolist(), strict=True):
            for document in range(begin, end):
                holders.setdefault(document, []).append(position)
        for document in sorted(holders):
            yield Traced(
                table["id"][document], table["source"][document], entry.url, int(starts[document]),
                table["tokens"][document], tuple(sorted(holders[document])),
            )  # fmt: skip


def _table(dataset: Dataset, url: str) -> dict[str, list]:
    from pyarrow import parquet

    path = dataset.folder / f"{url.removesuffix('.tar')}.docs.parquet"
    try:
        return parquet.read_table(path, columns=["id", "source", "start", "tokens"]).to_pydict()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the document table {path}: {error}") from None
