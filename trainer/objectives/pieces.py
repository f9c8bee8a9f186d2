"""What objectives take from a tokenizer: its control pieces by role, and where words begin. Without torch.

A model of Hugging Face brings pieces of its own: `<|mask|>` may be `[MASK]`, `<|span_0|>` may be `<extra_id_0>`.
"""

import json
import re

import numpy as np

from data.errors import UserError
from data.tokenizer.tokenizer import Tokenizer
from trainer.objectives.rows import span_counts, text_row
from trainer.recipe import Recipe

_NEEDED = {
    "masked": ("<|mask|>", "<|cls|>", "<|sep|>", "<|pad|>"),
    "span": ("<|pad|>",),
    "prefix": ("<|pad|>",),
}
_CHINESE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def refuse_missing_pieces(recipe: Recipe, kind: str, tokenizer: Tokenizer) -> None:
    """Raise UserError, naming the piece, where the tokenizer lacks one that the objective `kind` inserts."""
    inserts = kind != "prefix" or not recipe.model.is_decoder
    for piece in _NEEDED.get(kind, ()) if inserts else ():  # what examples need was put in when they were built
        tokenizer.piece_id(piece)
    if kind == "span":
        length, _ = text_row(recipe, recipe.model.context)
        sentinels(recipe, length, tokenizer)


def sentinels(recipe: Recipe, length: int, tokenizer: Tokenizer) -> np.ndarray:
    """Ids of the sentinels that a row of `length` tokens needs, the first span's first (int64).

    Raises:
        UserError: the tokenizer has fewer.
    """
    _, needed = span_counts(length, recipe.objective.noise_density, recipe.objective.mean_span)
    pieces = set(tokenizer.pieces)
    theirs = "<|span_0|>" not in pieces and "span_0" not in tokenizer.special and "<extra_id_0>" in pieces
    names = [f"<extra_id_{number}>" if theirs else f"<|span_{number}|>" for number in range(needed)]
    held = [name for name in names if name in pieces or name[2:-2] in tokenizer.special]
    if len(held) < needed:
        raise UserError(
            f"objective span cuts {needed} spans out of a row of {length} tokens, and the tokenizer has "
            f"{len(held)} sentinels: no {names[len(held)]}. Lower model.context or objective.noise_density, or raise "
            "objective.mean_span"
        )
    return np.array([tokenizer.piece_id(name) for name in names], np.int64)


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """Whether a word begins with each piece (bool, [vocab_size]).

    With a WordPiece vocabulary, all that don't begin with ##. Elsewhere those that begin with white space; and a
    Chinese or Japanese character is a word, as in BERT's tokenizer, since no space would end one before the next full
    stop.
    """
    if tokenizer.make == "huggingface":
        model = json.loads(tokenizer.content)["model"]
        if model["type"] == "WordPiece":
            return np.array([not piece.startswith(model["continuing_subword_prefix"]) for piece in tokenizer.pieces])
    texts = [spelling.decode("utf-8", "ignore") for spelling in tokenizer.spellings]
    return np.array([text[:1].isspace() or _CHINESE.match(text) is not None for text in texts])


def ordinary(tokenizer: Tokenizer) -> np.ndarray:
    """Ids of the pieces that text is made of (int64)."""
    named = np.array([bool(piece) for piece in tokenizer.pieces])
    return np.flatnonzero(named & ~tokenizer.is_control)
