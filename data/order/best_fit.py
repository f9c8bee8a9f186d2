"""Best-fit-decreasing bin packing of documents into rows: which pieces of which documents share a row.

Ding et al. 2024 (Fewer Truncations Improve Language Modeling, arXiv:2404.10830): cut only documents longer than a row,
then put each piece, the longest first, into the row that it leaves the least room in. Where they keep a segment tree
over rows and place piece by piece, pieces of one length are placed together here: a row that takes one piece of a
length becomes the tightest that takes the next, so rows of equal room take `room // length` each in one step. The rows
are those of the classic algorithm (tested), at a cost that grows with different lengths rather than with documents.
"""

from bisect import bisect_left, insort

import numpy as np


def cut(starts: np.ndarray, tokens: int, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of a shard's documents, (first token, tokens) of each in the shard's order (int64).

    A document longer than a row becomes pieces of `row_length` that overlap by one token and a remainder, so that each
    of its tokens but the first is a label once.

    Args:
        starts: first token of each document, ascending, the first at 0.
        tokens: of the shard.
        row_length: tokens of a row, at least 2.
    """
    stride = row_length - 1
    lengths = np.diff(starts, append=tokens)
    counts = np.maximum(1, -(-(lengths - 1) // stride))
    document = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    firsts = starts[document] + within * stride
    return firsts, np.minimum(row_length, starts[document] + lengths[document] - firsts)


def best_fit(lengths: np.ndarray, row_length: int) -> np.ndarray:
    """The row of each piece (int64), rows numbered from 0 in the order in which they are opened.

    Args:
        lengths: tokens of each piece, 1 to `row_length`.
    """
    order = np.argsort(-lengths, kind="stable")
    row = np.empty(len(lengths), np.int64)
    sizes, counts = np.unique(lengths, return_counts=True)
    open_rows: dict[int, list[np.ndarray]] = {}  # rows by the room left in them
    rooms: list[int] = []  # its keys, ascending
    opened = placed = 0
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = placed + count
        while placed < end:
            at = bisect_left(rooms, size)
            if at < len(rooms):
                room = rooms[at]
                rows = open_rows[room].pop()
                if not open_rows[room]:
                    del open_rows[room], rooms[at]
            else:
                room = row_length
                rows = np.arange(opened, opened + -(-(end - placed) // (room // size)))
                opened += len(rows)
            each = room // size
            take = min(end - placed, each * len(rows))
            full, rest = divmod(take, each)
            row[order[placed : placed + take]] = np.repeat(rows[: full + 1], each)[:take]
            placed += take
            for left, held in (
                (room - each * size, rows[:full]),
                (room - rest * size, rows[full : full + 1]),
                (room, rows[full + 1 :]),
            ):
                if left and len(held):
                    if left not in open_rows:
                        insort(rooms, left)
                    open_rows.setdefault(left, []).append(held)
    return row


def chopped(starts: np.ndarray, tokens: int, row_length: int, overlap: int = 1) -> int:
    """How many of a shard's documents chopping cuts: rows of `row_length` that share `overlap` tokens with the next,
    the first at token 0."""
    stride = row_length - overlap
    ends = np.append(starts[1:], tokens)
    return int((ends > starts // stride * stride + row_length).sum())
