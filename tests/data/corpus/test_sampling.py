"""How much of a source is taken: shares and caps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.corpus.document import Document
from data.corpus.sampling import capped, sampled
from data.corpus.source import Source
from data.recipe import DatasetRecipe
from tests.data.corpus.conftest import json_lines, read


def made(count):
    return [Document(f"x:{number:09d}", "x", f"text {number}") for number in range(count)]


def kept(weight, documents):
    source = Source(kind="jsonl", path="x", weight=weight)
    return {document.id for document in sampled(source, documents) if document.fault is None}


@given(st.floats(0.001, 1), st.floats(0.001, 1))
def test_what_a_smaller_weight_keeps_a_larger_one_keeps_too(one, other):
    small, large = sorted((one, other))
    assert kept(small, made(300)) <= kept(large, made(300))


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9, 1])
def test_a_weight_is_the_share_of_documents_kept_and_the_others_are_counted(weight):
    documents = made(20_000)
    got = list(sampled(Source(kind="jsonl", path="x", weight=weight), documents))
    assert len(got) == 20_000
    left = [document for document in got if document.fault is None]
    assert len(left) / 20_000 == pytest.approx(weight, abs=0.02)
    assert {document.fault for document in got} <= {None, "not_sampled"}
    assert sum(document.bytes for document in got) == sum(document.bytes for document in documents)


def test_the_share_depends_on_the_id_alone():
    documents = made(1000)
    assert kept(0.3, documents) == kept(0.3, documents[::-1])
    assert kept(0.3, documents) & {d.id for d in documents[:100]} == kept(0.3, documents[:100])


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (0, "weight 0 would keep nothing: take the source out"),
        (-1, "share of the documents"),
        (1.5, "weigh them in the run's mixture"),
    ],
)
def test_a_weight_that_is_no_share_is_refused(weight, match):
    with pytest.raises(ValueError, match=match):
        Source(kind="stdlib", weight=weight)


def test_a_cap_of_documents_ends_the_reading(tmp_path, texts):
    content = json_lines(texts[:5]) + b"what follows is not even read\n"
    (tmp_path / "x").write_bytes(content)
    got = read(kind="jsonl", path=tmp_path / "x", max_documents=5)
    assert [document.text for document in got] == texts[:5]


def test_a_cap_of_bytes_is_not_exceeded(tmp_path):
    texts = ["ä" * 100] * 10
    (tmp_path / "x").write_bytes(json_lines(texts))
    assert len(read(kind="jsonl", path=tmp_path / "x", max_bytes=650)) == 3
    assert len(read(kind="jsonl", path=tmp_path / "x", max_bytes=600)) == 3
    assert len(read(kind="jsonl", path=tmp_path / "x", max_bytes=2000)) == 10


def test_a_cap_counts_what_the_weight_left():
    source = Source(kind="jsonl", path="x", weight=0.5, max_documents=10)
    got = list(capped(source, sampled(source, made(1000))))
    assert sum(document.fault is None for document in got) == 10
    assert any(document.fault == "not_sampled" for document in got)


def test_a_licence_outside_those_allowed_is_refused():
    sources = (Source(kind="stdlib", licence="PSF-2.0"), Source(kind="folder", path="x"))
    DatasetRecipe(sources=sources)
    with pytest.raises(ValueError, match=r"allowed_licences are PSF-2\.0, MIT, but source x is 'unknown'"):
        DatasetRecipe(sources=sources, allowed_licences=("PSF-2.0", "MIT"))
