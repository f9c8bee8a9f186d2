"""The objective of a run, made from its recipe and what its dataset holds."""

import numpy as np

from data.dataset import Dataset
from data.tasks.part import control_id
from data.tokenizer.tokenizer import Tokenizer
from trainer.adapters.adapt import prompted
from trainer.objectives.adversarial import Adversarial
from trainer.objectives.augment import Augmented
from trainer.objectives.base import BatchMaker, Objective
from trainer.objectives.causal import Causal
from trainer.objectives.classification import Classification, Regression, Texts
from trainer.objectives.contrastive import Contrastive
from trainer.objectives.masked import Masked, Vocabulary
from trainer.objectives.pieces import ordinary, sentinels, word_starts
from trainer.objectives.prefix import Prefix, PrefixDecoder
from trainer.objectives.qa import QuestionAnswering
from trainer.objectives.rows import kind_of, row_labels, text_row
from trainer.objectives.seq2seq import Seq2Seq
from trainer.objectives.span import Span
from trainer.objectives.tasks import positives_of
from trainer.recipe import Recipe


def objective_of(recipe: Recipe, dataset: Dataset) -> Objective:
    """The objective of `recipe` on `dataset`, the first of its sources; all have its kind and tokenizer.

    Raises:
        UserError: the family, the objective and the dataset don't go together, or the tokenizer lacks a piece.
    """
    kind, tokenizer = kind_of(recipe, dataset), dataset.tokenizer()
    made = _made(kind, recipe, dataset, np.asarray(tokenizer.piece_bytes))
    return prompted(made, recipe, recipe.model.vocab_size or tokenizer.padded_vocab_size)


def _made(kind: str, recipe: Recipe, dataset: Dataset, piece_bytes: np.ndarray) -> Objective:
    tokenizer = dataset.tokenizer()
    match kind:
        case "masked":
            return _masked(recipe, tokenizer, piece_bytes)
        case "span":
            length, _ = text_row(recipe, recipe.model.context)
            told = recipe.objective
            return Span(
                recipe.seed, sentinels(recipe, length, tokenizer), tokenizer.eos_id, tokenizer.pad_id,
                _start(recipe, tokenizer), told.noise_density, told.mean_span, piece_bytes, told.label_smoothing,
            )  # fmt: skip
        case "prefix":
            smoothing = recipe.objective.label_smoothing
            if recipe.model.is_decoder:
                return PrefixDecoder("prefix", piece_bytes, smoothing, seed=recipe.seed)
            return Prefix(recipe.seed, tokenizer.pad_id, _start(recipe, tokenizer), piece_bytes, smoothing)
        case "adversarial":
            told, (length, _) = recipe.objective, text_row(recipe, recipe.model.context)
            return Adversarial(
                recipe.seed, told.judge_of(recipe.model), length - 1, told.prompt_tokens, told.sample_tokens,
                told.samples, told.mle_weight, piece_bytes,
            )  # fmt: skip
        case "causal":
            return Causal(recipe.model.attention, piece_bytes, recipe.objective.label_smoothing)
        case _:
            return _of_examples(kind, recipe, dataset, piece_bytes)


def _masked(recipe: Recipe, tokenizer: Tokenizer, piece_bytes: np.ndarray) -> Masked:
    mask, cls, sep, pad = (tokenizer.piece_id(f"<|{role}|>") for role in ("mask", "cls", "sep", "pad"))
    told = recipe.objective
    words = word_starts(tokenizer) if told.whole_word else None
    vocabulary = Vocabulary(mask, cls, sep, pad, np.asarray(tokenizer.is_control), ordinary(tokenizer), words)
    length, _ = text_row(recipe, recipe.model.context)
    weight = told.next_sentence_weight * row_labels(recipe, length) if told.next_sentence else 0.0
    return Masked(recipe.seed, vocabulary, told.mask_rate, told.next_sentence, weight, recipe.data.lanes, piece_bytes)


def _start(recipe: Recipe, tokenizer: Tokenizer) -> int:
    """What an encoder-decoder's decoder begins with."""
    chosen = recipe.model.decoder_start_id
    return tokenizer.pad_id if chosen is None else chosen


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
    texts = Texts(model.is_decoder, recipe.room, model.type_vocab_size > 1)
    match kind:
        case "classification":
            return Classification(classes, texts, chosen.label_smoothing)
        case "regression":
            return Regression(texts)
        case "qa":
            return QuestionAnswering(model.context, model.type_vocab_size > 1)
        case "seq2seq":
            tokenizer = dataset.tokenizer()
            start, pad = _start(recipe, tokenizer), tokenizer.pad_id
            return Seq2Seq(recipe.room, start, pad, piece_bytes, chosen.label_smoothing)
        case _:
            pairs = positives_of(recipe, dataset) == "pair"
            alike = classes.index(chosen.positive_class) if pairs else None
            cls = control_id(dataset.tokenizer(), "cls")
            return Contrastive(
                texts, chosen.group, chosen.temperature, chosen.pooling, alike, cls, chosen.gather
            )  # fmt: skip
