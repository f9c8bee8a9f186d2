"""Rules on what a document says twice: lines, paragraphs and runs of words.

The measures and thresholds are Gopher's (Rae et al. 2021, "Scaling Language Models", table A1). Shares of characters
are counted over the characters in words, so that they mean the same where there are no spaces; a Chinese or Japanese
word is taken to be two characters. A run of n + 1 words that comes again begins with a run of n words that does: after
five words only the few candidates are looked at.
"""

from collections.abc import Sequence

import numpy as np

from data.clean.measured import Measured
from data.clean.words import Words, longer

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
    """The most frequent run of 2, 3, ... words (of equals the longest), if it comes twice at least, has more than its
    limit's share of the characters."""
    words = seen.words
    total = int(words.lengths.sum())
    widths = [width * _scale(words) for width in range(_TOP_FIRST, _TOP_FIRST + len(limits))]
    if len(words) <= widths[0]:
        return False
    ends = np.concatenate([[0], np.cumsum(words.lengths)])
    # No longer run is more frequent than the most frequent one of the first width, nor that than its bucket is full.
    most = int(_crowds(words.runs(widths[0])).max())
    if all(most * _longest(ends, width) <= limit * total for width, limit in zip(widths, limits, strict=True)):
        return False
    for width, limit in zip(widths, limits, strict=True):
        if len(words) <= width:
            return False
        count, at = _most_frequent(words.runs(width))
        if count < 2:
            return False
        longest = int((ends[at + width] - ends[at]).max())
        if count * longest > limit * total:
            return True
    return False


def copied_ngrams(seen: Measured, limits: Sequence[float]) -> bool:
    """Runs of 5, 6, ... words that were there before cover more than their limit's share of the characters."""
    words = seen.words
    total = int(words.lengths.sum())
    scale = _scale(words)
    width = _COPY_FIRST * scale
    if len(words) <= width:
        return False
    ends = np.concatenate([[0], np.cumsum(words.lengths)])
    runs = words.runs(width)
    buckets = _buckets(runs, 8)
    at = np.flatnonzero(np.bincount(buckets)[buckets] > 1)
    runs = runs[at]
    for limit in limits:
        order = np.argsort(runs, kind="stable")
        again = runs[order[1:]] == runs[order[:-1]]
        copies = at[order[1:][again]]
        if len(copies) == 0:
            return False
        if (
            int((ends[copies + width] - ends[copies]).sum()) > limit * total
            and _covered(copies, width, ends) > limit * total
        ):
            return True
        recurring = np.zeros(len(at), bool)
        recurring[order[1:][again]] = recurring[order[:-1][again]] = True
        recurring &= at + width + scale <= len(words)
        at, runs = at[recurring], runs[recurring]
        for _ in range(scale):
            runs = longer(runs, words.hashes[at + width])
            width += 1
    return False


def _longest(ends: np.ndarray, width: int) -> int:
    """Characters in the longest run of `width` words, or in all."""
    return int((ends[width:] - ends[:-width]).max()) if len(ends) > width else int(ends[-1])


def _scale(words: Words) -> int:
    """What a word is in entries of `words`: a Chinese or Japanese word is some two characters."""
    return 2 if 2 * np.count_nonzero(words.ideographs) > len(words) else 1


def _repeated(parts: list[str]) -> float:
    total = sum(map(len, parts))
    return (total - sum(map(len, set(parts)))) / max(1, total)


def _covered(starts: np.ndarray, width: int, ends: np.ndarray) -> int:
    """Characters in the runs of `width` words from `starts` on, each once however many runs hold it."""
    starts = np.sort(starts)
    stops = np.minimum(starts + width, np.append(starts[1:], len(ends)))
    return int((ends[stops] - ends[starts]).sum())


def _buckets(runs: np.ndarray, spread: int = 2) -> np.ndarray:
    """The upper bits of each hash (int64): `spread` buckets a run or more, so that few runs share one by chance."""
    return (runs >> np.uint64(64 - (spread * len(runs)).bit_length())).view(np.int64)


def _crowds(runs: np.ndarray) -> np.ndarray:
    """How many runs fall in each bucket; at least as many as are equal. Counting is quicker than sorting."""
    return np.bincount(_buckets(runs))


def _most_frequent(runs: np.ndarray) -> tuple[int, np.ndarray]:
    """How often the most frequent runs come, and where each of them first does."""
    buckets = _buckets(runs)
    crowds = np.bincount(buckets)
    _, counts = np.unique(runs[crowds[buckets] == crowds.max()], return_counts=True)
    at = np.flatnonzero(crowds[buckets] >= counts.max())  # whoever isn't in here is rarer than that one
    _, first, counts = np.unique(runs[at], return_index=True, return_counts=True)
    return int(counts.max()), at[first[counts == counts.max()]]
