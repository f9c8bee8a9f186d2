"""Tokens to text as they come: whole characters only, and nothing past what ends an answer.

A token may hold a part of a character, and a piece's spelling may depend on the one before it (a leading space, say).
So a new token is decoded after the last ones that made text, and what comes out is what they lack; it waits while it
ends in half a character.
"""

from collections.abc import Iterable, Iterator

from data.tokenizer.tokenizer import Tokenizer

HALF = "\ufffd"


def spoken(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of `tokens` in pieces of whole characters, joined what `tokenizer.decode` makes of all of them."""
    ids: list[int] = []
    told, begun = 0, 0  # ids[:told] have been told; decoding begins at ids[begun], which came with the last text told
    for token in tokens:
        ids.append(token)
        before, now = tokenizer.decode(ids[begun:told]), tokenizer.decode(ids[begun:])
        if len(now) > len(before) and not now.endswith(HALF):
            begun, told = told, len(ids)
            yield now[len(before) :]
    rest = tokenizer.decode(ids[begun:])[len(tokenizer.decode(ids[begun:told])) :]
    if rest:
        yield rest


def until(pieces: Iterable[str], stop: str) -> Iterator[str]:
    """`pieces` up to the first `stop` in their joined text, which is left out; empty: all of them.

    What may be the beginning of `stop` is held back until more is known. No piece is asked for after the stop.
    """
    held = ""
    for piece in pieces:
        held += piece
        if stop and stop in held:
            held = held[: held.index(stop)]
            break
        keep = next((size for size in range(min(len(stop) - 1, len(held)), 0, -1) if stop.startswith(held[-size:])), 0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held
