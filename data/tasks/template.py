"""Templates: an example's texts -> the parts that its tokens are made of, in their order.

One template, the same in training and at generation. No BOS: pretraining documents have none either. A control piece
belongs to the field that it closes, so that token types are (field == text_b) or (field == context).
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data.errors import UserError
from data.tasks.chat import asked_parts, chat_parts, closing_part
from data.tasks.example import Example
from data.tasks.part import Part, control_id
from data.tasks.task import Task
from data.tokenizer.tokenizer import Tokenizer

CAUSAL = ("completion", "decoder", "generate", "luban", "chatml", "jinja")
_HEADS = ("classification", "pair")


def is_causal(task: Task) -> bool:
    """Whether the tokens in the loss are next-token labels, so that a decoder trains on the rows as they are."""
    return task.layout in CAUSAL and not (task.kind in _HEADS and task.layout == "decoder")


def controls(task: Task) -> tuple[str, ...]:
    """What the template's control pieces do."""
    if task.kind == "chat":
        others = {"chatml": ("eos",), "jinja": ()}
        return others.get(task.layout, ("system", "user", "assistant", "end", "eos"))
    if task.layout in ("encoder", "decoder") and task.kind in (*_HEADS, "qa"):
        return ("cls", "sep")
    return ("eos",) if task.layout == "encoder_decoder" else ("completion", "eos")


def parts_of(example: Example, task: Task, tokenizer: Tokenizer) -> list[Part]:
    """The parts of an example, of a kind other than qa, whose windows `encode` lays out by tokens."""
    if task.kind == "chat":
        return chat_parts(list(example.texts), task, tokenizer)
    if task.kind in _HEADS:
        return _classified(example, task)
    (first, text), (second, answer) = example.texts
    middle = "eos" if task.layout == "encoder_decoder" else "completion"
    return [
        Part(first, text, cuttable=first),
        Part(first, control=middle),
        Part(second, answer, in_loss=True),
        Part(second, control="eos", in_loss=True),
    ]


def _classified(example: Example, task: Task) -> list[Part]:
    texts = [Part(name, text, cuttable=name) for name, text in example.texts]
    if task.layout == "encoder":
        parts = [Part(texts[0].field, control="cls", in_loss=True)]
        for text in texts:
            parts += [text, Part(text.field, control="sep")]
        return parts
    parts = texts[:1]
    for text in texts[1:]:
        parts += [Part(parts[-1].field, control="sep"), text]
    if task.layout == "decoder":
        return [*parts, Part(parts[-1].field, control="cls", in_loss=True)]
    name = task.labels.get(example.target) or str(example.target)
    return [
        *parts,
        Part(parts[-1].field, control="completion"),
        Part("completion", name, in_loss=True),
        Part("completion", control="eos", in_loss=True),
    ]


def encode_prompt(tokenizer: Tokenizer, text: str, task: Task) -> np.ndarray:
    """What a model is given to complete (int32): the example of `text`, up to where its answer would begin; for an
    encoder-decoder, what its encoder reads.

    Raises:
        UserError: the task's model answers by a head, not with text.
    """
    if task.kind == "chat":
        turns = [*([("system", task.system)] if task.system else []), ("user", text)]
        return encode_chat(tokenizer, turns, task)
    source = Part("prompt", (task.prefix if task.kind == "seq2seq" else "") + text)
    if task.layout == "encoder_decoder":
        return encode_parts(tokenizer, [source, Part("prompt", control="eos")])
    if not is_causal(task):
        raise UserError(f"examples of kind {task.kind} with template {task.layout} are not made to be continued")
    return encode_parts(tokenizer, [source, Part("prompt", control="completion")])


def encode_chat(tokenizer: Tokenizer, turns: list[tuple[str, str]], task: Task) -> np.ndarray:
    """The tokens (int32) of a conversation, (role, text) a turn and the user's last, up to where the assistant's
    answer would begin."""
    return encode_parts(tokenizer, asked_parts(turns, task, tokenizer))


def answer_end(tokenizer: Tokenizer, task: Task) -> tuple[tuple[int, ...], str]:
    """What ends an answer in a chat: ids that do, and text that does, empty where the template's mark is an id."""
    ends, part = [tokenizer.eos_id], closing_part(task, tokenizer)
    if part is None:
        return tuple(ends), ""
    tokens = encode_parts(tokenizer, [part]).tolist()
    mark = next((token for token in tokens if tokenizer.is_control[token]), None)
    if mark is None or tokenizer.decode(tokens[: tokens.index(mark)]).strip():
        return tuple(ends), part.text.strip() or part.text
    return tuple(dict.fromkeys([mark, *ends])), ""


def encode_parts(tokenizer: Tokenizer, parts: list[Part]) -> np.ndarray:
    """The tokens of parts (int32)."""
    return np.concatenate([np.zeros(0, np.int32), *part_tokens(parts, tokenizer)], dtype=np.int32)


def part_tokens(parts: Sequence[Part], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The tokens of each part (int32), all texts encoded in one call."""
    pieces = [_marked(part.text, tokenizer) if part.markup else [part.text] for part in parts if not part.control]
    texts = iter(tokenizer.encode_many([piece for held in pieces for piece in held if isinstance(piece, str)]))
    held = iter(pieces)
    controls = {role: np.array([control_id(tokenizer, role)], np.int32) for role in {p.control for p in parts} - {""}}
    tokens = []
    for part in parts:
        if part.control:
            tokens.append(controls[part.control])
        else:
            found = [next(texts) if isinstance(piece, str) else np.array([piece], np.int32) for piece in next(held)]
            tokens.append(np.concatenate([np.zeros(0, np.int32), *found], dtype=np.int32))
    return tokens


def _marked(text: str, tokenizer: Tokenizer) -> list[str | int]:
    """A template's own words: texts, and ids of the control pieces that are named in them."""
    pattern, ids = _control_names(tokenizer)
    return [ids.get(piece, piece) for piece in pattern.split(text) if piece]


@lru_cache(maxsize=4)
def _control_names(tokenizer: Tokenizer) -> tuple[re.Pattern[str], dict[str, int]]:
    ids = {piece: number for number, piece in enumerate(tokenizer.pieces) if tokenizer.is_control[number] and piece}
    longest_first = sorted(ids, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})"), ids
