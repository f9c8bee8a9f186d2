"""Tables with something wrong in them: each mistake is named by file, line and column, or counted."""

import json

import pytest

from data.errors import UserError
from tests.data.corpus.conftest import TABLES, read, tar


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_wrong_column_names_the_file_the_column_and_those_there_are(kind, tmp_path):
    (tmp_path / "x").write_bytes(TABLES[kind](["one", "two"]))
    for policy in ("error", "drop"):
        with pytest.raises(UserError, match=r"/x has no field 'txt' \(did you mean 'text'\?\)\. Its fields: n, text"):
            read(kind=kind, path=tmp_path / "x", text_field="txt", on_bad_row=policy)


def test_a_column_without_text_is_named_with_what_it_holds(tmp_path):
    (tmp_path / "x").write_bytes(TABLES["parquet"](["one"]))
    with pytest.raises(UserError, match=r"/x:1 has no text in 'n': it is int"):
        read(kind="parquet", path=tmp_path / "x", text_field="n")


BAD_LINES = {
    "not JSON": ('{"text": ', "x:2 is not a JSON line"),
    "not an object": ("[1]", "x:2 should hold a JSON object, not list"),
    "no such field": ('{"texts": "x"}', r"x:2 has no field 'text' \(did you mean 'texts'\?\). Its fields: texts"),
    "null": ('{"text": null}', "x:2 has no text in 'text': it is null"),
    "a number": ('{"text": 3}', "x:2 has no text in 'text': it is int"),
    "deeply nested": ("[" * 100_000, "x:2 is not a JSON line"),
}


@pytest.mark.parametrize("mistake", BAD_LINES)
def test_a_bad_json_line_is_an_error_with_its_number_or_a_counted_drop(mistake, tmp_path):
    line, match = BAD_LINES[mistake]
    (tmp_path / "x").write_text('{"text": "good"}\n' + line + '\n{"text": "also"}\n')
    with pytest.raises(UserError, match=match):
        read(kind="jsonl", path=tmp_path / "x")
    got = read(kind="jsonl", path=tmp_path / "x", on_bad_row="drop")
    assert [(d.text, d.fault) for d in got] == [("good", None), (None, "bad_row"), ("also", None)]
    assert got[1].bytes == len(line) + 1


@pytest.mark.parametrize(
    ("kind", "content", "match"),
    [
        ("csv", 'text,n\n"a\nb",1\nc\n', "x:4 has 1 cells, but there are 2 columns: text, n"),
        ("csv", 'text,n\na,1\n"b"c,2\n', "x:3 is not a row of CSV"),
        ("csv", "text,text\na,b\n", "names a column twice"),
        ("tsv", "text\tn\na\t1\t2\n", "x:2 has 3 cells, but there are 2 columns"),
    ],
)
def test_a_bad_row_of_a_table_is_named_by_its_line(kind, content, match, tmp_path):
    (tmp_path / "x").write_text(content)
    with pytest.raises(UserError, match=match):
        read(kind=kind, path=tmp_path / "x")


def test_a_row_with_quotes_in_the_wrong_place_costs_no_other_row(tmp_path):
    (tmp_path / "x").write_text('text,n\na,1\n"b"c,2\nd,3\n')
    got = read(kind="csv", path=tmp_path / "x", on_bad_row="drop")
    assert [(d.text, d.fault) for d in got] == [("a", None), (None, "bad_row"), ("d", None)]


@pytest.mark.parametrize("policy", ["error", "drop"])
@pytest.mark.parametrize(
    ("kind", "content", "match"),
    [
        ("csv", 'text,n\na,1\n"never closed,2\nb,3\n', "x:3 is not a row of CSV: unexpected end of data. A quotation"),
        ("json", '[{"text": "a"},\n{"text": "b"} {"text": "c"]', "x:2 is not JSON"),
        ("json", '[{"text": "a"},\n', "x:2 is not JSON"),
        ("json", '{"text": "a"}', "x should hold a list of JSON objects"),
    ],
)
def test_what_hides_the_rows_after_it_is_an_error_and_never_a_drop(kind, content, match, policy, tmp_path):
    (tmp_path / "x").write_text(content)
    with pytest.raises(UserError, match=match):
        read(kind=kind, path=tmp_path / "x", on_bad_row=policy)


def test_objects_of_a_json_list_that_is_one_line_have_ids_of_their_own(tmp_path):
    (tmp_path / "x").write_text('[{"text": "a"}, {"text": "b"}, {"txt": "c"}]')
    with pytest.raises(UserError, match=r"x:1 \(object 3\) has no field 'text'"):
        read(kind="json", path=tmp_path / "x")
    got = read(kind="json", path=tmp_path / "x", on_bad_row="drop")
    assert [document.id for document in got] == ["x:000000001", "x:000000002", "x:000000003"]


def test_a_quotation_mark_in_tsv_is_a_character_like_another(tmp_path):
    (tmp_path / "x").write_text('text\tn\n"He said so\t1\n5" nails\t2\n')
    assert [document.text for document in read(kind="tsv", path=tmp_path / "x")] == ['"He said so', '5" nails']


def test_a_table_without_a_header_takes_its_names_from_the_recipe(tmp_path):
    (tmp_path / "x").write_text("1,one\n2,two\n")
    got = read(kind="csv", path=tmp_path / "x", header=["n", "text"])
    assert [document.text for document in got] == ["one", "two"]


def test_a_table_with_nothing_but_a_header_is_an_empty_source(tmp_path):
    for content in ("text\n", ""):
        (tmp_path / "x").write_text(content)
        with pytest.raises(UserError, match="source x: there is no document in"):
            read(kind="csv", path=tmp_path / "x")


def test_a_line_too_large_is_passed_over_without_its_neighbours(tmp_path):
    lines = [json.dumps({"text": text}) for text in ("a", "b" * 5000, "c", "d" * 1_500_000)]
    (tmp_path / "x").write_text("\n".join(lines))
    got = read(kind="jsonl", path=tmp_path / "x", max_document_bytes=2000)
    assert [(d.text, d.fault) for d in got] == [("a", None), (None, "too_large"), ("c", None), (None, "too_large")]
    assert [d.bytes for d in got[1::2]] == [len(lines[1]) + 1, len(lines[3])]
    assert [d.id for d in got] == [f"x:{number:09d}" for number in (1, 2, 3, 4)]


@pytest.mark.parametrize("kind", ["folder", "html", "csv", "parquet", "webdataset", "text"])
def test_any_document_too_large_is_a_counted_drop(kind, tmp_path):
    texts = ["small", "large " * 1000]
    folder = tmp_path / "x"
    folder.mkdir()
    if kind in TABLES:
        (folder / f"x.{'tar' if kind == 'webdataset' else kind}").write_bytes(TABLES[kind](texts))
    else:
        for number, text in enumerate(texts):
            (folder / f"{number}.html").write_text(text)
    settings = {"max_document_bytes": 2000}
    if kind == "text":
        got = read(kind=kind, path=folder / "{0,1}.html", name="x", document_characters=0, **settings)
    else:
        got = read(kind=kind, path=folder, **settings)
    assert [document.fault for document in got] == [None, "too_large"]
    assert got[1].bytes >= 6000


def test_a_sample_without_text_is_named_with_the_members_it_has(tmp_path):
    members = [("a.txt", b"one"), ("b.jpg", b"\xff"), ("b.cls", b"3"), ("c.json", b'{"txt": 1}')]
    (tmp_path / "x.tar").write_bytes(tar(members))
    with pytest.raises(
        UserError, match=r"x\.tar: sample 2 \(b\) has neither a \.txt nor a \.json member, but \.jpg, \.cls"
    ):
        read(kind="webdataset", path=tmp_path / "x.tar")
    got = read(kind="webdataset", path=tmp_path / "x.tar", on_bad_row="drop")
    assert [(d.id, d.fault) for d in got] == [("x.tar:a", None), ("x.tar:b", "bad_row"), ("x.tar:c", "bad_row")]


def test_two_members_of_one_name_are_an_error(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar([("a.txt", b"one"), ("a.txt", b"two")]))
    with pytest.raises(UserError, match=r"cannot read .*x\.tar: a\.txt: duplicate file name"):
        read(kind="webdataset", path=tmp_path / "x.tar")
