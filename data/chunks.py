"""The parts of a build that run in workers: plain functions from files to files, some 2 MB of documents each.

Parts are cut by size, never by the number of workers, and what is said of them is taken in their order: that is why
the bytes don't depend on who did the work. Everything travels through files in the build's folder, so the executor
may be a process pool or anything that shares the folder; a part that is there already is not made again.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from data.clean.document import clean, combined, mend
from data.clean.excerpt import RAW
from data.corpus import Document
from data.decontaminate import find
from data.dedup import band_keys
from data.parts import Drop, Rows, about_part, part_file, read_part, token_file, write_part
from data.recipe import DatasetRecipe
from data.shards import SPLITS, token_dtype
from data.tally import Tally
from data.tasks import Example, example_uses, join_example, make_examples
from data.tokenizer import Tokenizer


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
    """With tokens: the others were too long."""
    row_bytes: int = 0
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

    said = Prepared(len(documents), sum(document.bytes for document in documents))
    drops: list[Drop] = []
    languages: list[str] = []
    items = [item for document in documents for item in _kept(document, recipe, said, drops, languages)]
    said.made, said.made_bytes = len(items), sum(_size(item) for item in items)
    if recipe.decontaminate.sets:
        unseen = [_unseen(item, work, recipe, drops) for item in items]
        items, languages = list(compress(items, unseen)), list(compress(languages, unseen))
    texts = [_text(item) for item in items]
    digests = [_digest(text) for text in texts]
    sizes = [_size(item) for item in items]
    columns: dict[str, Any] = {
        "id": pyarrow.array([item.id for item in items], pyarrow.string()),
        "source": pyarrow.array([item.source for item in items], pyarrow.string()),
        "language": pyarrow.array(languages, pyarrow.string()),
        "split": _splits(recipe, [item.origin for item in items]),
        "order": _hashes(recipe, "order", [item.id for item in items]),
        "digest_high": np.array([digest >> 64 for digest in digests], np.uint64),
        "digest_low": np.array([digest & (1 << 64) - 1 for digest in digests], np.uint64),
        "bytes": np.array(sizes, np.int64),
        "content": pyarrow.array([_content(item, recipe) for item in items], pyarrow.large_binary()),
    }
    if recipe.dedup.near:
        columns |= {band_name(band): keys for band, keys in enumerate(band_keys(texts, recipe.dedup).T)}
    said.rows, said.row_bytes = len(items), sum(sizes)
    write_part(part_file(work, part), columns, asdict(said), drops)
    return said


def band_name(band: int) -> str:
    """The column of a part that holds the keys of a band."""
    return f"band_{band:02d}"


def text_of(content: bytes, recipe: DatasetRecipe) -> str:
    """The text of a row, from its content: what copies are found, and a tokenizer learns, by."""
    return _text(_item(content, recipe))


def _text(item: Example) -> str:
    return f"{item.prompt}\n{item.completion}" if item.completion else item.prompt


def _size(item: Example) -> int:
    return len(item.prompt.encode()) + len(item.completion.encode())


def _unseen(item: Example, work: Path, recipe: DatasetRecipe, drops: list[Drop]) -> bool:
    """Whether no evaluation set holds of the item what it must not; else it goes to `drops`."""
    found = find(_text(item), work, recipe.decontaminate.overlap)
    if found:
        drops.append(Drop("decontaminate", f"in_{found.name}", item.id, _size(item), found.text[:RAW]))
    return found is None


def _content(item: Example, recipe: DatasetRecipe) -> bytes:
    """What a part holds of an item: a text is itself, an example JSON."""
    return (item.prompt if recipe.kind == "text" else json.dumps([item.prompt, item.completion])).encode()


def _item(content: bytes, recipe: DatasetRecipe) -> Example:
    """The inverse of `_content`; what travels apart is empty."""
    return Example("", "", "", *((content.decode(), "") if recipe.kind == "text" else json.loads(content)))


def _digest(text: str) -> int:
    import xxhash

    return xxhash.xxh3_128_intdigest(text.encode())


def _splits(recipe: DatasetRecipe, origins: Sequence[str]) -> np.ndarray:
    """Each row's split by a hash of its source document's id, as a position in SPLITS (uint8)."""
    shares = recipe.split
    draws = (_hashes(recipe, "split", origins) >> np.uint64(11)) / float(1 << 53)
    return np.where(draws < shares.heldout, 2, np.where(draws < shares.heldout + shares.valid, 1, 0)).astype(np.uint8)


def _hashes(recipe: DatasetRecipe, use: str, ids: Iterable[str]) -> np.ndarray:
    """A hash (uint64) of each id, keyed by dataset, seed and use."""
    import xxhash

    key = f"{recipe.name}\0{recipe.seed}\0{use}\0"
    return np.array([xxhash.xxh3_64_intdigest(f"{key}{id_}".encode()) for id_ in ids], np.uint64)


def _kept(
    document: Document, recipe: DatasetRecipe, said: Prepared, drops: list[Drop], languages: list[str]
) -> list[Example]:
    """The document as items to keep, the language of each added to `languages`; what is dropped goes to `drops`. A
    text is an item without completion."""
    size = document.bytes
    if document.text is None:
        drops.append(Drop("read", "not_text", document.id, size))
        return []
    if document.completion is None:
        cleaned = clean(document.text, recipe.clean)
        if cleaned.text is None:
            drops.append(Drop("clean", cleaned.rule, document.id, size, cleaned.sample))
            return []
        if recipe.languages is not None and cleaned.language not in recipe.languages:
            drops.append(Drop("clean", "other_language", document.id, size, cleaned.text[:RAW]))
            return []
        text, completion, changes, language = cleaned.text, None, cleaned.changes, cleaned.language
    else:
        text, changes = mend(document.text, recipe.clean)
        completion, more = mend(document.completion, recipe.clean)
        changes, language = combined(changes + more), ""
    for change in changes:
        said.changes.setdefault(change.rule, Tally()).add(document.id, change.items, change.bytes, change.sample)
    document = replace(document, text=text, completion=completion)
    said.cleaned += 1
    said.cleaned_bytes += document.bytes
    if recipe.kind == "text":
        languages.append(language)
        return [Example(document.id, document.id, document.source, text, "")]
    made = make_examples(document, recipe.task)
    if made is None:
        drops.append(Drop("examples", f"not_for_{recipe.task.kind}", document.id, document.bytes))
        return []
    kept = []
    for example in made:
        if example.fault:
            size = len(example.prompt.encode()) + len(example.completion.encode())
            drops.append(Drop("examples", example.fault, example.id, size))
        else:
            kept.append(example)
            languages.append(language)
    return kept


def encode(part: int, rows: Rows, fingerprint: str, recipe: DatasetRecipe) -> Encoded:
    """Tokenize a part's surviving rows, sorted by split and by the hash that shuffles them.

    A shard is a range of those hashes, so whoever writes it finds its documents in one piece of each part.

    Args:
        fingerprint: of the tokenizer in the build's folder.
    """
    import pyarrow

    path = token_file(rows.work, part)
    if (about := about_part(path)) is not None:
        return Encoded(**about)
    tokenizer = _tokenizer(rows.work, fingerprint)
    batch = read_part(part_file(rows.work, part))
    there = np.flatnonzero(rows.there(part))
    batch = batch.take(there[np.lexsort((batch["order"].to_numpy()[there], batch["split"].to_numpy()[there]))])
    items = [_item(content, recipe) for content in batch["content"].to_pylist()]
    tokens, uses = _encode(items, tokenizer, recipe)
    short = np.array([not uses or len(held) <= recipe.task.max_tokens for held in tokens], bool)
    ids, sizes = batch["id"].to_pylist(), batch["bytes"].to_pylist()
    drops = [Drop("tokenize", "example_too_long", ids[at], sizes[at]) for at in np.flatnonzero(~short)]
    kept = np.flatnonzero(short)
    batch, tokens, uses = batch.take(kept), [tokens[at] for at in kept], [uses[at] for at in kept] if uses else []
    lengths = np.array([len(held) for held in tokens], np.int64)
    columns = {
        name: batch[name]
        for name in ("id", "source", "language", "split", "order", "digest_high", "digest_low", "bytes")
    }
    columns["length"] = pyarrow.array(lengths)
    columns["tokens"] = _lists(tokens, token_dtype(tokenizer.vocab_size))
    if uses:
        columns["uses"] = _lists(uses, uses[0].dtype)
    said = Encoded(len(batch), int(batch["bytes"].to_numpy().sum()))
    splits = batch["split"].to_numpy()
    said.tokens = {split: int(lengths[splits == number].sum()) for number, split in enumerate(SPLITS)}
    for name, counted in (("source", said.sources), ("language", said.languages)):
        for held, size, length in zip(batch[name].to_pylist(), batch["bytes"].to_pylist(), lengths, strict=True):
            counts = counted.setdefault(held, [0, 0, 0])
            counted[held] = [counts[0] + 1, counts[1] + int(length), counts[2] + size]
    write_part(path, columns, asdict(said), drops)
    return said


def _encode(
    items: list[Example], tokenizer: Tokenizer, recipe: DatasetRecipe
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each row's tokens, and in a dataset of examples the use of each."""
    firsts = tokenizer.encode_many([item.prompt for item in items])
    if recipe.kind == "text":
        return [np.append(tokens, np.int32(tokenizer.eos_id)) for tokens in firsts], []
    pairs = list(zip(firsts, tokenizer.encode_many([item.completion for item in items]), strict=True))
    whole = [join_example(tokenizer, *pair) for pair in pairs]
    return whole, [example_uses(len(pair[0]) + 1, len(tokens)) for pair, tokens in zip(pairs, whole, strict=True)]


def _lists(arrays: Sequence[np.ndarray], dtype: np.dtype) -> Any:
    import pyarrow

    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    values = np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)
    return pyarrow.LargeListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values))


@lru_cache(maxsize=1)
def _tokenizer(work: Path, fingerprint: str) -> Tokenizer:
    """The build's tokenizer, parsed once a process; the fingerprint tells a later build in the same folder apart."""
    return Tokenizer.load(work)
