"""The parts of a build that run in workers: plain functions from files to files, a chunk of documents each.

Chunks are cut by size, never by the number of workers, and results come back in the order of the chunks: that is
why the bytes don't depend on who did the work. Text and tokens travel through files in the build's folder: the
parent holds about half a kilobyte a document, and the executor may be a process pool or anything that shares the
folder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.clean.document import clean, combined, mend
from data.corpus import Document
from data.dedup import band_keys, exact_digest
from data.recipe import DatasetRecipe
from data.shard_writer import TokenDocument
from data.shards import token_dtype
from data.tally import Tally
from data.tasks import Example, example_uses, join_example, make_examples
from data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Drop:
    """One document that doesn't reach the dataset."""

    stage: str
    rule: str
    id: str
    bytes: int
    excerpt: str = ""
    """What was there, where that can be shown."""


@dataclass
class Prepared:
    """What a chunk's documents became: columns over the kept ones, whose text is in `NUMBER.text`."""

    ids: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    prompt_bytes: list[int] = field(default_factory=list)
    """UTF-8 bytes of the text, or of the prompt."""
    completion_bytes: list[int] = field(default_factory=list)
    keys: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint64))
    drops: list[Drop] = field(default_factory=list)
    changes: dict[str, Tally] = field(default_factory=dict)
    """What the rules changed in kept documents, by rule in the order they run."""
    cleaned: int = 0
    """Documents that passed the rules (where examples are made, not the number of those)."""
    cleaned_bytes: int = 0


def text_file(work: Path, chunk: int) -> Path:
    """Where a chunk's kept texts are, one after another."""
    return work / f"{chunk:06d}.text"


def token_file(work: Path, chunk: int) -> Path:
    """Where a chunk's tokens are."""
    return work / f"{chunk:06d}.tokens"


def prepare(chunk: int, documents: Sequence[Document], work: Path, recipe: DatasetRecipe) -> Prepared:
    """Clean a chunk, make examples of it if the recipe says so, write the texts, return digests and band keys."""
    said = Prepared()
    texts: list[str] = []
    with text_file(work, chunk).open("wb") as file:
        for document in documents:
            for item in _kept(document, recipe, said):
                prompt, completion = item.prompt.encode(), item.completion.encode()
                file.write(prompt + completion)
                whole = f"{item.prompt}\n{item.completion}" if recipe.kind == "examples" else item.prompt
                said.ids.append(item.id)
                said.origins.append(item.origin)
                said.sources.append(item.source)
                said.digests.append(exact_digest(whole))
                said.prompt_bytes.append(len(prompt))
                said.completion_bytes.append(len(completion))
                texts.append(whole)
    if recipe.dedup.near:
        said.keys = band_keys(texts, recipe.dedup)
    return said


def _kept(document: Document, recipe: DatasetRecipe, said: Prepared) -> list[Example]:
    """The document as items to keep; what is dropped goes to `said`. A text is an item without completion."""
    size = document.bytes
    if document.text is None:
        said.drops.append(Drop("read", "not_text", document.id, size))
        return []
    if document.completion is None:
        cleaned = clean(document.text, recipe.clean)
        if cleaned.text is None:
            said.drops.append(Drop("clean", cleaned.rule, document.id, size, cleaned.excerpt))
            return []
        text, completion, changes = cleaned.text, None, cleaned.changes
    else:
        text, changes = mend(document.text, recipe.clean)
        completion, more = mend(document.completion, recipe.clean)
        changes = combined(changes + more)
    for change in changes:
        said.changes.setdefault(change.rule, Tally()).add(document.id, change.items, change.bytes, change.excerpt)
    document = replace(document, text=text, completion=completion)
    said.cleaned += 1
    said.cleaned_bytes += document.bytes
    if recipe.kind == "text":
        return [Example(document.id, document.id, document.source, text, "")]
    made = make_examples(document, recipe.task)
    if made is None:
        said.drops.append(Drop("examples", f"not_for_{recipe.task.kind}", document.id, document.bytes))
        return []
    kept = []
    for example in made:
        if example.fault:
            size = len(example.prompt.encode()) + len(example.completion.encode())
            said.drops.append(Drop("examples", example.fault, example.id, size))
        else:
            kept.append(example)
    return kept


@dataclass(frozen=True)
class Slice:
    """The place of one kept item in a chunk's text file."""

    offset: int
    prompt_bytes: int
    completion_bytes: int


def encode(
    chunk: int, items: Sequence[Slice], work: Path, fingerprint: str, examples: bool, max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenize a chunk's surviving items into its token file, one after another.

    Args:
        fingerprint: of the tokenizer in `work`.

    Returns:
        Tokens of each item (int64; 0: an example longer than `max_tokens`, not written), and of its prompt with
        the marker (int64; 0 for a text).
    """
    tokenizer = _tokenizer(work, fingerprint)
    content = text_file(work, chunk).read_bytes()
    prompts = [content[item.offset : item.offset + item.prompt_bytes].decode() for item in items]
    encoded = tokenizer.encode_many(prompts)
    if examples:
        ends = [item.offset + item.prompt_bytes for item in items]
        parts = [content[end : end + item.completion_bytes] for end, item in zip(ends, items, strict=True)]
        completions = tokenizer.encode_many([part.decode() for part in parts])
        whole = [join_example(tokenizer, *pair) for pair in zip(encoded, completions, strict=True)]
        prompt_tokens = [len(prompt) + 1 for prompt in encoded]
    else:
        whole = [np.append(tokens, np.int32(tokenizer.eos_id)) for tokens in encoded]
        prompt_tokens = [0] * len(whole)
    lengths = [0 if examples and len(tokens) > max_tokens else len(tokens) for tokens in whole]
    with token_file(work, chunk).open("wb") as file:
        for tokens, length in zip(whole, lengths, strict=True):
            file.write(tokens[:length].astype(token_dtype(tokenizer.vocab_size)).tobytes())
    return np.array(lengths, np.int64), np.array(prompt_tokens, np.int64)


@lru_cache(maxsize=1)
def _tokenizer(work: Path, fingerprint: str) -> Tokenizer:
    """The build's tokenizer, parsed once a process; the fingerprint tells a later build in the same folder apart."""
    return Tokenizer.load(work)


@dataclass(frozen=True)
class Placed:
    """One document on its way from a chunk's token file into a shard."""

    chunk: int
    first: int
    """First token in the chunk's token file."""
    tokens: int
    prompt_tokens: int
    id: str
    source: str
    text_bytes: int
    digest: str


def gathered(placed: Sequence[Placed], work: Path, dtype: np.dtype, examples: bool) -> Iterator[TokenDocument]:
    """The documents' tokens, out of the chunks' token files."""
    maps: dict[int, np.ndarray] = {}
    for place in placed:
        if place.chunk not in maps:
            maps[place.chunk] = np.memmap(token_file(work, place.chunk), dtype, "r")
        tokens = maps[place.chunk][place.first : place.first + place.tokens]
        uses = example_uses(place.prompt_tokens, place.tokens) if examples else None
        yield TokenDocument(place.id, place.source, tokens, place.text_bytes, place.digest, uses)
