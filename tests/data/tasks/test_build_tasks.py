"""Datasets of every task, built from real corpora: from rows in files to rows by position, and what is said of them."""

import json
from itertools import pairwise

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from data.build import build
from data.dataset import load_dataset
from data.errors import UserError
from data.inspect import report
from data.order import Order
from data.reader import LocalReader, layout
from data.recipe import RECIPES, DatasetRecipe
from data.shards import FIELDS, IN_LOSS, SPLITS, MappedShard
from data.source import Source
from tests.data.conftest import english
from tests.data.tasks.test_encode import ALPACA, DIALOGUES, FLICKR, MRPC, OFFICE, REVIEWS, SST2

KEEP = {"exact": False, "near": False}


@pytest.fixture(scope="module")
def made(rows_folder, tokenizer, tmp_path_factory):
    """Builds a dataset of a task from sources given as in the recipes, their paths relative to the rows' folder."""
    folder = tmp_path_factory.mktemp("tasks")
    tokenizer.save(folder / "tokenizer")

    def make(name, task, *sources, workers=1, **settings):
        placed = []
        for source in sources:
            source = dict(source)
            if "path" in source:
                source["path"] = rows_folder / source["path"]
            if "files" in source:
                source["files"] = {column: rows_folder / path for column, path in source["files"].items()}
            placed.append(source)
        recipe = DatasetRecipe(
            name=name, kind="examples", sources=placed, task=task, dedup=KEEP, workers=workers, shard_tokens=4000,
            tokenizer={"reuse": folder / "tokenizer"}, **{"split": {"valid": 0.2}, **settings},
        )  # fmt: skip
        return build(recipe, folder / f"{name}-{workers}")

    return make


def rows_of(dataset, split="train", context=4096):
    index = dataset.index(split)
    reader = LocalReader(index, Order(layout(index, context), 0, 4), context)
    return reader.rows(np.arange(index.documents))


def examples(dataset):
    """(row of the table, tokens, uses, targets or none) of each."""
    for split in SPLITS:
        index = dataset.index(split)
        shards = [MappedShard(dataset.folder, shard, index.dtype) for shard in index.shards]
        for row, tokens in dataset.documents(split):
            shard = shards[row.shard]
            target = shard.target(shard.document_at(row.start), index.targets) if index.targets else None
            yield row, tokens, shard.uses(row.start, row.start + row.tokens), target


@pytest.mark.parametrize("source", [SST2, REVIEWS], ids=["en", "zh"])
def test_classes_arrive_with_their_rows_and_their_balance_is_recorded(made, source):
    task = {"kind": "classification", "labels": {0: "negative", 1: "positive"}, "max_tokens": 4096}
    dataset = made(f"sentiment-{source['path'][0]}", task, source)
    said = dataset.info["task"]
    assert said["classes"] == ["negative", "positive"]
    for split in ("train", "valid"):
        rows = rows_of(dataset, split)
        assert rows.targets.shape == (len(rows.tokens), 1)
        balance = said["splits"][split]["classes"]
        assert np.bincount(rows.targets[:, 0], minlength=2).tolist() == [balance["negative"], balance["positive"]]
        assert (rows.tokens[:, 0] == said["controls"]["cls"]).all()
        assert ((rows.use & IN_LOSS).sum(1) == 1).all()
    assert not dataset.verify()


def test_classes_that_are_not_declared_are_collected_sorted(made, tmp_path):
    path = tmp_path / "rows.jsonl"
    labels = ("wind", "rain", "sun")
    path.write_text("".join(json.dumps({"t": english(n, 9), "l": labels[n % 3]}) + "\n" for n in range(60)))
    source = {"kind": "jsonl", "path": path, "columns": {"text": "t", "label": "l"}}
    dataset = made("weather", {"kind": "classification"}, source)
    assert dataset.info["task"]["classes"] == ["rain", "sun", "wind"]
    totals = np.bincount(np.concatenate([rows_of(dataset, split).targets[:, 0] for split in ("train", "valid")]))
    assert totals.tolist() == [20, 20, 20]


def test_a_corpus_with_splits_of_its_own_keeps_them(made, rows_folder, tmp_path):
    lines = (rows_folder / "sst2.tsv").read_text().splitlines(keepends=True)
    parts = {"train": lines[:200], "valid": lines[200:240], "heldout": lines[240:]}
    sources = []
    for split, held in parts.items():
        (tmp_path / f"{split}.tsv").write_text("".join(held))
        sources.append({**SST2, "path": tmp_path / f"{split}.tsv", "name": f"official-{split}", "into": split})
    dataset = made("official", {"kind": "classification", "labels": [0, 1], "max_tokens": 512}, *sources)
    for split, held in parts.items():
        assert dataset.index(split).documents == len(held)
        assert {row.source for row in dataset.rows(split)} == {f"official-{split}"}


def test_pairs_and_scores_arrive(made):
    pairs = made("pairs", {"kind": "pair", "labels": [0, 1]}, MRPC)
    rows = rows_of(pairs)
    assert rows.targets.dtype == np.int32
    second = rows.use >> 1 == FIELDS.index("text_b")
    assert (second.sum(1) > 1).all()
    scores = made("scores", {"kind": "pair", "regression": True}, MRPC)
    assert rows_of(scores).targets.dtype == np.float32
    assert scores.info["task"]["classes"] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_questions_become_windows_an_article_stays_on_one_side_and_answers_come_back(made, language):
    task = {"kind": "qa", "max_tokens": 160, "max_question_tokens": 84, "doc_stride": 40}
    source = {"kind": "squad", "path": f"xquad.{language}.json"}
    dataset = made(f"questions-{language}", task, source, split={"valid": 0.4})
    articles = {split: {row.id.split("/")[-1] for row in dataset.rows(split)} for split in ("train", "valid")}
    assert articles["train"]
    assert articles["valid"]
    questions, windows = 0, 0
    contexts = {}
    for split in ("train", "valid"):
        rows = rows_of(dataset, split)
        for length, (start, end) in zip(rows.lengths, rows.targets, strict=True):
            assert length <= 160
            if (start, end) != (0, 0):
                assert 0 < start <= end < length - 1
        said = dataset.info["task"]["splits"][split]
        questions, windows = questions + said["examples"], windows + said["windows"]
        contexts[split] = {row.about["question"] for row in dataset.rows(split)}
        assert said["answers_between_tokens"] == 0
    assert windows == dataset.info["documents"] > questions
    assert not contexts["train"] & contexts["valid"]
    found = 0
    for row, tokens, _, target in examples(dataset):
        start, end = (int(each) for each in target)
        if (start, end) != (0, 0):
            found += 1
            assert dataset.tokenizer().decode(tokens[start : end + 1]).strip() == row.about["answers"][0].strip()
    assert found >= 0.97 * questions
    stages = {stage["name"]: stage for stage in dataset.info["stages"]}
    assert stages["tokenize"]["documents_out"] == questions


@pytest.mark.parametrize("source", [FLICKR, OFFICE, DIALOGUES], ids=["en-de", "zh-en", "summaries"])
def test_sources_and_targets_arrive(made, source):
    dataset = made(
        f"translation-{source['kind']}{len(source['columns'])}", {"kind": "seq2seq", "max_tokens": 4096}, source
    )
    rows = rows_of(dataset)
    assert rows.targets is None
    target = rows.use >> 1 == FIELDS.index("target")
    inside = np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
    assert np.array_equal(target & inside, (rows.use & IN_LOSS).astype(bool))
    if source is DIALOGUES:
        assert all(len(row.about["references"]) == 3 for row in dataset.rows("train"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_chats_arrive(made, language):
    task = {"kind": "chat", "system": "Be brief.", "max_tokens": 600, "truncate": "first_turns"}
    source = {"path": f"alpaca.{language}.json", **ALPACA}
    one = made(f"chat-{language}", task, source)
    for _, tokens, uses, _ in examples(one):
        shown = one.tokenizer().decode(tokens, control=True)
        learned = one.tokenizer().decode(tokens[(uses & IN_LOSS).astype(bool)], control=True)
        assert shown.startswith("<|system|>Be brief.<|end|><|user|>")
        assert shown.endswith(learned)
        assert learned.endswith("<|end|><|eos|>")


def test_windows_of_questions_are_the_same_bytes_at_any_number_of_workers(made):
    task = {"kind": "qa", "max_tokens": 160, "max_question_tokens": 84, "doc_stride": 40}
    one, two = (made("same", task, {"kind": "squad", "path": "xquad.zh.json"}, workers=workers) for workers in (1, 2))
    assert one.info["files"] == two.info["files"]
    assert one.info["task"] == two.info["task"]


def test_what_was_dropped_and_cut_is_booked_by_rule(made, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"t": english(n, 6 if n % 2 else 60), "l": "a"} for n in range(20)] + [{"t": "x", "l": "b"}, {"t": "y"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "path": path, "columns": {"text": "t", "label": "l"}}
    task = {"kind": "classification", "labels": ["a"], "max_tokens": 32, "on_bad_row": "drop"}
    dataset = made("dropping", task, source)
    stages = {stage["name"]: stage["dropped"] for stage in dataset.info["stages"]}
    assert {rule: held["documents"] for rule, held in stages["examples"].items()} == {
        "missing_column": 1,
        "unknown_label": 1,
    }
    assert stages["tokenize"]["example_too_long"]["documents"] == 10
    cut = made("cutting", {**task, "truncate": "text"}, source)
    assert sum(split.get("truncated", 0) for split in cut.info["task"]["splits"].values()) == 10
    with pytest.raises(UserError, match=r"rows\.jsonl:21: label 'b' is not one of a"):
        made("refusing", {**task, "on_bad_row": "error"}, source)


def test_what_the_rules_mask_in_rows_is_masked_and_booked(made, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"m": [
        {"role": "user", "content": f"{english(n, 9)} me@luban.org"}, {"role": "assistant", "content": english(n, 5)},
    ]}) + "\n" for n in range(20)))  # fmt: skip
    source = {"kind": "jsonl", "path": path, "columns": {"messages": "m"}}
    dataset = made("masked", {"kind": "chat"}, source, clean={"pii": ["email"]})
    assert not any("me@luban.org" in dataset.tokenizer().decode(tokens) for _, tokens, _, _ in examples(dataset))


@pytest.mark.parametrize("name", ["sentiment", "questions", "translation", "chat", "pairs"])
def test_the_recipes_to_copy_say_what_they_mean(name):
    recipe = DatasetRecipe(**yaml.safe_load((RECIPES / f"{name}.yaml").read_text()))
    assert recipe.kind == "examples"
    assert all(isinstance(source, Source) for source in recipe.sources)


def test_a_dataset_says_its_task_to_whoever_opens_it(made):
    dataset = load_dataset(made("pairs", {"kind": "pair", "labels": [0, 1]}, MRPC).folder)
    assert dataset.info["task"]["targets"] == {"names": ["label"], "dtype": "<i4"}
    assert dataset.info["task"]["causal"] is False
    assert dataset.info["task"]["fields"] == list(FIELDS)


def test_packed_rows_carry_the_targets_of_every_example_in_them(made):
    task = {"kind": "classification", "labels": [0, 1], "max_tokens": 100, "truncate": "text"}
    dataset = made("packed", task, SST2, pack=[99])
    index = dataset.index("train")
    wanted = {tuple(tokens): target.tolist() for _, tokens, _, target in examples(dataset)}
    reader = LocalReader(index, order := Order(layout(index, 99, "best_fit"), 0, 4), 99)
    rows = reader.rows(np.arange(order.rows_per_epoch))
    assert max(map(len, rows.starts)) > 1
    targets = iter(rows.targets.tolist())
    for tokens, length, starts in zip(rows.tokens, rows.lengths, rows.starts, strict=True):
        for begin, end in pairwise([*starts.tolist(), int(length)]):
            assert next(targets) == wanted[tuple(tokens[begin:end])]
    assert next(targets, None) is None


def test_inspect_shows_the_task_the_balance_and_the_target_of_a_sample(made):
    folder = made("pairs", {"kind": "pair", "labels": [0, 1]}, MRPC).folder
    text = report(folder)
    assert "task pair, template encoder, 2 classes" in text
    assert "target class " in text
    assert "[text_b, " in text


@pytest.mark.parametrize("rule", [{"pii": ["email"]}, {"mojibake": True}, {"remove_controls": True}])
def test_rules_that_would_not_be_done_to_questions_are_refused(rule):
    sources = [{"kind": "squad", "path": "x.json"}]
    with pytest.raises(ValidationError, match=f"clean.{next(iter(rule))} would move the answers of task qa"):
        DatasetRecipe.model_validate({"kind": "examples", "task": {"kind": "qa"}, "sources": sources, "clean": rule})
