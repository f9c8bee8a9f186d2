"""Fine-tuning examples: documents -> (prompt, completion) -> tokens that say which of them are in the loss.

One template, the same in training and at generation:

    prompt <|completion|> completion <|eos|>

No BOS: pretraining documents have none either. Only the completion and its EOS are in the loss, so a model learns to
answer and to stop. An example is one document of a shard; prompts are never cut, an example that is too long is
dropped and counted.
"""

import ast
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.corpus import Document
from data.recipe import Task
from data.shards import USE_DTYPE, use_value
from data.tokenizer import Tokenizer

COMPLETION = "<|completion|>"
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Example:
    """One prompt with its completion."""

    id: str
    origin: str
    """Id of the document it was made from: examples of one document go to the same split."""
    source: str
    prompt: str
    completion: str
    fault: str | None = None
    """Why it is dropped, if it is."""


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """What a model is given to complete (int32): the prompt and the marker that asks for a completion."""
    return np.append(tokenizer.encode(prompt), np.int32(tokenizer.piece_id(COMPLETION)))


def join_example(tokenizer: Tokenizer, prompt: np.ndarray, completion: np.ndarray) -> np.ndarray:
    """The tokens of an example (int32), from the encoded prompt and completion."""
    marker, end = np.int32(tokenizer.piece_id(COMPLETION)), np.int32(tokenizer.eos_id)
    return np.concatenate([prompt, [marker], completion, [end]], dtype=np.int32)


def example_uses(prompt_tokens: int, tokens: int) -> np.ndarray:
    """Use bytes (uint8, [tokens]) of an example whose prompt, marker included, has `prompt_tokens` tokens."""
    uses = np.full(tokens, use_value("completion", in_loss=True), USE_DTYPE)
    uses[:prompt_tokens] = use_value("prompt", in_loss=False)
    return uses


def make_examples(document: Document, task: Task) -> list[Example] | None:
    """The examples in a document, good and faulty; none (not an empty list) if it isn't what the task reads."""
    if task.kind == "prompt_completion":
        if document.text is None or document.completion is None:
            return None
        made = [Example(document.id, document.id, document.source, document.text, document.completion)]
    else:
        functions = _documented_functions(document.text or "")
        if functions is None:
            return None
        made = [
            Example(f"{document.id}#{name}", document.id, document.source, prompt, completion)
            for name, prompt, completion in functions
        ]
    return [Example(**{**vars(example), "fault": _fault(example, task)}) for example in made]


def _fault(example: Example, task: Task) -> str | None:
    if not example.prompt.strip():
        return "empty_prompt"
    if len(example.completion.strip()) < task.min_completion_characters:
        return "completion_too_short"
    if len(example.completion) > task.max_completion_characters:
        return "completion_too_long"
    return None


def _documented_functions(text: str) -> list[tuple[str, str, str]] | None:
    """(qualified name and line, source without docstring, docstring's first paragraph) of each such function."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = [line.encode() for line in text.split("\n")]  # the tree's columns count bytes
    found = []
    for name, function in _functions(tree, ""):
        prompt = _without_docstring(function, lines)
        docstring = ast.get_docstring(function, clean=False)
        if prompt and docstring:
            paragraph = inspect.cleandoc(docstring).split("\n\n")[0]
            found.append((f"{name}:{function.lineno}", prompt, " ".join(paragraph.split())))
    return found


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield prefix + child.name, child
        inner = f"{prefix}{child.name}." if isinstance(child, _Function | ast.ClassDef) else prefix
        yield from _functions(child, inner)


def _without_docstring(function: _Function, lines: list[bytes]) -> str | None:
    """The function's source, dedented; none if nothing else is in it or the docstring shares a line with code."""
    docstring = function.body[0]
    if len(function.body) == 1 or not (isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)):
        return None
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)]) - 1
    start, stop, end = docstring.lineno - 1, docstring.end_lineno or 0, function.end_lineno or 0
    before = lines[start][: docstring.col_offset]
    after = lines[stop - 1][docstring.end_col_offset :].strip()
    if before.strip() or (after and not after.startswith(b"#")):
        return None
    margin = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
    kept = lines[first:start] + lines[stop:end]
    return b"\n".join(line.removeprefix(margin) for line in kept).decode().rstrip() + "\n"
