"""The global shuffle: documents in the order of a keyed hash, cut into shards, without holding or ordering them all.

A shard is a range of hashes. Where the cuts are needs only each document's hash and length, sorted on disk; the rows
of a part's token file are in that order already, so a shard's documents are one slice of each part, and several
shards are gathered in a pass over the parts, as many as the memory holds.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.build.external import buckets
from data.build.parts import read_part, token_file
from data.publish import write_json
from data.shard_writer import BLOCK_TOKENS, Cuts, TokenDocument, shard_name, write_shard
from data.shards import SPLITS, ShardEntry

_LENGTHS = np.dtype([("key", "<u8"), ("length", "<i8"), ("split", "u1")])
_BYTES_A_TOKEN = 16
"""Of working memory while a shard is written: mapped, copied, joined, and its block in the making."""


@dataclass(frozen=True)
class Planned:
    """One shard to be written."""

    name: str
    split: int
    """Position in SPLITS."""
    after: int
    """The order's hash is greater than this (-1: any is) ..."""
    upto: int
    """... and at most this."""
    tokens: int
    first_block: int


def plan(
    work: Path, parts: int, documents: int, tokens: dict[str, int], shard_tokens: int, memory: int
) -> list[list[Planned]]:
    """The shards of each split, in the order of SPLITS.

    Args:
        documents: in all splits, about.
        tokens: of each split.
        memory: bytes to work in.
    """
    cuts = [Cuts(tokens[split], shard_tokens) for split in SPLITS]
    with buckets(work, _LENGTHS, documents, memory) as sorting:
        for part in range(parts):
            batch = read_part(token_file(work, part))
            records = np.empty(len(batch), _LENGTHS)
            for name, column in (("key", "order"), ("length", "length"), ("split", "split")):
                records[name] = batch[column].to_numpy()
            sorting.add(records)
        for records in sorting.sorted():
            for number, cut in enumerate(cuts):
                mine = records[records["split"] == number]
                cut.add(mine["key"], mine["length"])
    return [_planned(number, cut) for number, cut in enumerate(cuts)]


def _planned(split: int, cuts: Cuts) -> list[Planned]:
    shards: list[Planned] = []
    after, first, block = -1, 0, 0
    for upto, last in cuts.ends():
        name = shard_name(SPLITS[split], len(shards))
        shards.append(Planned(name, split, after, upto, last - first, block))
        block += -(-(last - first) // BLOCK_TOKENS)
        after, first = upto, last
    return shards


def grouped(shards: Sequence[Planned], memory: int) -> Iterator[list[Planned]]:
    """Consecutive shards of one split that fit in `memory` bytes together, at least one at a time."""
    group: list[Planned] = []
    held = 0
    for shard in shards:
        held += _BYTES_A_TOKEN * shard.tokens
        if group and held > memory:
            yield group
            group, held = [], _BYTES_A_TOKEN * shard.tokens
        group.append(shard)
    if group:
        yield group


def write_group(work: Path, shards: Sequence[Planned], parts: int, dtype: np.dtype) -> list[ShardEntry]:
    """Write consecutive shards of one split; those that are there already are not written again."""
    entries = [written(work, shard) for shard in shards]
    missing = [shard for shard, entry in zip(shards, entries, strict=True) if entry is None]
    if missing:
        gathered = _gather(work, missing[0], missing[-1], parts)
        order = gathered["order"].to_numpy()
        for shard in missing:
            first = np.searchsorted(order, np.uint64(shard.after), "right") if shard.after >= 0 else 0
            last = np.searchsorted(order, np.uint64(shard.upto), "right")
            documents = _documents(gathered.slice(first, last - first))
            entry = write_shard(work, shard.name, documents, dtype, shard.first_block)
            write_json(_entry_file(work, shard), entry.to_json())
    return [ShardEntry.from_json(entry) for shard in shards if (entry := written(work, shard)) is not None]


def written(work: Path, shard: Planned) -> dict[str, Any] | None:
    """What the index is to say of a shard that is finished; none if it isn't."""
    try:
        return json.loads(_entry_file(work, shard).read_text("utf-8"))
    except FileNotFoundError:
        return None


def _entry_file(work: Path, shard: Planned) -> Path:
    return work / f"entry-{shard.name}.json"


def _gather(work: Path, first: Planned, last: Planned, parts: int) -> Any:
    """The rows of all parts in the shards from `first` to `last`, in the order of their hash (an Arrow batch)."""
    import pyarrow

    pieces = []
    for part in range(parts):
        batch = read_part(token_file(work, part))
        start, stop = np.searchsorted(batch["split"].to_numpy(), [first.split, first.split + 1])
        order = batch["order"].to_numpy()[start:stop]
        low = start + (np.searchsorted(order, np.uint64(first.after), "right") if first.after >= 0 else 0)
        high = start + np.searchsorted(order, np.uint64(last.upto), "right")
        if high > low:
            pieces.append(batch.take(np.arange(low, high)))  # a copy: the part's map can go
    table = pyarrow.Table.from_batches(pieces)
    order = np.argsort(table["order"].to_numpy(), kind="stable")
    return table.take(order).combine_chunks().to_batches()[0]


def _documents(rows: Any) -> Iterator[TokenDocument]:
    columns = [rows[name].to_pylist() for name in ("id", "source", "bytes", "digest_high", "digest_low", "language")]
    tokens = _arrays(rows["tokens"])
    uses = _arrays(rows["uses"]) if "uses" in rows.schema.names else itertools.repeat(None, len(rows))
    targets = _arrays(rows["targets"]) if "targets" in rows.schema.names else itertools.repeat(None, len(rows))
    abouts = rows["about"].to_pylist() if "about" in rows.schema.names else itertools.repeat(None, len(rows))
    rest = zip(uses, targets, abouts, strict=True)
    for row, held, about in zip(zip(*columns, strict=True), tokens, rest, strict=True):
        id_, source, size, high, low, language = row
        yield TokenDocument(id_, source, held, size, f"{high:016x}{low:016x}", *about, language)


def _arrays(lists: Any) -> Iterator[np.ndarray]:
    values, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
    return (values[a:b] for a, b in itertools.pairwise(offsets))
