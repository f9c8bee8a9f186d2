"""Rows of examples by hand, and tiny models to read them."""

from collections.abc import Sequence

import numpy as np
import torch

from data.reader import Rows
from data.shards import FIELDS, use_value

CPU = torch.device("cpu")
Token = tuple[int, str, bool]
"""(id, field, whether the loss looks at it)"""


def rows(*examples: Sequence[Token], targets: Sequence[Sequence[float]] | None = None, kind: str = "<i4") -> Rows:
    """One example a row; an empty one is filler. `targets` are those of the rows that aren't."""
    width = max(len(example) for example in examples)
    tokens, use = np.zeros((len(examples), width), np.int64), np.zeros((len(examples), width), np.uint8)
    for number, example in enumerate(examples):
        tokens[number, : len(example)] = [token for token, _, _ in example]
        use[number, : len(example)] = [use_value(field, marked) for _, field, marked in example]
    lengths = np.array([len(example) for example in examples])
    return Rows(
        tokens=tokens,
        lengths=lengths,
        starts=tuple(np.zeros(min(1, length), np.int64) for length in lengths),
        use=use,
        positions=np.where(lengths > 0, np.arange(len(examples)), -1),
        targets=None if targets is None else np.array(targets, kind).reshape(-1, len(targets[0]) if targets else 1),
    )


def text(*ids: int, field: str = "text", marked: bool = False) -> list[Token]:
    """Tokens of one field."""
    assert field in FIELDS
    return [(token, field, marked) for token in ids]


CLS, SEP, EOS = 3, 4, 5


def encoded(*ids: int, second: Sequence[int] = ()) -> list[Token]:
    """<|cls|> text <|sep|> [text_b <|sep|>], as the template `encoder` has it."""
    first = "text_a" if second else "text"
    tokens = [*text(CLS, field=first, marked=True), *text(*ids, SEP, field=first)]
    return tokens + (text(*second, SEP, field="text_b") if second else [])


def decoded(*ids: int, second: Sequence[int] = ()) -> list[Token]:
    """text [<|sep|> text_b] <|cls|>, as the template `decoder` has it."""
    first, last = ("text_a", "text_b") if second else ("text", "text")
    tokens = text(*ids, *([SEP] if second else []), field=first) + text(*second, field="text_b")
    return tokens + text(CLS, field=last, marked=True)


def question(asked: Sequence[int], context: Sequence[int]) -> list[Token]:
    """<|cls|> question <|sep|> context <|sep|>; an answer may stand in the context, or at <|cls|>."""
    return [
        *text(CLS, field="question", marked=True),
        *text(*asked, SEP, field="question"),
        *text(*context, field="context", marked=True),
        *text(SEP, field="context"),
    ]


def pair(source: Sequence[int], target: Sequence[int]) -> list[Token]:
    """source <|eos|> target <|eos|>, the target in the loss."""
    return [*text(*source, EOS, field="source"), *text(*target, EOS, field="target", marked=True)]
