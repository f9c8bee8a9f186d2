"""A dataset of random tokens with shards of a known size, for tests of reading it from somewhere else."""

from pathlib import Path

import numpy as np

from data.build.build import digests
from data.dataset import FILE, FORMAT, VERSION, describe_tokenizer
from data.publish import write_json
from data.remote.patience import Patience
from data.remote.remote import Access
from data.shard_writer import TokenDocument
from data.tokenizer.tokenizer import Tokenizer
from tests.splits import write_split

QUICK = Patience(tries=3, timeout_s=20.0, backoff_s=0.02)


def documents(count: int, longest: int, kind: str, seed: int = 0) -> list[TokenDocument]:
    draw = np.random.default_rng(seed)
    made = []
    for number in range(count):
        length = int(draw.integers(1, longest))
        uses = draw.integers(0, 4, length).astype(np.uint8) if kind == "examples" else None
        tokens = draw.integers(4, 900, length)
        made.append(TokenDocument(f"doc{number}", "made", tokens, 3 * length, f"{number:032x}", uses))
    return made


def made(folder: Path, like: Path, kind: str = "text", count: int = 1000, longest: int = 600,
         shard_tokens: int = 40_000, block_tokens: int = 8192, seed: int = 0) -> Path:  # fmt: skip
    """A complete dataset in `folder`, with the tokenizer of the one in `like`."""
    folder.mkdir()
    tokenizer = Tokenizer.load(like)
    for path in like.iterdir():
        if path.name.startswith("tokenizer"):
            (folder / path.name).write_bytes(path.read_bytes())
    splits = {}
    for split, part in (("train", count), ("valid", count // 10), ("heldout", 0)):
        index = write_split(
            folder, split, documents(part, longest, kind, seed + len(split)), np.dtype("<u2"), tokenizer.fingerprint,
            kind, shard_tokens, block_tokens,
        )  # fmt: skip
        splits[split] = {
            "fingerprint": index.fingerprint, "shards": len(index.shards), "documents": index.documents,
            "tokens": index.tokens, "text_bytes": index.text_bytes,
        }  # fmt: skip
    info = {
        "format": FORMAT, "version": VERSION, "name": folder.name, "kind": kind, "bytes_per_token": 3.0,
        "splits": splits, "tokenizer": describe_tokenizer(tokenizer), "files": digests(folder),
        "stages": [], "sources": {}, "licences": {},
        "documents": sum(each["documents"] for each in splits.values()),
        "tokens": sum(each["tokens"] for each in splits.values()),
        "text_bytes": sum(each["text_bytes"] for each in splits.values()),
    }  # fmt: skip
    write_json(folder / FILE, info)
    return folder


def quick(cache: Path, cache_bytes: int = 10**9, streams: int = 3, patience: Patience = QUICK) -> Access:
    return Access(cache, cache_bytes, streams, patience)
