"""Tasks learnt from real rows where the machine has them, else from rows of the same form, by the real loop."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data import settings
from data.build.build import build
from data.recipe import DatasetRecipe, Dedup, Source, Split, TokenizerTraining
from data.tasks.task import Task
from tests.data.conftest import CORPORA, english
from tests.data.tasks.conftest import squad_json
from tests.ranks import launch
from tests.trainer.objectives.test_resume import life, told
from trainer.recipe import Recipe

SETTINGS = (
    "model.family=bert", "model.hidden_size=64", "model.num_hidden_layers=1", "model.num_attention_heads=4",
    "schedule.warmup_steps=5", "optimizer.lr=3e-3", "checkpoint.every_steps=0", "evaluate.every_steps=0",
    "log.wandb=off", "guard.enabled=false", "optimizer.weight_decay=0.01",
)  # fmt: skip


def sentiment(folder: Path) -> tuple[Source, dict[str, Any]]:
    """SST-2: 4,000 sentences."""
    real, path = CORPORA / "sst2" / "train.tsv", folder / "sst2.tsv"
    made_up = (
        f"{english(n, 8)[:-1]} {('dreadful', 'lovely')[n % 2]}\t{n % 2}\n".replace("\n ", " ") for n in range(4000)
    )
    lines = real.read_text("utf-8").splitlines(keepends=True)[:4000] if real.exists() else list(made_up)
    path.write_text("".join(lines))
    columns = {"text": "text", "label": "label"}
    return Source(kind="tsv", path=path, header=("text", "label"), columns=columns), {"kind": "classification"}


def paraphrases(folder: Path) -> tuple[Source, dict[str, Any]]:
    """MRPC: pairs of sentences, labelled 1 where they say the same."""
    real, path = CORPORA / "mrpc" / "msr_paraphrase_train.txt.gz", folder / "mrpc.tsv"
    if real.exists():
        with gzip.open(real, "rt", encoding="utf-8-sig") as file:
            rows = [(row[3], row[4], row[0]) for row in list(csv.reader(file, "excel-tab", quoting=csv.QUOTE_NONE))[1:]]
    else:
        rows = [(english(n, 9)[:-1], " ".join(english(n, 9)[:-1].split()[1:]), "1") for n in range(1500)]
    path.write_text("".join("\t".join(" ".join(part.split()) for part in row) + "\n" for row in rows))
    header = ("text_a", "text_b", "label")
    return Source(kind="tsv", path=path, header=header, columns={name: name for name in header}), {"kind": "pair"}


def questions(folder: Path) -> tuple[Source, dict[str, Any]]:
    """XQuAD in English: 1,190 questions."""
    real, path = CORPORA / "xquad" / "xquad.en.json", folder / "xquad.json"
    made_up = squad_json("en", lambda seed: english(seed, 120), "What is it?")
    path.write_text(real.read_text("utf-8") if real.exists() else json.dumps(made_up))
    return Source(kind="squad", path=path), {
        "kind": "qa",
        "max_tokens": 128,
        "doc_stride": 48,
        "max_question_tokens": 48,
    }


TASKS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "sst2": (sentiment, ("model.context=96", "train.steps=60", "train.batch_rows=64")),
    "mrpc": (
        paraphrases,
        (
            "model.context=160", "train.steps=12", "train.batch_rows=32", "objective.kind=contrastive",
            "objective.positive_class='1'",
        ),
    ),
    "xquad": (questions, ("model.context=128", "train.steps=25", "train.batch_rows=32")),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each task, from random weights."""
    root, runs = tmp_path_factory.mktemp("real"), []
    for name, (rows, given) in TASKS.items():
        source, task = rows(root)
        wanted = DatasetRecipe(
            name=name, kind="examples", sources=(source,), task=Task.model_validate({"max_tokens": 160, **task}),
            split=Split(valid=0.2), tokenizer=TokenizerTraining(vocab_size=2000), dedup=Dedup(exact=False, near=False),
            workers=1,
        )  # fmt: skip
        dataset = build(wanted, root / f"{name}-rows").folder
        (root / name).mkdir()
        chosen = settings.load(Recipe, None, [*SETTINGS, *given, f"name={name}", f"data.dataset={dataset}"])
        (root / name / "recipe.yaml").write_text(settings.dump(chosen))
        runs.append(root / name)
    launch(life, 1, runs, "start", 10**6, 10**6, folder=root)
    return root


@pytest.mark.slow
def test_sentences_are_told_apart_better_than_by_the_more_frequent_class(trained: Path) -> None:
    _, _, (figures,) = told(trained / "sst2")
    assert figures["accuracy"] > 0.65
    assert figures["macro_f1"] > 0.6


@pytest.mark.slow
def test_a_sentence_finds_its_paraphrase_among_eight(trained: Path) -> None:
    _, losses, (figures,) = told(trained / "mrpc")
    assert figures["accuracy"] > 0.8
    assert figures["loss"] < 0.5 * losses[0]


@pytest.mark.slow
def test_answers_are_told_better_than_by_untrained_weights(trained: Path) -> None:
    _, losses, (figures,) = told(trained / "xquad")
    assert figures["loss"] < 0.9 * losses[0]
    assert figures["windows"] > 0
