"""Keyed permutations without tables: what shuffles shards, rows and the blocks of a mixture.

A balanced Feistel network of 4 rounds over the next power of four, walked until it lands inside (Luby and Rackoff
1988; cycle walking: Black and Rogaway 2002), 0.04 to 0.5 us a value in chunks of 2,048 and more, with an inverse. Keys:
splitmix64 (Steele, Lea and Flood 2014), the same on every machine and for ever.
"""

import numpy as np

ROUNDS = 4
WORD = (1 << 64) - 1
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def key(*parts: int) -> int:
    """A 64-bit key from integers: splitmix64 chained over them."""
    state = 0
    for part in parts:
        state = (state ^ (part & WORD)) + _GAMMA & WORD
        state = (state ^ state >> 30) * _FIRST & WORD
        state = (state ^ state >> 27) * _SECOND & WORD
        state ^= state >> 31
    return state


def keys(*parts: int | np.ndarray) -> np.ndarray:
    """`key` over parts that may be arrays of integers, which broadcast: uint64."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            word = np.uint64(part & WORD) if isinstance(part, int) else part.astype(np.uint64)
            state = (state ^ word) + np.uint64(_GAMMA)
            state = (state ^ state >> np.uint64(30)) * np.uint64(_FIRST)
            state = (state ^ state >> np.uint64(27)) * np.uint64(_SECOND)
            state = state ^ state >> np.uint64(31)
    return state


def permute_each(
    values: np.ndarray, group: np.ndarray, sizes: np.ndarray, seeds: np.ndarray, inverse: bool = False
) -> np.ndarray:
    """Each of `values` by the permutation of its own group, in one go: a call for each group would cost 50 us.

    Args:
        values: int64, values[i] in [0, sizes[group[i]]).
        group: int64, like `values`.
        sizes: int64, of each group.
        seeds: uint64, of each group.
    """
    half = (_bit_length(np.maximum(sizes - 1, 0).astype(np.uint64)) + np.uint64(1)) // np.uint64(2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    rounds = [keys(seeds, number) for number in range(ROUNDS)]
    rounds = rounds[::-1] if inverse else rounds
    walking = values.astype(np.uint64)
    outside = np.flatnonzero(sizes[group] > 1)
    limits = sizes.astype(np.uint64)
    alone = len(sizes) == 1
    while outside.size:
        mine = np.zeros(1, np.int64) if alone else group[outside]
        by, low = half[mine], mask[mine]
        left, right = walking[outside] >> by, walking[outside] & low
        for secrets in rounds:
            if inverse:
                left, right = right ^ _scramble(left, secrets[mine]) & low, left
            else:
                left, right = right, left ^ _scramble(right, secrets[mine]) & low
        landed = left << by | right
        walking[outside] = landed
        outside = outside[landed >= limits[mine]]
    return walking.astype(np.int64)


def _scramble(values: np.ndarray, secrets: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        mixed = values * np.uint64(_GAMMA) + secrets
        mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(_FIRST)
        return mixed ^ mixed >> np.uint64(32)


def _bit_length(values: np.ndarray) -> np.ndarray:
    for by in (1, 2, 4, 8, 16, 32):
        values = values | values >> np.uint64(by)
    return np.bitwise_count(values).astype(np.uint64)
