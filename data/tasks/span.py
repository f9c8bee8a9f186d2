"""Answers as spans: characters of a context -> tokens.

A piece of SentencePiece may hold more than an answer's first or last word. So contexts are encoded word by word, where
a Chinese character or a punctuation mark is a word, as BERT's tokenizer does by itself. All of XQuAD's 1,190 answers in
English and in Chinese then begin and end where a token does, for 0.1 % and 4 % more tokens; left to a vocabulary of
8,192 pieces, 7 and 1 of them don't.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.clean.characters import normalised
from data.errors import UserError
from data.shards import FIELDS
from data.tasks.example import BadRow
from data.tokenizer.tokenizer import Tokenizer

_CHINESE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"(?: (?=\S))?(?:[{_CHINESE}]|(?:(?![{_CHINESE}])\w)+|.)", re.DOTALL)


def words(text: str) -> list[str]:
    """`text` cut into words, each with the space before it; a Chinese character or a punctuation mark is a word."""
    return _WORD.findall(text)


def answer_span(context: str, answers: list[Any]) -> tuple[str, list[int] | None, list[str]]:
    """The normalised context, the first answer's [first character, characters] in it (None: no answer), all answers.

    Raises:
        BadRow: the context is empty, or an answer isn't where it says it is.
    """
    if not context.strip():
        raise BadRow("empty_context", "context is empty")
    span, texts = None, []
    for answer in answers:
        text, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, dict) else (None, None)
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise BadRow("bad_answers", f"an answer is {str(answer)[:60]!r}, not {{text: ..., answer_start: ...}}")
        if not text.strip():
            raise BadRow("empty_answer", "an answer is empty")
        if start < 0 or context[start : start + len(text)] != text:
            found = context.find(text)
            mend = f"; it stands at {found}" if found >= 0 else "; it is nowhere in the context"
            raise BadRow(
                "answer_not_in_context",
                f"answer {text[:40]!r} is not at character {start} of its context, where "
                f"{context[max(0, start) : max(0, start) + len(text)][:40]!r} stands{mend}",
            )
        before, inside = normalised(context[:start]), normalised(text)
        if before + inside + normalised(context[start + len(text) :]) != normalised(context):
            raise BadRow("answer_not_in_context", f"answer {text[:40]!r} begins or ends inside a composed character")
        texts.append(inside)
        span = span or [len(before), len(inside)]
    return normalised(context), span, texts


def pieces(tokenizer: Tokenizer, text: str, by_word: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of `text`, and the characters [start, end) that each covers; arrays of one length (int32, int64, int64).

    A tokenizer that changes text can't say which characters a token stands for: each covers its whole word then.

    Args:
        by_word: encode each of `words(text)` by itself.

    Raises:
        UserError: not by word, with a tokenizer that changes text.
    """
    if tokenizer.losses and not by_word:
        raise UserError(
            f"this tokenizer {tokenizer.losses[0]}, so tokens can't be found in the text again: take "
            "task.context_pieces=words"
        )
    cut = words(text) if by_word else [text]
    encoded = tokenizer.encode_many(cut)
    tokens = np.concatenate([np.zeros(0, np.int32), *encoded])
    if tokenizer.losses:
        counts, ends = [len(held) for held in encoded], np.cumsum([len(word) for word in cut])
        return tokens, np.repeat(ends - [len(word) for word in cut], counts), np.repeat(ends, counts)
    content = np.frombuffer(text.encode(), np.uint8)
    character = np.cumsum((content & 0xC0) != 0x80) - 1  # of each byte
    ends = np.cumsum(tokenizer.piece_bytes[tokens])
    starts = ends - tokenizer.piece_bytes[tokens]
    return tokens, character[starts], character[ends - 1] + 1


def token_span(starts: np.ndarray, ends: np.ndarray, span: list[int]) -> tuple[int, int]:
    """First and last token that cover the characters `span` [first, count] of a context.

    Args:
        starts: first character of each token.
        ends: one past its last.
    """
    first, last = span[0], span[0] + span[1]
    return int(np.searchsorted(ends, first, "right")), int(np.searchsorted(starts, last, "left")) - 1


def answer_text(
    tokenizer: Tokenizer,
    tokens: np.ndarray,
    uses: np.ndarray,
    about: Mapping[str, Any],
    stride: int,
    span: Sequence[int],
) -> str:
    """The answer that a span of a row's tokens stands for, as the context writes it; empty for (0, 0), no answer.

    Args:
        tokens: of the row.
        uses: their use bytes.
        about: what the document table says of the row.
        stride: the task's `doc_stride`.
        span: first and last token, counted from the row's first.
    """
    first, last = span
    if last == 0:
        return ""
    if not tokenizer.losses:
        return tokenizer.decode(tokens[first : last + 1]).strip()
    context = about["context"]
    _, starts, ends = pieces(tokenizer, context, by_word=True)
    offset = about["window"] * stride - int(np.argmax(uses >> 1 == FIELDS.index("context")))
    return context[starts[first + offset] : ends[last + offset]].strip()
