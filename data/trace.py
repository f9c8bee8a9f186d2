"""Which documents lie in which rows, and which rows hold a document: provenance, both ways.

The order says where a row's tokens lie, the document table beside each shard says whose tokens those are; a table is
read only for a shard that one of the rows lies in. Back, the order's inverse says at which positions a document's rows
are read: 1.5 ms an epoch over 10,000 shards. Finding a document by its id reads the id columns of the split's tables,
7 M ids a second and core; documents are shuffled, so no index would help.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.dataset import Dataset
from data.errors import UserError
from data.order.order import Order
from data.order.packing import Plan, load_packing, ranges
from data.order.walk import Walk


@dataclass(frozen=True)
class Traced:
    """One document, and the rows that hold tokens of it."""

    id: str
    source: str
    dataset: str
    """Folder name."""
    shard: str
    """File name."""
    start: int
    """First token, counted from the shard's."""
    tokens: int
    """Of the whole document."""
    positions: tuple[int, ...]
    """Of those asked for, ascending."""


@dataclass(frozen=True)
class Found:
    """Where a document lies."""

    id: str
    source: str
    dataset: int
    """Number of its dataset among those asked."""
    shard: int
    number: int
    """Of the document in the shard."""
    start: int
    tokens: int


@dataclass(frozen=True)
class Sightings:
    """Rows of one epoch that hold tokens of a document."""

    epoch: int
    positions: tuple[int, ...]
    """Ascending."""


def documents_at(datasets: Sequence[Dataset], split: str, order: Order, positions: np.ndarray) -> Iterator[Traced]:
    """The documents of which the rows at `positions` (int64, each >= 0) hold a token, in the order of the shards.

    Args:
        datasets: of the order's sources, in their order.

    Raises:
        UserError: a document table is missing or can't be read.
    """
    places = order.places(positions)
    for source, shard in np.unique(np.stack([places.source, places.shard]), axis=1).T.tolist():
        dataset = datasets[source]
        entry = dataset.index(split).shards[shard]
        table = _table(dataset, entry.url)
        starts = np.array(table["start"], np.int64)
        mine = np.flatnonzero((places.source == source) & (places.shard == shard))
        holders: dict[int, list[int]] = {}
        for walk in np.unique(places.walk[mine]).tolist():
            rows = mine[places.walk[mine] == walk]
            plan = _plan(dataset, split, order.walks[walk], shard)
            which, held = _documents(order.walks[walk], plan, starts, entry.tokens, places.start[rows])
            for position, document in zip(positions[rows][which].tolist(), held.tolist(), strict=True):
                holders.setdefault(document, []).append(position)
        for document in sorted(holders):
            yield Traced(
                table["id"][document], table["source"][document], dataset.folder.name, entry.url,
                int(starts[document]), table["tokens"][document], tuple(sorted(holders[document])),
            )  # fmt: skip


def find(datasets: Sequence[Dataset], split: str, name: str) -> list[Found]:
    """The documents of that id; where there is none, those whose id ends with it, as a path's end does.

    Raises:
        UserError: no such document, or a table is missing or can't be read.
    """
    import pyarrow
    from pyarrow import compute, parquet
    from pyarrow import dataset as tables

    found: list[Found] = []
    ends = compute.ends_with(tables.field("id"), "/" + name.lstrip("./"))  # pyright: ignore[reportAttributeAccessIssue]
    for condition in (tables.field("id") == name, ends):
        for number, dataset in enumerate(datasets):
            shards = dataset.index(split).shards
            dataset.fetch([f"{shard.url.removesuffix('.tar')}.docs.parquet" for shard in shards])
            paths = {_path(dataset, shard.url): at for at, shard in enumerate(shards)}
            try:
                held = tables.dataset(list(paths), format="parquet").to_table(
                    ["id", "source", "start", "tokens", "__filename"], filter=condition
                )
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"cannot read the document tables of {dataset.place}: {error}") from None
            for row in held.to_pylist():
                starts = parquet.read_table(row["__filename"], columns=["start"])["start"].to_numpy()
                at = int(np.searchsorted(starts, row["start"]))
                shard = paths[row["__filename"]]
                found.append(Found(row["id"], row["source"], number, shard, at, row["start"], row["tokens"]))
        if found:
            return found
    folders = ", ".join(dataset.place for dataset in datasets)
    raise UserError(
        f"no document of the {split} split of {folders} has the id {name!r}, nor one that ends with it: "
        "luban data inspect shows what ids look like; what cleaning dropped, or another split holds, no step read"
    )


def sightings(document: Found, datasets: Sequence[Dataset], split: str, order: Order, stop: int) -> list[Sightings]:
    """At which positions before `stop` rows with tokens of a document are read, by epoch of its source."""
    seen: dict[int, list[int]] = {}
    for number, walk in enumerate(order.walks):
        if walk.source != document.dataset:
            continue
        plan = _plan(datasets[document.dataset], split, walk, document.shard)
        for epoch in order.epochs(number, document.shard, stop):
            rows = _rows(walk, plan, document, walk.phase(epoch, document.shard))
            at = order.positions(epoch, np.full(len(rows), document.shard), rows, number, stop)
            if (at >= 0).any():
                seen.setdefault(epoch, []).extend(at[at >= 0].tolist())
    return [Sightings(epoch, tuple(sorted(seen[epoch]))) for epoch in sorted(seen)]


def _plan(dataset: Dataset, split: str, walk: Walk, shard: int) -> Plan | None:
    """The packing plan whose rows a walk reads."""
    if not walk.layout.plan:
        return None
    find = dataset.file if dataset.remote else None
    return load_packing(dataset.index(split), walk.layout.plan_length, find).plan(shard)


def _documents(walk: Walk, plan: Plan | None, starts: np.ndarray, tokens: int,
               first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The documents of rows of a shard: which row, and the document's number; `first` as in `Places.start`."""
    if plan is not None:
        return plan.documents(starts, first)
    stride = walk.layout.stride
    if not stride:  # a row is a document, and its place is the document's number
        return np.arange(len(first)), first
    ends = np.minimum(first + stride + walk.layout.overlap, tokens)
    return ranges(np.searchsorted(starts, first, side="right") - 1, np.searchsorted(starts, ends))


def _rows(walk: Walk, plan: Plan | None, document: Found, phase: int) -> np.ndarray:
    """The rows of its shard that hold tokens of a document, in an epoch of that phase (int64)."""
    if plan is not None:
        return plan.rows(np.array([document.start]), document.start + document.tokens, np.zeros(1, np.int64))[1]
    stride, held = walk.layout.stride, walk.layout.rows[document.shard]
    if not stride:
        return np.array([document.number], np.int64)
    first = max(0, -(-(document.start - phase - stride - walk.layout.overlap + 1) // stride))
    last = min(held - 1, (document.start + document.tokens - 1 - phase) // stride)
    return np.arange(first, last + 1, dtype=np.int64)


def _path(dataset: Dataset, url: str) -> str:
    return str(dataset.file(f"{url.removesuffix('.tar')}.docs.parquet"))


def _table(dataset: Dataset, url: str) -> dict[str, list]:
    from pyarrow import parquet

    path = _path(dataset, url)
    try:
        return parquet.read_table(path, columns=["id", "source", "start", "tokens"]).to_pydict()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the document table {path}: {error}") from None
