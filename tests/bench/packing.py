"""Making packing plans: million tokens a second of one process, how full the rows are, how many documents are cut.

Lengths are drawn from a lognormal (sigma 1, as of web pages), in shards of 4 M tokens; the time is that of a shard's
whole plan, its file included. Where the corpora are, also the real lengths of English technical text.
"""

import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np

from data.build.workplace import InProcess
from data.order.order import Order
from data.order.pack import pack
from data.order.packing import fill, load_packing
from data.reader import LocalReader, layout
from data.shard_writer import TokenDocument
from data.shards import Index
from tests.bench.rounds import median
from tests.corpora import texts
from tests.splits import write_split

SHARDS, SHARD_TOKENS, ROUNDS = 4, 4_194_304, 5
CASES = ((256, 500), (2048, 500), (2048, 20), (8192, 2000), (32768, 2000))  # context, mean tokens of a document

METHODS: tuple[Literal["best_fit", "chop"], ...] = ("best_fit", "chop")


def drawn(mean: int) -> np.ndarray:
    """Lengths of documents that fill the shards (int64)."""
    random = np.random.default_rng(0)
    count = SHARDS * SHARD_TOKENS // mean
    return np.maximum(2, random.lognormal(np.log(mean) - 0.5, 1.0, count).astype(np.int64))


def written(folder: Path, lengths: np.ndarray) -> Index:
    """A split of documents of these lengths."""
    random = np.random.default_rng(1)
    documents = [
        TokenDocument(f"d{n}", "drawn", random.integers(0, 32000, size, dtype=np.uint16), 1, "0" * 32)
        for n, size in enumerate(lengths.tolist())
    ]
    return write_split(folder, "train", documents, np.dtype("<u2"), "0" * 64, shard_tokens=SHARD_TOKENS)


def packed(index: Index, context: int) -> float:
    """Seconds of one core to make the split's plans, median of some rounds."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        pack([index], [context], InProcess(), 1)
        seconds.append(time.process_time() - began)
    return median(seconds)


def read(index: Index, context: int, packing: Literal["best_fit", "chop"]) -> float:
    """Million tokens a second of a reader's batches of 16,384 tokens, on one core."""
    reader = LocalReader(index, Order(layout(index, context, packing), 0, 16), context)
    rows, best = max(1, 16384 // context), 0.0
    for turn in range(ROUNDS):
        began = time.process_time()
        for batch in range(50):
            reader.rows(np.arange(rows) + (turn * 50 + batch) * rows)
        best = max(best, 50 * rows * context / 1e6 / (time.process_time() - began))
    return best


def main() -> None:
    """Print a line a case."""
    columns = f"{'documents':<22}{'context':>8}{'Mtok/s':>8}{'full':>8}{'cut':>8}{'chop cuts':>11}"
    print(f"{columns}{'read packed':>13}{'chop':>6}")
    prose = np.array([len(text.encode()) // 4 for text in texts(20_000_000)]) + 1
    cases = [(f"mean {mean:,} tokens", context, drawn(mean)) for context, mean in CASES]
    for name, context, lengths in [*cases, ("English, real", 2048, prose)]:
        with tempfile.TemporaryDirectory() as folder:
            index = written(Path(folder), lengths)
            speed = index.tokens / packed(index, context) / 1e6
            best, chop = load_packing(index, context + 1).fill, fill(index, context, "chop")
            rates = [read(index, context, packing) for packing in METHODS]
            cut = [(each.cut or 0) / each.documents for each in (best, chop)]
            print(
                f"{name:<22}{context:>8,}{speed:>8.0f}{best.utilisation:>8.2%}{cut[0]:>8.1%}{cut[1]:>11.1%}"
                f"{rates[0]:>13.0f}{rates[1]:>6.0f}"
            )


if __name__ == "__main__":
    main()
