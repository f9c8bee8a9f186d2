"""The parts of a build that run in workers: plain functions from files to files, some 2 MB of documents each.

Parts are cut by size, never by the number of workers, and what is said of them is taken in their order: that is why
the bytes don't depend on who did the work. Everything travels through files in the build's folder, so the executor
may be a process pool or anything that shares the folder; a part that is there already is not made again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from data.build.parts import Drop, Rows, about_part, part_file, read_part, token_file, write_part
from data.build.tally import Tally
from data.clean.document import Change, clean, combined, mend
from data.clean.excerpt import RAW
from data.corpus import Document, ready
from data.dedup.decontaminate import find
from data.dedup.minhash import band_keys
from data.recipe import DatasetRecipe
from data.shards import SPLITS, USE_DTYPE, token_dtype
from data.tasks.encode import encode_examples, targets_of
from data.tasks.example import Example, example_of, read_line
from data.tasks.make import make_examples
from data.tasks.summary import Counts, counted
from data.tokenizer.tokenizer import Tokenizer

_CARRIED = ("id", "source", "language", "split", "order", "digest_high", "digest_low", "bytes")
"""Columns that go from a part's rows to their tokens."""


@dataclass
class Prepared:
    """What became of a part's documents, beside the rows in its file. Sizes in UTF-8 bytes of text."""

    documents: int = 0
    """Read."""
    bytes: int = 0
    cleaned: int = 0
    """Documents that passed the rules (where examples are made, not the number of those)."""
    cleaned_bytes: int = 0
    made: int = 0
    """Documents or examples before those of evaluation sets were dropped."""
    made_bytes: int = 0
    rows: int = 0
    row_bytes: int = 0
    labels: list[str] = field(default_factory=list)
    """The classes seen, sorted, where the task doesn't declare them."""
    changes: dict[str, Tally] = field(default_factory=dict)
    """What the rules changed in kept documents, by rule in the order they run."""

    @classmethod
    def from_json(cls, about: dict[str, Any]) -> "Prepared":
        """The inverse of `asdict`."""
        made = cls(**about)
        for rule, tally in about["changes"].items():
            made.changes[rule] = Tally(**tally | {"examples": [tuple(shown) for shown in tally["examples"]]})
        return made


@dataclass
class Encoded:
    """What became of a part's rows, beside the tokens in its file."""

    rows: int = 0
    """With tokens; more than `kept` where a question has several windows."""
    kept: int = 0
    """Documents or examples that became rows: the others were too long."""
    kept_bytes: int = 0
    examples: Counts = field(default_factory=dict)
    """What dataset.json counts of examples."""
    tokens: dict[str, int] = field(default_factory=dict)
    """By split."""
    sources: dict[str, list[int]] = field(default_factory=dict)
    """By source: documents, tokens, UTF-8 bytes of text."""
    languages: dict[str, list[int]] = field(default_factory=dict)
    """By language, the same."""


def prepared(work: Path, part: int) -> Prepared | None:
    """What `prepare` said of a part that is finished."""
    about = about_part(part_file(work, part))
    return None if about is None else Prepared.from_json(about)


def prepare(part: int, documents: Sequence[Document], work: Path, recipe: DatasetRecipe) -> Prepared:
    """Clean a part's documents, make examples of them if the recipe says so, and write rows for what is kept."""
    import pyarrow

    documents = [ready(document) for document in documents]
    said = Prepared(len(documents), sum(document.bytes for document in documents))
    drops: list[Drop] = []
    languages: list[str] = []
    items = [item for document in documents for item in _kept(document, recipe, said, drops, languages)]
    said.made, said.made_bytes = len(items), sum(item.text_bytes for item in items)
    if recipe.decontaminate.sets:
        unseen = [_unseen(item, work, recipe, drops) for item in items]
        items, languages = list(compress(items, unseen)), list(compress(languages, unseen))
    texts = [item.text for item in items]
    digests = [_digest(text) for text in texts]
    sizes = [item.text_bytes for item in items]
    columns: dict[str, Any] = {
        "id": pyarrow.array([item.id for item in items], pyarrow.string()),
        "source": pyarrow.array([item.source for item in items], pyarrow.string()),
        "language": pyarrow.array(languages, pyarrow.string()),
        "split": _splits(recipe, items),
        "order": _hashes(recipe, "order", [item.id for item in items]),
        "digest_high": np.array([digest >> 64 for digest in digests], np.uint64),
        "digest_low": np.array([digest & (1 << 64) - 1 for digest in digests], np.uint64),
        "bytes": np.array(sizes, np.int64),
        "content": pyarrow.array([_content(item, recipe) for item in items], pyarrow.large_binary()),
    }
    if recipe.dedup.near:
        columns |= {band_name(band): keys for band, keys in enumerate(band_keys(texts, recipe.dedup).T)}
    said.rows, said.row_bytes = len(items), sum(sizes)
    if recipe.task.has_classes and not recipe.task.labels:
        said.labels = sorted({item.target for item in items})
    write_part(part_file(work, part), columns, asdict(said), drops)
    return said


def band_name(band: int) -> str:
    """The column of a part that holds the keys of a band."""
    return f"band_{band:02d}"


def text_of(content: bytes, recipe: DatasetRecipe) -> str:
    """The text of a row, from its content: what copies are found, and a tokenizer learns, by."""
    return content.decode() if recipe.kind == "text" else read_line(content).text


def _unseen(item: Example, work: Path, recipe: DatasetRecipe, drops: list[Drop]) -> bool:
    """Whether no evaluation set holds of the item what it must not; else it goes to `drops`."""
    found = find(item.text, work, recipe.decontaminate.overlap)
    if found:
        drops.append(Drop("decontaminate", f"in_{found.name}", item.id, item.text_bytes, found.text[:RAW]))
    return found is None


def _content(item: Example, recipe: DatasetRecipe) -> bytes:
    """What a part holds of an item: a text is itself, an example JSON."""
    return item.text.encode() if recipe.kind == "text" else item.line()


def _digest(text: str) -> int:
    import xxhash

    return xxhash.xxh3_128_intdigest(text.encode())


def _splits(recipe: DatasetRecipe, items: Sequence[Example]) -> np.ndarray:
    """Each row's split, as a position in SPLITS (uint8): its source's `into`, else by a hash of its document's id."""
    shares = recipe.split
    draws = (_hashes(recipe, "split", [item.origin for item in items]) >> np.uint64(11)) / float(1 << 53)
    dealt = np.where(draws < shares.heldout, 2, np.where(draws < shares.heldout + shares.valid, 1, 0)).astype(np.uint8)
    into = {source.label: SPLITS.index(source.into) for source in recipe.sources if source.into is not None}
    for number, item in enumerate(items if into else ()):
        if item.source in into:
            dealt[number] = into[item.source]
    return dealt


def _hashes(recipe: DatasetRecipe, use: str, ids: Iterable[str]) -> np.ndarray:
    """A hash (uint64) of each id, keyed by dataset, seed and use."""
    import xxhash

    key = f"{recipe.name}\0{recipe.seed}\0{use}\0"
    return np.array([xxhash.xxh3_64_intdigest(f"{key}{id_}".encode()) for id_ in ids], np.uint64)


def _kept(
    document: Document, recipe: DatasetRecipe, said: Prepared, drops: list[Drop], languages: list[str]
) -> list[Example]:
    """The document as items to keep, the language of each added to `languages`; what is dropped goes to `drops`. A
    text is an item of one field."""
    size = document.bytes
    if document.text is not None:
        cleaned = clean(document.text, recipe.rules_for(document.source))
        if cleaned.text is None:
            drops.append(Drop("clean", cleaned.rule, document.id, size, cleaned.sample))
            return []
        if recipe.languages is not None and cleaned.language not in recipe.languages:
            drops.append(Drop("clean", "other_language", document.id, size, cleaned.text[:RAW]))
            return []
        document, changes, language = replace(document, text=cleaned.text), cleaned.changes, cleaned.language
    elif document.fields is not None:
        (document, changes), language = _mended(document, recipe), ""
    else:
        drops.append(Drop("read", document.fault or "not_text", document.id, size))
        return []
    for change in changes:
        said.changes.setdefault(change.rule, Tally()).add(document.id, change.items, change.bytes, change.sample)
    said.cleaned += 1
    said.cleaned_bytes += document.bytes
    if recipe.kind == "text":
        languages.append(language)
        return [example_of(document, [("text", document.text or "")])]
    made = make_examples(document, recipe.task)
    if made is None:
        drops.append(Drop("examples", f"not_for_{recipe.task.kind}", document.id, document.bytes))
        return []
    drops += [
        Drop("examples", example.fault, example.id, example.text_bytes or document.bytes)
        for example in made
        if example.fault
    ]
    kept = [example for example in made if not example.fault]
    languages += [language] * len(kept)
    return kept


def _mended(document: Document, recipe: DatasetRecipe) -> tuple[Document, tuple[Change, ...]]:
    """A row's texts as the rules that change text leave them; not those of qa, whose answers are places in them."""
    if recipe.task.kind == "qa":
        return document, ()
    changes: list[Change] = []

    def through(value: Any) -> Any:
        if isinstance(value, str):
            text, more = mend(value, recipe.rules_for(document.source))
            changes.extend(more)
            return text
        if isinstance(value, dict):
            return {name: through(held) for name, held in value.items()}
        return [through(held) for held in value] if isinstance(value, list) else value

    return replace(document, fields=through(dict(document.fields or {}))), combined(changes)


def encode(part: int, rows: Rows, made: Path, fingerprint: str, recipe: DatasetRecipe,
           classes: Sequence[str] = ()) -> Encoded:  # fmt: skip
    """Tokenize a part's surviving rows, sorted by split and by the hash that shuffles them.

    A shard is a range of those hashes, so whoever writes it finds its documents in one piece of each part.

    Args:
        made: the folder for the tokens, with the tokenizer in it.
        fingerprint: of that tokenizer.
        classes: names of the task's classes in the order of their ids.
    """
    import pyarrow

    path = token_file(made, part)
    if (about := about_part(path)) is not None:
        return Encoded(**about)
    tokenizer = _tokenizer(made, fingerprint)
    batch = read_part(part_file(rows.work, part))
    there = np.flatnonzero(rows.there(part))
    said = Encoded(len(there), len(there), int(batch["bytes"].to_numpy()[there].sum()))
    drops: list[Drop] = []
    if recipe.kind == "text":
        batch = batch.take(there[_shuffled(batch, there)])
        texts = tokenizer.encode_many([content.decode() for content in batch["content"].to_pylist()])
        tokens = [np.append(held, np.int32(tokenizer.eos_id)) for held in texts]
        columns = {name: batch[name] for name in _CARRIED}
    else:
        columns, tokens = _examples(batch.take(there), tokenizer, recipe, classes, said, drops)
    lengths = np.array([len(held) for held in tokens], np.int64)
    columns["length"] = pyarrow.array(lengths)
    columns["tokens"] = _lists(tokens, token_dtype(tokenizer.vocab_size))
    splits = columns["split"].to_numpy()
    said.tokens = {split: int(lengths[splits == number].sum()) for number, split in enumerate(SPLITS)}
    for name, sums in (("source", said.sources), ("language", said.languages)):
        for held, size, length in zip(columns[name].to_pylist(), columns["bytes"].to_pylist(), lengths, strict=True):
            counts = sums.setdefault(held, [0, 0, 0])
            sums[held] = [counts[0] + 1, counts[1] + int(length), counts[2] + size]
    write_part(path, columns, asdict(said), drops)
    return said


def _shuffled(batch: Any, rows: np.ndarray) -> np.ndarray:
    """The order of some rows by split and hash."""
    return np.lexsort((batch["order"].to_numpy()[rows], batch["split"].to_numpy()[rows]))


def _examples(
    batch: Any, tokenizer: Tokenizer, recipe: DatasetRecipe, classes: Sequence[str], said: Encoded, drops: list[Drop]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The columns and tokens of the rows that examples become. A question's window has an id and a place of its own."""
    import pyarrow

    made = encode_examples([read_line(line) for line in batch["content"].to_pylist()], tokenizer, recipe.task, classes)
    ids, sizes = batch["id"].to_pylist(), batch["bytes"].to_pylist()
    for number, rule in sorted(made.faults.items()):
        drops.append(Drop("tokenize", rule, ids[number], sizes[number]))
        said.kept, said.kept_bytes = said.kept - 1, said.kept_bytes - sizes[number]
    said.rows = len(made.tokens)
    said.examples = counted(made, batch["split"].to_pylist())
    owners = np.array(made.owners, np.int64)
    columns = {name: batch[name].take(pyarrow.array(owners)) for name in _CARRIED}
    windowed = [window >= 0 for window in made.windows]
    if any(windowed):
        names = [f"{ids[owner]}#window-{window}" for owner, window in zip(made.owners, made.windows, strict=True)]
        columns["id"], columns["order"] = pyarrow.array(names), pyarrow.array(_hashes(recipe, "order", names))
    cut = [windowed[row] or made.notes[owner]["truncated"] > 0 for row, owner in enumerate(made.owners)]
    held = [int(tokenizer.piece_bytes[tokens].sum()) if cut[row] else sizes[made.owners[row]]
            for row, tokens in enumerate(made.tokens)]  # fmt: skip
    columns["bytes"] = pyarrow.array(held, pyarrow.int64())
    columns["uses"] = _lists(made.uses, USE_DTYPE)
    columns["about"] = pyarrow.array(made.abouts, pyarrow.string())
    if (targets := targets_of(recipe.task)) is not None:
        columns["targets"] = _lists([np.array(each) for each in made.targets], targets.dtype)
    order = pyarrow.array(_shuffled(columns, np.arange(len(owners))))
    columns = {name: column.take(order) for name, column in columns.items()}
    return columns, [made.tokens[row] for row in order.to_pylist()]


def _lists(arrays: Sequence[np.ndarray], dtype: np.dtype) -> Any:
    import pyarrow

    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    values = np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)
    return pyarrow.LargeListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values))


@lru_cache(maxsize=1)
def _tokenizer(made: Path, fingerprint: str) -> Tokenizer:
    """The build's tokenizer, parsed once a process; the fingerprint tells a later build in the same folder apart."""
    return Tokenizer.load(made)
