"""Which objective a dataset of examples is learnt by, and how long an example may be; without torch."""

from typing import Any

import numpy as np

from data.dataset import Dataset
from data.errors import UserError
from data.reader import longest_document
from data.shards import FIELDS, Index
from trainer.recipe import Recipe
from trainer.recipe_model import DECODERS, ENCODER_DECODERS

ENCODERS = ("bert",)
HEADS = ("classification", "pair")
"""Kinds of task that predict a class or a number."""
_TEMPLATES: dict[tuple[str, ...], dict[str, str]] = {
    ENCODERS: {"classification": "encoder", "pair": "encoder"},
    DECODERS: {"classification": "decoder or generate", "pair": "decoder or generate", "seq2seq": "decoder"},
    ENCODER_DECODERS: {"seq2seq": "encoder_decoder"},
}
"""By which templates families learn the kinds of task that have several."""


def task_kind(recipe: Recipe, dataset: Dataset) -> str:
    """The kind of objective that `recipe` has on a dataset of examples, "auto" resolved.

    Raises:
        UserError: the family can't learn such examples, or not by the objective that was asked for.
    """
    task, asked = dataset.info["task"], recipe.objective.kind
    natural, families = _learnt_by(dataset)
    if recipe.model.family not in families:
        raise UserError(_other_family(recipe, dataset, families))
    kind = natural if asked == "auto" else asked
    if kind == "contrastive":
        _check_contrastive(recipe, dataset)
    elif kind != natural:
        raise UserError(
            f"objective.kind {kind} can't be learnt from {dataset.place}, which holds examples of kind {task['kind']} "
            f"with template {task['template']}: they are for {natural}; leave objective.kind at auto"
        )
    if recipe.data.packing == "best_fit" and kind != "causal":
        raise UserError(
            f"data.packing best_fit puts several examples into a row, and {kind} takes one a row: set it to chop"
        )
    if recipe.model.attention == "prefix":
        _check_prompts(recipe, dataset, kind)
    if recipe.objective.augment.on and kind == "qa":
        raise UserError("objective.augment would move a question's answer: leave it out")
    recipe.objective.refuse_unused(kind)
    return kind


def _check_prompts(recipe: Recipe, dataset: Dataset, kind: str) -> None:
    """Raise UserError where not each row is a prompt and one answer, what a decoder with prefix attention reads."""
    task = dataset.info["task"]
    if kind != "causal" or task["kind"] == "chat":
        raise UserError(
            f"model.attention prefix has a decoder read a prompt in both directions before one answer, and "
            f"{dataset.place} holds examples of kind {task['kind']} with template {task['template']}: set "
            "model.attention to full"
        )
    if recipe.data.packing == "best_fit":
        raise UserError(
            "model.attention prefix reads a row as one prompt and its answer, and with data.packing best_fit a row is "
            "of many: set data.packing to chop"
        )


def is_regression(dataset: Dataset) -> bool:
    """Whether its examples are labelled with a number."""
    targets = dataset.info["task"]["targets"]
    return dataset.info["task"]["kind"] in HEADS and targets is not None and np.dtype(targets["dtype"]).kind == "f"


def _learnt_by(dataset: Dataset) -> tuple[str, tuple[str, ...]]:
    """The objective of a dataset's examples, and the families that can learn it."""
    task = dataset.info["task"]
    if task["causal"]:
        return "causal", DECODERS
    if task["kind"] in HEADS:
        families = ENCODERS if task["template"] == "encoder" else DECODERS
        return ("regression" if is_regression(dataset) else "classification"), families
    return ("qa", ENCODERS) if task["kind"] == "qa" else ("seq2seq", ENCODER_DECODERS)


def _other_family(recipe: Recipe, dataset: Dataset, families: tuple[str, ...]) -> str:
    task, family = dataset.info["task"], recipe.model.family
    said = (
        f"{dataset.place} holds examples of kind {task['kind']} with template {task['template']}, for a model of "
        f"family {' or '.join(families)}, not {family}: "
    )
    templates = next(known for group, known in _TEMPLATES.items() if family in group)
    if task["kind"] in templates:
        return f"{said}build it with task.template={templates[task['kind']]}"
    return f"{said}{family} has no template for them"


def _check_contrastive(recipe: Recipe, dataset: Dataset) -> None:
    task, objective = dataset.info["task"], recipe.objective
    if task["kind"] not in HEADS or task["causal"]:
        raise UserError(
            f"objective.kind contrastive learns from texts or pairs of texts, and {dataset.place} holds examples of "
            f"kind {task['kind']} with template {task['template']}: build it with task.kind=classification or pair, "
            "and task.template encoder (bert) or decoder"
        )
    positives = positives_of(recipe, dataset)
    if positives == "dropout" and not (recipe.model.residual_dropout or recipe.model.attention_dropout):
        raise UserError(
            "objective.positives dropout reads each text twice under different dropout, and the model has none: set "
            "model.residual_dropout=0.1"
        )
    if positives == "pair":
        if task["kind"] != "pair":
            raise UserError(
                f"objective.positives pair needs examples of kind pair, and {dataset.place} holds {task['kind']}: "
                "set it to dropout"
            )
        if is_regression(dataset):
            raise UserError(
                f"the pairs of {dataset.place} are labelled with numbers, which don't say which are alike: set "
                "objective.positives=dropout"
            )
        if objective.positive_class not in task["classes"]:
            raise UserError(
                f"objective.positive_class must say which pairs of {dataset.place} are alike, one of "
                f"{', '.join(task['classes'])}; it is {objective.positive_class!r}"
            )


def positives_of(recipe: Recipe, dataset: Dataset) -> str:
    """What a contrastive objective takes for alike: "dropout" or "pair"."""
    if recipe.objective.positives != "auto":
        return recipe.objective.positives
    return "pair" if dataset.info["task"]["kind"] == "pair" and not is_regression(dataset) else "dropout"


def example_room(kind: str, context: int) -> int:
    """Tokens of the longest example that a model of `context` positions takes; seq2seq: of source and target."""
    match kind:
        case "causal":
            return context + 1
        case "seq2seq":
            return 2 * context
        case _:
            return context


def refuse_long(dataset: Dataset, kind: str, context: int) -> None:
    """Raise UserError where an example of the training or validation split is longer than the model's positions."""
    room = example_room(kind, context)
    indexes = [dataset.index(split) for split in ("train", "valid")]
    longest, what = max(longest_document(index) for index in indexes), "example"
    if kind == "seq2seq":
        room = context
        if longest > room:  # of both texts together; only then are they looked at one by one
            longest, what = max(_longest_side(dataset, index) for index in indexes), "source or target"
    if longest > room:
        raise UserError(
            f"the longest {what} of {dataset.place} has {longest} tokens, and a context of {context} takes {room}: "
            f"build it with task.max_tokens={room}, or raise model.context, which a pretrained model fixes"
        )


def _longest_side(dataset: Dataset, index: Index) -> int:
    """Tokens of the longest source or target of a split."""
    longest = 0
    for number, entry in enumerate(index.shards):
        shard = dataset.shard(index, number)
        starts = shard.document_starts()
        if len(starts):
            target = (shard.uses(0, entry.tokens) >> 1) == FIELDS.index("target")
            targets = np.add.reduceat(target.astype(np.int64), starts)
            lengths = np.diff(starts, append=entry.tokens)
            longest = max(longest, int(targets.max()), int((lengths - targets).max()))
    return longest


def like(task: dict[str, Any]) -> dict[str, Any]:
    """What the examples of all of a run's datasets must share."""
    return {name: task[name] for name in ("kind", "template", "classes", "targets")}
