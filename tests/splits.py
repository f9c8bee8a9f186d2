"""Splits written from documents in memory, for tests and benchmarks; a build writes the same files from disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.shard_writer import (
    BLOCK_TOKENS,
    SHARD_TOKENS,
    TokenDocument,
    plan_shards,
    shard_name,
    write_index,
    write_shard,
)
from data.shards import Index, ShardEntry, Targets


def write_split(
    folder: Path,
    split: str,
    documents: Sequence[TokenDocument],
    dtype: np.dtype,
    tokenizer: str,
    kind: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    block_tokens: int = BLOCK_TOKENS,
    targets: Targets | None = None,
) -> Index:
    """Write a whole split from documents in memory, in their order, in this process.

    `tokenizer` is a fingerprint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[ShardEntry] = []
    first_block = 0
    for number, part in enumerate(plan_shards([len(document.tokens) for document in documents], shard_tokens)):
        name = shard_name(split, number)
        shards.append(write_shard(folder, name, documents[part], dtype, first_block, block_tokens))
        first_block += shards[-1].samples
    index = Index(folder, split, np.dtype(dtype), kind, tokenizer, tuple(shards), targets)
    write_index(index, folder.name)
    return index
