"""`luban data inspect`: its figures are the documents', plans and damage are told by name."""

import json
import re
import shutil

import numpy as np
import pytest

from data import inspect as inspecting
from data.build.build import build
from data.dataset import Dataset, load_dataset
from data.errors import UserError
from data.inspect import inspect, page, report
from data.order.pack import pack_dataset
from data.recipe import Dedup, Split, Task
from data.shards import IN_LOSS, SPLITS


@pytest.fixture(scope="module")
def packed(small_dataset: Dataset, tmp_path_factory) -> Dataset:
    return pack_dataset(shutil.copytree(small_dataset.folder, tmp_path_factory.mktemp("packed") / "small"), [64, 128])


class Heard:
    """A progress that adds up."""

    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def begin(self, stage: str, total: int | None, unit: str) -> None:
        self.total = total or 0

    def advance(self, amount: int) -> None:
        self.done += amount

    def end(self, note: str = "") -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


def test_figures_are_those_of_the_documents(packed):
    found = inspect(packed.folder)
    for split in SPLITS:
        rows = list(packed.rows(split))
        lengths = np.array([row.tokens for row in rows])
        said = found["splits"][split]["lengths"]
        assert (said["median"], said["longest"]) == (int(np.median(lengths)), lengths.max())
        for upto, count in said["up_to"].items():
            assert count == ((lengths <= int(upto)) & (lengths > int(upto) // 2)).sum()
        assert sum(said["up_to"].values()) == len(rows)
    (source,) = found["sources"].values()
    assert source["documents"] == found["documents"] and source["tokens_share"] == 1
    assert source["bytes_per_token"] == pytest.approx(found["text_bytes"] / found["tokens"])
    for plans in found["splits"]["train"]["packing"]:
        assert plans["context"] in (64, 128)
        assert plans["best_fit"]["utilisation"] > 0.97 and plans["chop"]["utilisation"] == 1
        assert plans["best_fit"]["unread"] == 0 < plans["chop"]["unread"]
    json.dumps(found)


def test_samples_are_documents_and_those_of_examples_show_their_fields(packed, small_recipe, tmp_path):
    texts = {row.id: (row.source, held) for row, held in packed.documents("train")}
    samples = inspect(packed.folder, samples=5)["splits"]["train"]["samples"]
    assert len({each["id"] for each in samples}) == 5
    for each in samples:
        source, tokens = texts[each["id"]]
        assert (each["source"], each["tokens"]) == (source, len(tokens))
        assert each["text"][:40] == repr(packed.tokenizer().decode(tokens))[1:41]

    update = {
        "name": "examples",
        "kind": "examples",
        "task": Task(),
        "split": Split(valid=0.1),
        "dedup": Dedup(near=False),
    }
    made = build(small_recipe.model_copy(update=update), tmp_path / "examples")
    pack_dataset(made.folder, [512])
    found = inspect(made.folder, samples=3)
    for each in found["splits"]["train"]["samples"]:
        assert sum(field["tokens"] for field in each["fields"]) == each["tokens"]
        assert {field["field"] for field in each["fields"]} == {"prompt", "completion"}
        assert [field["in_loss"] for field in each["fields"]][-1] is True
    (plans,) = found["splits"]["train"]["packing"]
    assert plans["best_fit"]["cut"] == 0 and plans["unpacked"]["utilisation"] < plans["best_fit"]["utilisation"]
    shown = page(found)
    assert re.search(r"\[completion, \d+ tokens, in the loss\]", shown) and "<|completion|>" in shown
    index = made.index("train")
    loss = sum(
        int((made.shard(index, at).uses(0, each.tokens) & IN_LOSS).sum()) for at, each in enumerate(index.shards)
    )
    assert 0 < loss < index.tokens


def test_the_page_tells_plans_and_where_there_are_none(packed, small_dataset):
    shown = report(packed.folder)
    assert "train, context 64: " in shown and re.search(
        r"best_fit +[\d,]+ rows, 9\d\.\d% full, .* of the documents", shown
    )
    assert "train: no packing plans" in report(small_dataset.folder)


def test_a_large_dataset_is_told_from_some_of_its_shards(packed, monkeypatch):
    monkeypatch.setattr(inspecting, "_TABLES", 3)
    found = inspect(packed.folder)
    train = found["splits"]["train"]
    assert train["lengths"]["shards"] == 3 < train["shards"]
    assert f"(from 3 of {train['shards']} shards)" in page(found)
    assert train["lengths"]["longest"] == max(row.tokens for row in packed.rows("train"))


def test_check_reads_every_byte_and_names_each_fault(packed, tmp_path):
    heard = Heard()
    assert inspect(packed.folder, check=True, progress=heard)["faults"] == []
    files = [path for path in packed.folder.iterdir() if path.name != "dataset.json"]
    assert heard.done == heard.total == sum(path.stat().st_size for path in files)

    copy = shutil.copytree(packed.folder, tmp_path / "copy")
    tables = ("train-000002.docs.parquet", "heldout-000000.docs.parquet")
    damaged = ("train-000001.tar", "valid-000000.pack-65.npy", *tables)
    for name in damaged:
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    for name in ("train-000003.pack-129.npy", "heldout.index.json", "valid-000000.tar"):
        (copy / name).unlink()
    faults = inspect(copy, check=True)["faults"]
    for name in (*damaged, "train-000003.pack-129.npy", "heldout.index.json", "valid-000000.tar"):
        assert any(name in fault for fault in faults), name
    assert not any("train-000000.tar" in fault for fault in faults)
    with pytest.raises(UserError, match=r"(?s)train-000001\.tar.*Copy the dataset again"):
        report(copy, check=True)


def test_plans_of_other_shards_are_told_and_do_not_hide_the_rest(packed, tmp_path):
    copy = shutil.copytree(packed.folder, tmp_path / "copy")
    shutil.copy(copy / "valid.pack-65.json", copy / "train.pack-65.json")
    found = inspect(copy)
    faulty, whole = found["splits"]["train"]["packing"]
    assert "lists plans of other shards" in faulty["fault"] and whole["context"] == 128
    assert "plans for a context of 64 can't be used" in page(found)
    assert any("train.pack-65.json" in fault for fault in load_dataset(copy).verify())
