"""Loaders that take turns: each the library's own best way to give shuffled int64 batches of 8 x 2048 tokens.

`python -m tests.bench.loader_contenders NAME FOLDER URL` is one of them in a process of its own. For each line on its
standard input it reads for about so many seconds, and answers with tokens, wall-clock and processor seconds (its own
and its children's: stock WebDataset has curl fetch for it) as JSON.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.bench.loader_corpus import BATCH, CONTEXT

ROW = CONTEXT + 1
WINDOW = 16
SHUFFLE = 1000
Batches = Iterator[Tensor]


def luban_local(folder: Path, url: str) -> Batches:
    """Ours: mapped shards."""
    from data.dataset import load_dataset
    from data.order.order import Order
    from data.reader import LocalReader, layout

    index = load_dataset(folder / "luban").index("train")
    reader = LocalReader(index, Order(layout(index, CONTEXT), 0, WINDOW), CONTEXT)
    position = 0
    while True:
        yield torch.from_numpy(reader.rows(np.arange(position, position + BATCH)).tokens)
        position += BATCH


def luban_http(folder: Path, url: str) -> Batches:
    """Ours: shards over http into an empty cache, an epoch, and again into another empty cache."""
    from data.dataset import load_dataset
    from data.order.order import Order
    from data.reader import layout
    from data.remote.remote import Access
    from data.remote.streaming import StreamingReader

    while True:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            dataset = load_dataset(f"{url}/luban", Access(Path(cache)))
            index = dataset.index("train")
            order = Order(layout(index, CONTEXT), 0, WINDOW)
            reader = StreamingReader([index], order, CONTEXT, [dataset.remote])
            for position in range(0, order.rows_per_epoch - BATCH, BATCH):
                yield torch.from_numpy(reader.rows(np.arange(position, position + BATCH)).tokens)
            reader.close()


class _Rows(Dataset):
    """A memmap's rows, for a DataLoader."""

    def __init__(self, folder: Path):
        self.tokens = np.memmap(folder / "tokens.bin", np.uint16, "r")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // CONTEXT

    def __getitem__(self, number: int) -> Tensor:
        return torch.from_numpy(self.tokens[number * CONTEXT : number * CONTEXT + ROW].astype(np.int64))


def memmap(folder: Path, url: str) -> Batches:
    """A numpy memmap and a permutation drawn beforehand, as a plain training script has it."""
    tokens = np.memmap(folder / "tokens.bin", np.uint16, "r")
    random = np.random.default_rng(0)
    while True:
        order = random.permutation((len(tokens) - 1) // CONTEXT) * CONTEXT
        for place in range(0, len(order) - BATCH, BATCH):
            rows = [tokens[start : start + ROW].astype(np.int64) for start in order[place : place + BATCH]]
            yield torch.from_numpy(np.stack(rows))


def stateful(folder: Path, url: str) -> Batches:
    """torchdata's StatefulDataLoader over the same memmap, no worker processes."""
    from torchdata.stateful_dataloader import StatefulDataLoader  # pyright: ignore[reportMissingImports]

    loader = StatefulDataLoader(_Rows(folder), batch_size=BATCH, shuffle=True, drop_last=True)
    while True:
        yield from loader


def stateful_workers(folder: Path, url: str) -> Batches:
    """The same with two worker processes."""
    from torchdata.stateful_dataloader import StatefulDataLoader  # pyright: ignore[reportMissingImports]

    loader = StatefulDataLoader(_Rows(folder), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=2)
    while True:
        yield from loader


def _packed(pipeline: Any, key: str, decode: Callable[[Any], np.ndarray]) -> Batches:
    """Documents as they come, concatenated and chopped into batches."""
    need, held, parts = BATCH * CONTEXT + 1, 0, []
    for sample in pipeline:
        parts.append(decode(sample[key]))
        held += len(parts[-1])
        while held >= need:
            flat = np.concatenate(parts)
            yield torch.from_numpy(
                np.lib.stride_tricks.sliding_window_view(flat[:need], ROW)[::CONTEXT].astype(np.int64)
            )
            parts = [flat[BATCH * CONTEXT :]]
            held = len(parts[0])


def _webdataset(place: str, folder: Path, suffix: str) -> Batches:
    import webdataset

    urls = [f"{place}/{path.name}" for path in sorted((folder / f"docs_{suffix}").glob("*.tar"))]
    while True:
        pipeline = webdataset.WebDataset(urls, shardshuffle=len(urls))  # pyright: ignore[reportAttributeAccessIssue]
        pipeline = pipeline.shuffle(SHUFFLE)
        if suffix == "npy":
            yield from _packed(pipeline.decode(), "npy", np.asarray)
        else:
            yield from _packed(pipeline, "bin", lambda content: np.frombuffer(content, np.uint16))


def webdataset_local(folder: Path, url: str) -> Batches:
    """Stock webdataset, a document a sample (.npy, decoded), a shuffle buffer of 1,000, packed on the fly."""
    return _webdataset(str(folder / "docs_npy"), folder, "npy")


def webdataset_raw_local(folder: Path, url: str) -> Batches:
    """The same with raw bytes instead of .npy: the fastest that stock webdataset was seen to be."""
    return _webdataset(str(folder / "docs_bin"), folder, "bin")


def webdataset_http(folder: Path, url: str) -> Batches:
    """The .npy documents over http."""
    return _webdataset(f"{url}/docs_npy", folder, "npy")


def webdataset_raw_http(folder: Path, url: str) -> Batches:
    """The raw documents over http."""
    return _webdataset(f"{url}/docs_bin", folder, "bin")


def litdata(folder: Path, url: str) -> Batches:
    """litdata's chunks of tokens, its own shuffle and loader."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader  # pyright: ignore[reportMissingImports]

    while True:
        held = StreamingDataset(
            str(folder / "litdata"), item_loader=TokensLoader(block_size=ROW), shuffle=True, drop_last=True
        )
        for batch in StreamingDataLoader(held, batch_size=BATCH, num_workers=0):
            yield batch.long()


def mosaic(folder: Path, url: str) -> Batches:
    """mosaicml-streaming: MDS, a row a sample."""
    from streaming import StreamingDataset  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    def joined(samples: list[dict[str, np.ndarray]]) -> Tensor:
        return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int64))

    held = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    while True:
        yield from DataLoader(held, batch_size=BATCH, collate_fn=joined, drop_last=True)


CONTENDERS = {
    make.__name__: make
    for make in (
        luban_local, memmap, stateful, stateful_workers, litdata, mosaic, webdataset_local, webdataset_raw_local,
        luban_http, webdataset_http, webdataset_raw_http,
    )
}  # fmt: skip


def write_litdata(folder: Path) -> None:
    """litdata's layout of `tokens.bin`."""
    from litdata import TokensLoader, optimize  # pyright: ignore[reportMissingImports]

    tokens = np.memmap(folder / "tokens.bin", np.uint16, "r")
    parts = [(str(folder), start) for start in range(0, len(tokens), ROW * 2048)]
    optimize(fn=_part, inputs=parts, output_dir=str(folder / "litdata"), chunk_size=ROW * 512,
             item_loader=TokensLoader(), num_workers=1)  # fmt: skip


def _part(place: tuple[str, int]) -> Iterator[Tensor]:
    folder, start = place
    tokens = np.memmap(Path(folder) / "tokens.bin", np.uint16, "r")
    yield torch.from_numpy(tokens[start : start + ROW * 2048].astype(np.uint16))


def write_mosaic(folder: Path) -> None:
    """Shards of MDS of `tokens.bin`, a row a sample."""
    from streaming import MDSWriter  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    rows = _Rows(folder)
    with MDSWriter(out=str(folder / "mds"), columns={"tokens": f"ndarray:uint16:{ROW}"}) as writer:
        for number in range(len(rows)):
            writer.write({"tokens": rows.tokens[number * CONTEXT : number * CONTEXT + ROW].copy()})


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Take turns as standard input says; or write a layout."""
    name, folder, url = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if name.startswith("write_"):
        {"write_litdata": write_litdata, "write_mosaic": write_mosaic}[name](folder)
        return
    torch.set_num_threads(1)
    batches = CONTENDERS[name](folder, url)
    first = next(batches)
    assert first.shape == (BATCH, ROW) and first.dtype == torch.int64, (first.shape, first.dtype)
    print("ready", flush=True)
    for line in sys.stdin:
        began, used, tokens = time.perf_counter(), _processor(), 0
        while time.perf_counter() - began < float(line):
            for _ in range(16):
                tokens += next(batches)[:, 1:].numel()
        print(json.dumps([tokens, time.perf_counter() - began, _processor() - used]), flush=True)


if __name__ == "__main__":
    main()
