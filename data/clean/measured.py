"""A text and the counts that several rules share, each taken once and only if a rule asks."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from data.clean.words import (
    IDEOGRAPH,
    LETTER,
    SPACE,
    Words,
    codes_of,
    kinds_of,
    words_of,
)

_ALPHABETS_END = 0x0700  # Latin, Greek, Cyrillic, Armenian, Hebrew, Arabic; beyond it words are cut in other ways
_LATIN_END = 0x0250


@dataclass(frozen=True)
class Measured:
    """One document as the rules see it."""

    text: str
    language: str = ""
    """ISO 639-1; empty: not looked for."""
    _counts: dict[int, int] = field(default_factory=dict)

    @cached_property
    def codes(self) -> np.ndarray:
        """Code points. Shape [characters]."""
        return codes_of(self.text)

    @cached_property
    def kinds(self) -> np.ndarray:
        """Each character's kind (uint8), see `words.py`. Shape [characters]."""
        return kinds_of(self.text, self.codes)

    def count(self, kind: int) -> int:
        """Characters of a kind."""
        if kind not in self._counts:
            self._counts[kind] = int(np.count_nonzero(self.kinds == kind))
        return self._counts[kind]

    @property
    def visible(self) -> int:
        """Characters that aren't white space."""
        return len(self.text) - self.count(SPACE)

    @property
    def letters(self) -> int:
        """Letters of any script, ideographs among them."""
        return self.count(LETTER) + self.count(IDEOGRAPH)

    def share(self, kind: int) -> float:
        """Characters of a kind among the visible ones."""
        return self.count(kind) / max(1, self.visible)

    @cached_property
    def lines(self) -> list[str]:
        """Lines with something on them, white space at their ends removed."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What blank lines part, white space at the ends removed."""
        return [part for part in map(str.strip, self.text.split("\n\n")) if part]

    @cached_property
    def words(self) -> Words:
        """The words; upper and lower case are one."""
        return words_of(self.text, self.codes, self.kinds)

    @cached_property
    def tokens(self) -> tuple[int, int]:
        """How many runs of characters between white space there are, and how many of those hold a letter."""
        spaces = self.kinds == SPACE
        inside = np.concatenate([[True], spaces, [True]])
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        if len(edges) == 0:
            return 0, 0
        held = np.bitwise_or.reduceat((self.kinds == LETTER) | (self.kinds == IDEOGRAPH), edges[::2])
        return len(held), int(np.count_nonzero(held))

    @cached_property
    def alphabetic(self) -> bool:
        """Most letters are of an alphabet whose words are parted by spaces."""
        return self._most_letters_below(_ALPHABETS_END, 0.5)

    @cached_property
    def english(self) -> bool:
        """Identified as English; where languages aren't looked for, nearly all letters are Latin."""
        return self.language == "en" if self.language else self._most_letters_below(_LATIN_END, 0.9)

    def _most_letters_below(self, end: int, share: float) -> bool:
        if self.codes.dtype == np.uint8:
            return self.letters > 0
        return int(np.count_nonzero((self.kinds == LETTER) & (self.codes < end))) > share * self.letters
