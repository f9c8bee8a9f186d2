import gzip
import json
import os

import pytest

from data.corpus import documents, fingerprint, input_files
from data.errors import UserError
from data.recipe import Source


def read(**settings):
    return list(documents([Source(**settings)]))


def test_ids_are_relative_to_the_source(tmp_path):
    for place in ("here", "there"):
        folder = tmp_path / place / "texts"
        (folder / "deep").mkdir(parents=True)
        (folder / "b.txt").write_text("bee")
        (folder / "deep" / "a.md").write_text("ay")
        (folder / ".hidden").write_text("no")
        (folder / ".git").mkdir()
        (folder / ".git" / "config").write_text("no")
    here, there = (read(kind="folder", path=tmp_path / place / "texts") for place in ("here", "there"))
    assert here == there
    assert [(d.id, d.source, d.text) for d in here] == [
        ("texts/b.txt", "texts", "bee"),
        ("texts/deep/a.md", "texts", "ay"),
    ]
    named = read(kind="folder", path=tmp_path / "here" / "texts", name="mine", glob=["*.txt", "b.*"])
    assert [document.id for document in named] == ["mine/b.txt"]


def test_a_file_in_a_folder_that_is_not_text_is_a_document_without_text(tmp_path):
    (tmp_path / "nul").write_bytes(b"a\0b")
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfhello")
    found = {d.id.split("/")[1]: (d.text, d.bytes) for d in read(kind="folder", path=tmp_path)}
    assert found == {"nul": (None, 3), "latin": (None, 1), "bom": ("hello", 5)}


def test_a_single_file_that_is_not_text_is_the_users_mistake(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match=r"x\.bin is not a text file"):
        read(kind="text", path=tmp_path / "x.bin")


def test_a_text_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    text = "\n\n".join(f"Paragraph {number}\nof two lines." for number in range(300)) + "\nlast"
    (tmp_path / "book.txt").write_text(text)
    parts = read(kind="text", path=tmp_path / "book.txt", document_characters=500)
    assert "".join(part.text for part in parts) == text
    assert all(part.text.endswith("\n\n") for part in parts[:-1])
    assert max(len(part.text) for part in parts) < 600
    assert [part.id for part in parts[:2]] == ["book.txt#000000", "book.txt#000001"]
    (whole,) = read(kind="text", path=tmp_path / "book.txt", document_characters=0)
    assert (whole.id, whole.text) == ("book.txt", text)


def test_a_text_without_blank_lines_is_cut_at_lines(tmp_path):
    (tmp_path / "log").write_text("a line of text\n" * 1000 + " \n" * 3)
    parts = read(kind="text", path=tmp_path / "log", document_characters=1000)
    assert "".join(part.text for part in parts) == (tmp_path / "log").read_text()
    assert 14 <= len(parts) <= 16


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_are_read_by_field(tmp_path, suffix):
    lines = [
        {"q": "what", "a": "that"},
        {"q": "中文\n", "a": "x"},
        {"q": "bad \ud800", "a": "x"},
        {"q": "\0", "a": "x"},
    ]
    content = "\n\n".join(json.dumps(line) for line in lines).encode()
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    got = read(kind="jsonl", path=path, name="q", text_field="q")
    assert [d.text for d in got] == ["what", "中文\n", None, None]
    assert got[1].id == "q:000000003"


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{bad", r"x\.jsonl:2 is not a JSON line"),
        ("[1]", r"x\.jsonl:2 should hold a JSON object, not list"),
        ('{"txt": "x"}', r"x\.jsonl:2 has no field 'text' \(did you mean 'txt'\?\)\. Its fields: txt\. Mend it, or"),
        ('{"text": 3}', r"x\.jsonl:2 has no text in 'text': it is int"),
    ],
)
def test_a_bad_json_line_is_named_by_file_and_line(tmp_path, line, match):
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=match):
        read(kind="jsonl", path=tmp_path / "x.jsonl")


def test_a_cut_gzip_file_is_an_error_that_names_it(tmp_path):
    content = gzip.compress(b"".join(b'{"text": "%d"}\n' % number for number in range(5000)))
    for bad in (content[: len(content) // 2], b"not gzip"):
        (tmp_path / "x.jsonl.gz").write_bytes(bad)
        with pytest.raises(UserError, match=r"cannot read .*x\.jsonl\.gz: "):
            read(kind="jsonl", path=tmp_path / "x.jsonl.gz")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kind": "text", "path": "gone.txt"}, r"gone\.txt doesn't exist"),
        ({"kind": "jsonl", "path": "gone.jsonl"}, r"gone\.jsonl doesn't exist"),
        ({"kind": "folder", "path": "gone"}, "gone doesn't exist"),
        ({"kind": "text", "path": "."}, "is a folder; use kind: folder"),
        ({"kind": "folder", "path": "a.txt"}, "is a file; use kind: text, jsonl"),
        ({"kind": "folder", "path": ".", "glob": ["*.md", "*.rst"]}, r"no file in .* matches \*\.md, \*\.rst"),
    ],
)
def test_a_path_with_nothing_in_it_is_the_users_mistake(tmp_path, settings, match):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=match):
        read(**settings | {"path": tmp_path / settings["path"]}, name="x")


def test_the_standard_library_is_read_without_installed_packages():
    files = input_files(Source(kind="stdlib"))
    names = [file.id for file in files]
    assert {"stdlib/os.py", "stdlib/asyncio/base_events.py"} <= set(names)
    assert not any("-packages" in name for name in names)
    assert names == sorted(names)


def test_python_source_is_read_in_the_encoding_it_declares(tmp_path, monkeypatch):
    import sysconfig

    (tmp_path / "koi.py").write_bytes("# coding: koi8-r\nx = 'да'\n".encode("koi8-r"))
    (tmp_path / "bad.py").write_bytes(b"# coding: nonsense\nx = '\xff'\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    found = {d.id: d.text for d in read(kind="stdlib")}
    assert found == {"stdlib/koi.py": "# coding: koi8-r\nx = 'да'\n", "stdlib/bad.py": None}


def test_a_link_to_nowhere_is_an_error_never_a_file_fewer(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / ".#a.txt").symlink_to("an editor's lock")
    (tmp_path / "b.txt").symlink_to("a.txt")
    assert len(read(kind="folder", path=tmp_path, name="x")) == 2
    (tmp_path / "c.txt").symlink_to("annex/not-fetched")
    for path in (tmp_path, f"{tmp_path}/*.txt"):
        with pytest.raises(UserError, match=r"source x: .*c\.txt is a link to a file that isn't there"):
            read(kind="folder", path=path, name="x")


def test_a_file_whose_name_is_not_utf_8_is_named(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("one")
    with pytest.raises(UserError, match=r"source x: the name of .*\\udcff\.txt' is not UTF-8: rename it"):
        fingerprint([Source(kind="folder", path=tmp_path, name="x")])


def test_the_fingerprint_of_the_input_follows_names_and_content_not_dates(tmp_path):
    source = Source(kind="folder", path=tmp_path)
    (tmp_path / "a").write_text("one")
    first = fingerprint([source])
    (tmp_path / "a").touch()
    assert fingerprint([source]) == first
    (tmp_path / "a").write_text("two")
    second = fingerprint([source])
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({str(said) for said in (first, second, fingerprint([source]))}) == 3
