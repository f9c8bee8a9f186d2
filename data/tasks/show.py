"""What an example is to predict beside tokens, in words."""

from collections.abc import Sequence

import numpy as np

from data.shards import Targets
from data.tokenizer.tokenizer import Tokenizer


def target_text(
    tokenizer: Tokenizer, tokens: np.ndarray, targets: Targets, values: np.ndarray, classes: Sequence[str] = ()
) -> str:
    """An example's targets for the eye: a class by name, an answer by its tokens' text, else the numbers.

    Args:
        tokens: of the example.
        values: its targets, in the columns of `targets`.
        classes: names of the classes in the order of their ids.
    """
    if targets.names == ("start", "end"):
        start, end = (int(value) for value in values)
        if (start, end) == (0, 0):
            return "start 0, end 0: no answer in this window"
        return f"start {start}, end {end}: {tokenizer.decode(tokens[start : end + 1]).strip()!r}"
    if targets.dtype.kind == "i" and classes:
        return f"class {int(values[0])}: {classes[int(values[0])]}"
    return ", ".join(f"{name} {value:g}" for name, value in zip(targets.names, values.tolist(), strict=True))
