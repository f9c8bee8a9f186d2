"""A text's characters by kind, and its words as numbers: hashes, starts, lengths; no Python object a word.

A word is a run of letters, digits and underscores; a Chinese or Japanese character is one by itself. Words are hashed
eight bytes of code points at a time, all words together.
"""

import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

OTHER, SPACE, LETTER, DIGIT, CONTROL, REPLACEMENT, IDEOGRAPH, UNDERSCORE = range(8)
KINDS = 8
_DESCRIBED = 0x30000
_TABLE_SIZE = 0x33481  # one after the last ideographs, for all that lies beyond
_IDEOGRAPHS = (
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3347F),
)  # fmt: skip
_A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)


@lru_cache(maxsize=1)
def kind_table() -> np.ndarray:
    """The kind of every code point (uint8), from the Unicode database at first use (0.04 s a process).

    Ideographs are Han and kana, which are written without spaces; Hangul is, with them.
    """
    table = np.zeros(_TABLE_SIZE, np.uint8)
    for code in range(_DESCRIBED):
        letter = chr(code)
        category = unicodedata.category(letter)
        if letter.isspace():
            table[code] = SPACE
        elif category[0] in "LM":
            table[code] = LETTER
        elif category == "Nd":
            table[code] = DIGIT
        elif category == "Cc":
            table[code] = CONTROL
    for first, last in _IDEOGRAPHS:
        span = table[first : last + 1]
        span[(span == LETTER) | (first >= 0x20000)] = IDEOGRAPH
    table[0x3007] = IDEOGRAPH  # the digit zero, by its category a number
    table[0xFFFD] = REPLACEMENT
    table[ord("_")] = UNDERSCORE
    return table


def codes_of(text: str) -> np.ndarray:
    """Code points: uint8 for a text of ASCII, uint32 otherwise. Shape [characters]."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def kinds_of(text: str, codes: np.ndarray) -> np.ndarray:
    """The kind of each character (uint8), of a text whose code points are given."""
    if codes.dtype == np.uint8:
        return np.frombuffer(text.encode().translate(_byte_kinds()), np.uint8)
    return kind_table().take(codes, mode="clip")


@lru_cache(maxsize=1)
def _byte_kinds() -> bytes:
    return kind_table()[:256].tobytes()


@dataclass(frozen=True)
class Words:
    """The words of a text in their order; arrays of one length."""

    hashes: np.ndarray
    """uint64, of the word in small letters."""
    starts: np.ndarray
    """int64, first character."""
    lengths: np.ndarray
    """int64, characters."""
    ideographs: np.ndarray
    """bool: a single Chinese or Japanese character."""
    _runs: dict[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hashes)

    def runs(self, width: int) -> np.ndarray:
        """A hash of each run of `width` words (uint64, by where it starts); kept, as longer ones are made from it."""
        if width == 1:
            return self.hashes
        if width not in self._runs:
            step = 1 if width % 2 else width // 2
            first = self.runs(width - step)[: len(self) - width + 1]
            self._runs[width] = longer(first, self.runs(step)[width - step :], step)
        return self._runs[width]


def longer(runs: np.ndarray, following: np.ndarray, width: int = 1) -> np.ndarray:
    """The hashes of runs that go on with `following`, runs of `width` words: the polynomial of all their words' hashes.
    Its upper bits are as good as chance."""
    mixed = runs * np.uint64(pow(int(_A), width, 1 << 64))
    mixed += following
    return mixed


def words_of(text: str, codes: np.ndarray, kinds: np.ndarray) -> Words:
    """The words of a text, whose code points and kinds are given; upper and lower case are one."""
    inside = _IS_WORD[kinds]
    alone = kinds == IDEOGRAPH if codes.dtype != np.uint8 else None
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if len(inside) and inside[0]:
        edges = np.concatenate([[0], edges])
    if len(edges) % 2:
        edges = np.concatenate([edges, [len(inside)]])
    starts, stops = edges[::2], edges[1::2]
    if alone is not None and alone.any():
        single = np.flatnonzero(alone)
        order = np.argsort(np.concatenate([starts, single]), kind="stable")
        starts, stops = np.concatenate([starts, single])[order], np.concatenate([stops, single + 1])[order]
        ideographs = alone[starts]
    else:
        ideographs = np.zeros(len(starts), bool)
    small = text.lower()
    codes = codes_of(small) if len(small) == len(text) else codes
    return Words(_hashes(codes, starts, stops - starts), starts, stops - starts, ideographs)


def hash_word(word: str, dtype: np.dtype) -> int:
    """The hash that `words_of` gives a word of ASCII, in a text whose code points are of that type."""
    codes = np.frombuffer(word.encode(), np.uint8).astype(dtype)
    return int(_hashes(codes, np.zeros(1, np.int64), np.array([len(codes)]))[0])


_IS_WORD = np.isin(np.arange(KINDS), (LETTER, DIGIT, UNDERSCORE))
_FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
"""Masks that leave the first bytes of eight."""


def _hashes(codes: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Each word's code points, eight bytes at a time, mixed with what came before (uint64)."""
    held = np.concatenate([codes, np.zeros(8 // codes.itemsize, codes.dtype)])
    eights = np.ndarray(len(codes), np.uint64, held.data, strides=(codes.itemsize,))
    step = 8 // codes.itemsize
    hashes = np.zeros(len(starts), np.uint64)
    which: np.ndarray | slice = slice(None)
    done = 0
    while len(starts):
        masks = _FIRST_BYTES[np.minimum(lengths - done, step) * codes.itemsize]
        mixed = ((eights[starts + done] & masks) ^ hashes[which]) * _A
        mixed ^= mixed >> _SHIFT
        mixed *= _B
        hashes[which] = mixed
        done += step
        longer_ones = np.flatnonzero(lengths > done)
        which = longer_ones if isinstance(which, slice) else which[longer_ones]
        starts, lengths = starts[longer_ones], lengths[longer_ones]
    return hashes
