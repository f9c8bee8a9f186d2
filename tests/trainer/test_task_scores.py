"""Scores of tasks against their definitions, and what is printed of every kind of task on real datasets."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data import settings
from data.errors import UserError
from tests.ranks import alone
from tests.trainer.lives import begun
from tests.trainer.objectives.datasets import built
from tests.trainer.untrained import untrained
from trainer.evaluate import FixedSet
from trainer.models.initialize import initialize
from trainer.objectives.qa import QuestionAnswering
from trainer.qa_scores import answered, averages, best_span, exact_match, f1
from trainer.recipe import Recipe
from trainer.run import Source
from trainer.scores import Loaded, _evaluated, load_model
from trainer.text_scores import text_scores

SIZES = (
    "model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2", "train.batch_rows=8",
    "model.context=64",
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "answers", "exact", "overlap"),
    [
        ("The Denver Broncos!", ["Denver Broncos"], 1, 1),
        ("a Broncos", ["Denver Broncos", "broncos"], 1, 1),
        ("Denver", ["Denver Broncos"], 0, 2 / 3),
        ("in Denver, Colorado", ["Denver Broncos"], 0, 2 / 5),
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["Denver"], 0, 0),
        ("丹佛野馬", ["丹佛"], 0, 2 / 3),
        ("《丹佛》", ["丹佛"], 1, 1),
    ],
)  # fmt: skip
def test_answers_are_compared_as_squad_does(said: str, answers: list[str], exact: float, overlap: float) -> None:
    assert exact_match(said, answers) == exact
    assert f1(said, answers) == pytest.approx(overlap)


def test_the_best_span_is_the_best_of_all_that_go_forward() -> None:
    draw = np.random.default_rng(3)
    for length in (2, 5, 40, 90):
        scores = draw.normal(size=(length, 2))
        scores[1 : length // 2] = -np.inf  # the question
        every = {
            (first, last): scores[first, 0] + scores[last, 1]
            for first in range(1, length)
            for last in range(first, min(length, first + 30))
            if np.isfinite(scores[first, 0] + scores[last, 1])
        }
        span, score = best_span(scores)
        assert span == max(every, key=lambda each: every[each])
        assert score == pytest.approx(max(every.values()))
    assert best_span(np.full((4, 2), -np.inf)) == ((0, 0), -np.inf)


def test_text_scores_are_sacrebleus_and_rouges() -> None:
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    texts = ["the cat sat on the mat", "a dog barked at the tree"]
    references = [["the cat sat on a mat", "a cat was on the mat"], ["the dogs were barking at the tree"]]
    found = text_scores(texts, references)
    assert found.tokenizer == "13a"
    columns = [[given[0] for given in references], [references[0][1], None]]
    assert found.bleu == sacrebleu.corpus_bleu(texts, columns).score  # pyright: ignore[reportArgumentType]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    best = [
        max(scorer.score(r, text)["rougeL"].fmeasure for r in each)
        for text, each in zip(texts, references, strict=True)
    ]
    assert found.rouge_l == pytest.approx(50 * sum(best))
    chinese = text_scores(["今天天气很好", "打开文件"], [["今天天气很好"], ["打开一个文件"]])
    assert chinese.tokenizer == "zh"
    assert chinese.rouge1 == pytest.approx(50 * (1 + 2 * 4 / 10))
    assert chinese.bleu > 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scores")
    built(root, "classification", "encoder")
    return root


def loaded(folder: Path, kind: str, template: str, *given: str, **task: object) -> Loaded:
    """A model of random weights on such a dataset."""
    first = folder / "classification-encoder-1"
    same = (kind, template) == ("classification", "encoder")
    dataset = first if same else built(folder, kind, template, first, **task)
    return untrained(dataset, [*SIZES, *given], lambda model: initialize(model, 3), step=7)


CASES = {
    "classification": ("classification", "encoder", ["model.family=bert"], ["always ", "macro F1", "precision"]),
    "written": ("classification", "generate", ["model.family=gpt2"], ["unigram", "right class written"]),
    "regression": ("pair", "encoder", ["model.family=bert"], ["best constant", "Pearson", "Spearman"]),
    "qa": ("qa", "", ["model.family=bert"], ["first sentence", "exact match", "of them without an answer"]),
    "contrastive": (
        "pair", "encoder", ["model.family=bert", "objective.kind=contrastive", "objective.positive_class='1'"],
        ["guessing", "finds its own", "in groups of 8"],
    ),
    "t5": ("seq2seq", "", ["model.family=t5"], ["unigram", "BLEU (13a)", "chrF2", "ROUGE-L", "the source"]),
    "decoder": ("seq2seq", "decoder", ["model.family=llama"], ["BLEU (13a)", "ROUGE-2", "over 6 greedy texts"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_task_prints_its_figures_beside_a_baseline(folder: Path, case: str) -> None:
    kind, template, given, expected = CASES[case]
    task = {"regression": True} if case == "regression" else {}
    lines = _evaluated("tuned", loaded(folder, kind, template, *given, **task), 0, 6, None)
    text = "\n".join(lines)
    for part in expected:
        assert part in text, text
    assert "nan" not in text


def test_a_perfect_reader_has_every_answer_and_a_silent_one_only_those_without(folder: Path) -> None:
    held = loaded(folder, "qa", "", "model.family=bert")
    reader, rows = held.inputs.fixed["data"]
    fixed = FixedSet(reader, rows, held.objective, held.inputs.tokenizer, 4)
    assert isinstance(held.objective, QuestionAnswering)

    class Told(QuestionAnswering):
        """Knows the labels."""

        silent = False

        def scores(self, model, batch):
            assert batch.allowed is not None
            labels = torch.zeros_like(batch.labels) if self.silent else batch.labels.clamp(min=0)
            found = torch.nn.functional.one_hot(labels, batch.allowed.size(1)).transpose(1, 2).float()
            return found.masked_fill(~batch.allowed[..., None], -float("inf"))

    told = Told(held.recipe.model.context)
    questions = answered(held.model, told, fixed, held.inputs.dataset)
    assert len({each.question for each in questions}) == len(questions)
    assert averages(questions)["exact"] == averages(questions)["f1"] == 100
    Told.silent = True
    silent = averages(answered(held.model, told, fixed, held.inputs.dataset))
    assert silent["exact"] == pytest.approx(100 * sum(not each.answers for each in questions) / len(questions))
    assert fixed.measure(held.model, alone())["windows"] == rows


def test_a_head_says_nothing_of_other_classes_than_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = loaded(folder, "classification", "encoder", "model.family=bert")
    weights = dict(held.model.named_parameters())
    checkpoint = SimpleNamespace(
        state={"tokenizer": held.inputs.tokenizer.fingerprint, "vocab_size": held.inputs.vocab_size}, name="c", step=1,
        weights=lambda: weights, shapes={name: tuple(each.shape) for name, each in weights.items()}, weight=weights.get,
    )  # fmt: skip
    monkeypatch.setattr(Source, "checkpoint", lambda _: checkpoint)
    first = folder / "classification-encoder-1"
    run = begun(tmp_path / "run", [*SIZES, "model.family=bert", f"data.dataset={first}"])
    other = built(tmp_path, "classification", "encoder", first, labels={"1": "b", "0": "a", "2": "c"})
    assert load_model(str(run), str(first)).step == 1
    with pytest.raises(UserError, match=r"tells 0, 1, 2 apart, and .* holds b, a, c: its figures mean nothing"):
        load_model(str(run), str(other))
    same, moved = (settings.load(Recipe, None, [f"data.dataset={place}"]) for place in (first, other))
    assert "classifier.weight" in Source.parse(str(run)).weights(same)[0]
    assert "classifier.weight" not in Source.parse(str(run)).weights(moved)[0]
