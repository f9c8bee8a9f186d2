"""Streaming over http from 127.0.0.1: ours, with an empty and a full cache, beside our local reader and stock
webdataset with one document a sample, packed into rows on the fly; and how long the first batch takes anywhere.

All read the same tokens into int64 batches of 8 x 2049, each token once, shuffled as far as the reader does. The server
is a process of its own; the CPU time counted is that of the reader and of the commands it starts (webdataset's curl).
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from data.dataset import load_dataset
from data.order.order import Order
from data.reader import LocalReader, layout
from data.remote.remote import Access
from data.remote.streaming import StreamingReader
from data.tokenizer.training import train
from tests.data.fault_server import Server
from tests.data.streams import made

CONTEXT, ROWS, WINDOW, ROUNDS = 2048, 8, 4, 3
DOCUMENTS, LONGEST, SHARD_TOKENS = 16_000, 4000, 4_000_000


def main() -> None:
    """Print million tokens a second and a CPU-second, and milliseconds to the first batch."""
    with tempfile.TemporaryDirectory() as place:
        folder, stock, cache = _corpus(Path(place)), Path(place) / "stock", Path(place) / "cache"
        _write_stock(folder, stock)
        servers = [_serve(folder), _serve(stock)]
        try:
            urls = [_url(server) for server in servers]
            _throughput(folder, stock, urls, cache)
            _first_batch(folder, urls[0], Path(place))
        finally:
            for server in servers:
                server.kill()
                server.wait()


def _throughput(folder: Path, stock: Path, urls: list[str], cache: Path) -> None:
    index = load_dataset(folder).index("train")
    tokens = index.tokens / 1e6

    def cold() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        _read_epoch(_streaming(urls[0], cache))

    contenders: dict[str, Callable[[], None]] = {
        "local": lambda: _read_epoch(_local(folder)),
        "http, cache empty": cold,
        "http, cache full": lambda: _read_epoch(_streaming(urls[0], cache)),
        "stock webdataset": lambda: _read_stock([f"{urls[1]}/{path.name}" for path in sorted(stock.glob("*.tar"))]),
    }
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 1):
        for name, run in contenders.items():
            wall, cpu = time.perf_counter(), _cpu()
            run()
            if number:
                speeds[name].append((tokens / (time.perf_counter() - wall), tokens / (_cpu() - cpu)))
    middle = {name: [statistics.median(each) for each in zip(*found, strict=True)] for name, found in speeds.items()}
    for name, (wall, cpu) in middle.items():
        times = cpu / middle["stock webdataset"][1]
        print(f"{name:18} {wall:6.0f} Mtok/s {cpu:6.0f} Mtok/CPU-s {times:5.1f} x stock webdataset")


def _first_batch(folder: Path, url: str, place: Path) -> None:
    for position in (0, 10**9):
        for name, make in (
            ("local", lambda: _local(folder)),
            ("http, cache empty", lambda: _streaming(url, Path(tempfile.mkdtemp(dir=place)))),
        ):
            seconds, fetched = [], 0
            for _ in range(5):
                began = time.perf_counter()
                reader = make()
                reader.rows(np.arange(position, position + 32))
                seconds.append(time.perf_counter() - began)
                fetched = reader.fetched if isinstance(reader, StreamingReader) else 0
                reader.close()
            got = f", {fetched / 1e6:.1f} MB had come" if fetched else ""
            print(f"first 32 rows at {position:>13,}: {name:18} {min(seconds) * 1000:5.0f} ms{got}")


def _corpus(place: Path) -> Path:
    """A dataset of random tokens, with a tokenizer that nobody uses."""
    like = place / "like"
    train(["some text to learn pieces from, again and again"] * 50, 512).save(like)
    return made(place / "ours", like, count=DOCUMENTS, longest=LONGEST, shard_tokens=SHARD_TOKENS, block_tokens=1 << 20)


def _write_stock(folder: Path, stock: Path) -> None:
    """The same documents, one a sample."""
    from webdataset.writer import ShardWriter

    stock.mkdir()
    dataset = load_dataset(folder)
    with ShardWriter(f"{stock}/docs-%06d.tar", maxsize=2 * SHARD_TOKENS, verbose=0) as writer:
        for number, (_, tokens) in enumerate(dataset.documents("train")):
            writer.write({"__key__": f"{number:09d}", "tok.npy": np.array(tokens)})


def _local(folder: Path) -> LocalReader:
    index = load_dataset(folder).index("train")
    return LocalReader(index, Order(layout(index, CONTEXT), 0, WINDOW), CONTEXT)


def _streaming(url: str, cache: Path) -> StreamingReader:
    dataset = load_dataset(url, Access(cache))
    index = dataset.index("train")
    return StreamingReader([index], Order(layout(index, CONTEXT), 0, WINDOW), CONTEXT, [dataset.remote])


def _read_epoch(reader: LocalReader) -> None:
    for first in range(0, reader.order.rows_per_epoch - ROWS, ROWS):
        torch.from_numpy(reader.rows(np.arange(first, first + ROWS)).tokens)
    reader.close()


def _read_stock(urls: list[str]) -> None:
    from webdataset.compat import WebDataset

    for rows in _packed(iter(cast(Any, WebDataset(urls, shardshuffle=False).shuffle(1000).decode()))):
        torch.from_numpy(rows)


def _packed(samples: Iterator[dict]) -> Iterator[np.ndarray]:
    """Rows of documents put together, ROWS at a time."""
    held, count, size = [], 0, ROWS * CONTEXT + 1
    for sample in samples:
        held.append(sample["tok.npy"])
        count += len(held[-1])
        while count >= size:
            flat = np.concatenate(held)
            yield np.lib.stride_tricks.sliding_window_view(flat[:size], CONTEXT + 1)[::CONTEXT].astype(np.int64)
            held, count = [flat[size - 1 :]], len(flat) - size + 1


def _cpu() -> float:
    """CPU seconds of this process and of the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _serve(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench.streaming", str(folder)], stdout=subprocess.PIPE, text=True
    )


def _url(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(Server(Path(sys.argv[1])).url, flush=True)
        while os.getppid() > 1:
            time.sleep(1)
    else:
        main()
