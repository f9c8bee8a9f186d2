"""Whatever the format, the compression and the place: the same texts come out, and a cut file is an error."""

import gzip
import json

import pytest

from data.errors import UserError
from tests.data.corpus.conftest import PACKED, SUFFIX, TABLES, json_lines, read

QUOTED = {"tsv": {"quoted": True}}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", TABLES)
def test_every_format_in_every_compression_gives_the_texts_that_were_written(kind, packed, texts, tmp_path):
    if kind == "parquet" and packed:
        return  # it compresses its own pages
    (tmp_path / f"x.{SUFFIX.get(kind, kind)}{packed}").write_bytes(PACKED[packed](TABLES[kind](texts)))
    got = read(kind=kind, path=tmp_path, name="x", **QUOTED.get(kind, {}))
    assert [document.text for document in got] == texts
    assert len({document.id for document in got}) == len(texts)
    assert all(document.id.startswith("x/x.") for document in got)


@pytest.mark.parametrize("packed", [".gz", ".zst", ".bz2", ".xz"])
def test_files_of_several_members_are_read_to_the_last(packed, texts, tmp_path):
    parts = [PACKED[packed](json_lines(texts[at : at + 9])) for at in range(0, len(texts), 9)]
    (tmp_path / f"x.jsonl{packed}").write_bytes(b"".join(parts))
    assert [document.text for document in read(kind="jsonl", path=tmp_path / f"x.jsonl{packed}")] == texts


@pytest.mark.parametrize("packed", [".gz", ".zst", ".bz2", ".xz"])
def test_a_compressed_file_that_is_cut_anywhere_is_an_error_that_names_it(packed, texts, tmp_path):
    half = json_lines(texts[:14])
    first = PACKED[packed](half)
    whole = first + PACKED[packed](json_lines(texts[14:]))
    path = tmp_path / f"x.jsonl{packed}"
    for cut in (1, 5, len(first) // 2, len(first) - 1, len(first) + 3, (len(first) + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=f"source s: cannot read .*x.jsonl{packed}"):
            read(kind="jsonl", path=path, name="s")


@pytest.mark.parametrize("packed", [".gz", ".zst", ".bz2", ".xz"])
def test_a_file_that_is_not_what_its_suffix_says_is_an_error_that_names_it(packed, tmp_path):
    (tmp_path / f"x.jsonl{packed}").write_bytes(b'{"text": "plain"}\n' * 100)
    with pytest.raises(UserError, match=f"cannot read .*x.jsonl{packed}"):
        read(kind="jsonl", path=tmp_path / f"x.jsonl{packed}")


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "json"])
def test_an_uncompressed_file_that_is_cut_anywhere_is_an_error_that_names_it(kind, texts, tmp_path):
    whole = TABLES[kind](texts)
    path = tmp_path / f"x.{kind}"
    end = len(whole.rstrip(b"\0")) + 512 if kind == "webdataset" else len(whole)  # a tar's end is one block of its end
    for cut in (1, 511, 512, 1024, 1536, len(whole) // 2, len(whole) // 2 // 512 * 512, end - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=f"x.{kind}"):
            read(kind=kind, path=path)


def test_a_tar_that_is_cut_between_two_members_is_an_error(texts, tmp_path):
    """Where webdataset itself sees a whole tar of fewer samples."""
    import tarfile

    whole = TABLES["webdataset"](texts)
    (tmp_path / "x.tar").write_bytes(whole)
    with tarfile.open(tmp_path / "x.tar") as file:
        places = [member.offset for member in file.getmembers()]
    for place in places[1:]:
        (tmp_path / "x.tar").write_bytes(whole[:place])
        with pytest.raises(UserError, match=r"x\.tar.* without the mark of a tar's end: it is cut"):
            read(kind="webdataset", path=tmp_path / "x.tar")


def test_files_of_a_folder_are_read_compressed_too(texts, tmp_path):
    (tmp_path / "a.py").write_text(texts[0])
    (tmp_path / "b.py.gz").write_bytes(gzip.compress(texts[1].encode()))
    (tmp_path / "c.md.zst").write_bytes(PACKED[".zst"](texts[2].encode()))
    got = {document.id: document.text for document in read(kind="folder", path=tmp_path, name="x")}
    assert got == {"x/a.py": texts[0], "x/b.py.gz": texts[1], "x/c.md.zst": texts[2]}


def test_patterns_name_files_from_their_last_plain_folder_on(tmp_path, monkeypatch):
    for place in ("2023/a", "2023/b", "2024/a"):
        (tmp_path / "crawl" / place).mkdir(parents=True)
        (tmp_path / "crawl" / place / "x.jsonl").write_text(json.dumps({"text": place}) + "\n")
    everything = read(kind="jsonl", path=tmp_path / "crawl" / "*" / "*" / "x.jsonl", name="web")
    assert [(d.id, d.text) for d in everything] == [
        ("web/2023/a/x.jsonl:000000001", "2023/a"),
        ("web/2023/b/x.jsonl:000000001", "2023/b"),
        ("web/2024/a/x.jsonl:000000001", "2024/a"),
    ]
    some = read(kind="jsonl", path=tmp_path / "crawl" / "{2023,2024}" / "a" / "x.jsonl", name="web")
    assert [d.id for d in some] == ["web/2023/a/x.jsonl:000000001", "web/2024/a/x.jsonl:000000001"]
    monkeypatch.chdir(tmp_path)
    assert read(kind="jsonl", path="crawl/202?/b/x.jsonl", name="web") == [everything[1]]
    with pytest.raises(UserError, match=r"2025/a/x\.jsonl doesn't exist"):
        read(kind="jsonl", path="crawl/{2023..2025}/a/x.jsonl", name="web")


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path):
    (tmp_path / "a[1].txt").write_text("plain")
    (document,) = read(kind="text", path=tmp_path / "a[1].txt")
    assert (document.id, document.text) == ("a[1].txt#000000", "plain")


def test_a_hundred_thousand_documents_of_ten_bytes_are_read(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "0123456789"}\n' * 100_000)
    got = read(kind="jsonl", path=tmp_path / "x.jsonl")
    assert len({document.id for document in got}) == 100_000
    assert {document.text for document in got} == {"0123456789"}
