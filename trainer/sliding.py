"""Perplexity with a sliding window: each token is asked with much before it, at the price of reading tokens again.

Windows of `context` tokens begin `stride` tokens after each other, and of each only what the one before hasn't asked
counts: a token has at least context - stride tokens before it, or its document's beginning (Hugging Face's "Perplexity
of fixed-length models"). Training's rows, chopped anywhere, ask half of their tokens with less than half a context, so
their perplexity is higher; a stride of a quarter costs four times as many forwards.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from data.errors import UserError
from data.tasks.window import windows
from trainer.likelihood import SUMS, Passage, refuse_others, sums_of
from trainer.objectives.causal import token_figures
from trainer.scores import Loaded, load_model

AT_ONCE = 2048  # windows that are sorted by length together


def passages_of(document: np.ndarray, context: int, stride: int) -> Iterator[Passage]:
    """A document's windows, in their order; together they ask each token but its first once."""
    asked = 0
    for start, stop in windows(len(document) - 1, context, stride):
        yield Passage(document[start : stop + 1], asked - start + 1)
        asked = stop


def sliding(loaded: Loaded, stride: int, rows: int = 0) -> dict[str, float]:
    """Figures of the validation split's text, as `token_figures`, and "windows".

    Where rows were chopped, a document's first token is asked too, after an EOS, as it was in training.

    Args:
        stride: tokens from one window to the next, at most the context.
        rows: windows at most; 0: all.

    Raises:
        UserError: the stride is larger than the context, the dataset isn't text, or the model no decoder of it.
    """
    refuse_others(loaded, "a sliding window")
    context, inputs = loaded.recipe.model.context, loaded.inputs
    if not 1 <= stride <= context:
        raise UserError(f"a stride of {stride} leaves tokens out: take one from 1 to the model's context, {context}")
    if inputs.dataset.kind != "text":
        raise UserError(f"a sliding window goes over text, and {inputs.dataset.place} holds examples: give --dataset")
    totals, count = np.zeros(len(SUMS)), 0
    windows_left = islice(_windows(loaded, stride), rows or None)
    while some := list(islice(windows_left, AT_ONCE)):
        totals += sums_of(loaded, some).sum(0)
        count += len(some)
    if not count:
        raise UserError(f"{loaded.recipe.data.label} has no validation text: give another --dataset")
    return token_figures(dict(zip(SUMS, totals.tolist(), strict=True))) | {"windows": count}


def _windows(loaded: Loaded, stride: int) -> Iterator[Passage]:
    inputs = loaded.inputs
    begin = [] if inputs.packing == "best_fit" else [inputs.tokenizer.eos_id]
    for dataset in inputs.sources:
        for _, tokens in dataset.documents("valid"):
            document = np.concatenate([np.array(begin, np.int64), tokens.astype(np.int64)])
            if len(document) > 1:
                yield from passages_of(document, loaded.recipe.model.context, stride)


def evaluate_sliding(point: str, dataset: str | None, stride: int, rows: int) -> str:
    """What `luban evaluate --stride` prints."""
    loaded = load_model(point, dataset)
    figures, context = sliding(loaded, stride, rows), loaded.recipe.model.context
    return "\n".join(
        [
            f"{point} at step {loaded.step} on the validation text of {loaded.recipe.data.label}",
            f"  windows of {context:,} tokens every {stride:,}: a token has {context - stride:,} or more before it, "
            "or its document's beginning",
            f"  {'loss, nats/token':16} {figures['loss']:10.4f}",
            f"  {'perplexity':16} {figures['perplexity']:10.4f}",
            f"  {'bits per byte':16} {figures['bits_per_byte']:10.4f}",
            f"  {'next token right':16} {figures['accuracy']:10.4f}",
            f"  over {figures['tokens']:,.0f} tokens, each once, in {figures['windows']:,.0f} windows",
        ]
    )
