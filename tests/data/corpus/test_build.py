"""A dataset out of many kinds of sources at once."""

import pytest

from data.build.build import build
from data.corpus.source import Source
from data.dataset import digests
from data.errors import UserError
from data.recipe import DatasetRecipe, Split, TokenizerTraining
from tests.data.conftest import english
from tests.data.corpus.conftest import PACKED, csv_table, json_lines, page, response


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> DatasetRecipe:
    """Four sources, each with something in it that is not for the dataset."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [english(seed, 200) for seed in range(40)]
    pages = [response(f"https://a.example/{n}", page(text), n) for n, text in enumerate(texts[:10])]
    bad = response("https://a.example/bad", b"\xff", 99, "text/html; charset=utf-8")
    (folder / "crawl.warc.gz").write_bytes(b"".join(map(PACKED[".gz"], [*pages, bad])))
    (folder / "lines.jsonl.zst").write_bytes(PACKED[".zst"](json_lines(texts[10:30]) + b"bad row\n"))
    (folder / "table.csv").write_bytes(csv_table([*texts[30:38], "large " * 10_000]))
    (folder / "notes.md").write_text(texts[38])
    return DatasetRecipe(
        name="mixed",
        sources=(
            Source(kind="warc", path=folder / "crawl.warc.gz", licence="unknown"),
            Source(kind="jsonl", path=folder / "*.jsonl.zst", name="lines", weight=0.5, on_bad_row="drop"),
            Source(kind="csv", path=folder / "table.csv", max_document_bytes=20_000, licence="CC0-1.0"),
            Source(kind="folder", path=folder, glob=("*.md",), name="notes"),
        ),
        split=Split(valid=0.1),
        tokenizer=TokenizerTraining(vocab_size=512),
        workers=1,
    )


@pytest.fixture(scope="module")
def dataset(recipe, tmp_path_factory):
    return build(recipe, tmp_path_factory.mktemp("out") / "mixed")


def test_what_is_not_taken_of_a_source_is_counted_by_its_reason(dataset):
    (read,) = [stage for stage in dataset.info["stages"] if stage["name"] == "read"]
    assert {rule: held["documents"] for rule, held in read["dropped"].items() if rule != "not_sampled"} == {
        "bad_row": 1,
        "not_text": 1,
        "too_large": 1,
    }
    sampled = 20 - read["dropped"]["not_sampled"]["documents"]
    assert 4 <= sampled <= 16
    assert read["documents_in"] == 11 + 21 + 9 + 1
    assert dataset.info["sources"]["crawl.warc.gz"]["documents"] == 10
    assert dataset.info["sources"]["lines"]["documents"] == sampled
    assert dataset.info["licences"]["table.csv"] == "CC0-1.0"


def test_pages_are_held_by_their_main_text_and_known_by_their_url(dataset):
    ids = [row.id for split in ("train", "valid") for row in dataset.rows(split) if row.source == "crawl.warc.gz"]
    assert len(ids) == 10
    assert all(":https://a.example/" in id_ for id_ in ids)


def test_the_bytes_do_not_depend_on_who_takes_the_text_out_of_pages(recipe, dataset, tmp_path):
    again = build(recipe.model_copy(update={"workers": 2}), tmp_path / "mixed")
    assert digests(again.folder) == digests(dataset.folder)


def test_waiting_longer_for_a_server_is_not_another_dataset(recipe, dataset):
    patient = tuple(source.model_copy(update={"timeout_s": 5.0, "tries": 9}) for source in recipe.sources)
    assert build(recipe.model_copy(update={"sources": patient}), dataset.folder).info == dataset.info
    other = (recipe.sources[0].model_copy(update={"weight": 0.5}), *recipe.sources[1:])
    with pytest.raises(UserError, match=r"sources\.0\.weight: 1\.0 there, 0\.5 now"):
        build(recipe.model_copy(update={"sources": other}), dataset.folder)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "folder", "text", "warc"])
def test_an_empty_source_among_others_is_an_error_that_names_it(kind, recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    path = tmp_path / "empty" if kind == "folder" else tmp_path / "nothing"
    if kind != "folder":
        path.write_text("")
    empty = Source(kind=kind, path=path, name="hollow")
    with pytest.raises(UserError, match="source hollow: "):
        build(recipe.model_copy(update={"sources": (*recipe.sources, empty)}), tmp_path / "out")
