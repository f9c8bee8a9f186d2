"""The objective of a run, made from its recipe and what its dataset holds."""

import numpy as np

from data.dataset import Dataset
from data.tasks.part import control_id
from trainer.adapters.adapt import prompted
from trainer.objectives.augment import Augmented
from trainer.objectives.base import BatchMaker, Objective
from trainer.objectives.causal import Causal
from trainer.objectives.classification import Classification, Regression, Texts
from trainer.objectives.contrastive import Contrastive
from trainer.objectives.qa import QuestionAnswering
from trainer.objectives.rows import kind_of
from trainer.objectives.seq2seq import Seq2Seq
from trainer.objectives.tasks import positives_of
from trainer.recipe import Recipe


def objective_of(recipe: Recipe, dataset: Dataset) -> Objective:
    """The objective of `recipe` on `dataset`, the first of its sources; all have its kind and tokenizer.

    Raises:
        UserError: the family, the objective and the dataset don't go together.
    """
    kind, tokenizer = kind_of(recipe, dataset), dataset.tokenizer()
    piece_bytes = np.asarray(tokenizer.piece_bytes)
    if kind == "causal":
        made: Objective = Causal(recipe.model.attention, piece_bytes, recipe.objective.label_smoothing)
    else:
        made = _of_examples(kind, recipe, dataset, piece_bytes)
    return prompted(made, recipe, recipe.model.vocab_size or tokenizer.padded_vocab_size)


def for_training(recipe: Recipe, objective: Objective, dataset: Dataset) -> BatchMaker:
    """What makes the training batches of `objective`: itself, or around it the augmentation of the recipe."""
    augment = recipe.objective.augment
    if not augment.on:
        return objective
    is_control = np.asarray(dataset.tokenizer().is_control)
    return Augmented(objective, recipe.seed, augment.drop, augment.swap, is_control)


def _of_examples(kind: str, recipe: Recipe, dataset: Dataset, piece_bytes: np.ndarray) -> Objective:
    model, chosen = recipe.model, recipe.objective
    classes = tuple(dataset.info["task"]["classes"])
    texts = Texts(model.is_decoder, model.context, model.type_vocab_size > 1)
    match kind:
        case "classification":
            return Classification(classes, texts, chosen.label_smoothing)
        case "regression":
            return Regression(texts)
        case "qa":
            return QuestionAnswering(model.context, model.type_vocab_size > 1)
        case "seq2seq":
            pad = dataset.tokenizer().pad_id
            start = pad if model.decoder_start_id is None else model.decoder_start_id
            return Seq2Seq(model.context, start, pad, piece_bytes, chosen.label_smoothing)
        case _:
            pairs = positives_of(recipe, dataset) == "pair"
            alike = classes.index(chosen.positive_class) if pairs else None
            cls = control_id(dataset.tokenizer(), "cls")
            return Contrastive(
                texts, chosen.group, chosen.temperature, chosen.pooling, alike, cls, chosen.gather
            )  # fmt: skip
