"""Words of a text and hashes of runs of them, for copies and for what a text shares with another.

A Chinese, Japanese or Korean character is a word; letters have no case and punctuation is none. Each different word is
hashed once and runs are combined in numpy: 17 MB/s on code and English, 3.4 on Chinese.
"""

import re

import numpy as np

WORDS = re.compile(
    r"[\u1100-\u11ff\u2e80-\u2fff\u3005-\u3007\u3021-\u302f\u3031-\u303c\u3041-\u30fa\u30fc-\u9fff"
    r"\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]|\w+"
)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_CACHE_LIMIT = 1 << 20
_hashes: dict[str, int] = {}


def word_hashes(text: str) -> np.ndarray:
    """A hash (uint64) of each word of the text, in their order."""
    import xxhash

    words = WORDS.findall(text.lower())
    if len(_hashes) > _CACHE_LIMIT:
        _hashes.clear()
    for word in set(words).difference(_hashes):
        _hashes[word] = xxhash.xxh3_64_intdigest(word.encode())
    return np.fromiter(map(_hashes.__getitem__, words), np.uint64, len(words))


def run_hashes(words: np.ndarray, width: int) -> np.ndarray:
    """A hash (uint64) of each run of `width` words, from the words' hashes. Shape [max(0, words - width + 1)]."""
    count = max(0, len(words) - width + 1)
    mixed = np.zeros(count, np.uint64)
    for offset in range(width):
        mixed = (mixed ^ words[offset : count + offset]) * MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return mixed
