"""Datasets of examples, built for real: which objective learns them, and what is refused before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import settings
from data.errors import UserError
from tests.trainer.objectives.datasets import built
from trainer.inputs import open_inputs
from trainer.objectives.choose import for_training, objective_of
from trainer.objectives.tasks import refuse_long
from trainer.recipe import Recipe

SIZES = ["model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2", "train.batch_rows=8"]
Made = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`made(kind, template, ...)` builds such a dataset, once; all share a tokenizer."""
    folder = tmp_path_factory.mktemp("tasks")
    held: dict[Any, Path] = {}

    def build_one(kind: str, template: str = "", **more: Any) -> str:
        name = (kind, template, *more.values())
        if name not in held:
            held[name] = built(folder, kind, template, next(iter(held.values()), None), **more)
        return str(held[name])

    build_one("classification", "encoder")
    return build_one


def recipe(dataset: str, *more: str) -> Recipe:
    return settings.load(Recipe, None, [f"data.dataset={dataset}", *SIZES, *more])


CASES = [
    ("classification", "encoder", "bert", "classification", "classes"),
    ("classification", "decoder", "gpt2", "classification", "classes"),
    ("classification", "generate", "llama", "causal", "lm"),
    ("pair", "encoder", "bert", "classification", "classes"),
    ("pair", "decoder", "llama", "classification", "classes"),
    ("seq2seq", "encoder_decoder", "t5", "seq2seq", "lm"),
    ("seq2seq", "encoder_decoder", "transformer", "seq2seq", "lm"),
    ("seq2seq", "decoder", "gpt2", "causal", "lm"),
    ("seq2seq", "decoder", "gpt2 model.attention=prefix", "causal", "lm"),
    ("prompt_completion", "completion", "llama", "causal", "lm"),
]


@pytest.mark.parametrize(("kind", "template", "family", "name", "head"), CASES)
def test_auto_is_what_dataset_and_family_suggest(
    made: Made, kind: str, template: str, family: str, name: str, head: str
):
    chosen = recipe(made(kind, template), *f"model.family={family}".split())
    inputs = open_inputs(chosen)
    objective = objective_of(chosen, inputs.dataset)
    assert (objective.name, objective.head.kind) == (name, head)
    rows = inputs.reader().rows(np.arange(8))
    batch = objective.batch(rows, torch.device("cpu"))
    assert batch.rows == 8
    assert batch.label_tokens >= 8
    assert (batch.prefixes is not None) == ("prefix" in family)
    assert objective.token_labels == (name in ("causal", "seq2seq"))


def test_numbers_are_learnt_by_regression(made: Made):
    chosen = recipe(made("pair", "encoder", regression=True), "model.family=bert")
    objective = objective_of(chosen, open_inputs(chosen).dataset)
    assert (objective.name, objective.head.outputs) == ("regression", 1)


@pytest.mark.parametrize(
    ("kind", "template", "more", "message"),
    [
        ("classification", "encoder", ["model.family=llama"], "family bert, not llama: build it with .*decoder or gen"),
        ("classification", "decoder", ["model.family=bert"], "not bert: build it with task.template=encoder"),
        ("classification", "encoder", ["model.family=t5"], "not t5: t5 has no template for them"),
        ("seq2seq", "decoder", ["model.family=t5"], "not t5: build it with task.template=encoder_decoder"),
        ("seq2seq", "encoder_decoder", ["model.family=gpt2"], "not gpt2: build it with task.template=decoder"),
        ("prompt_completion", "", ["model.family=bert"], "bert has no template for them"),
        ("classification", "encoder", ["model.family=bert", "objective.kind=qa"], "they are for classification; leave"),
        (
            "classification", "encoder", ["model.family=bert", "data.packing=best_fit"],
            "best_fit puts several examples into a row, and classification takes one a row",
        ),
        (
            "classification", "encoder", ["model.family=bert", "objective.temperature=0.1"],
            "objective.temperature means something only with objective contrastive, and this run's is classification",
        ),
        ("seq2seq", "decoder", ["objective.kind=contrastive"], "learns from texts or pairs of texts"),
        (
            "classification", "decoder", ["model.attention=prefix"],
            "a prompt in both directions before one answer, .* with template decoder: set model.attention to full",
        ),
        (
            "seq2seq", "decoder", ["model.attention=prefix", "data.packing=best_fit"],
            "reads a row as one prompt and its answer, .* set data.packing to chop",
        ),
        (
            "classification", "encoder", ["model.family=bert", "objective.kind=contrastive"],
            "under different dropout, and the model has none: set model.residual_dropout=0.1",
        ),
        (
            "pair", "encoder", ["model.family=bert", "objective.kind=contrastive"],
            "objective.positive_class must say which pairs .* are alike, one of 0, 1, 2; it is ''",
        ),
        (
            "classification", "encoder",
            ["model.family=bert", "objective.kind=contrastive", "objective.positives=pair"],
            "needs examples of kind pair, and .* holds classification",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(made: Made, kind: str, template: str, more: list[str], message: str):
    with pytest.raises(UserError, match=message):
        open_inputs(recipe(made(kind, template), *more))


def test_a_sequence_longer_than_the_positions_is_refused(made: Made):
    long = made("classification", "encoder")
    with pytest.raises(UserError, match=r"longest example of .* has \d+ tokens, and a context of 8 takes 8: build it"):
        open_inputs(recipe(long, "model.family=bert", "model.context=8"))


def test_of_source_and_target_the_longer_one_counts(made: Made):
    dataset = made("seq2seq", "encoder_decoder")
    inputs = open_inputs(recipe(dataset, "model.family=t5"))
    use = inputs.reader().rows(np.arange(90))
    assert use.use is not None
    inside = np.arange(use.tokens.shape[1]) < use.lengths[:, None]
    sources = ((use.use & 1 == 0) & inside).sum(1)
    longest = int(max(sources.max(), (use.lengths - sources).max()))
    longest = max(longest, 8)
    assert use.lengths.max() > longest
    refuse_long(inputs.dataset, "seq2seq", int(use.lengths.max()))
    for context in range(longest - 8, longest):
        with pytest.raises(UserError, match="longest source or target"):
            refuse_long(inputs.dataset, "seq2seq", context)
    tight = recipe(dataset, "model.family=t5", f"model.context={longest + 4}")
    rows = open_inputs(tight).reader().rows(np.arange(90))
    assert rows.tokens.shape[1] == 2 * (longest + 4)
    assert rows.lengths.tolist() == use.lengths.tolist()  # nothing is cut


def test_sources_of_other_classes_or_templates_are_refused(made: Made):
    first, second = made("classification", "encoder"), made("classification", "decoder")
    given = f"data.sources={{a: {{dataset: {first}}}, b: {{dataset: {second}}}}}"
    with pytest.raises(UserError, match="source a holds examples of another task, template or set of classes than b"):
        open_inputs(
            settings.load(Recipe, None, [given, "data.stages=[{weights: {a: 1, b: 1}}]", "model.family=bert", *SIZES])
        )


def test_paraphrases_are_a_source_whose_rows_are_mixed_in_by_position(made: Made):
    plain, back_translated = made("classification", "encoder"), made("classification", "encoder", seed=2)
    given = f"data.sources={{plain: {{dataset: {plain}}}, paraphrases: {{dataset: {back_translated}}}}}"
    chosen = settings.load(
        Recipe, None, [given, "data.stages=[{weights: {plain: 3, paraphrases: 1}}]", "model.family=bert", *SIZES]
    )
    inputs = open_inputs(chosen)
    walks = [inputs.order.walks[walk].source for walk in inputs.order.places(np.arange(400)).walk]
    assert np.mean(walks) == pytest.approx(0.25, abs=0.02)
    batch = objective_of(chosen, inputs.dataset)
    assert batch.name == "classification"


def test_training_is_augmented_and_validation_is_not(made: Made):
    chosen = recipe(made("classification", "encoder"), "model.family=bert", "objective.augment.drop=0.3")
    inputs = open_inputs(chosen)
    objective = objective_of(chosen, inputs.dataset)
    rows = inputs.reader().rows(np.arange(8))
    maker = for_training(chosen, objective, inputs.dataset)
    plain, changed = (each.batch(rows, torch.device("cpu")) for each in (objective, maker))
    assert plain.padding is not None and changed.padding is not None
    assert changed.padding.real.sum() < plain.padding.real.sum()
    assert changed.labels.tolist() == plain.labels.tolist()
    still = recipe(made("classification", "encoder"), "model.family=bert")
    assert for_training(still, objective, inputs.dataset) is objective
