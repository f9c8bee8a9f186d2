"""The shard format, written: documents -> tars, document tables and an index, the same bytes every time.

Every byte is a function of the documents: fixed owner, mode and time in the tar, keys that count blocks, no
host names. A file gets its name only when it is whole (temporary name, fsync, rename), so a reader never
meets half a shard. Digests are taken on the way to the disk; all of it runs at some 95 Mtok/s per core where documents
have 2,000 tokens.

Where shards are cut is decided before the first is written (`plan_shards`): at document ends, evenly, so that
no last shard is too short to hold a row. Shards are then independent and can be written by several processes.
"""

import hashlib
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from data.publish import published, write_json
from data.shards import START_DTYPE, USE_DTYPE, Block, Index, ShardEntry
from data.sums import Summing, sums_name

BLOCK_TOKENS = 1 << 20
SHARD_TOKENS = 1 << 22
_TAR_HEADER = 512


@dataclass(frozen=True)
class TokenDocument:
    """One document on its way into a shard."""

    id: str
    source: str
    tokens: np.ndarray
    """1-D integers, EOS at the end."""
    text_bytes: int
    """UTF-8 bytes of the text that the tokens stand for."""
    digest: str
    """xxh3_128 of that text, hex."""
    uses: np.ndarray | None = None
    """uint8, one a token; only in a dataset of examples."""
    targets: np.ndarray | None = None
    """1-D, what it is to predict beside tokens; only where the dataset has targets."""
    about: str | None = None
    """JSON, what an evaluation needs beside the tokens; only in a dataset of examples."""
    language: str = ""
    """ISO 639-1, or what the recipe says; empty: not known."""


class Cuts:
    """Where a split's documents are cut into shards, found in one pass over their lengths in their order.

    There are total // shard_tokens shards (at least one if there is a document), each as near to an equal share of
    the tokens as documents allow. Documents of one key are not parted.
    """

    def __init__(self, tokens: int, shard_tokens: int):
        """Prepare for documents of `tokens` tokens altogether."""
        count = max(1, tokens // shard_tokens)
        self._wanted = tokens * np.arange(1, count) / count
        self._next = 0
        self._last = (0, 0)
        self._cuts: dict[int, int] = {}

    def add(self, keys: np.ndarray, lengths: np.ndarray) -> None:
        """Take the next documents: ascending keys (uint64), and tokens of each."""
        if not len(keys):
            return
        last_of_key = np.append(keys[1:] != keys[:-1], True)
        keys, ends = keys[last_of_key], np.cumsum(lengths, dtype=np.int64)[last_of_key] + self._last[1]
        stop = int(np.searchsorted(self._wanted, ends[-1], "right"))
        for wanted in self._wanted[self._next : stop]:
            at = int(np.searchsorted(ends, wanted))
            before = (int(keys[at - 1]), int(ends[at - 1])) if at else self._last
            after = (int(keys[at]), int(ends[at]))
            key, end = before if before[1] and wanted - before[1] < after[1] - wanted else after
            self._cuts[end] = key
        self._next = stop
        self._last = (int(keys[-1]), int(ends[-1]))

    def ends(self) -> list[tuple[int, int]]:
        """Of each shard the key of its last document, and the tokens up to its end counted from the split's first."""
        if not self._last[1]:
            return []
        return [(key, end) for end, key in sorted((self._cuts | {self._last[1]: self._last[0]}).items())]


def plan_shards(lengths: Sequence[int] | np.ndarray, shard_tokens: int) -> list[slice]:
    """Consecutive runs of documents, one a shard, as `Cuts` makes them.

    Args:
        lengths: tokens of each document.
        shard_tokens: the size to aim at.
    """
    cuts = Cuts(int(np.sum(lengths)), shard_tokens)
    cuts.add(np.arange(len(lengths), dtype=np.uint64), np.asarray(lengths, np.int64))
    starts = [0, *(last + 1 for last, _ in cuts.ends())]
    return [slice(a, b) for a, b in itertools.pairwise(starts)]


def shard_name(split: str, number: int) -> str:
    """File name of a split's shard."""
    return f"{split}-{number:06d}.tar"


def write_shard(
    folder: Path,
    name: str,
    documents: Iterable[TokenDocument],
    dtype: np.dtype,
    first_block: int = 0,
    block_tokens: int = BLOCK_TOKENS,
) -> ShardEntry:
    """Write one tar, its document table `NAME.docs.parquet` and its sums; each appears under its name when whole.

    Args:
        first_block: the number of the shard's first block in its split, which is its key in the tar.

    Raises:
        OSError: the disk is full or not writable; no file of that name is left.
    """
    columns: dict[str, list[Any]] = {
        key: [] for key in ("id", "source", "start", "tokens", "bytes", "xxh3", "language")
    }
    with published(folder / name) as path, path.open("wb") as file:
        tar = _TarBlocks(file, np.dtype(dtype), first_block, block_tokens)
        for document in documents:
            values = (document.id, document.source, tar.tokens, len(document.tokens))
            for key, value in zip(
                columns, (*values, document.text_bytes, document.digest, document.language), strict=False
            ):
                columns[key].append(value)
            if document.about is not None:
                columns.setdefault("about", []).append(document.about)
            tar.add(document)
        sha256, size, sums = tar.close()
    with published(folder / sums_name(name)) as path, path.open("wb") as file:
        np.save(file, sums, allow_pickle=False)
    _write_table(folder / f"{name.removesuffix('.tar')}.docs.parquet", columns)
    text_bytes, longest = sum(columns["bytes"]), max(columns["tokens"], default=0)
    return ShardEntry(
        name, len(tar.blocks), size, sha256, tar.tokens, len(columns["id"]), text_bytes, longest, tuple(tar.blocks)
    )


def write_index(index: Index, name: str) -> None:
    """Write `SPLIT.index.json` for shards that are already in place; `name` is the dataset's."""
    write_json(index.folder / f"{index.split}.index.json", index.to_json(name))


class _HashedFile:
    """What TarWriter writes to: a file that is digested and counted on the way."""

    def __init__(self, file: io.BufferedWriter):
        self._file = file
        self.sha256, self.summing = hashlib.sha256(), Summing()
        self.size = 0

    def write(self, piece: bytes) -> int:
        if self._file.closed:
            return len(piece)  # after a failure, tarfile still flushes when it is collected
        self.sha256.update(piece)
        self.summing.update(piece)
        self.size += len(piece)
        return self._file.write(piece)


class _TarBlocks:
    """Documents in, blocks out; remembers at which byte each array begins."""

    def __init__(self, file: io.BufferedWriter, dtype: np.dtype, first_block: int, block_tokens: int):
        from webdataset.writer import TarWriter

        self._file = _HashedFile(file)
        writable = cast(Any, self._file)  # TarWriter asks no more of it than write()
        self._tar = TarWriter(writable, user="luban", group="luban", mode=0o444, mtime=0, encoder=False)
        self._dtype = dtype
        self._key = first_block
        self._block_tokens = block_tokens
        self._pending: list[tuple[np.ndarray, np.ndarray | None]] = []
        self._pending_tokens = 0
        self._starts: list[int] = []
        self._targets: list[np.ndarray] = []
        self._no_targets: np.ndarray | None = None  # [0, columns], where documents have any
        self.tokens = 0
        self.blocks: list[Block] = []

    def add(self, document: TokenDocument) -> None:
        tokens = document.tokens
        self._starts.append(self._pending_tokens)
        self._pending.append((tokens, document.uses))
        if document.targets is not None:
            self._targets.append(document.targets)
            self._no_targets = document.targets[None][:0]
        self._pending_tokens += len(tokens)
        self.tokens += len(tokens)
        while self._pending_tokens >= self._block_tokens:
            self._write_block(self._block_tokens)

    def close(self) -> tuple[str, int, np.ndarray]:
        """Write what is pending and the tar's end; (sha256 hex, bytes, sums)."""
        if self._pending_tokens:
            self._write_block(self._pending_tokens)
        self._tar.close()
        return self._file.sha256.hexdigest(), self._file.size, self._file.summing.sums()

    def _write_block(self, count: int) -> None:
        tokens = np.concatenate([part for part, _ in self._pending])
        starts = [start for start in self._starts if start < count]
        members = {
            "doc.npy": np.array(starts, START_DTYPE),
            "tok.npy": tokens[:count].astype(self._dtype),
        }
        rest_uses = None
        if self._pending[0][1] is not None:
            uses = np.concatenate([part for _, part in self._pending if part is not None]).astype(USE_DTYPE)
            members["use.npy"] = uses[:count]
            rest_uses = uses[count:]
        if self._no_targets is not None:
            inside, self._targets = self._targets[: len(starts)], self._targets[len(starts) :]
            members["tgt.npy"] = np.stack(inside) if inside else self._no_targets
        encoded = {name: _npy(array) for name, array in members.items()}
        offset = self._tar.tarstream.offset
        places = {}
        for name in sorted(encoded):  # the order in which TarWriter writes them
            places[name] = offset + _TAR_HEADER + len(encoded[name]) - members[name].nbytes
            offset += _TAR_HEADER + -(-len(encoded[name]) // _TAR_HEADER) * _TAR_HEADER
        self._tar.write({"__key__": f"{self._key:09d}", **encoded})
        others = (places.get("use.npy", -1), places.get("tgt.npy", -1))
        self.blocks.append(Block(places["tok.npy"], count, places["doc.npy"], len(starts), *others))
        self._key += 1
        self._starts = [start - count for start in self._starts if start >= count]
        self._pending_tokens -= count
        self._pending = [(tokens[count:], rest_uses)] if self._pending_tokens else []


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = {"start": pyarrow.int64(), "tokens": pyarrow.int64(), "bytes": pyarrow.int64()}
    table = pyarrow.table(
        {key: pyarrow.array(values, types.get(key, pyarrow.string())) for key, values in columns.items()}
    )
    with published(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")
