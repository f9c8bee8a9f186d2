"""Templates: an example's texts -> the parts that its tokens are made of, in their order.

One template, the same in training and at generation. No BOS: pretraining documents have none either. A control piece
belongs to the field that it closes, so that token types are (field == text_b) or (field == context).
"""

import numpy as np

from data.errors import UserError
from data.tasks.chat import asked_parts, chat_parts
from data.tasks.example import Example
from data.tasks.part import Part, control_id
from data.tasks.task import Task
from data.tokenizer import Tokenizer

CAUSAL = ("completion", "decoder", "generate", "luban", "chatml")
_HEADS = ("classification", "pair")


def is_causal(task: Task) -> bool:
    """Whether the tokens in the loss are next-token labels, so that a decoder trains on the rows as they are."""
    return task.layout in CAUSAL and not (task.kind in _HEADS and task.layout == "decoder")


def controls(task: Task) -> tuple[str, ...]:
    """What the template's control pieces do."""
    if task.kind == "chat":
        return ("eos",) if task.layout == "chatml" else ("system", "user", "assistant", "end", "eos")
    if task.layout in ("encoder", "decoder") and task.kind in (*_HEADS, "qa"):
        return ("cls", "sep")
    return ("eos",) if task.layout == "encoder_decoder" else ("completion", "eos")


def parts_of(example: Example, task: Task) -> list[Part]:
    """The parts of an example, of a kind other than qa, whose windows `encode` lays out by tokens."""
    if task.kind == "chat":
        return chat_parts(list(example.texts), task)
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
    """What a model is given to complete (int32): the example of `text`, up to where its answer would begin.

    Raises:
        UserError: the task's model answers by a head, not with text.
    """
    if not is_causal(task):
        raise UserError(f"examples of kind {task.kind} with template {task.layout} are not made to be continued")
    if task.kind == "chat":
        return encode_parts(tokenizer, asked_parts(text, task))
    prefix = task.prefix if task.kind == "seq2seq" else ""
    return encode_parts(tokenizer, [Part("prompt", prefix + text), Part("prompt", control="completion")])


def encode_parts(tokenizer: Tokenizer, parts: list[Part]) -> np.ndarray:
    """The tokens of parts (int32)."""
    encoded = iter(tokenizer.encode_many([part.text for part in parts if not part.control]))
    held = [np.array([control_id(tokenizer, part.control)]) if part.control else next(encoded) for part in parts]
    return np.concatenate([np.zeros(0, np.int32), *held], dtype=np.int32)
