"""Sources behind URLs: the same documents as from a disk, through every fault that waiting mends, or an error."""

import json
import re

import fsspec
import pytest

from data.build import build
from data.chunks import prepare
from data.corpus import fingerprint
from data.corpus.remote import Stream
from data.errors import UserError
from data.patience import Patience, Unreachable
from data.recipe import DatasetRecipe, Split, TokenizerTraining
from data.source import Source
from tests.data.conftest import english
from tests.data.corpus.conftest import PACKED, SUFFIX, TABLES, json_lines, page, read, response
from tests.data.fault_server import cutting, dripping, failing, hanging
from tests.data.test_build import digests

QUICK = {"timeout_s": 20.0, "tries": 3}


def put(server, name, content):
    (server.folder / name).write_bytes(content)
    return f"{server.url}/{name}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Waits of hundredths of a second."""
    monkeypatch.setattr(Source, "patience", property(lambda self: Patience(self.tries, self.timeout_s, 0.01)))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("kind", TABLES)
def test_a_web_server_gives_what_the_disk_gives(kind, ranges, texts, server):
    server.ranges = ranges
    name = f"x.{SUFFIX.get(kind, kind)}"
    url = put(server, name, TABLES[kind](texts))
    settings = {"kind": kind, "name": "x"} | ({"quoted": True} if kind == "tsv" else {})
    assert read(path=url, **settings) == read(path=server.folder / name, **settings)


def test_pages_and_archives_come_from_a_web_server(server):
    archive = b"".join(response(f"https://a.example/{n}", page("word " * 50), n) for n in range(3))
    assert len(read(kind="warc", path=put(server, "x.warc.gz", PACKED[".gz"](archive)))) == 3
    (document,) = read(kind="html", path=put(server, "a%20b.html", page("word " * 50)).replace("%20", "%2520"))
    assert "word word" in document.text


def test_braces_name_the_files_of_a_server_that_lists_none(texts, server):
    for number in range(3):
        put(server, f"part-{number:03d}.jsonl.zst", PACKED[".zst"](json_lines(texts[number * 5 : number * 5 + 5])))
    url = f"{server.url}/part-{{000..002}}.jsonl.zst"
    got = read(kind="jsonl", path=url, name="web")
    assert [document.text for document in got] == texts[:15]
    assert got[5].id == "web/part-001.jsonl.zst:000000001"
    for wild, kind in ((f"{server.url}/part-*.jsonl.zst", "jsonl"), (server.url, "folder")):
        with pytest.raises(UserError, match=r"a web server lists no folder.*braces"):
            read(kind=kind, path=wild, name="web")


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_any_fsspec_url_gives_what_the_disk_gives(protocol, texts, tmp_path):
    for number, name in enumerate(("a/x.jsonl", "a/b/y.jsonl.gz", "z.jsonl", "a/.hidden.jsonl", "a/x.txt")):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json_lines(texts[number * 3 : number * 3 + 3])
        path.write_bytes(PACKED[".gz"](content) if name.endswith(".gz") else content)
    root = f"file://{tmp_path}/corpus"
    if protocol == "memory":
        root = f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").put(str(tmp_path / "corpus"), f"/{tmp_path.name}", recursive=True)
    for below in ("", "/a/x.jsonl", "/a/**/*.jsonl*", "/{z,a/x}.jsonl"):
        here = read(kind="jsonl", path=f"{tmp_path}/corpus{below}", name="c")
        assert read(kind="jsonl", path=root + below, name="c") == here
        assert here
    assert [d.id for d in read(kind="folder", path=root, name="c", glob=["**/*.txt"])] == ["c/a/x.txt"]
    for absent in ("/gone", "/gone/*.jsonl"):
        with pytest.raises(UserError, match="source c: "):
            read(kind="jsonl", path=root + absent, name="c")


FAULTS = {
    "answers 500 for a moment": failing(2),
    "is busy for a moment": failing(2, 429),
    "hangs for a moment": hanging(2),
    "hangs up in the middle": cutting(1000, 2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_waiting_mends_costs_no_document(fault, texts, server):
    url = put(server, "x.jsonl", json_lines(texts))
    server.faults["x.jsonl"] = FAULTS[fault]
    patience = {"timeout_s": 1.0, "tries": 6} if "hangs for" in fault else QUICK
    assert [document.text for document in read(kind="jsonl", path=url, **patience)] == texts


def test_a_server_that_hangs_up_again_and_again_is_asked_for_the_rest_alone(texts, server):
    content = json_lines(texts)
    url = put(server, "x.jsonl", content)
    server.faults["x.jsonl"] = cutting(len(content) // 5)
    assert [document.text for document in read(kind="jsonl", path=url, **QUICK)] == texts
    asked = [int(re.findall(r"\d+", part)[0]) for name, part in server.asked if part]
    assert asked == sorted(asked)
    assert server.bytes["x.jsonl"] < 2 * len(content)


LASTING = {
    "answers 500": (failing(10**9), r"the server answers 500 .*\(tried 3 times\)"),
    "answers 404": (failing(10**9, 404), "the server answers 404"),
    "denies access": (failing(10**9, 403), "the server answers 403"),
    "hangs": (hanging(), r"\(tried 3 times\)"),
    "drips": (dripping(0.05), r"\(tried 3 times\)"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_what_waiting_does_not_mend_is_an_error_that_names_source_and_url(fault, texts, server):
    url = put(server, "x.jsonl", json_lines(texts))
    server.faults["x.jsonl"], match = LASTING[fault]
    patience = QUICK | ({"timeout_s": 0.5} if fault in ("hangs", "drips") else {})
    with pytest.raises(UserError, match=rf"source web: cannot read .*x\.jsonl.*{match}"):
        read(kind="jsonl", path=url, name="web", **patience)
    with pytest.raises(UserError, match=rf"source web: cannot read .*{re.escape(server.url)}"):
        fingerprint([Source(kind="jsonl", path=url, name="web", **patience)])


def test_a_build_whose_server_fails_keeps_what_is_finished_and_goes_on_when_it_is_back(server, tmp_path, monkeypatch):
    monkeypatch.setattr("data.pipeline._CHUNK_CHARACTERS", 20_000)
    rows = [json.dumps({"text": english(seed, 400)}) for seed in range(60)]
    for number in range(2):
        put(server, f"{number}.jsonl", "\n".join(rows[30 * number : 30 * number + 30]).encode())
    source = Source(kind="jsonl", name="web", path=f"{server.url}/{{0,1}}.jsonl", timeout_s=0.5, tries=2)
    given = {"split": Split(valid=0), "tokenizer": TokenizerTraining(vocab_size=600), "workers": 1}
    recipe = DatasetRecipe(name="web", sources=(source,), **given)
    whole = digests(build(recipe, tmp_path / "whole").folder)
    opened = Stream._piece

    def fails(stream):
        if stream._file == "1.jsonl" and list((tmp_path / "out").rglob("*.part")):  # else it is being digested
            raise Unreachable("the server answers 500")
        return opened(stream)

    with monkeypatch.context() as patched, pytest.raises(UserError, match=r"answers 500.*What is finished is kept"):
        patched.setattr(Stream, "_piece", fails)
        build(recipe, tmp_path / "out")
    parts = {path.name: path.stat().st_ino for path in (tmp_path / "out").rglob("*.part")}
    assert parts
    made = []
    with monkeypatch.context() as patched:
        patched.setattr("data.pipeline.prepare", lambda part, *given: made.append(part) or prepare(part, *given))
        assert digests(build(recipe, tmp_path / "out").folder) == whole
    assert made[0] == len(parts)


def test_nobody_listening_is_an_error_that_names_the_url(server):
    url = put(server, "x.jsonl", b"")
    server.close()
    with pytest.raises(UserError, match=re.escape(url)):
        read(kind="jsonl", path=url, **QUICK)


def test_a_store_that_gives_less_than_it_announced_is_an_error(texts, monkeypatch):
    files = fsspec.filesystem("memory")
    files.pipe_file("/short/x.jsonl", json_lines(texts))
    whole = type(files).info
    monkeypatch.setattr(type(files), "info", lambda self, path: whole(self, path) | {"size": 10**6})
    with pytest.raises(UserError, match=r"source s: cannot read .*it ended after [\d,]+ of 1,000,000 bytes \(tried 3"):
        read(kind="jsonl", path="memory://short/x.jsonl", name="s", **QUICK)


def test_a_file_that_changes_while_it_is_read_is_an_error(texts, server):
    content = json_lines(texts)
    url = put(server, "x.jsonl", content)
    cut = cutting(1000)

    def changing(handler, content):
        if handler.number > 2:
            content = content.replace(b"a", b"bb")
        return cut(handler, content)

    server.faults["x.jsonl"] = changing
    with pytest.raises(UserError, match=r"x\.jsonl changed while it was read: \d+ before, \d+ now"):
        read(kind="jsonl", path=url, **QUICK)


def test_seeking_reads_only_what_is_asked_for(server):
    content = bytes(range(256)) * 40_000
    stream = Stream(put(server, "x", content), Patience())
    assert stream.seek(-3, 2) == len(content) - 3
    assert stream.read() == content[-3:]
    stream.seek(1000)
    assert stream.read(5) == content[1000:1005]
    assert stream.tell() == 1005
    stream.close()
    assert [part for _, part in server.asked if part] == [f"bytes={len(content) - 3}-", "bytes=1000-"]


def test_the_fingerprint_of_a_remote_file_is_what_its_server_says(texts, server):
    content = json_lines(texts)
    url = put(server, "x.jsonl", content)
    source = Source(kind="jsonl", path=url)
    tagged = {"etag": "one"}

    def tag(handler, content):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("ETag", tagged["etag"])
        handler.end_headers()
        handler.wfile.write(content)

    plain = fingerprint([source])
    assert plain["x.jsonl"]["bytes"] == len(content)
    (server.folder / "x.jsonl").write_bytes(content.replace(b"a", b"b"))
    assert fingerprint([source]) != plain  # without a version it is read
    server.faults["x.jsonl"] = tag
    first = fingerprint([source])
    assert fingerprint([source]) == first
    tagged["etag"] = "two"
    assert fingerprint([source]) != first


def test_secrets_come_from_the_environment_and_are_nowhere_shown(texts, server, monkeypatch, capsys):
    put(server, "x.jsonl", json_lines(texts))
    with pytest.raises(ValueError, match="a password or signature stands in the URL") as caught:
        Source(kind="jsonl", path=f"{server.url}/x.jsonl?sig=hush", name="s")
    assert "sig=hush" not in str(caught.value).partition("[type=")[0]
    source = {"kind": "jsonl", "path": f"{server.url}/x.jsonl?sig=${{SECRET}}", "name": "s"}
    with pytest.raises(UserError, match="SECRET of the environment is not set"):
        read(**source)
    monkeypatch.setenv("SECRET", "hush")
    assert [document.text for document in read(**source)] == texts
    assert "hush" not in json.dumps(Source(**source).model_dump(mode="json"))
    server.faults["x.jsonl"] = failing(10**9)
    with pytest.raises(UserError) as refused:
        read(**source, **QUICK)
    assert "hush" not in str(refused.value) + capsys.readouterr().err
    braces = {"kind": "jsonl", "path": f"{server.url}/{{x,y}}.jsonl?sig=${{SECRET}}", "name": "s"}
    server.faults.clear()
    put(server, "y.jsonl", json_lines(texts[:1]))
    assert len(read(**braces)) == len(texts) + 1
