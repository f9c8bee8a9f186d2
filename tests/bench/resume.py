"""Where a run goes on: time to its first batch at any position, and what an order costs as shards grow.

The first batch counts from an opened interpreter with everything imported: open the dataset, make the order, map the
shards, read 8 rows. Each is a process of its own, so nothing is warm but the page cache. Over http the cache is empty;
its bytes are those that came before the first batch was there.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from data.dataset import load_dataset
from data.order.layout import Layout
from data.order.order import Order
from data.reader import LocalReader, layout
from data.remote.remote import Access
from data.remote.streaming import StreamingReader
from tests.bench.loader_corpus import BATCH, CONTEXT, dataset, home, write_luban
from tests.bench.loaders import environment

POSITIONS = (0, 10**6, 10**9, 10**12)
SHARDS = (10, 100, 1_000, 10_000, 100_000)
SHARD_TOKENS, WINDOW, CHUNK, TRIES = 32_000_000, 16, 8192, 3


def first_batch(place: str, position: int) -> dict[str, float]:
    """Seconds to the first batch there, and bytes that came over the network for it."""
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        held = load_dataset(place, Access(Path(cache)))
        index = held.index("train")
        order = Order(layout(index, CONTEXT), 0, WINDOW)
        if held.remote is None:
            reader = LocalReader(index, order, CONTEXT)
        else:
            reader = StreamingReader([index], order, CONTEXT, [held.remote])
        reader.rows(np.arange(position, position + BATCH))
        seconds = time.perf_counter() - began
        fetched = reader.fetched if isinstance(reader, StreamingReader) else 0
        reader.close()
    return {"seconds": seconds, "fetched": fetched}


def order_cost(shards: int) -> dict[str, float]:
    """Of a split of so many simulated shards: seconds to make the order, memory, and a row at distant positions."""
    tokens = [SHARD_TOKENS + number % 1000 for number in range(shards)]
    tracemalloc.start()
    began = time.process_time()
    held = Layout.chopped("simulated", tokens, CONTEXT)
    order = Order(held, 0, WINDOW)
    made = time.process_time() - began
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    began = time.process_time()
    order.places(np.arange(10**9, 10**9 + CHUNK))
    first = time.process_time() - began
    costs = []
    for turn in range(1, 8):
        start = 10**9 + turn * CHUNK
        began = time.process_time()
        order.places(np.arange(start, start + CHUNK))
        costs.append((time.process_time() - began) / CHUNK)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"made": made, "memory": memory, "first": first, "row": float(np.median(costs)), "peak": peak}


def main() -> None:
    """Print both tables."""
    if len(sys.argv) == 3:
        print(json.dumps(first_batch(sys.argv[1], int(sys.argv[2]))))
        return
    if len(sys.argv) == 2:
        print(json.dumps(order_cost(int(sys.argv[1]))))
        return
    source = dataset(home())
    with tempfile.TemporaryDirectory(dir=home(), prefix="resume-") as name:
        write_luban(source, 6, Path(name) / "luban")
        server = subprocess.Popen([sys.executable, "-m", "tests.bench.loader_server", name], stdout=subprocess.PIPE,
                                  text=True, env=environment())  # fmt: skip
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            print(f"{'first batch at':>18}{'local, s':>10}{'http, s':>10}{'http, kB':>10}")
            for position in POSITIONS:
                local = _least("seconds", f"{name}/luban", str(position))
                http = _least("seconds", f"{url}/luban", str(position))
                print(
                    f"{position:>18,}{local['seconds']:>10.3f}{http['seconds']:>10.3f}{http['fetched'] / 1000:>10,.0f}"
                )
        finally:
            server.kill()
            server.wait()
    print(f"{'shards':>8}{'order, ms':>12}{'held, MB':>10}{'first 8192 rows, ms':>21}{'then a row, ns':>16}")
    for shards in SHARDS:
        cost = _least("row", str(shards))
        print(
            f"{shards:>8,}{cost['made'] * 1e3:>12.1f}{cost['memory'] / 1e6:>10.2f}{cost['first'] * 1e3:>21.1f}"
            f"{cost['row'] * 1e9:>16.0f}"
        )


def _least(what: str, *arguments: str) -> dict[str, float]:
    """The fastest of three processes."""
    tries = []
    for _ in range(TRIES):
        done = subprocess.run([sys.executable, "-m", "tests.bench.resume", *arguments], check=True,
                              capture_output=True, text=True, env=environment())  # fmt: skip
        tries.append(json.loads(done.stdout.splitlines()[-1]))
    return min(tries, key=lambda each: each[what])


if __name__ == "__main__":
    main()
