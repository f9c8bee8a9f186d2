"""What `luban generate` does: prompts from the command line, a file or standard input, and texts as they should leave.

A file of prompts holds one a line, or, where it is called *.jsonl or its first line is a JSON object with a `prompt`,
JSONL; what else such an object holds is kept beside the answer. A few hundred prompts are taken at a time, so that the
texts of a long file come as they are made and share their passes with prompts of like length.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from data.errors import UserError
from trainer.generate import generate, refuse_prompts, stream
from trainer.generation.settings import Decoding
from trainer.generation.text import spoken
from trainer.scores import Loaded

AT_ONCE = 256


def rows_of(place: str) -> list[dict[str, Any]]:
    """The prompts of a file (-: standard input), each a row with its `prompt`.

    Raises:
        UserError: it can't be read, isn't UTF-8, is empty, or a line isn't a prompt; with the line's number.
    """
    name = "standard input" if place == "-" else place
    try:
        content = sys.stdin.buffer.read() if place == "-" else Path(place).read_bytes()
        text = content.decode("utf-8-sig")
        lines = text.splitlines() if "\r" in text else text.removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"cannot read the prompts in {place}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not valid UTF-8: byte {error.start}") from None
    if lines == [""]:
        raise UserError(f"{name} is empty: it should hold a prompt a line")
    structured = place.endswith(".jsonl") or _object(lines[0]) is not None
    rows = []
    for number, line in enumerate(lines, 1):
        row = _object(line) if structured else {"prompt": line}
        if row is None or not isinstance(row["prompt"], str):
            raise UserError(f'line {number} of {name} is {line[:60]!r}, not a JSON object with a "prompt" of text')
        if not row["prompt"]:
            raise UserError(f"line {number} of {name} is empty: a prompt needs at least one character")
        if any("\ud800" <= character <= "\udfff" for character in row["prompt"]):
            raise UserError(f"line {number} of {name} holds half of a surrogate pair, which is no text")
        if "texts" in row:
            raise UserError(f'line {number} of {name} holds "texts" already, where the continuations would go')
        rows.append(row)
    return rows


def _object(line: str) -> dict[str, Any] | None:
    """The JSON object that `line` is, if it is one with a `prompt`."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "prompt" in row else None


def continued(loaded: Loaded, prompts: list[str], decoding: Decoding) -> list[list[str]]:
    """`num_return_sequences` texts of each prompt.

    Raises:
        UserError: as `generate`, and where the model has no text to give.
    """
    return _made(loaded, _asked(loaded, prompts), decoding)


def _made(loaded: Loaded, asked: list[list[int]], decoding: Decoding) -> list[list[str]]:
    inputs, start = loaded.inputs, loaded.inputs.start_id(loaded.recipe.model)
    made = generate(loaded.model, asked, decoding, eos_id=inputs.ends, start_id=start)
    return [[inputs.tokenizer.decode(each) for each in alternatives] for alternatives in made]


def _asked(loaded: Loaded, prompts: Iterable[str]) -> list[list[int]]:
    return [loaded.inputs.encode_prompt(text) for text in prompts]


def streamed(loaded: Loaded, prompt: str, decoding: Decoding) -> Iterator[str]:
    """One text in pieces, as it is made."""
    inputs, start = loaded.inputs, loaded.inputs.start_id(loaded.recipe.model)
    made = stream(loaded.model, inputs.encode_prompt(prompt), decoding, eos_id=inputs.ends, start_id=start)
    with closing(made):
        yield from spoken(made, inputs.tokenizer)


def answered(loaded: Loaded, rows: Iterable[dict[str, Any]], decoding: Decoding) -> Iterator[str]:
    """Each row as a line of JSON with its `texts`, in the order of the rows; all are checked before the first."""
    rows = list(rows)
    asked = _asked(loaded, (row["prompt"] for row in rows))
    refuse_prompts(loaded.model, asked, decoding)
    for first in range(0, len(rows), AT_ONCE):
        batch = slice(first, first + AT_ONCE)
        for row, texts in zip(rows[batch], _made(loaded, asked[batch], decoding), strict=True):
            yield json.dumps(row | {"texts": texts}, ensure_ascii=False)


def write_texts(loaded: Loaded, prompts: list[str], decoding: Decoding, write: Callable[[str], None]) -> None:
    """Prompts with their continuations, marked where a prompt has several; one text by itself is written as it is
    made."""
    several = decoding.num_return_sequences > 1
    between = "\n" if loaded.recipe.model.is_encoder_decoder else ""  # an answer, not a continuation
    if len(prompts) == 1 and not several and decoding.num_beams == 1:
        pieces = streamed(loaded, prompts[0], decoding)
        write(prompts[0] + between + next(pieces, ""))
        for piece in pieces:
            write(piece)
        write("\n")
        return
    for prompt, texts in zip(prompts, continued(loaded, prompts, decoding), strict=True):
        for text in texts:
            write(f"--- {prompt}{between}{text}\n" if several else f"{prompt}{between}{text}\n")
