"""Rules on what a document says twice: lines, paragraphs and runs of words.

The measures and thresholds are Gopher's (Rae et al. 2021, "Scaling Language Models", table A1). Shares of characters
are counted over the characters in words, so that they mean the same where there are no spaces. A run of n + 1 words
that comes again begins with a run of n words that does: after five words only the few candidates are looked at.
"""

from collections.abc import Sequence

import numpy as np

from data.clean.measured import Measured
from data.clean.words import longer

_REPEATED_MIN_LINES = 20
_TOP_FIRST, _COPY_FIRST = 2, 5


def repeated_lines(seen: Measured, limit: float) -> bool:
    """More than `limit` of the characters are in lines that were there before."""
    return len(seen.lines) >= _REPEATED_MIN_LINES and _repeated(seen.lines) > limit


def line_copies(seen: Measured, limit: float) -> bool:
    """More than `limit` of the lines were there before."""
    lines = seen.lines
    return len(lines) >= _REPEATED_MIN_LINES and len(lines) - len(set(lines)) > limit * len(lines)


def repeated_paragraphs(seen: Measured, limit: float) -> bool:
    """More than `limit` of the characters are in paragraphs that were there before."""
    return _repeated(seen.paragraphs) > limit


def paragraph_copies(seen: Measured, limit: float) -> bool:
    """More than `limit` of the paragraphs were there before."""
    return len(seen.paragraphs) - len(set(seen.paragraphs)) > limit * len(seen.paragraphs)


def top_ngram(seen: Measured, limits: Sequence[float]) -> bool:
    """The most frequent run of 2, 3, ... words, if it comes twice at least, has more than its limit's share of the
    characters."""
    words = seen.words
    total = int(words.lengths.sum())
    if len(words) <= _TOP_FIRST:
        return False
    # No longer run is more frequent than the most frequent pair, nor that than its bucket is full.
    most = int(_crowds(words.runs(_TOP_FIRST)).max()) * int(words.lengths.max())
    if all(most * width <= limit * total for width, limit in enumerate(limits, _TOP_FIRST)):
        return False
    for width, limit in enumerate(limits, _TOP_FIRST):
        if len(words) <= width:
            return False
        count, at = _most_frequent(words.runs(width))
        if count < 2:
            return False
        if count * int(words.lengths[at : at + width].sum()) > limit * total:
            return True
    return False


def copied_ngrams(seen: Measured, limits: Sequence[float]) -> bool:
    """Runs of 5, 6, ... words that were there before cover more than their limit's share of the characters."""
    words = seen.words
    total = int(words.lengths.sum())
    if len(words) <= _COPY_FIRST:
        return False
    runs = words.runs(_COPY_FIRST)
    at = np.flatnonzero(_crowds(runs)[_buckets(runs)] > 1)
    runs = runs[at]
    for width, limit in enumerate(limits, _COPY_FIRST):
        if len(at) == 0:
            return False
        order = np.argsort(runs, kind="stable")
        again = runs[order[1:]] == runs[order[:-1]]
        copies = at[order[1:][again]]
        edges = np.bincount(copies, minlength=len(words) + 1) - np.bincount(copies + width, minlength=len(words) + 1)
        if int(words.lengths[np.cumsum(edges[:-1]) > 0].sum()) > limit * total:
            return True
        recurring = np.zeros(len(at), bool)
        recurring[order[1:][again]] = recurring[order[:-1][again]] = True
        recurring &= at + width < len(words)
        at = at[recurring]
        runs = longer(runs[recurring], words.hashes[at + width])
    return False


def _repeated(parts: list[str]) -> float:
    total = sum(map(len, parts))
    return (total - sum(map(len, set(parts)))) / max(1, total)


def _buckets(runs: np.ndarray) -> np.ndarray:
    """The upper bits of each hash (int64): four buckets a run or more, so that few runs share one by chance."""
    return (runs >> np.uint64(64 - (4 * len(runs)).bit_length())).view(np.int64)


def _crowds(runs: np.ndarray) -> np.ndarray:
    """How many runs fall in each bucket; at least as many as are equal. Counting is quicker than sorting."""
    return np.bincount(_buckets(runs))


def _most_frequent(runs: np.ndarray) -> tuple[int, int]:
    """How often the most frequent run comes, and where first."""
    buckets = _buckets(runs)
    crowds = np.bincount(buckets)
    best, full = (0, 0), int(crowds.max())
    while full > best[0]:
        at = np.flatnonzero(crowds[buckets] == full)
        _, first, counts = np.unique(runs[at], return_index=True, return_counts=True)
        count = int(counts.max())
        if count > best[0]:
            best = (count, int(at[first[counts == count]].min()))
        full = int(crowds[crowds < full].max())
    return best
