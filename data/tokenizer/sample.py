"""Which text a tokenizer learns from: so many bytes of a corpus of any size, each source by its share.

A document is taken if its draw, a hash of its id in [0, 1), is below its source's threshold. The thresholds come from a
first pass that only adds up bytes in 14,000 bins a source: memory depends on neither documents nor bytes, and the order
of the documents changes nothing. The bins are narrow where draws are small, so that 100 MB of a terabyte are still
found to half a per cent. A long document gives its beginning only, lest a sample be one book.
"""

import numpy as np

_STEPS = 256  # bins to a power of two
_OCTAVES = 55  # a draw has 53 bits
_LEAST = 1 << 16
_PARTS = 64


class Sampler:
    """Call `count` for every document, then ask `taken` about any."""

    def __init__(self, limit: int):
        """`limit`: bytes of the sample, at most."""
        self.limit = limit
        self._longest = max(limit // _PARTS, _LEAST)
        self._bins: dict[str, np.ndarray] = {}
        self._thresholds: dict[str, tuple[int, int]] | None = None

    def count(self, sources: np.ndarray, draws: np.ndarray, sizes: np.ndarray) -> None:
        """Take note of documents: source (str), draw in [0, 1), bytes; arrays of one length."""
        bins, counted = _bins(draws), np.minimum(sizes, self._longest)
        for source in np.unique(sources).tolist():
            mine = sources == source
            held, documents = self._bins.setdefault(source, np.zeros((2, _STEPS * _OCTAVES), np.int64))
            np.add.at(held, bins[mine], counted[mine])
            np.add.at(documents, bins[mine], 1)

    def taken(self, sources: np.ndarray, draws: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Bytes (int64) of each document, from its beginning, that are in the sample; 0: not in it."""
        if self._thresholds is None:
            self._thresholds = self._decide()
        bins, taken = _bins(draws), np.zeros(len(sizes), np.int64)
        for source in np.unique(sources).tolist():
            threshold, most = self._thresholds[source]
            mine = (sources == source) & (bins < threshold)
            taken[mine] = np.minimum(sizes[mine], min(most, self._longest))
        return taken

    def _decide(self) -> dict[str, tuple[int, int]]:
        """Source -> (first bin that is out, most bytes of a document)."""
        total = sum(int(held.sum()) for held, _ in self._bins.values())
        found = {}
        for source, (held, documents) in self._bins.items():
            quota = max(1, self.limit * int(held.sum()) // max(1, total)) if total > self.limit else total
            below = np.cumsum(held)
            out = int(np.searchsorted(below, quota, side="right"))
            first = int(np.flatnonzero(held)[0]) if held.any() else 0
            each = max(1, quota // max(1, int(documents[first])))  # where one bin is too much already
            found[source] = (out, self._longest) if out > first else (first + 1, each)
        return found


def _bins(draws: np.ndarray) -> np.ndarray:
    """Ascending with the draw, 256 to each power of two."""
    mantissa, exponent = np.frexp(np.maximum(draws, 2.0 ** (1 - _OCTAVES)))
    return (exponent + _OCTAVES - 1) * _STEPS + ((mantissa - 0.5) * 2 * _STEPS).astype(np.int64)
