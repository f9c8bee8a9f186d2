"""Which objective a run has, and the rows it asks for: what a plan needs to know, without torch."""

from data.dataset import Dataset
from data.errors import UserError
from trainer.objectives.tasks import task_kind
from trainer.recipe import Recipe

TEXT = ("masked", "span", "prefix", "adversarial")
"""Objectives of text alone."""


def kind_of(recipe: Recipe, dataset: Dataset) -> str:
    """The objective's kind, "auto" resolved.

    Raises:
        UserError: the family, the objective, the dataset and the recipe's other settings don't go together.
    """
    if dataset.kind == "examples":
        return task_kind(recipe, dataset)
    kind = text_kind(recipe)
    if kind not in (*TEXT, "causal"):
        raise UserError(
            f"objective.kind {recipe.objective.kind} learns from examples, and {dataset.place} holds text: leave it at "
            "auto, or build a dataset with kind=examples"
        )
    if not _learns(recipe, kind):
        raise UserError(
            f"a model of family {recipe.model.family} has no use for objective.kind {kind}: leave it at auto"
        )
    if recipe.model.is_decoder:
        _refuse_other_attention(recipe, kind)
    recipe.objective.refuse_unused(kind)
    if recipe.objective.next_sentence:
        _refuse_pairs(recipe)
    if kind == "adversarial":
        _refuse_unsampled(recipe)
    return kind


def text_kind(recipe: Recipe) -> str:
    """The objective's kind, where "auto" is what the family suggests for text."""
    if recipe.objective.kind != "auto":
        return recipe.objective.kind
    if recipe.model.is_decoder:
        return "prefix" if recipe.model.attention == "prefix" else "causal"
    return "span" if recipe.model.is_encoder_decoder else "masked"


def _learns(recipe: Recipe, kind: str) -> bool:
    match kind:
        case "causal" | "adversarial":
            return recipe.model.is_decoder
        case "masked":
            return recipe.model.family == "bert"
        case "prefix":
            return recipe.model.is_decoder or recipe.model.is_encoder_decoder
        case _:
            return recipe.model.is_encoder_decoder


def _refuse_other_attention(recipe: Recipe, kind: str) -> None:
    """Raise UserError where a decoder's attention and its objective on text don't go together."""
    attention = recipe.model.attention
    if kind == "prefix" and attention != "prefix":
        raise UserError(
            f"objective.kind prefix has a decoder read the beginning of a row in both directions, and model.attention "
            f"is {attention}: set it to prefix"
        )
    if attention == "prefix" and kind != "prefix":
        raise UserError(
            f"model.attention prefix has a decoder read the beginning of a row in both directions, and of text only "
            f"objective.kind prefix draws one: leave it at auto, not {kind}, or set model.attention to full"
        )
    if kind == "prefix" and recipe.data.packing == "best_fit":
        raise UserError(
            "model.attention prefix reads a row as one text, and with data.packing best_fit a row is of many: set "
            "data.packing to chop"
        )


def _refuse_pairs(recipe: Recipe) -> None:
    """Raise UserError where rows can't trade their second parts in pairs (`masked.py`)."""
    if recipe.data.packing == "best_fit":
        raise UserError(
            "objective.next_sentence cuts a row into two parts of one text, and with data.packing best_fit a row is "
            "of many: set data.packing to chop"
        )
    if recipe.model.type_vocab_size < 2:
        raise UserError(
            f"objective.next_sentence needs two token types, and model.type_vocab_size is "
            f"{recipe.model.type_vocab_size}: set it to 2"
        )
    unit, rows = 2 * recipe.data.lanes, recipe.train.batch_rows
    if rows % unit:
        raise UserError(
            f"objective.next_sentence pairs the rows of an update, lane by lane, so train.batch_rows ({rows}) must be "
            f"a multiple of twice the lanes ({unit}): take {max(unit, rows // unit * unit)} or "
            f"{-(-rows // unit) * unit}"
        )


def _refuse_unsampled(recipe: Recipe) -> None:
    """Raise UserError where samples would be of another kind than the rows that they are told from."""
    told, model = recipe.objective, recipe.model
    if recipe.adapter.kind != "none":
        raise UserError(
            f"objective.kind adversarial trains two networks, and adapter.kind {recipe.adapter.kind} adapts one: leave "
            "the adapter out, and freeze what should stay by train.trainable"
        )
    if recipe.data.packing == "best_fit":
        raise UserError(
            "objective.kind adversarial continues a row as one text, and with data.packing best_fit a row is of many: "
            "set data.packing to chop"
        )
    if model.attention != "full":
        raise UserError(
            f"objective.kind adversarial continues a row as one text, of which each token sees all before it, and "
            f"model.attention is {model.attention}: set it to full"
        )
    judge = told.discriminator
    width, heads = judge.hidden_size or model.hidden_size, judge.num_attention_heads or model.num_attention_heads
    if width % 8 or width % (2 * heads):
        raise UserError(
            f"the discriminator's hidden_size {width} must divide by 8, and by its {heads} heads into even parts: set "
            "objective.discriminator.hidden_size or num_attention_heads"
        )
    room = min([recipe.room, *(stage.context for stage in recipe.data.stages if stage.context is not None)])
    if told.prompt_tokens + told.sample_tokens > room:
        raise UserError(
            f"objective.prompt_tokens {told.prompt_tokens} + sample_tokens {told.sample_tokens} are more than the "
            f"{room} tokens of a row: lower one of them"
        )


def text_row(recipe: Recipe, context: int) -> tuple[int, int]:
    """Tokens of a row of text for a model that reads `context` tokens, and from one row's start to the next one's.

    causal, adversarial: context + 1, and context: the last token of a row is only a label, and the next row's first
    input. masked: what `<|cls|>` and each `<|sep|>` leave. span: as many as become `context` when spans are cut out.
    prefix: context, and for a decoder one more, which is only a label.
    """
    match text_kind(recipe):
        case "causal" | "adversarial":
            return context + 1, context
        case "masked":
            length = context - (3 if recipe.objective.next_sentence else 2)
        case "span":
            length = span_row(context, recipe.objective.noise_density, recipe.objective.mean_span)
        case _:
            length = context + 1 if recipe.model.is_decoder else context
    return length, length


def row_labels(recipe: Recipe, length: int) -> float:
    """Labels of a full row of `length` tokens of text; prefix: on average; whole words: at most."""
    match text_kind(recipe):
        case "causal" | "adversarial":
            return length - 1
        case "masked":
            return masks(length, recipe.objective.mask_rate)
        case "span":
            noise, spans = span_counts(length, recipe.objective.noise_density, recipe.objective.mean_span)
            return noise + spans + 1
        case _:
            return length / 2


def text_figures(recipe: Recipe) -> tuple[int, float]:
    """Tokens that the model reads of a full row of text, and the share of them that are labels.

    Of an objective of examples, whose rows only the dataset knows: the context, and 1, since they count in labels.
    """
    if text_kind(recipe) not in (*TEXT, "causal"):
        return recipe.model.context, 1.0
    length, _ = text_row(recipe, recipe.model.context)
    tokens = row_reads(recipe, length)
    return tokens, row_labels(recipe, length) / tokens


def row_reads(recipe: Recipe, length: int) -> int:
    """Tokens that a model reads of a full row of `length` tokens of text, an encoder-decoder on both sides."""
    match text_kind(recipe):
        case "causal" | "adversarial":
            return length - 1
        case "masked":
            return length + (3 if recipe.objective.next_sentence else 2)
        case "span":
            _, spans = span_counts(length, recipe.objective.noise_density, recipe.objective.mean_span)
            return length + 2 * (spans + 1)
        case _:
            return length - 1 if recipe.model.is_decoder else length


def masks(tokens: int, rate: float) -> int:
    """Tokens that are predicted of a row of so many (BERT's create_pretraining_data.py)."""
    return max(1, round(tokens * rate))


def span_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """(tokens cut out, spans) of a row of `length` tokens, at least 2.

    T5's `random_spans_noise_mask`; there are never more spans than tokens left to keep them apart.
    """
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), length - noise)


def span_row(inputs: int, density: float, mean_span: float) -> int:
    """The longest row that becomes at most `inputs` tokens when each span is one sentinel and an end is added.

    T5's `random_spans_helper` (arXiv:1910.10683): 568 tokens for 512 inputs, with 114 targets.
    """

    def lengths(row: int) -> tuple[int, int]:
        noise, spans = span_counts(row, density, mean_span)
        return row - noise + spans + 1, noise + spans + 1

    row = max(2, inputs - 2)
    while lengths(row + 1)[0] <= inputs:
        row += 1
    left, targets = lengths(row)
    return row - 1 if density == 0.5 and targets > left else row
