"""Documents and rows -> examples, or what is wrong with them."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from data.clean.characters import normalised
from data.corpus import Document
from data.errors import UserError
from data.tasks.chat import conversation
from data.tasks.docstring import documented_functions
from data.tasks.example import BadRow, Example, example_of
from data.tasks.span import answer_span
from data.tasks.task import Task


def make_examples(document: Document, task: Task) -> list[Example] | None:
    """The examples in a document, good and faulty; none (not an empty list) if it isn't what the task reads.

    Raises:
        UserError: a bad row, where the task says `on_bad_row: error`.
    """
    if task.kind == "docstring":
        return _docstrings(document, task)
    try:
        if document.problem:
            raise BadRow(*document.problem)
        return [_MAKERS[task.kind](document, task)]
    except BadRow as bad:
        if task.on_bad_row == "error":
            raise UserError(
                f"{document.where}: {bad}. Mend the row, or leave such rows out with task.on_bad_row=drop"
            ) from None
        return [replace(example_of(document, []), fault=bad.rule)]


def _docstrings(document: Document, task: Task) -> list[Example] | None:
    functions = documented_functions(normalised(document.text or ""))
    if functions is None:
        return None
    made = []
    for name, prompt, completion in functions:
        texts = (("prompt", prompt), ("completion", completion))
        example = Example(f"{document.id}#{name}", document.id, document.source, texts)
        fault = "empty_prompt" if not prompt.strip() else _completion_fault(completion, task)
        made.append(replace(example, fault=fault))
    return made


def _completion_fault(completion: str, task: Task) -> str | None:
    if len(completion.strip()) < task.min_completion_characters:
        return "completion_too_short"
    if len(completion) > task.max_completion_characters:
        return "completion_too_long"
    return None


def _prompt_completion(document: Document, task: Task) -> Example:
    prompt, completion = text_of(document, "prompt"), text_of(document, "completion", may_be_empty=True)
    example = example_of(document, [("prompt", prompt), ("completion", completion)])
    return replace(example, fault=_completion_fault(completion, task))


def _classification(document: Document, task: Task) -> Example:
    return example_of(document, [("text", text_of(document, "text"))], _label(document, task))


def _pair(document: Document, task: Task) -> Example:
    texts = [(name, text_of(document, name)) for name in ("text_a", "text_b")]
    return example_of(document, texts, _score(document) if task.regression else _label(document, task))


def _question(document: Document, task: Task) -> Example:
    question = text_of(document, "question")
    context, span, answers = answer_span(_held(document, "context"), _held(document, "answers", list))
    if document.fields and document.fields.get("is_impossible"):
        span = None
    about = {"question": _held(document, "id"), "answers": answers, "context": context}
    return example_of(document, [("question", question), ("context", context)], span, about)


def _seq2seq(document: Document, task: Task) -> Example:
    texts = [("source", task.prefix + text_of(document, "source")), ("target", text_of(document, "target"))]
    about = None
    if document.fields and "references" in document.fields:
        about = {"references": [normalised(str(text)) for text in _held(document, "references", list)]}
    return example_of(document, texts, about=about)


def _chat(document: Document, task: Task) -> Example:
    return example_of(document, conversation(document, task))


_MAKERS: dict[str, Callable[[Document, Task], Example]] = {
    "prompt_completion": _prompt_completion,
    "classification": _classification,
    "pair": _pair,
    "qa": _question,
    "seq2seq": _seq2seq,
    "chat": _chat,
}


def _held(document: Document, name: str, kind: type = str) -> Any:
    """The row's value called `name`, of type `kind`. Raises BadRow."""
    fields = document.fields or {}
    value = fields.get(name)
    if not isinstance(value, kind):
        raise BadRow(f"bad_{name}", f"{name} is {_shown(value)}, not {'a string' if kind is str else 'a list'}")
    return value


def text_of(document: Document, name: str, may_be_empty: bool = False) -> str:
    """The row's text called `name`, normalised. Raises BadRow."""
    text = normalised(_held(document, name))
    if not may_be_empty and not text.strip():
        raise BadRow(f"empty_{name}", f"{name} is empty")
    return text


def _label(document: Document, task: Task) -> str:
    value = _held(document, "label", object)
    if not isinstance(value, str | int) or (isinstance(value, str) and not value.strip()):
        raise BadRow("bad_label", f"label is {_shown(value)}, not a class's name or number")
    label = normalised(str(value)).strip()
    if task.labels and label not in task.labels:
        raise BadRow("unknown_label", f"label {_shown(label)} is not one of {', '.join(task.labels)}")
    return label


def _score(document: Document) -> float:
    value = _held(document, "label", object)
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score) or isinstance(value, bool):
        raise BadRow("bad_number", f"label is {_shown(value)}, not a number")
    return score


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
