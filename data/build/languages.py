"""The quotas of languages over the rows of a build: one pass to count, one to choose."""

from collections.abc import Iterator, Mapping

import numpy as np

from data.build.parts import Rows, part_file, read_part
from data.clean.quota import Quota, Quotas


def rows_over(rows: Rows, languages: Mapping[str, Quota | None]) -> Iterator[np.ndarray]:
    """Numbers (int64) of the rows that are over their language's quota."""
    quotas = Quotas(languages)
    for language, _, hashes, sizes in _by_language(rows):
        quotas.add(language, hashes, sizes)
    for language, numbers, hashes, _ in _by_language(rows):
        yield numbers[~quotas.keeps(language, hashes)]


def _by_language(rows: Rows) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Part by part and language by language: numbers, hashes and sizes of the rows that are there."""
    for part in rows.parts:
        batch = read_part(part_file(rows.work, part))
        there = rows.there(part)
        languages = batch["language"].dictionary_encode()
        codes = languages.indices.to_numpy()
        hashes, sizes = batch["order"].to_numpy(), batch["bytes"].to_numpy()
        for code, language in enumerate(languages.dictionary.to_pylist()):
            places = np.flatnonzero(there & (codes == code))
            yield language, places + rows.starts[part], hashes[places], sizes[places]
