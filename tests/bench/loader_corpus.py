"""One corpus in the layouts of all loaders: real documents, tokenized once, repeated to a chosen size.

English and Chinese text where `LUBAN_CORPORA` has it, some 450 tokens a document, as the web's have; else the standard
library's sources, twelve times as long, which is kinder to loaders that handle documents one by one.
"""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.build.build import build, digests
from data.dataset import FILE, Dataset, load_dataset
from data.errors import UserError
from data.publish import write_json
from data.recipe import DatasetRecipe, Source, Split, TokenizerTraining
from data.shard_writer import TokenDocument
from tests.splits import write_split

CORPORA = Path(os.environ.get("LUBAN_CORPORA", Path(__file__).parents[3] / "shared" / "corpora"))
TEXTS = ("pretrain_en_tech/en_tech.jsonl.gz", "pretrain_zh_poetry/poetry.jsonl.gz")
CONTEXT, BATCH = 2048, 8
VOCABULARY = 16384
SHARD_TOKENS = 4_194_304


def home() -> Path:
    """Where benchmarks keep what they make once."""
    folder = Path(os.environ.get("LUBAN_BENCH", Path.home() / ".cache" / "luban-bench"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def dataset(home: Path) -> Dataset:
    """The corpus as a dataset, built once; anew where another version of Luban has built it."""
    texts = [CORPORA / name for name in TEXTS]
    found = all(path.exists() for path in texts)
    sources = tuple(Source(kind="jsonl", path=str(path)) for path in texts) if found else (Source(kind="stdlib"),)
    recipe = DatasetRecipe(
        name="texts" if found else "stdlib", sources=sources, tokenizer=TokenizerTraining(vocab_size=VOCABULARY),
        split=Split(valid=0.0),
    )  # fmt: skip
    folder = home / recipe.name
    if (folder / FILE).exists():
        try:
            known = load_dataset(folder)
            known.index("train")
            return known
        except UserError:
            shutil.rmtree(folder)
    return build(recipe, folder)


def documents(source: Dataset, copies: int) -> Iterator[np.ndarray]:
    """Each document's tokens (uint16), EOS included; all of them `copies` times."""
    for _ in range(copies):
        for _, tokens in source.documents("train"):
            yield np.asarray(tokens, np.uint16)


def write_flat(source: Dataset, copies: int, path: Path) -> int:
    """All tokens in one file, as a memmap wants them. Returns how many."""
    held = np.concatenate(list(documents(source, copies)))
    held.tofile(path)
    return len(held)


def write_webdataset(source: Dataset, copies: int, folder: Path, suffix: str) -> None:
    """Stock WebDataset: a document a sample, `npy` or raw `bin`, in shards of 4 M tokens."""
    folder.mkdir()
    shard, room, tar = 0, 0, None
    for number, tokens in enumerate(documents(source, copies)):
        if tar is None or room <= 0:
            if tar is not None:
                tar.close()
            tar = tarfile.open(folder / f"docs-{shard:06d}.tar", "w")  # noqa: SIM115
            shard, room = shard + 1, SHARD_TOKENS
        buffer = io.BytesIO()
        if suffix == "npy":
            np.save(buffer, tokens)
        else:
            buffer.write(tokens.tobytes())
        entry = tarfile.TarInfo(f"{number:09d}.{suffix}")
        entry.size = buffer.tell()
        buffer.seek(0)
        tar.addfile(entry, buffer)
        room -= len(tokens)
    if tar is not None:
        tar.close()


def write_luban(source: Dataset, copies: int, folder: Path) -> None:
    """A dataset of Luban's with the repeated documents, complete, so that it can be streamed."""
    held = [
        TokenDocument(f"{number:09d}", "texts", tokens, 3 * len(tokens), f"{number:032x}")
        for number, tokens in enumerate(documents(source, copies))
    ]
    index = write_split(folder, "train", held, np.dtype("<u2"), source.tokenizer().fingerprint)
    splits = {}
    for split in ("valid", "heldout"):
        empty = write_split(folder, split, [], np.dtype("<u2"), index.tokenizer)
        splits[split] = {**source.info["splits"][split], "fingerprint": empty.fingerprint}
    source.tokenizer().save(folder)
    train = {"fingerprint": index.fingerprint, "shards": len(index.shards), "documents": index.documents,
             "tokens": index.tokens, "text_bytes": index.text_bytes}  # fmt: skip
    write_json(folder / FILE, {**source.info, "splits": {**splits, "train": train}, "files": digests(folder)})
