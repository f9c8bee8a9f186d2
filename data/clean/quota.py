"""How much of each language stays: caps on documents, bytes or share, taken by a keyed hash.

A document's hash puts it in one of 65,536 buckets; a language keeps the buckets below a mark. So which documents stay
depends on nothing but their hashes, a second pass decides for each by itself, and memory is a table a language,
whatever the number of documents. A cap is never exceeded, and missed by less than what lies in one bucket.
"""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from data.settings import Fixed, Section

_BUCKETS = 1 << 16
_A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


class Quota(Section):
    """The most that is kept of one language, after cleaning and removal of copies."""

    max_documents: Fixed[Annotated[int, Field(ge=0)] | None] = None
    """Documents; null: no limit."""
    max_bytes: Fixed[Annotated[int, Field(ge=0)] | None] = None
    """UTF-8 bytes of text; null: no limit."""
    max_share: Fixed[Annotated[float, Field(gt=0, le=1)] | None] = None
    """Share of the bytes of all languages that are kept; null: no limit."""


class Quotas:
    """Counts the documents of each language, then says which stay."""

    def __init__(self, quotas: Mapping[str, Quota | None]):
        """Take the quotas by language, null meaning all of it."""
        self._quotas = {language: quota or Quota() for language, quota in quotas.items()}
        self._places = {language: place for place, language in enumerate(self._quotas)}
        self._bytes = np.zeros((len(quotas), _BUCKETS), np.int64)
        self._documents = np.zeros((len(quotas), _BUCKETS), np.int64)
        self._marks: np.ndarray | None = None

    def add(self, language: str, hashes: np.ndarray, sizes: np.ndarray) -> None:
        """Count documents of one language: a hash (uint64) and UTF-8 bytes (int64) of each."""
        buckets = _buckets(hashes)
        place = self._places[language]
        self._documents[place] += np.bincount(buckets, minlength=_BUCKETS)
        self._bytes[place] += np.bincount(buckets, sizes, _BUCKETS).astype(np.int64)

    def keeps(self, language: str, hashes: np.ndarray) -> np.ndarray:
        """Which documents of a language stay (bool), when all have been counted."""
        if self._marks is None:
            self._marks = self._settled()
        return _buckets(hashes) < self._marks[self._places[language]]

    def _settled(self) -> np.ndarray:
        """The first bucket of each language that is not kept."""
        quotas = list(self._quotas.values())
        capped = np.cumsum(self._bytes, axis=1)
        marks = np.full(len(quotas), _BUCKETS)
        for place, quota in enumerate(quotas):
            for limit, counts in ((quota.max_documents, self._documents[place]), (quota.max_bytes, self._bytes[place])):
                if limit is not None:
                    marks[place] = min(marks[place], np.searchsorted(np.cumsum(counts), limit, "right"))
        left = np.array([row[mark - 1] if mark else 0 for row, mark in zip(capped, marks, strict=True)])
        shares = np.array([1.0 if quota.max_share is None else quota.max_share for quota in quotas])
        for place, limit in enumerate(within_shares(left, shares)):
            if limit < left[place]:
                marks[place] = np.searchsorted(capped[place], limit, "right")
        return marks


def within_shares(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The most of each size such that none is more than its share of their sum (float64).

    With C the languages that are cut, the sum is what the others have / (1 - the shares of C); one joins C while it has
    more than its share of that. Nothing is left where the shares sum to less than 1.
    """
    cut = np.zeros(len(sizes), bool)
    while True:
        rest = 1 - float(shares[cut].sum())
        total = float(sizes[~cut].sum()) / rest if rest > 1e-12 else float(sizes.sum())
        limits = np.where(shares < 1, shares * total, np.inf)
        more = ~cut & (sizes > limits)
        if not more.any():
            return np.where(cut, limits, sizes.astype(float))
        cut |= more


def _buckets(hashes: np.ndarray) -> np.ndarray:
    """Mixed anew: the hash that documents are shuffled by would leave a capped language in the first shards."""
    mixed = hashes * _A
    mixed ^= mixed >> np.uint64(32)
    return ((mixed * _B) >> np.uint64(48)).astype(np.int64)
