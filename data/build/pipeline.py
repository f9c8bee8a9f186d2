"""The stages of a build that look at all documents, and the hand-over to workers of those that don't.

    read and clean    some 2 MB at a time go to workers, which leave rows in a file a part
    remove copies     over all rows: exact, then near; keys are sorted on disk, a mask says who is left
    tokenizer         learns from a sample of `train` alone
    tokenize          part by part again, surviving rows only
    shuffle, write    documents in the order of a keyed hash, each shard gathered from all parts

What grows with the dataset is in files: this process holds a few numbers a part and works in `memory` bytes. Nothing
depends on the number of workers, and each file is published when it is whole: a build that was killed goes on behind
the last of them.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np

from data import corpus
from data.build.chunks import Encoded, Prepared, band_name, encode, prepare, prepared, text_of
from data.build.languages import rows_over
from data.build.ledger import Ledger
from data.build.parts import Drop, Rows, part_file, read_drops, read_part, token_file
from data.build.shuffle import grouped, plan, write_group
from data.build.tally import Tally
from data.build.workplace import Work, in_order
from data.dedup.copies import equal_rows, exact_copies, near_copies, write_edges
from data.dedup.decontaminate import collect
from data.errors import UserError
from data.progress import Progress
from data.publish import write_json
from data.recipe import DatasetRecipe
from data.shard_writer import write_index
from data.shards import SPLITS, Index, ShardEntry, token_dtype
from data.tasks.encode import targets_of
from data.tokenizer.sample import Sampler
from data.tokenizer.tokenizer import Tokenizer
from data.tokenizer.training import obtain

_CHUNK_CHARACTERS = 1 << 21
_DOCUMENT_CHARACTERS = 100
"""What a document counts beside its text, so that a part of empty ones ends too."""
_TOKENIZER = "tokenizer.account"


class Pipeline:
    """One build's stages, to be called in the order in which they stand here; `ledger` keeps the account."""

    def __init__(self, recipe: DatasetRecipe, work: Work, hands: Executor, workers: int, progress: Progress):
        """Take the folders `work`, with what an earlier build of the recipe left, and `hands` to share the work."""
        self.recipe = recipe
        self.ledger = Ledger()
        self.tokenizer_account: dict[str, Any] = {}
        self.evaluation_account: dict[str, Any] = {}
        self._work, self._made = work.read, work.made
        self._hands = hands
        self._workers = workers
        self._progress = progress
        self._memory = int(recipe.memory)
        self._counts = (0, 0)
        self.classes: tuple[str, ...] = ()
        """Names of the task's classes in the order of their ids, once it has read."""

    def read(self) -> Rows:
        """Read, clean and make examples. Returns the rows that are kept.

        Raises:
            UserError: unreadable input, two documents of one id, or nothing kept.
        """
        if self.recipe.decontaminate.sets:
            self._look_for_evaluation_sets()
        self._progress.begin("read and clean", None, "documents")
        parts: list[Prepared] = []
        for part in in_order(self._hands, self._readings(), 2 * self._workers + 2):
            parts.append(part)
            self._progress.advance(part.documents)
        self._book_reading(parts)
        seen = (sum(part.documents for part in parts), sum(part.bytes for part in parts))
        self._progress.end(f"{seen[0]:,} documents, {seen[1]:,} bytes; {self._counts[0]:,} kept")
        self._need("to build a dataset from")
        rows = Rows.of(self._work, (part.rows for part in parts))
        self._refuse_equal_ids(rows)
        if self.recipe.kind == "examples" and self.recipe.task.has_classes:
            found = sorted({label for part in parts for label in part.labels})
            self.classes = self.recipe.task.class_names or tuple(found)
        return rows

    def remove_copies(self, rows: Rows) -> Rows:
        """The rows without exact and near copies."""
        rules = self.recipe.dedup
        self._progress.begin("remove copies", None, "documents")
        before = self._counts[0]
        if rules.exact:
            rows = self._drop(rows, lambda: exact_copies(rows, self._memory), "exact_dedup", "exact_copy")
        if rules.near:
            rows = self._drop(rows, lambda: self._near_copies(rows), "near_dedup", "near_copy")
        self._progress.end(f"{before - self._counts[0]:,} of {before:,} dropped")
        return rows

    def within_quotas(self, rows: Rows) -> Rows:
        """The rows that the languages' quotas leave."""
        languages = self.recipe.languages
        if languages is None:
            return rows
        self._progress.begin("quotas", None, "documents")
        before = self._counts[0]
        rows = self._drop(rows, lambda: rows_over(rows, languages), "quota", "over_quota")
        self._progress.end(f"{before - self._counts[0]:,} of {before:,} dropped")
        self._need("within the languages' quotas")
        return rows

    def tokenizer(self, rows: Rows) -> Tokenizer:
        """The tokenizer, reused or trained on a sample of the train split; its files are in the folder.

        Raises:
            UserError: there is nothing in the train split.
        """
        wanted = self.recipe.tokenizer
        self._need_training_rows(rows)
        self._progress.begin("tokenizer", None, "bytes")
        account = self._made / _TOKENIZER
        if account.exists():
            tokenizer, self.tokenizer_account = Tokenizer.load(self._made), json.loads(account.read_text("utf-8"))
            self._progress.end(f"{tokenizer.vocab_size:,} pieces, made before")
            return tokenizer
        made = obtain(wanted, self._sample(rows, wanted.sample_bytes), self._workers)
        made.tokenizer.save(self._made)
        self.tokenizer_account = made.account
        write_json(account, made.account)
        self._progress.end(made.said)
        return made.tokenizer

    def tokenize(self, rows: Rows, tokenizer: Tokenizer) -> list[Encoded]:
        """Tokenize every row; what came of each part.

        Raises:
            UserError: every example is too long.
        """
        self._progress.begin("tokenize", self._counts[0], "documents")
        about = (rows, self._made, tokenizer.fingerprint, self.recipe, self.classes)
        calls = ((encode, part, *about) for part in rows.parts)
        parts: list[Encoded] = []
        for part in in_order(self._hands, calls, 2 * self._workers + 2):
            parts.append(part)
            self._progress.advance(part.kept)
        drops = chain.from_iterable(read_drops(token_file(self._made, part)) for part in rows.parts)
        self._book("tokenize", (sum(part.kept for part in parts), sum(part.kept_bytes for part in parts)), drops)
        self._progress.end(f"{sum(sum(part.tokens.values()) for part in parts):,} tokens")
        self._need(f"within task.max_tokens = {self.recipe.task.max_tokens}")
        return parts

    def write(self, parts: list[Encoded], tokenizer: Tokenizer) -> list[Index]:
        """Shuffle the rows of each split and write shards, tables and indexes into the folder."""
        dtype = token_dtype(tokenizer.vocab_size)
        tokens = {split: sum(part.tokens[split] for part in parts) for split in SPLITS}
        self._progress.begin("write shards", sum(tokens.values()), "tokens")
        documents = sum(part.rows for part in parts)
        shards = plan(self._made, len(parts), documents, tokens, self.recipe.shard_tokens, self._memory)
        groups = [group for split in shards for group in grouped(split, self._memory // self._workers)]
        entries: dict[int, list[ShardEntry]] = {number: [] for number in range(len(SPLITS))}
        calls = ((write_group, self._made, group, len(parts), dtype) for group in groups)
        for group, made in zip(groups, in_order(self._hands, calls, self._workers), strict=True):
            entries[group[0].split] += made
            self._progress.advance(sum(entry.tokens for entry in made))
        indexes = []
        targets = targets_of(self.recipe.task) if self.recipe.kind == "examples" else None
        for number, split in enumerate(SPLITS):
            held = tuple(entries[number])
            index = Index(self._made, split, dtype, self.recipe.kind, tokenizer.fingerprint, held, targets)
            write_index(index, self.recipe.name)
            indexes.append(index)
        self._progress.end(", ".join(f"{index.split} {index.tokens:,} tokens" for index in indexes))
        return indexes

    def _look_for_evaluation_sets(self) -> None:
        self._progress.begin("evaluation sets", None, "texts")
        sets = collect(self.recipe.decontaminate, self.recipe.clean, self._work, self._memory)
        said = [f"{looked.name} {looked.texts:,} ({looked.too_short:,} too short to look for)" for looked in sets]
        self._progress.end(f"texts to look for: {', '.join(said)}")
        self.evaluation_account = {
            looked.name: {**asdict(looked), "runs": sum(looked.runs.values())} for looked in sets
        }

    def _readings(self) -> Iterator[tuple]:
        """Calls that give what became of each part, of finished ones what was said then."""
        finished = 0
        for number, part in enumerate(self._parts()):
            if part_file(self._work, number).exists():
                finished += 1
                yield prepared, self._work, number
            else:
                yield prepare, number, part, self._work, self.recipe
        if finished:
            self._progress.say(f"{finished:,} parts were finished before")

    def _parts(self) -> Iterator[list[corpus.Document]]:
        """Documents in runs of about 2 M characters."""
        part: list[corpus.Document] = []
        held = 0
        for document in corpus.pending(self.recipe.sources):
            part.append(document)
            held += (len(document.text) if document.text else document.bytes) + _DOCUMENT_CHARACTERS
            if held >= _CHUNK_CHARACTERS:
                yield part
                part, held = [], 0
        if part:
            yield part

    def _book_reading(self, parts: list[Prepared]) -> None:
        def drops(stage: str) -> Iterator[Drop]:
            held = chain.from_iterable(read_drops(part_file(self._work, part)) for part in range(len(parts)))
            return (drop for drop in held if drop.stage == stage)

        self._counts = (sum(part.documents for part in parts), sum(part.bytes for part in parts))
        count, size = self._counts
        for drop in drops("read"):  # a small `weight` drops most of a corpus: too many for a list
            count, size = count - 1, size - drop.bytes
        self._book("read", (count, size), drops("read"))
        changes: dict[str, Tally] = {}
        for part in parts:
            for rule, tally in part.changes.items():
                changes.setdefault(rule, Tally()).merge(tally)
        cleaned = (sum(part.cleaned for part in parts), sum(part.cleaned_bytes for part in parts))
        self._book("clean", cleaned, drops("clean"), changes)
        made = (sum(part.made for part in parts), sum(part.made_bytes for part in parts))
        if self.recipe.kind == "examples":
            self._book("examples", made, drops("examples"))
        if self.recipe.decontaminate.sets:
            kept = (sum(part.rows for part in parts), sum(part.row_bytes for part in parts))
            self._book("decontaminate", kept, drops("decontaminate"))

    def _book(
        self, stage: str, left: tuple[int, int], drops: Iterable[Drop], changes: dict[str, Tally] | None = None
    ) -> None:
        self.ledger.add(stage, self._counts, left, drops, changes)
        self._counts = left

    def _refuse_equal_ids(self, rows: Rows) -> None:
        """Equal hashes of ids are looked at: equal ids are an error, different ones chance."""
        for pairs in equal_rows(rows, "order", self._memory):
            for pair in zip(*pairs, strict=True):
                first, second = (self._id(rows, int(number)) for number in pair)
                if first == second:
                    raise UserError(f"two documents have the id {first!r}: two sources give the same ones")

    def _id(self, rows: Rows, number: int) -> str:
        part = int(np.searchsorted(rows.starts, number, "right")) - 1
        return read_part(part_file(self._work, part))["id"][number - int(rows.starts[part])].as_py()

    def _near_copies(self, rows: Rows) -> Iterator[np.ndarray]:
        bands = [band_name(band) for band in range(self.recipe.dedup.bands)]
        share = self._memory // min(self._workers, len(bands))
        calls = ((write_edges, rows, band, share) for band in bands)
        edges = list(in_order(self._hands, calls, self._workers + 1))
        return near_copies(rows, edges, self._memory)

    def _drop(self, rows: Rows, gone: Callable[[], Iterator[np.ndarray]], stage: str, rule: str) -> Rows:
        """The rows without those that `gone` finds (unless a build before this one has), booked."""
        name = f"after-{stage}"
        found = (self._work / name).exists()
        left = Rows(self._work, rows.starts, name) if found else rows.without(gone(), name)
        count, size = self._counts
        for drop in rows.lost(left, stage, rule):
            count, size = count - 1, size - drop.bytes
        self._book(stage, (count, size), rows.lost(left, stage, rule))
        return left

    def _need(self, what: str) -> None:
        if self._counts[0]:
            return
        reasons = "\n".join(self.ledger.lines()) or "  there was none to begin with"
        raise UserError(f"no document is left {what}. Dropped:\n{reasons}")

    def _need_training_rows(self, rows: Rows) -> None:
        if not any((splits == 0).any() for _, splits in rows.columns("split")):
            shares = self.recipe.split
            raise UserError(
                f"the split left none of the {self._counts[0]} documents for train (valid {shares.valid:g}, heldout "
                f"{shares.heldout:g}). Lower the shares, or deal anew with another seed."
            )

    def _sample(self, rows: Rows, limit: int) -> Iterator[str]:
        """Texts, picked by hash, of `limit` bytes at most."""
        sampler = Sampler(limit)
        for part in rows.parts:
            _, *about = self._training_rows(rows, part)
            sampler.count(*about)
        for part in rows.parts:
            places, *about = self._training_rows(rows, part)
            taken = sampler.taken(*about)
            content = read_part(part_file(self._work, part))["content"]
            for row, size in zip(places[taken > 0].tolist(), taken[taken > 0].tolist(), strict=True):
                text = text_of(content[row].as_py(), self.recipe)
                yield text.encode()[:size].decode("utf-8", "ignore")

    def _training_rows(self, rows: Rows, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of a part's rows in the train split: place in the part, source, draw for the sample, bytes."""
        batch = read_part(part_file(self._work, part))
        places = np.flatnonzero(rows.there(part) & (batch["split"].to_numpy() == 0))
        sources = np.array(batch["source"].take(places).to_pylist(), str)
        draws = (_sample_keys(batch["order"].to_numpy()[places]) >> np.uint64(11)) / float(1 << 53)
        return places, sources, draws, batch["bytes"].to_numpy()[places]


def _sample_keys(order: np.ndarray) -> np.ndarray:
    """Another order than the shards' (splitmix64's finaliser), so that a sample isn't the first of them."""
    keys = order.copy()
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    return keys ^ (keys >> np.uint64(31))
