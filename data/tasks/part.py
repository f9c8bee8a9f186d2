"""A part of an example: a run of text or one control piece, the field it belongs to, and whether the loss looks at it.

Bit 0 of a token's use byte says that the loss looks: at a label of generation; at the <|cls|> that a head reads; in QA
at every token where an answer may begin or end, which is the context's and, for "no answer", <|cls|>.
"""

from typing import NamedTuple

from data.tokenizer.tokenizer import Tokenizer


class Part(NamedTuple):
    """Either `text` or a control piece."""

    field: str
    """One of `data.shards.FIELDS`."""
    text: str = ""
    control: str = ""
    """What the control piece does: cls, sep, eos, completion, system, user, assistant, end."""
    in_loss: bool = False
    cuttable: str = ""
    """The name under which `task.truncate` may cut its end; empty: never."""
    markup: bool = False
    """A template's own words, not a row's: names of control pieces in them mean these."""


def control_id(tokenizer: Tokenizer, role: str) -> int:
    """The id of the tokenizer's control piece for a role such as "sep".

    Raises:
        UserError: it has none.
    """
    return tokenizer.piece_id(f"<|{role}|>")
