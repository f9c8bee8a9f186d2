"""Encodings: marks are honoured, the recipe says the rest, and what doesn't decode is counted and never mended."""

import codecs
import csv
import io
import json

import pytest

from data.corpus.encodings import decode
from data.errors import UserError
from data.recipe import Source
from tests.data.corpus.conftest import parquet_table, read, tar

TEXT = "Grüße aus 北京\nzweite Zeile"
MARKED = {
    "utf-8-sig": TEXT.encode("utf-8-sig"),
    "utf-16-le": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "utf-16-be": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "utf-32-le": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "utf-32-be": codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
}


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("otherwise", ["utf-8", "gb18030", "latin-1"])
def test_a_byte_order_mark_says_more_than_the_recipe(encoding, otherwise, tmp_path):
    (tmp_path / "x.txt").write_bytes(MARKED[encoding])
    for settings in ({"kind": "folder", "path": tmp_path}, {"kind": "text", "path": tmp_path / "x.txt"}):
        (document,) = read(encoding=otherwise, **settings)
        assert document.text == TEXT


@pytest.mark.parametrize("encoding", MARKED)
def test_tables_with_a_byte_order_mark_are_read(encoding, tmp_path):
    mark = MARKED[encoding][: len(MARKED[encoding]) - len(TEXT.encode(encoding.removesuffix("-sig")))]
    plain = encoding.removesuffix("-sig")
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in (TEXT, "b"))
    (tmp_path / "x").write_bytes(mark + lines.encode(plain))
    assert [document.text for document in read(kind="jsonl", path=tmp_path / "x")] == [TEXT, "b"]
    made = io.StringIO(newline="")
    csv.writer(made).writerows([["text"], [TEXT], ["b"]])
    (tmp_path / "x").write_bytes(mark + made.getvalue().encode(plain))
    assert [document.text for document in read(kind="csv", path=tmp_path / "x")] == [TEXT, "b"]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16-le", "utf-16", "shift_jis"])
def test_the_recipe_says_the_encoding_of_files_without_a_mark(encoding, tmp_path):
    text = "こんにちは\nworld" if encoding == "shift_jis" else TEXT
    (tmp_path / "x").write_bytes(text.encode(encoding))
    (document,) = read(kind="folder", path=tmp_path, encoding=encoding)
    assert document.text == text
    (tmp_path / "x").write_bytes((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode(encoding))
    (document,) = read(kind="jsonl", path=tmp_path / "x", encoding=encoding)
    assert document.text == text


def mixed(kind):
    """Three rows, the second in another encoding than the others."""
    rows = ["grün".encode(), "grün".encode("latin-1"), "grün 北京".encode()]
    if kind == "jsonl":
        return b"".join(b'{"text": "' + row + b'"}\n' for row in rows)
    if kind == "lines":
        return b"\n".join(rows)
    return b"text\n" + b"\n".join(rows)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "webdataset", "folder"])
def test_of_mixed_encodings_what_does_not_decode_is_dropped_and_its_neighbours_are_read(kind, tmp_path):
    rows = ["grün".encode(), "grün".encode("latin-1"), "grün 北京".encode()]
    if kind == "folder":
        for number, row in enumerate(rows):
            (tmp_path / f"{number}.txt").write_bytes(row)
        got = read(kind=kind, path=tmp_path)
    else:
        whole = tar([(f"{n}.txt", row) for n, row in enumerate(rows)]) if kind == "webdataset" else mixed(kind)
        (tmp_path / "x").write_bytes(whole)
        got = read(kind=kind, path=tmp_path / "x")
    assert [(d.text, d.fault) for d in got] == [("grün", None), (None, "not_text"), ("grün 北京", None)]


def test_a_parquet_string_that_is_not_utf8_is_dropped_and_its_neighbours_are_read(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    broken = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary())
    parquet.write_table(pa.table({"text": broken}), tmp_path / "x")
    got = read(kind="parquet", path=tmp_path / "x")
    assert [(d.text, d.fault) for d in got] == [("one", None), (None, "not_text"), ("three", None)]


def test_a_dictionary_encoded_parquet_column_is_text(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}), tmp_path / "x")
    assert [document.text for document in read(kind="parquet", path=tmp_path / "x")] == ["a", "b", "a"]
    (tmp_path / "y").write_bytes(parquet_table(["a", "b"]))
    assert [document.text for document in read(kind="parquet", path=tmp_path / "y")] == ["a", "b"]


@pytest.mark.parametrize("tail", [b"\x00", "中".encode("utf-16-le") + b"\x00", b"\x00\xd8"])
def test_utf16_that_breaks_off_costs_its_last_line_alone(tail, tmp_path):
    lines = codecs.BOM_UTF16_LE + '{"text": "one"}\n{"text": "two'.encode("utf-16-le") + tail
    (tmp_path / "x").write_bytes(lines)
    got = read(kind="jsonl", path=tmp_path / "x", on_bad_row="drop")
    assert (got[0].text, got[0].fault) == ("one", None)
    assert got[-1].text is None


def test_a_text_file_in_another_encoding_is_an_error_that_says_how_to_name_it(tmp_path):
    (tmp_path / "x").write_bytes(b"fine\n" * 300_000 + "grün".encode("latin-1"))
    with pytest.raises(UserError, match=r"x is not a text file \(NUL bytes, or not UTF-8; another encoding can"):
        read(kind="text", path=tmp_path / "x")
    assert read(kind="text", path=tmp_path / "x", encoding="latin-1")[-1].text.endswith("grün")


def test_nothing_is_decoded_by_replacing(tmp_path):
    assert decode(b"\xc3\x28") is None
    assert decode(b"a\0b") is None
    assert decode(codecs.BOM_UTF16_LE + b"\x00\xd8") is None
    assert decode("北".encode()) == "北"


def test_an_unknown_encoding_is_refused_by_the_recipe():
    for encoding in ("utf8-with-hope", "base64"):
        with pytest.raises(ValueError, match="no such text encoding"):
            Source(kind="folder", path="x", encoding=encoding)
