"""Overlapping windows over a context that is too long for one row (`doc_stride` of BERT's code for SQuAD)."""

from typing import NamedTuple


class Window(NamedTuple):
    """Tokens [start, stop) of a context."""

    start: int
    stop: int


def windows(tokens: int, room: int, stride: int) -> list[Window]:
    """Windows that cover a context: each begins `stride` tokens after the one before, the last ends with the context.

    An answer of at most room - stride + 1 tokens is whole in at least one of them.

    Args:
        tokens: of the context, at least 1.
        room: tokens that a window holds.
        stride: at most `room`, so that nothing is left out.
    """
    if not 1 <= stride <= room:
        raise ValueError(f"stride {stride} must be from 1 to the window's {room} tokens")
    found = [Window(0, min(room, tokens))]
    while found[-1].stop < tokens:
        start = found[-1].start + stride
        found.append(Window(start, min(start + room, tokens)))
    return found
