"""What makes a near copy: MinHash signatures of a text's shingles, in bands. `copies.py` compares them.

rensa's MinHash runs at 332 MB/s on English and 42 on Chinese, 26 to 75 times datasketch at the same accuracy, so
shingling (`ngrams.py`) is the cost. In 16 bands of 8 rows, at least 98 % of copies with 1 % of their words
edited are found.
"""

from collections.abc import Sequence

import numpy as np

from data.dedup.ngrams import MULTIPLIER, run_hashes, word_hashes
from data.recipe import Dedup

_SEED = 1


def shingles(text: str, ngram: int) -> np.ndarray:
    """Hashes (uint64, sorted, each once) of the runs of `ngram` words in `text`.

    A text of fewer words is one shingle; one without any is its own.
    """
    import xxhash

    words = word_hashes(text)
    if not len(words):
        return np.array([xxhash.xxh3_64_intdigest(text.encode())], np.uint64)
    return np.unique(run_hashes(words, min(ngram, len(words))))


def band_keys(texts: Sequence[str], rules: Dedup) -> np.ndarray:
    """The keys of each text's bands: texts that share a key in any column are near copies. uint64 [texts, bands]."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    keys = np.zeros((len(texts), rules.bands), np.uint64)
    if not texts:
        return keys
    sets = [shingles(text, rules.ngram) for text in texts]
    offsets = np.cumsum([0, *map(len, sets)]).astype(np.uint64)
    signatures = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(sets), offsets, rules.bands * rules.rows, _SEED
    )
    rows = np.array(signatures.to_rows(), np.uint64).reshape(len(texts), rules.bands, rules.rows)
    for row in range(rules.rows):
        keys = (keys ^ rows[:, :, row]) * MULTIPLIER
        keys ^= keys >> np.uint64(29)
    return keys
