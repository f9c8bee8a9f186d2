"""Examples -> tokens, what each token is for, and targets: rows of a dataset.

An example is a row, but for a question whose context is too long for one: that is as many rows as it has windows.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.shards import USE_DTYPE, Targets, use_value
from data.tasks.cut import kept_tokens
from data.tasks.example import Example
from data.tasks.part import Part, control_id
from data.tasks.span import pieces, token_span
from data.tasks.task import Task
from data.tasks.template import part_tokens, parts_of
from data.tasks.window import windows
from data.tokenizer.tokenizer import Tokenizer


def targets_of(task: Task) -> Targets | None:
    """What the examples of a task are to predict beside tokens; None: nothing."""
    if task.kind in ("classification", "pair"):
        return Targets(("label",), np.dtype("<f4" if task.regression else "<i4"))
    return Targets(("start", "end"), np.dtype("<i4")) if task.kind == "qa" else None


@dataclass
class Encoded:
    """Rows made of a batch of examples; the first five have one entry a row."""

    owners: list[int] = field(default_factory=list)
    """The number of its example in the batch."""
    windows: list[int] = field(default_factory=list)
    """The number of the window in its context; -1: the example is one row."""
    tokens: list[np.ndarray] = field(default_factory=list)
    """int32."""
    uses: list[np.ndarray] = field(default_factory=list)
    """uint8, of the same lengths."""
    targets: list[tuple[float, ...]] = field(default_factory=list)
    """Of `targets_of`'s columns; empty where there are none. A class's id, or first and last token of an answer,
    counted from the row's first; 0, 0, which is <|cls|>: no answer in this window."""
    abouts: list[str] = field(default_factory=list)
    """JSON for the document table; empty where there is nothing to say."""
    faults: dict[int, str] = field(default_factory=dict)
    """Number of an example that became no row -> the rule."""
    notes: dict[int, Counter[str]] = field(default_factory=dict)
    """Number of an example -> what dataset.json counts of it."""

    def add(
        self, owner: int, parts: Sequence[Part], pieces: Sequence[np.ndarray], target: tuple[float, ...], **more: Any
    ) -> None:
        """One more row, of parts and the tokens of each."""
        self.owners.append(owner)
        self.windows.append(more.get("window", -1))
        self.tokens.append(np.concatenate([np.zeros(0, np.int32), *pieces], dtype=np.int32))
        values = [use_value(part.field, part.in_loss) for part in parts]
        self.uses.append(np.repeat(np.array(values, USE_DTYPE), [len(piece) for piece in pieces]))
        self.targets.append(target)
        self.abouts.append(more.get("about", ""))


def encode_examples(examples: Sequence[Example], tokenizer: Tokenizer, task: Task, classes: Sequence[str]) -> Encoded:
    """The rows of a batch of examples, in their order.

    Args:
        classes: names of the classes in the order of their ids; empty where the task has none.

    Raises:
        UserError: the tokenizer lacks a control piece that the template needs.
    """
    return _questions(examples, tokenizer, task) if task.kind == "qa" else _rows(examples, tokenizer, task, classes)


def _rows(examples: Sequence[Example], tokenizer: Tokenizer, task: Task, classes: Sequence[str]) -> Encoded:
    encoded = Encoded()
    laid = [parts_of(example, task, tokenizer) for example in examples]
    tokens = iter(part_tokens([part for parts in laid for part in parts], tokenizer))
    ids = {name: number for number, name in enumerate(classes)}
    for number, (example, parts) in enumerate(zip(examples, laid, strict=True)):
        held = [next(tokens) for _ in parts]
        lengths = [len(each) for each in held]
        kept = kept_tokens(parts, lengths, task.max_tokens, task.truncate)
        if kept is None:
            encoded.faults[number] = "example_too_long"
            continue
        notes = encoded.notes[number] = Counter(examples=1)
        if kept != lengths:
            notes.update(truncated=1, truncated_tokens=sum(lengths) - sum(kept))
        target: tuple[float, ...] = ()
        if example.target is None:
            pass  # a text to be judged, not to learn from
        elif task.regression:
            target = (float(example.target),)
        else:
            name = class_name(example.target, task)
            target = (ids[name],)
            notes[f"label={name}"] += 1
        about = json.dumps(example.about, ensure_ascii=False, sort_keys=True) if example.about else ""
        encoded.add(number, parts, [each[:keep] for each, keep in zip(held, kept, strict=True)], target, about=about)
    return encoded


def class_name(value: str, task: Task) -> str:
    """The name of the class that a value in the file stands for."""
    return task.labels.get(value, value)


def _questions(examples: Sequence[Example], tokenizer: Tokenizer, task: Task) -> Encoded:
    encoded = Encoded()
    by_word = task.context_pieces == "words"
    contexts = {text: pieces(tokenizer, text, by_word) for text in {_text(example, "context") for example in examples}}
    questions = tokenizer.encode_many([_text(example, "question") for example in examples])
    cls, sep = (np.array([control_id(tokenizer, role)], np.int32) for role in ("cls", "sep"))
    parts = [
        Part("question", control="cls", in_loss=True),
        Part("question"),
        Part("question", control="sep"),
        Part("context", in_loss=True),
        Part("context", control="sep"),
    ]
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
        if len(question) > task.max_question_tokens:
            encoded.faults[number] = "question_too_long"
            continue
        context = _text(example, "context")
        tokens, starts, ends = contexts[context]
        first, last = token_span(starts, ends, example.target) if example.target else (-1, -1)
        room = task.max_tokens - len(question) - 3
        found = windows(len(tokens), room, task.doc_stride)
        inside = 0
        for place, (start, stop) in enumerate(found):
            offset = len(question) + 2 - start
            holds = example.target is not None and start <= first and last < stop
            inside += holds
            target = (first + offset, last + offset) if holds else (0, 0)
            about = {**example.about, "window": place, "windows": len(found)}
            if not tokenizer.losses:
                del about["context"]  # its tokens say it
            held = [cls, question, sep, tokens[start:stop], sep]
            more = {"window": place, "about": json.dumps(about, ensure_ascii=False, sort_keys=True)}
            encoded.add(number, parts, held, target, **more)
        notes = encoded.notes[number] = Counter(
            examples=1, windows=len(found), windows_without_answer=len(found) - inside
        )
        if example.target is None:
            notes["no_answer"] += 1
        else:
            answer = context[example.target[0] : sum(example.target)]
            notes["answers_between_tokens"] += context[starts[first] : ends[last]].strip() != answer.strip()
            notes["answers_in_no_window"] += not inside
    return encoded


def _text(example: Example, name: str) -> str:
    return next(text for held, text in example.texts if held == name)
