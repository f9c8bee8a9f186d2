"""A text's characters by kind, and its words as numbers: hashes, starts, lengths; no Python object a word.

A word is a run of letters, digits and underscores; a Chinese or Japanese character is one by itself. Each
character's code is mixed with its place in the word and the results are added up, in blocks that stay in the cache.
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
_BLOCK = 1 << 15
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
        return Words(_hashes(text, codes, inside | alone, starts), starts, stops - starts, alone[starts])
    return Words(_hashes(text, codes, inside, starts), starts, stops - starts, np.zeros(len(starts), bool))


def hash_word(word: str) -> int:
    """The hash that `words_of` gives a word."""
    codes = codes_of(word)
    return int(words_of(word, codes, kinds_of(word, codes)).hashes[0])


_IS_WORD = np.isin(np.arange(KINDS), (LETTER, DIGIT, UNDERSCORE))
_PLACES = 64
"""Places in a word that are told apart; what comes later is one place."""


@lru_cache(maxsize=1)
def _ascii_table() -> np.ndarray:
    """What each ASCII character adds to the hash of a word at each place (uint64, flat [places, 128]); nothing where it
    is no part of words."""
    codes = np.arange(128)
    inside = _IS_WORD[kind_table()[codes]]
    small = np.array([ord(chr(code).lower()) for code in codes])
    table = _mixed(np.tile(small, _PLACES), np.repeat(np.arange(_PLACES), 128))
    return table * np.tile(inside, _PLACES)


def _mixed(codes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A number (uint64) for each character at its place."""
    mixed = places.astype(np.uint64) << _SHIFT
    mixed += codes.astype(np.uint64)
    mixed *= _A
    mixed ^= mixed >> _SHIFT
    mixed *= _B
    return mixed


def _hashes(text: str, codes: np.ndarray, inside: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The sum over each word of its characters, mixed with their place in it (uint64)."""
    if codes.dtype != np.uint8:
        small = text.lower()
        codes = codes_of(small) if len(small) == len(text) else codes
    hashes = np.empty(len(starts), np.uint64)
    first = 0
    while first < len(starts):
        begin = int(starts[first])
        last = max(first + 1, int(np.searchsorted(starts, begin + _BLOCK)))
        end = int(starts[last]) if last < len(starts) else len(codes)
        begun = starts[first:last] - begin
        lengths = np.diff(begun, append=end - begin)
        places = np.arange(end - begin, dtype=np.int32)
        places -= np.repeat(begun.astype(np.int32), lengths)
        np.minimum(places, _PLACES - 1, out=places)
        if codes.dtype == np.uint8:
            places <<= 7
            places += codes[begin:end]
            mixed = _ascii_table()[places]
        else:
            mixed = _mixed(codes[begin:end], places) * inside[begin:end]
        hashes[first:last] = np.add.reduceat(mixed, begun)
        first = last
    return hashes
