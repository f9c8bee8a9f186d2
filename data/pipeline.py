"""The stages of a build that look at all documents, and the hand-over to workers of those that don't.

    read and clean    chunks of some 2 MB go to workers, which leave the kept text in a file and send back digests
    remove copies     here, over all documents: exact, then near
    split             by a hash of the source document's id, so a file and what was made of it are on one side only
    tokenizer         learns from a sample of `train` alone
    tokenize          chunks again, surviving documents only
    shuffle, write    documents in the order of a keyed hash; here too: one process writes what a hundred tokenize

Nothing here depends on the number of workers: chunks are cut by size and their results taken in order.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from data import corpus
from data.chunks import Drop, Placed, Prepared, Slice, encode, gathered, prepare, text_file
from data.dedup import exact_copies, near_copies
from data.errors import UserError
from data.ledger import Ledger
from data.progress import Progress
from data.recipe import DatasetRecipe
from data.shard_writer import plan_shards, shard_name, write_index, write_shard
from data.shards import SPLITS, Index, ShardEntry, token_dtype
from data.tally import Tally
from data.tokenizer import Tokenizer
from data.tokenizer_sample import Sampler
from data.tokenizer_training import obtain
from data.workplace import in_order

_CHUNK_CHARACTERS = 1 << 21


@dataclass(frozen=True)
class Columns:
    """Documents (or examples) that survive, a row each; arrays of one length."""

    ids: np.ndarray
    origins: np.ndarray
    sources: np.ndarray
    digests: np.ndarray
    chunks: np.ndarray
    offsets: np.ndarray
    """First byte in the chunk's text file."""
    prompt_bytes: np.ndarray
    completion_bytes: np.ndarray

    @property
    def bytes(self) -> np.ndarray:
        """UTF-8 bytes of each."""
        return self.prompt_bytes + self.completion_bytes

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, which: np.ndarray) -> "Columns":
        """The rows that a mask or positions pick."""
        return Columns(**{column.name: getattr(self, column.name)[which] for column in fields(self)})

    def drops(self, which: np.ndarray, stage: str, rule: str) -> list[Drop]:
        """The rows that a mask picks, as drops."""
        gone = self.only(which)
        return [Drop(stage, rule, str(id_), int(size)) for id_, size in zip(gone.ids, gone.bytes, strict=True)]


@dataclass(frozen=True)
class Tokenized:
    """Where each row's tokens are in its chunk's token file; arrays of one length."""

    firsts: np.ndarray
    lengths: np.ndarray
    prompt_tokens: np.ndarray


class Pipeline:
    """One build's stages, to be called in the order in which they stand here; `ledger` keeps the account."""

    def __init__(self, recipe: DatasetRecipe, work: Path, hands: Executor, workers: int, progress: Progress):
        """Take the empty folder `work` to put files in and `hands` to do what can be done in parallel."""
        self.recipe = recipe
        self.ledger = Ledger()
        self.tokenizer_account: dict[str, Any] = {}
        self._work = work
        self._hands = hands
        self._workers = workers
        self._progress = progress

    def read(self) -> tuple[Columns, np.ndarray]:
        """Read, clean and make examples. Returns the kept rows and their band keys [rows, bands].

        Raises:
            UserError: unreadable input, two documents of one id, or nothing kept.
        """
        self._progress.begin("read and clean", None, "documents")
        seen = [0, 0]
        calls = ((prepare, number, part, self._work, self.recipe) for number, part in enumerate(self._parts(seen)))
        parts: list[Prepared] = []
        for part in in_order(self._hands, calls, 2 * self._workers + 2):
            parts.append(part)
            self._progress.advance(part.cleaned + sum(1 for drop in part.drops if drop.stage != "examples"))
        columns, keys = _joined(parts)
        self._book_reading(parts, (seen[0], seen[1]), columns)
        self._progress.end(f"{seen[0]:,} documents, {seen[1]:,} bytes; {len(columns):,} kept")
        self._need(columns, "to build a dataset from")
        ids, counts = np.unique(columns.ids, return_counts=True)
        if len(ids) < len(columns):
            raise UserError(f"two documents have the id {ids[counts > 1][0]!r}: two sources give the same ones")
        return columns, keys

    def remove_copies(self, columns: Columns, keys: np.ndarray) -> Columns:
        """The rows without exact and near copies."""
        rules = self.recipe.dedup
        self._progress.begin("remove copies", None, "documents")
        before = len(columns)
        if rules.exact:
            copies = exact_copies(columns.digests.tolist(), columns.ids.tolist())
            columns, keys = self._drop(columns, copies, "exact_dedup", "exact_copy"), keys[~copies]
        if rules.near:
            copies = near_copies(keys, columns.ids.tolist())
            columns = self._drop(columns, copies, "near_dedup", "near_copy")
        self._progress.end(f"{before - len(columns):,} of {before:,} dropped")
        return columns

    def splits(self, columns: Columns) -> np.ndarray:
        """Each row's split, as a position in SPLITS."""
        shares = self.recipe.split
        draws = _draws(self._key("split"), columns.origins)
        splits = np.where(draws < shares.heldout, 2, np.where(draws < shares.heldout + shares.valid, 1, 0))
        if not (splits == 0).any():
            raise UserError(
                f"the split left none of the {len(columns)} documents for train (valid {shares.valid:g}, heldout "
                f"{shares.heldout:g}). Lower the shares, or deal anew with another seed."
            )
        return splits

    def tokenizer(self, columns: Columns, splits: np.ndarray) -> Tokenizer:
        """The tokenizer, reused or trained on a sample of the train split; its files are in the folder."""
        wanted = self.recipe.tokenizer
        self._progress.begin("tokenizer", None, "bytes")
        made = obtain(wanted, self._sample(columns.only(splits == 0), wanted.sample_bytes), self._workers)
        made.tokenizer.save(self._work)
        self.tokenizer_account = made.account
        self._progress.end(made.said)
        return made.tokenizer

    def tokenize(self, columns: Columns, tokenizer: Tokenizer) -> tuple[Columns, Tokenized]:
        """Tokenize every row; those that stay, and where their tokens are.

        Raises:
            UserError: every example is too long.
        """
        self._progress.begin("tokenize", int(columns.bytes.sum()), "bytes")
        examples, limit = self.recipe.kind == "examples", self.recipe.task.max_tokens
        groups = [columns.only(columns.chunks == chunk) for chunk in np.unique(columns.chunks)]
        calls = (
            (encode, int(group.chunks[0]), _slices(group), self._work, tokenizer.fingerprint, examples, limit)
            for group in groups
        )
        results = []
        for group, result in zip(groups, in_order(self._hands, calls, 2 * self._workers + 2), strict=True):
            results.append(result)
            self._progress.advance(int(group.bytes.sum()))
        lengths = np.concatenate([held for held, _ in results])
        firsts = np.concatenate([np.cumsum(held) - held for held, _ in results])
        prompt_tokens = np.concatenate([held for _, held in results])
        kept = lengths > 0
        columns = self._drop(columns, ~kept, "tokenize", "example_too_long")
        self._progress.end(f"{int(lengths.sum()):,} tokens")
        self._need(columns, f"within task.max_tokens = {limit}")
        return columns, Tokenized(firsts[kept], lengths[kept], prompt_tokens[kept])

    def write(self, columns: Columns, tokenized: Tokenized, tokenizer: Tokenizer) -> list[Index]:
        """Shuffle the rows of each split and write shards, tables and indexes into the folder."""
        dtype = token_dtype(tokenizer.vocab_size)
        splits = self.splits(columns)
        order = np.lexsort((columns.ids, _draws(self._key("order"), columns.ids)))
        self._progress.begin("write shards", int(tokenized.lengths.sum()), "tokens")
        indexes = []
        for number, split in enumerate(SPLITS):
            rows = order[splits[order] == number]
            shards: list[ShardEntry] = []
            blocks = 0
            for part in plan_shards(tokenized.lengths[rows], self.recipe.shard_tokens):
                placed = _placed(columns, tokenized, rows[part])
                documents = gathered(placed, self._work, dtype, self.recipe.kind == "examples")
                shards.append(write_shard(self._work, shard_name(split, len(shards)), documents, dtype, blocks))
                blocks += shards[-1].samples
                self._progress.advance(shards[-1].tokens)
            index = Index(self._work, split, dtype, self.recipe.kind, tokenizer.fingerprint, tuple(shards))
            write_index(index, self.recipe.name)
            indexes.append(index)
        self._progress.end(", ".join(f"{index.split} {index.tokens:,} tokens" for index in indexes))
        return indexes

    def _parts(self, seen: list[int]) -> Iterator[list[corpus.Document]]:
        """Documents in runs of about 2 M characters; counts them and their bytes in `seen`."""
        part: list[corpus.Document] = []
        held = 0
        for document in corpus.documents(self.recipe.sources):
            seen[0] += 1
            seen[1] += document.bytes
            part.append(document)
            held += len(document.text or "")
            if held >= _CHUNK_CHARACTERS:
                yield part
                part, held = [], 0
        if part:
            yield part

    def _book_reading(self, parts: list[Prepared], read: tuple[int, int], columns: Columns) -> None:
        drops: dict[str, list[Drop]] = {"read": [], "clean": [], "examples": []}
        for part in parts:
            for drop in part.drops:
                drops[drop.stage].append(drop)
        text = (read[0] - len(drops["read"]), read[1] - sum(drop.bytes for drop in drops["read"]))
        clean = (sum(part.cleaned for part in parts), sum(part.cleaned_bytes for part in parts))
        self.ledger.add("read", read, text, drops["read"])
        changes: dict[str, Tally] = {}
        for part in parts:
            for rule, tally in part.changes.items():
                changes.setdefault(rule, Tally()).merge(tally)
        self.ledger.add("clean", text, clean, drops["clean"], changes)
        if self.recipe.kind == "examples":
            self.ledger.add("examples", clean, (len(columns), int(columns.bytes.sum())), drops["examples"])

    def _drop(self, columns: Columns, which: np.ndarray, stage: str, rule: str) -> Columns:
        kept = columns.only(~which)
        sizes = [(len(held), int(held.bytes.sum())) for held in (columns, kept)]
        self.ledger.add(stage, sizes[0], sizes[1], columns.drops(which, stage, rule))
        return kept

    def _need(self, columns: Columns, what: str) -> None:
        if len(columns):
            return
        reasons = "\n".join(self.ledger.lines()) or "  there was none to begin with"
        raise UserError(f"no document is left {what}. Dropped:\n{reasons}")

    def _key(self, use: str) -> str:
        return f"{self.recipe.name}\0{self.recipe.seed}\0{use}\0"

    def _sample(self, columns: Columns, limit: int) -> Iterator[str]:
        """Texts, picked by hash, of `limit` bytes at most."""
        draws = _draws(self._key("sample"), columns.ids)
        sampler = Sampler(limit)
        sampler.count(columns.sources, draws, columns.bytes)
        taken = sampler.taken(columns.sources, draws, columns.bytes)
        chosen, taken = columns.only(taken > 0), taken[taken > 0]
        for chunk in np.unique(chosen.chunks):
            content = text_file(self._work, int(chunk)).read_bytes()
            mine = chosen.chunks == chunk
            for start, size in zip(chosen.offsets[mine].tolist(), taken[mine].tolist(), strict=True):
                yield content[start : start + size].decode("utf-8", "ignore")


def _joined(parts: list[Prepared]) -> tuple[Columns, np.ndarray]:
    """The chunks' columns, one after another, with each row's chunk and place in it; and the band keys."""

    def column(values: Iterable[list[Any]], dtype: Any) -> np.ndarray:
        return np.array([value for part in values for value in part], dtype)

    chunks, offsets = [], []
    for number, part in enumerate(parts):
        sizes = np.array(part.prompt_bytes, np.int64) + np.array(part.completion_bytes, np.int64)
        chunks.append(np.full(len(sizes), number, np.int64))
        offsets.append(np.cumsum(sizes) - sizes)
    empty = np.zeros(0, np.int64)
    columns = Columns(
        ids=column((part.ids for part in parts), object),
        origins=column((part.origins for part in parts), object),
        sources=column((part.sources for part in parts), object),
        digests=column((part.digests for part in parts), object),
        chunks=np.concatenate([empty, *chunks]),
        offsets=np.concatenate([empty, *offsets]),
        prompt_bytes=column((part.prompt_bytes for part in parts), np.int64),
        completion_bytes=column((part.completion_bytes for part in parts), np.int64),
    )
    filled = [part.keys for part in parts if len(part.keys)]
    return columns, np.concatenate(filled) if filled else np.zeros((len(columns), 0), np.uint64)


def _draws(key: str, ids: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each id, a hash of it and the key (float64)."""
    import xxhash

    hashes = (xxhash.xxh3_64_intdigest(f"{key}{id_}".encode()) >> 11 for id_ in ids)
    return np.fromiter(hashes, np.uint64, len(ids)) / float(1 << 53)


def _slices(columns: Columns) -> list[Slice]:
    places = zip(columns.offsets, columns.prompt_bytes, columns.completion_bytes, strict=True)
    return [Slice(int(offset), int(prompt), int(completion)) for offset, prompt, completion in places]


def _placed(columns: Columns, tokenized: Tokenized, rows: np.ndarray) -> list[Placed]:
    picked = columns.only(rows)
    places = (picked.chunks, tokenized.firsts[rows], tokenized.lengths[rows], tokenized.prompt_tokens[rows])
    names = (picked.ids, picked.sources, picked.bytes, picked.digests)
    return [Placed(*row) for row in zip(*(column.tolist() for column in (*places, *names)), strict=True)]
