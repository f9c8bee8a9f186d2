"""A shard comes in whole and as it was written, or an error says which and from where: never fewer rows."""

import os
import re
import threading
import time

import pytest

from data.dataset import load_dataset
from data.errors import UserError
from data.remote.fetching import fetch
from data.remote.origin import NoRanges, open_origin
from data.remote.origin_http import Http
from data.remote.patience import Damaged, Patience, Stopped, Unreachable
from data.sums import CHUNK, Sums, sums_name
from tests.data.fault_server import Server, cutting, dripping, endless, failing, hanging, other
from tests.data.streams import QUICK, made


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_dataset):
    """Shards of 80 kB and more: several chunks, several blocks."""
    return made(tmp_path_factory.mktemp("fetching") / "random", small_dataset.folder, shard_tokens=150_000)


@pytest.fixture
def server(folder):
    served = Server(folder)
    yield served
    served.close()


@pytest.fixture
def entry(folder):
    return load_dataset(folder).index("train").shards[0]


@pytest.fixture
def sums(folder, entry):
    return Sums.load(folder / sums_name(entry.url), entry.file_size)


@pytest.fixture
def out(tmp_path):
    descriptor = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def content(descriptor):
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def origins(folder, server):
    return {
        "http": server.url,
        "file": f"file://{folder}",
        "pipe": f"pipe:cat {folder}/{{file}}",
        "memory": "memory://fetching/random",
    }


@pytest.mark.parametrize("kind", ["http", "file", "pipe", "memory"])
def test_a_shard_comes_in_with_its_own_bytes_from_anywhere(folder, server, entry, sums, out, kind):
    if kind == "memory":
        import fsspec

        fsspec.filesystem("memory").pipe_file(f"/fetching/random/{entry.url}", (folder / entry.url).read_bytes())
    assert fetch(open_origin(origins(folder, server)[kind], QUICK), entry, sums, QUICK, out) == entry.file_size
    assert content(out) == (folder / entry.url).read_bytes()


def test_what_a_killed_download_left_is_checked_and_not_fetched_again(folder, server, entry, sums, out):
    whole = (folder / entry.url).read_bytes()
    os.pwrite(out, whole[: 2 * CHUNK + 100], 0)
    fetched = fetch(open_origin(server.url, QUICK), entry, sums, QUICK, out)
    assert content(out) == whole and fetched == entry.file_size - 2 * CHUNK
    damaged = bytearray(whole)
    damaged[CHUNK + 5] ^= 1
    os.pwrite(out, damaged, 0)
    fetched = fetch(open_origin(server.url, QUICK), entry, sums, QUICK, out)
    assert content(out) == whole and fetched > CHUNK


def test_a_cut_connection_goes_on_from_where_it_stopped(folder, server, entry, sums, out, capsys):
    server.faults[r".*\.tar"] = cutting(CHUNK + 1000, times=1)
    fetch(open_origin(server.url, QUICK), entry, sums, QUICK, out)
    assert content(out) == (folder / entry.url).read_bytes()
    assert [part for _, part in server.asked] == [None, f"bytes={CHUNK}-"]
    said = capsys.readouterr().err
    assert entry.url in said and server.url in said and "try 2 of 3" in said


def test_a_server_that_fails_for_a_moment_is_asked_again(folder, server, entry, sums, out, capsys):
    server.faults[r".*\.tar"] = failing(2, 503)
    fetch(open_origin(server.url, QUICK), entry, sums, QUICK, out)
    assert content(out) == (folder / entry.url).read_bytes()
    assert capsys.readouterr().err.count("503 Service Unavailable") == 2


@pytest.mark.parametrize("status", [500, 429])
def test_a_server_that_fails_for_good_is_named_with_status_and_tries(server, entry, sums, status):
    server.faults[r".*\.tar"] = failing(10**9, status)
    with pytest.raises(Unreachable, match=rf"{entry.url} from {server.url}: .*{status}.*tried 3 times"):
        fetch(open_origin(server.url, QUICK), entry, sums, QUICK)
    assert server.requests[entry.url] == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_waiting_cannot_mend_is_not_tried_again(server, entry, sums, status):
    server.faults[r".*\.tar"] = failing(10**9, status)
    with pytest.raises(UserError, match=rf"{entry.url} from {server.url}: .*{status}"):
        fetch(open_origin(server.url, QUICK), entry, sums, QUICK)
    assert server.requests[entry.url] == 1


@pytest.mark.parametrize("fault", [hanging(), dripping(0.05)], ids=["hangs", "drips"])
def test_a_server_that_hangs_is_found(server, entry, sums, fault):
    server.faults[r".*\.tar"] = fault
    impatient = Patience(tries=2, timeout_s=0.4, backoff_s=0.01)
    began = time.monotonic()
    with pytest.raises(Unreachable, match=rf"{entry.url} from {server.url}.*tried 2 times"):
        fetch(open_origin(server.url, impatient), entry, sums, impatient)
    assert time.monotonic() - began < 60


def test_nobody_listening_is_an_error_with_the_url(server, entry, sums):
    origin = open_origin(server.url, QUICK)
    server.close()
    with pytest.raises(Unreachable, match=rf"{entry.url} from {server.url}: Connection refused \(tried 3 times"):
        fetch(origin, entry, sums, QUICK)


def wrongs(folder, entry):
    whole = (folder / entry.url).read_bytes()
    swapped = load_dataset(folder).index("train").shards[1]
    flipped = bytearray(whole)
    flipped[-CHUNK // 2] ^= 1
    return {
        "truncated": (whole[: -2 * CHUNK], "long, but was written with"),
        "longer": (whole + bytes(512), "long, but was written with"),
        "swapped": ((folder / swapped.url).read_bytes()[: len(whole)].ljust(len(whole), b"\0"), "from byte 0 on"),
        "flipped": (bytes(flipped), "it differs from byte"),
    }


@pytest.mark.parametrize("wrong", ["truncated", "longer", "swapped", "flipped"])
def test_another_file_under_a_shards_name_is_an_error_with_shard_and_url(folder, server, entry, sums, out, wrong):
    data, words = wrongs(folder, entry)[wrong]
    server.faults[r".*\.tar"] = other(data)
    with pytest.raises(Damaged, match=rf"{entry.url} from {server.url}.*{words}"):
        fetch(open_origin(server.url, QUICK), entry, sums, QUICK, out)
    kept = content(out)
    assert kept == (folder / entry.url).read_bytes()[: len(kept)]  # nothing wrong has reached the disk


def member_boundary(folder, entry):
    """A byte at which one block ends and the next begins."""
    return entry.blocks[2].document_offset // 512 * 512 - 512


@pytest.mark.parametrize("count", ["boundary", "header", "payload", "nothing"])
def test_a_pipe_that_is_cut_anywhere_is_an_error_and_never_fewer_rows(folder, entry, sums, count):
    boundary = member_boundary(folder, entry)
    cut = {"boundary": boundary, "header": boundary + 100, "payload": boundary + 5000, "nothing": 0}[count]
    url = f"pipe:head -c {cut} {folder}/{{file}}"
    with pytest.raises(Damaged, match=rf"{entry.url} from {re.escape(url)} ends after {cut:,} of"):
        fetch(open_origin(url, QUICK), entry, sums, QUICK)


def test_the_index_is_held_against_the_blocks_even_where_every_byte_is_as_summed(folder, entry, sums):
    from dataclasses import replace

    block = replace(entry.blocks[1], tokens=entry.blocks[1].tokens - 1)
    other_index = replace(entry, blocks=(entry.blocks[0], block, *entry.blocks[2:]))
    origin = open_origin(f"file://{folder}", QUICK)
    with pytest.raises(Damaged, match="its block 1 holds"):
        fetch(origin, other_index, sums, QUICK)
    for blocks, words in ((entry.blocks[:-1], "more blocks"), ((*entry.blocks, block), "of its")):
        with pytest.raises(Damaged, match=words):
            fetch(origin, replace(entry, blocks=blocks), sums, QUICK)
    with pytest.raises(Damaged, match="sha256"):
        fetch(origin, replace(entry, sha256="0" * 64), sums, QUICK)


def test_a_command_that_fails_is_shown_with_what_it_said(folder, entry, sums):
    url = "pipe:cat /nowhere/{file}"
    with pytest.raises(Unreachable, match=r"ended with 1.*No such file.*tried 3 times"):
        fetch(open_origin(url, QUICK), entry, sums, QUICK)
    late = f"pipe:cat {folder}/{{file}}; exit 7"  # all bytes came, and the command still says that it failed
    with pytest.raises(Unreachable, match="ended with 7"):
        fetch(open_origin(late, QUICK), entry, sums, QUICK)


def test_a_command_that_hangs_is_ended(folder, entry, sums, tmp_path):
    impatient = Patience(tries=2, timeout_s=1.5, backoff_s=0.01)
    url = f"pipe:echo $$ >> {tmp_path}/pids; sleep 100; cat {folder}/{{file}}"
    with pytest.raises(Unreachable, match=r"wrote nothing for 1\.5 s"):
        fetch(open_origin(url, impatient), entry, sums, impatient)
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_download_stops_when_it_is_told_to(server, entry, sums):
    stop = threading.Event()
    server.faults[r".*\.tar"] = failing(10**9)
    threading.Timer(0.1, stop.set).start()
    patient = Patience(tries=100, timeout_s=5, backoff_s=60)  # its first wait is 15 s at the least
    began = time.monotonic()
    with pytest.raises(Stopped):
        fetch(open_origin(server.url, patient), entry, sums, patient, stop=stop)
    assert time.monotonic() - began < 12


# -- origins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "file"])
def test_a_range_is_those_bytes(folder, server, entry, kind):
    origin = open_origin(origins(folder, server)[kind], QUICK)
    whole = (folder / entry.url).read_bytes()
    for start, stop in ((0, 1), (100, 70_000), (len(whole) - 5, len(whole))):
        assert origin.read(entry.url, start, stop) == whole[start:stop]
    with pytest.raises(Damaged, match=entry.url):
        origin.read(entry.url, len(whole) - 5, len(whole) + 5)


def test_a_range_that_does_not_end_is_an_error_and_not_a_full_memory(server, entry):
    server.faults[r".*\.tar"] = endless()
    with pytest.raises(Damaged, match=r"asked for bytes 100 to 300, 201 came"):
        open_origin(server.url, QUICK).read(entry.url, 100, 300)


def test_a_server_without_ranges_is_said_once_and_its_files_still_come(folder, entry, sums, out, capsys):
    server = Server(folder, ranges=False)
    try:
        origin = open_origin(server.url, QUICK)
        for _ in range(2):
            with pytest.raises(NoRanges):
                origin.read(entry.url, 5, 10)
        assert not origin.ranges
        os.pwrite(out, (folder / entry.url).read_bytes()[:CHUNK], 0)
        fetch(origin, entry, sums, QUICK, out)  # what is here already is read over
        assert content(out) == (folder / entry.url).read_bytes()
        assert capsys.readouterr().err.count("ranges") == 1
    finally:
        server.close()


def test_secrets_come_from_the_environment_and_no_error_shows_them(server, monkeypatch):
    monkeypatch.setenv("STREAM_TOKEN", "hunter2/+x")
    url = server.url + "?access=${STREAM_TOKEN}"
    origin = open_origin(url, QUICK)
    origin.open("dataset.json").close()
    with pytest.raises(UserError) as caught:
        origin.open("absent.json")
    assert "hunter2" not in str(caught.value) and "${STREAM_TOKEN}" in str(caught.value)
    server.close()
    with pytest.raises(Unreachable) as gone:
        origin.open("dataset.json")
    assert "hunter2" not in str(gone.value)
    monkeypatch.delenv("STREAM_TOKEN")
    with pytest.raises(UserError, match="STREAM_TOKEN of the environment is not set"):
        open_origin(url, QUICK)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret@host/data", "s3://key:secret@bucket/x", "https://host/x?sig=secret&a=1",
        "https://host/x?X-Amz-Signature=secret", "https://host/x?api_key=secret",
        "pipe:curl https://me:secret@host/{file}",
    ],
)  # fmt: skip
def test_a_secret_in_a_url_is_refused_without_being_shown(url):
    with pytest.raises(UserError, match=r"\$\{NAME\}") as caught:
        open_origin(url, QUICK)
    assert "secret" not in str(caught.value)


def test_a_pipe_without_a_place_for_the_name_is_refused():
    with pytest.raises(UserError, match=r"write \{file\}"):
        open_origin("pipe:cat /x", QUICK)


def test_a_protocol_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match="nonsense"):
        open_origin("nonsense://host/x", QUICK)


def test_credentials_of_the_environment_reach_the_server(folder, monkeypatch):
    server = Server(folder)
    seen = []
    server.faults[".*"] = lambda handler, held: seen.append(handler.headers.get("Authorization")) or held
    try:
        monkeypatch.setenv("STREAM_USER", "me")
        monkeypatch.setenv("STREAM_PASSWORD", "pw")
        url = server.url.replace("http://", "http://${STREAM_USER}:${STREAM_PASSWORD}@")
        origin = open_origin(url, QUICK)
        assert isinstance(origin, Http)
        origin.open("dataset.json").close()
        assert seen == ["Basic bWU6cHc="]
    finally:
        server.close()
