"""The reader of shards against a numpy memmap of the same tokens: shuffled rows to int64 batches.

The memmap's order is a permutation drawn beforehand, as a plain training script has it; ours computes its order, finds
the documents inside each row, and carries positions, all of which is in its time.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from data.order.order import Order
from data.reader import LocalReader, layout
from data.shard_writer import TokenDocument
from data.shards import MappedShard
from tests.bench.rounds import median, ratio, turns
from tests.splits import write_split

TOKENS, CONTEXT, ROWS, BATCHES = 32_000_000, 2048, 8, 150


def main() -> None:
    """Print million tokens a second and the ratio."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        lengths = random.integers(200, 4000, TOKENS // 2000)
        documents = [
            TokenDocument(f"d{i}", "random", random.integers(0, 32000, n, dtype=np.uint16), int(n) * 4, "0" * 16)
            for i, n in enumerate(lengths)
        ]
        index = write_split(Path(folder), "train", documents, np.dtype(np.uint16), "none", shard_tokens=4_000_000)
        flat = np.concatenate([MappedShard(index.folder, s, index.dtype).tokens(0, s.tokens) for s in index.shards])
        flat.tofile(Path(folder) / "tokens.bin")
        memmap = np.memmap(Path(folder) / "tokens.bin", np.uint16, "r")
        for context in (256, CONTEXT):
            rows = ROWS * CONTEXT // context
            reader = LocalReader(index, Order(layout(index, context), 0, 16), context)
            permutation = random.permutation((len(memmap) - 1) // context)
            place = {"ours": 0, "memmap": 0}

            def ours(reader=reader, rows=rows, place=place) -> None:
                for _ in range(BATCHES):
                    torch.from_numpy(reader.rows(np.arange(place["ours"], place["ours"] + rows)).tokens)
                    place["ours"] += rows

            def plain(context=context, rows=rows, place=place, permutation=permutation) -> None:
                for _ in range(BATCHES):
                    starts = (
                        permutation[np.arange(place["memmap"], place["memmap"] + rows) % len(permutation)] * context
                    )
                    batch = np.stack([memmap[start : start + context + 1].astype(np.int64) for start in starts])
                    torch.from_numpy(batch)
                    place["memmap"] += rows

            seconds = turns({"ours": ours, "memmap": plain}, 9)
            tokens = BATCHES * rows * context / 1e6
            print(
                f"rows of {context:5}: shards {tokens / median(seconds['ours']):6.0f} Mtok/s, "
                f"memmap {tokens / median(seconds['memmap']):6.0f} Mtok/s, "
                f"ratio {ratio(seconds['ours'], seconds['memmap']):.2f}"
            )


if __name__ == "__main__":
    main()
