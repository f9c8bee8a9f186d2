"""An example for the eye: its text with control pieces by name, what each field holds, what the loss looks at."""

from itertools import pairwise

import numpy as np

from data.shards import FIELDS, IN_LOSS, Targets
from data.tokenizer import Tokenizer


def example_lines(
    tokenizer: Tokenizer,
    tokens: np.ndarray,
    uses: np.ndarray,
    targets: Targets | None = None,
    values: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
    characters: int = 300,
) -> list[str]:
    """One line a run of tokens of one field that the loss treats alike, and one for the targets.

    Args:
        tokens: of one example.
        uses: their use bytes.
        targets: the dataset's, if it has any; `values` are the example's.
        classes: names of the classes.
        characters: longer texts are cut, which is said.
    """
    edges = [0, *(np.flatnonzero(np.diff(uses)) + 1).tolist(), len(uses)]
    lines = []
    for begin, end in pairwise(edges):
        if begin == end:
            continue
        text = repr(tokenizer.decode(tokens[begin:end], control=True))[1:-1]
        text = text if len(text) <= characters else f"{text[:characters]} ... ({len(text):,} characters)"
        mark = "loss" if uses[begin] & IN_LOSS else "    "
        lines.append(f"{mark} {FIELDS[int(uses[begin]) >> 1]:<10} {end - begin:>5} tokens  {text}")
    if targets is not None and values is not None:
        lines.append(f"target {_target(tokenizer, tokens, targets, values, classes)}")
    return lines


def _target(
    tokenizer: Tokenizer, tokens: np.ndarray, targets: Targets, values: np.ndarray, classes: tuple[str, ...]
) -> str:
    if targets.names == ("start", "end"):
        start, end = (int(value) for value in values)
        if (start, end) == (0, 0):
            return "start 0, end 0: no answer in this window"
        return f"start {start}, end {end}: {tokenizer.decode(tokens[start : end + 1]).strip()!r}"
    if targets.dtype.kind == "i" and classes:
        return f"class {int(values[0])}: {classes[int(values[0])]}"
    return ", ".join(f"{name} {value:g}" for name, value in zip(targets.names, values.tolist(), strict=True))
