"""Rows of a dataset somewhere else are the local reader's, from any position, at any number of ranks and nodes."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from data.dataset import load_dataset
from data.errors import UserError
from data.order.deal import deal, lanes_read, reading_groups
from data.order.order import Order
from data.reader import LocalReader, Rows, layout
from data.remote.patience import Damaged, Patience, Unreachable
from data.remote.shard_cache import NoRoom, ShardCache
from data.remote.streaming import StreamingReader, refuse_small_cache
from data.sums import CHUNK
from tests.data.fault_server import Server, cutting, failing, hanging, other
from tests.data.streams import QUICK, made, quick

CONTEXT, WINDOW = 64, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_dataset):
    """Seven shards of 80 kB: two chunks each."""
    return made(tmp_path_factory.mktemp("streaming") / "random", small_dataset.folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory, small_dataset):
    """Six shards of 1 MB."""
    return made(
        tmp_path_factory.mktemp("streaming") / "large", small_dataset.folder, count=5000, longest=1400,
        shard_tokens=550_000, block_tokens=1 << 17,
    )  # fmt: skip


@pytest.fixture
def server(folder):
    served = Server(folder)
    yield served
    served.close()


def order_of(index, lanes=1, seed=3):
    return Order(layout(index, CONTEXT), seed, WINDOW, lanes)


def local(folder, lanes=1):
    index = load_dataset(folder).index("train")
    return LocalReader(index, order_of(index, lanes), CONTEXT)


class Streaming:
    """A node's reader of a remote dataset."""

    def __init__(self, url, cache, lanes=1, mine=None, **settings):
        self.dataset = load_dataset(url, quick(cache, **settings))
        self.index = self.dataset.index("train")
        self.order = order_of(self.index, lanes)
        self.reader = StreamingReader([self.index], self.order, CONTEXT, [self.dataset.remote], mine)

    def __enter__(self):
        return self.reader

    def __exit__(self, *_):
        self.reader.close()


def assert_same(one: Rows, two: Rows):
    assert np.array_equal(one.tokens, two.tokens)
    assert np.array_equal(one.lengths, two.lengths)
    assert np.array_equal(one.positions, two.positions)
    assert all(np.array_equal(a, b) for a, b in zip(one.starts, two.starts, strict=True))
    assert (one.use is None) == (two.use is None) and (one.use is None or np.array_equal(one.use, two.use))


def urls(folder, server):
    return {"http": server.url, "file": f"file://{folder}", "pipe": f"pipe:cat {folder}/{{file}}"}


@pytest.mark.parametrize("kind", ["http", "file", "pipe", "memory"])
@pytest.mark.parametrize("start", [0, 1500])
def test_streamed_rows_are_the_local_ones_across_the_end_of_an_epoch(folder, server, tmp_path, kind, start):
    url = "memory://streaming/random" if kind == "memory" else urls(folder, server)[kind]
    if kind == "memory":
        import fsspec

        for path in folder.iterdir():
            fsspec.filesystem("memory").pipe_file(f"/streaming/random/{path.name}", path.read_bytes())
    expected = local(folder)
    rows = expected.order.rows_per_epoch
    with Streaming(url, tmp_path / "cache") as reader:
        for first in range(start, rows + 300, 100):
            positions = np.arange(first, first + 100)
            assert_same(reader.rows(positions), expected.rows(positions))


def test_examples_are_streamed_as_they_are_read_locally(tmp_path, small_dataset):
    folder = made(tmp_path / "examples", small_dataset.folder, kind="examples", longest=120, shard_tokens=8000)
    server = Server(folder)
    try:
        expected = local(folder)
        with Streaming(server.url, tmp_path / "cache") as reader:
            for first in (0, 40, expected.order.rows_per_epoch - 7):
                positions = np.arange(first, first + 30)
                assert_same(reader.rows(positions), expected.rows(positions))
    finally:
        server.close()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_ranks_streams_the_same_sequence(folder, server, tmp_path, world):
    expected = local(folder)
    nodes = [Streaming(server.url, tmp_path / "cache") for _ in range(world)]  # ranks of one node share a cache
    try:
        for start in (0, 12, expected.order.rows_per_epoch - 12):
            seen = {}
            for rank, node in enumerate(nodes):
                for positions in deal(start, start + 12, 2, rank, world):
                    rows = node.reader.rows(positions)
                    assert_same(rows, expected.rows(positions))
                    seen |= dict.fromkeys(positions[positions >= 0].tolist())
            assert sorted(seen) == list(range(start, start + 12))
    finally:
        for node in nodes:
            node.reader.close()


def test_a_node_downloads_its_lanes_only(folder, server, tmp_path):
    lanes, nodes, rows, micro = 2, 2, 24, 2
    expected = local(folder, lanes)
    groups = reading_groups(rows, micro, nodes, nodes, lanes)
    assert groups == 2
    fetched = []
    for node in range(nodes):
        mine = lanes_read(node, nodes, lanes, groups)
        with Streaming(server.url, tmp_path / f"cache{node}", lanes, mine) as reader:
            server.forget()
            for start in range(0, expected.order.rows_per_epoch, rows):
                for positions in deal(start, start + rows, micro, node, nodes, lanes, groups):
                    assert_same(reader.rows(positions), expected.rows(positions))
            fetched.append({name for name, sent in server.bytes.items() if name.endswith(".tar") and sent})
    assert not fetched[0] & fetched[1]
    assert len(fetched[0] | fetched[1]) == len(expected.indexes[0].shards)


# -- a start in the middle -------------------------------------------------------------------------------------------


def test_a_start_in_the_middle_fetches_the_bytes_of_its_first_batch_and_nothing_from_before(large, tmp_path):
    server = Server(large)
    server.faults[r".*\.tar"] = lambda handler, held: held if handler.headers.get("Range") else handler.hang()
    try:
        expected = local(large)
        start = 10**9 + 1
        positions = np.arange(start, start + 8)
        with Streaming(server.url, tmp_path / "cache") as reader:
            server.forget()
            assert_same(reader.rows(positions), expected.rows(positions))
            # whole shards hang, so this came by ranges: a chunk or two of tokens a row, one of document starts a block
            assert server.shard_bytes() == reader.fetched <= 8 * 3 * CHUNK
            size = sum(shard.file_size for shard in expected.indexes[0].shards)
            assert server.shard_bytes() < size / 3
            assert_same(reader.rows(positions), expected.rows(positions))
            assert server.shard_bytes() == reader.fetched <= 8 * 3 * CHUNK  # what has come isn't asked for again
    finally:
        server.close()


def test_the_window_fills_behind_and_then_nothing_more_is_fetched(folder, server, tmp_path):
    expected = local(folder)
    with Streaming(server.url, tmp_path / "cache") as reader:
        positions = np.arange(5000, 5020)
        assert_same(reader.rows(positions), expected.rows(positions))
        wanted = {name for window in [next(reader.order.windows(5000, 2**62))] for name in window.shards}
        deadline = time.monotonic() + 60
        while not all(reader._downloads.here((0, shard)) for shard in wanted) and time.monotonic() < deadline:
            time.sleep(0.02)
        sent = server.shard_bytes()
        assert_same(reader.rows(positions), expected.rows(positions))
        assert not reader._partial
        assert sent <= server.shard_bytes()


def test_without_ranges_the_rows_wait_for_their_shards_and_are_the_same(folder, tmp_path):
    server = Server(folder, ranges=False)
    try:
        expected = local(folder)
        with Streaming(server.url, tmp_path / "cache") as reader:
            positions = np.arange(777, 800)
            assert_same(reader.rows(positions), expected.rows(positions))
    finally:
        server.close()


# -- what goes wrong -------------------------------------------------------------------------------------------------


def read_an_epoch(reader, expected):
    for first in range(0, expected.order.rows_per_epoch, 100):
        positions = np.arange(first, min(first + 100, expected.order.rows_per_epoch))
        assert_same(reader.rows(positions), expected.rows(positions))


@pytest.mark.parametrize("fault", ["500", "cut", "hang"])
def test_faults_that_pass_change_no_row(folder, server, tmp_path, fault):
    server.faults[r"train.*\.tar"] = {"500": failing(2), "cut": cutting(CHUNK + 7, 2), "hang": hanging(1)}[fault]
    patience = Patience(tries=8, timeout_s=1.0, backoff_s=0.02)
    with Streaming(server.url, tmp_path / "cache", patience=patience) as reader:
        read_an_epoch(reader, local(folder))


CLOSING = """
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from data.remote.patience import Patience
from data.reader import Prefetch
from tests.data.remote.test_streaming import Streaming

url, cache, how = sys.argv[1:]
reader = Streaming(url, Path(cache), patience=Patience(tries=6, timeout_s=120.0)).reader
read = Prefetch(lambda number: reader.rows(np.arange(50)), 1, 1)
print("reading", flush=True)
sys.stdin.readline()
if how == "ended":
    reader.cancel()
    read.close()
    reader.close()
"""


@pytest.mark.parametrize("how", ["ended", "left open"])
def test_a_server_that_hangs_keeps_no_process_from_ending(server, tmp_path, how):
    server.faults[r"train.*\.tar"] = hanging()
    child = subprocess.Popen(
        [sys.executable, "-c", CLOSING, server.url, str(tmp_path / "cache"), how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    try:
        assert child.stdout and child.stdout.readline() == "reading\n"
        while not any(name.startswith("train-0") and name.endswith(".tar") for name in list(server.requests)):
            time.sleep(0.02)
        child.communicate("\n", timeout=60)
        assert child.returncode == 0
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("wrong", ["truncated", "swapped"])
def test_a_shard_that_is_not_the_one_written_ends_the_reading_and_is_named(folder, tmp_path, wrong, ranges):
    server = Server(folder, ranges=ranges)
    shards = sorted(path.name for path in folder.glob("train-*.tar"))
    content = (folder / shards[4]).read_bytes()
    content = content[: len(content) // 2] if wrong == "truncated" else content
    server.faults[re.escape(shards[2])] = other(content)
    try:
        expected = local(folder)
        with (
            Streaming(server.url, tmp_path / "cache") as reader,
            pytest.raises(Damaged, match=rf"{shards[2]} from {server.url}"),
        ):
            read_an_epoch(reader, expected)
    finally:
        server.close()


def test_a_server_that_answers_500_for_ever_ends_the_reading_with_shard_url_and_tries(folder, server, tmp_path):
    with Streaming(server.url, tmp_path / "cache") as reader:
        server.faults[r"train-000003\.tar"] = failing(10**9)
        with pytest.raises(Unreachable, match=rf"train-000003\.tar from {server.url}: .*500.*tried 3 times"):
            read_an_epoch(reader, local(folder))


def test_a_pipe_cut_at_a_member_boundary_ends_the_reading(folder, tmp_path):
    entry = load_dataset(folder).index("train").shards[1]
    boundary = entry.blocks[2].document_offset // 512 * 512 - 512
    script = tmp_path / "cut.sh"
    script.write_text(
        f'if [ "$1" = {entry.url} ]; then head -c {boundary} {folder}/$1; else cat {folder}/$1; fi\n', "utf-8"
    )
    with (
        Streaming(f"pipe:sh {script} {{file}}", tmp_path / "cache") as reader,
        pytest.raises(Damaged, match=rf"{entry.url} from pipe:.* ends after {boundary:,} of"),
    ):
        read_an_epoch(reader, local(folder))


@pytest.mark.parametrize("name", ["dataset.json", "train.index.json", "tokenizer.model"])
def test_small_files_are_checked_too(folder, server, tmp_path, name):
    server.faults[re.escape(name)] = other(b"{}")
    with pytest.raises(UserError, match=rf"{re.escape(name)}|describe a Luban dataset"):
        load_dataset(server.url, quick(tmp_path / "cache"))


def test_a_url_without_a_dataset_is_said(server, tmp_path):
    with pytest.raises(UserError, match=r"dataset\.json from http.*404.*copied"):
        load_dataset(server.url.replace("/data", "/data/sub") + "?x={file}x", quick(tmp_path / "cache"))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("name", ["dataset.json", "train.index.json"])
def test_a_small_file_that_is_too_large_is_refused_before_it_fills_the_memory(
    server, tmp_path, monkeypatch, name, told
):
    monkeypatch.setattr("data.remote.remote.MOST", 100_000)

    def endless(handler, content):
        handler.send_response(200)
        if told:
            handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
        with suppress(ConnectionError):
            for _ in range(10_000):
                handler.wfile.write(bytes(1 << 16))
        handler.close_connection = True

    server.faults[re.escape(name)] = endless
    with pytest.raises(UserError, match=rf"{re.escape(name)} from http.* it isn't the file of a dataset"):
        load_dataset(server.url, quick(tmp_path / "cache"))


# -- the cache -------------------------------------------------------------------------------------------------------


def test_what_is_cached_is_not_fetched_again(folder, server, tmp_path):
    dataset = load_dataset(server.url, quick(tmp_path / "cache"))
    index = dataset.index("train")
    for number in range(len(index.shards)):
        dataset.shard(index, number)
    server.forget()
    with Streaming(server.url, tmp_path / "cache") as reader:
        read_an_epoch(reader, local(folder))
    assert set(server.bytes) == {"dataset.json"}


def test_a_cached_shard_that_the_disk_has_changed_is_said_and_fetched_again(folder, server, tmp_path, capsys):
    dataset = load_dataset(server.url, quick(tmp_path / "cache"))
    dataset.shard(dataset.index("train"), 3)
    for path in (tmp_path / "cache").glob("*/train-*.tar"):
        content = bytearray(path.read_bytes())
        content[-CHUNK] ^= 1
        path.write_bytes(content)
    with Streaming(server.url, tmp_path / "cache") as reader:
        read_an_epoch(reader, local(folder))
    assert "train-000003.tar has other bytes than when it was fetched" in capsys.readouterr().err


def test_a_folder_under_a_shards_name_in_the_cache_is_named(folder, server, tmp_path):
    dataset = load_dataset(server.url, quick(tmp_path / "cache"))
    assert dataset.remote
    shard = dataset.remote.folder / dataset.index("train").shards[3].url
    shard.mkdir()
    with (
        Streaming(server.url, tmp_path / "cache") as reader,
        pytest.raises(UserError, match=rf"{shard.name} is a folder, .*: remove it"),
    ):
        read_an_epoch(reader, local(folder))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cache_that_somebody_deletes_is_filled_again(folder, tmp_path, ranges):
    server = Server(folder, ranges=ranges)
    try:
        expected = local(folder)
        with Streaming(server.url, tmp_path / "cache") as reader:
            assert_same(reader.rows(np.arange(20)), expected.rows(np.arange(20)))
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            read_an_epoch(reader, expected)
    finally:
        server.close()


def test_the_cache_stays_within_its_bound_and_the_rows_the_same(folder, server, tmp_path):
    expected = local(folder)
    sizes = [shard.file_size for shard in expected.indexes[0].shards]
    bound = sum(sorted(sizes)[-3:]) + 1000
    most, stop = [0], threading.Event()

    (tmp_path / "cache").mkdir()

    def watch():
        while not stop.is_set():
            with (tmp_path / "cache" / ".lock").open("a") as lock:  # else a file may be counted under both its names
                fcntl.flock(lock, fcntl.LOCK_EX)
                found = [*(tmp_path / "cache").glob("*/*.tar"), *(tmp_path / "cache").glob("*/.*.part")]
                most.append(sum(path.stat().st_size for path in found))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with Streaming(server.url, tmp_path / "cache", cache_bytes=bound) as reader:
            for _ in range(2):
                read_an_epoch(reader, expected)
    finally:
        stop.set()
        watcher.join()
    assert sum(sizes[:1]) < max(most) <= bound


def test_a_shard_that_gets_its_name_while_the_room_is_counted_is_counted(folder, tmp_path, monkeypatch):
    one, two = load_dataset(folder).index("train").shards[:2]
    cache, dataset = ShardCache(tmp_path, max(one.file_size, two.file_size)), tmp_path / "dataset"
    part = cache.begin(dataset, one)
    os.truncate(part.descriptor, one.file_size)
    publishing = threading.Thread(target=cache.publish, args=(part, dataset, one))

    def listed(path):
        found = list(os_scandir(path))
        publishing.start()
        publishing.join(timeout=0.3)
        return found

    os_scandir = os.scandir
    monkeypatch.setattr(os, "scandir", listed)
    with pytest.raises(NoRoom):
        cache.begin(dataset, two)
    publishing.join()
    assert (dataset / one.url).stat().st_size == one.file_size


def test_a_cache_too_small_for_a_window_is_refused_with_the_figure(folder, server, tmp_path):
    held = Streaming(server.url, tmp_path / "cache", cache_bytes=100_000)
    with held, pytest.raises(UserError, match=r"data\.cache_gb is 0\.0001.*up to 0\.000\d+ GB: set it to"):
        refuse_small_cache(held.order, [held.index], [held.dataset.remote], None)


def test_readers_of_one_node_download_each_shard_once(folder, server, tmp_path):
    expected = local(folder)
    with (
        Streaming(server.url, tmp_path / "cache") as one,
        Streaming(server.url, tmp_path / "cache") as two,
    ):
        server.forget()
        threads = [threading.Thread(target=read_an_epoch, args=(reader, expected)) for reader in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not one._partial or one.fetched
    whole = [name for name, part in server.asked if name.endswith(".tar") and part is None]
    assert len(whole) == len(set(whole))


def test_processes_of_one_node_download_each_shard_once_and_a_killed_one_leaves_no_lock(folder, server, tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from data.dataset import load_dataset; from data.remote.remote import Access\n"
        "dataset = load_dataset(sys.argv[1], Access(Path(sys.argv[2]))); index = dataset.index('train')\n"
        "for number in range(len(index.shards)): dataset.shard(index, number)"
    )
    command = [sys.executable, "-c", script, server.url, str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    server.faults[r"train-000004\.tar"] = hanging(1)
    killed = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 60
    while not server.requests["train-000004.tar"] and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    whole = [name for name, part in server.asked if name.startswith("train") and name.endswith(".tar")]
    assert sorted(set(whole)) == sorted(path.name for path in folder.glob("train-*.tar"))
    assert len(whole) == len(set(whole)) + 1  # the one that hung
    assert not list((tmp_path / "cache").glob("*/.*.part"))


def test_only_what_nobody_holds_is_evicted_the_longest_unused_first(folder, server, tmp_path):
    dataset = load_dataset(server.url, quick(tmp_path / "cache"))
    assert dataset.remote
    shards = dataset.index("train").shards[:3]
    dataset.remote.shards.limit = sum(shard.file_size for shard in shards[:2]) + 1000
    held = [dataset.remote.whole(shard) for shard in shards[:2]]
    with pytest.raises(NoRoom, match=r"all of it is in use: raise data\.cache_gb"):
        dataset.remote.download(shards[2])
    held[1].release()
    time.sleep(0.05)  # a file's times go by the kernel's ticks
    held[0].release()  # last used of the two
    dataset.remote.whole(shards[2]).release()
    kept = {path.name for path in (tmp_path / "cache").glob("*/train-*.tar")}
    assert kept == {shards[0].url, shards[2].url}


def test_a_name_that_leads_out_of_the_folder_is_refused(folder, server, tmp_path):
    info = json.loads((folder / "dataset.json").read_text())
    info["files"]["../../evil"] = "0" * 64
    server.faults[r"dataset\.json"] = other(json.dumps(info).encode())
    with pytest.raises(UserError, match=r"names a file '\.\./\.\./evil'"):
        load_dataset(server.url, quick(tmp_path / "cache"))


def test_a_full_disk_is_said(folder, server, tmp_path, monkeypatch):
    import errno

    from data.remote import fetching

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching, "_write", full)
    dataset = load_dataset(server.url, quick(tmp_path / "cache"))
    assert dataset.remote
    with pytest.raises(UserError, match=r"the disk of the cache .* is full, and train-000000\.tar takes"):
        dataset.shard(dataset.index("train"), 0)


# -- the dataset as a whole ------------------------------------------------------------------------------------------


def test_documents_and_tables_come_through_the_cache(folder, server, tmp_path):
    here, there = load_dataset(folder), load_dataset(server.url, quick(tmp_path / "cache"))
    pairs = zip(here.documents("valid"), there.documents("valid"), strict=True)
    assert all(a == b and np.array_equal(x, y) for (a, x), (b, y) in pairs)
    assert there.place == server.url


def test_verifying_a_remote_dataset_reads_every_shard_and_names_the_damaged(folder, server, tmp_path):
    there = load_dataset(server.url, quick(tmp_path / "cache"))
    there.shard(there.index("train"), 0)
    assert there.verify() == []
    shard = (folder / "train-000002.tar").read_bytes()
    server.faults[r"train-000005\.tar"] = other(shard)
    shutil.rmtree(tmp_path / "cache")
    there = load_dataset(server.url, quick(tmp_path / "cache", patience=QUICK))
    problems = there.verify()
    assert len(problems) == 1 and "train-000005.tar" in problems[0] and server.url in problems[0]
