import json
import shutil

import pytest

from data.dataset import FILE, load_dataset
from data.errors import UserError
from data.inspect import report
from data.shards import SPLITS
from data.tokenizer.training import train


@pytest.fixture
def copy(small_dataset, tmp_path):
    return shutil.copytree(small_dataset.folder, tmp_path / "copy")


def test_a_dataset_opens_where_it_was_copied_to(copy, small_dataset):
    opened = load_dataset(str(copy))
    assert opened.info == small_dataset.info
    assert [opened.index(split).fingerprint for split in SPLITS] == [
        small_dataset.index(split).fingerprint for split in SPLITS
    ]
    assert opened.verify() == []


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "version 2 of luban-dataset; this Luban reads version 1"),
        ({"format": "x"}, "doesn't describe a Luban dataset"),
    ],
)
def test_a_newer_or_foreign_description_is_refused(copy, change, match):
    info = json.loads((copy / FILE).read_text())
    (copy / FILE).write_text(json.dumps(info | change))
    with pytest.raises(UserError, match=match):
        load_dataset(copy)


def test_what_is_not_there_is_said(copy, tmp_path):
    with pytest.raises(UserError, match=r"no dataset at .*nowhere\. Build one with: luban data build"):
        load_dataset(tmp_path / "nowhere")
    (copy / FILE).unlink()
    with pytest.raises(UserError, match="incomplete: its build was interrupted"):
        load_dataset(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a dataset"):
        load_dataset(tmp_path / "empty")


def test_a_tokenizer_that_did_not_make_the_shards_is_refused_by_both_fingerprints(copy, code_texts):
    other = train(code_texts[:5], 700)
    right = load_dataset(copy).tokenizer().fingerprint
    other.save(copy)
    with pytest.raises(UserError) as caught:
        load_dataset(copy)
    for part in ("tokenizer.model", other.fingerprint[:12], right[:12]):
        assert part in str(caught.value)
    (copy / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="cannot read the dataset's tokenizer"):
        load_dataset(copy)


def test_an_index_of_another_build_is_refused(copy):
    shutil.copy(copy / "valid.index.json", copy / "train.index.json")
    with pytest.raises(UserError, match=r"train\.index\.json in .* belongs to another build"):
        load_dataset(copy).index("train")


def test_check_names_every_damaged_file(copy):
    tar = copy / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[5000] ^= 4
    tar.write_bytes(content)
    shutil.copy(copy / "train-000001.docs.parquet", copy / "train-000002.docs.parquet")
    (copy / "heldout-000000.docs.parquet").unlink()
    (copy / "valid-000000.tar").unlink()
    with pytest.raises(UserError) as caught:
        report(copy, check=True, samples=0)
    assert "valid-000000.tar is missing" in str(caught.value)
    problems = "\n".join(load_dataset(copy).verify())
    for part in ("train-000000.tar", "valid-000000.tar is missing", "heldout-000000.docs.parquet"):
        assert part in problems
    tar.write_bytes(bytes(content[:5000]) + bytes([content[5000] ^ 4]) + bytes(content[5001:]))
    assert "train-000002.docs.parquet in" in "\n".join(load_dataset(copy).verify())
    info = json.loads((copy / FILE).read_text("utf-8"))
    info["files"]["train-000002.docs.parquet"] = info["files"]["train-000001.docs.parquet"]
    (copy / FILE).write_text(json.dumps(info), "utf-8")
    assert "the document table of train-000002.tar" in "\n".join(load_dataset(copy).verify())


def test_the_report_shows_counts_lengths_drops_and_samples(small_dataset):
    page = report(small_dataset.folder, check=True)
    info = small_dataset.info
    for part in (
        f"{info['documents']:,} documents, {info['tokens']:,} tokens",
        f"{info['splits']['train']['documents']:,}",
        "not_text",
        "code/picture.py",
        "PSF-2.0",
        "tokens a document: median",
        "train: 2 of its documents",
        "every file has the bytes it was written with",
        "import ",
    ):
        assert part in page


def test_a_datasets_bare_name_is_told_where_the_dataset_lies(tmp_path):
    (tmp_path / "datasets" / "web").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Is it .*datasets/web that you mean\?"):
        load_dataset(tmp_path / "web")
