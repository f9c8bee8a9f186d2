"""Sorting more records than memory holds: a radix partition on disk, then one bucket after another in memory.

Records are dealt to files by the top bits of their key, a hash, so buckets are of even size and in order among
themselves. A bucket that is too big still (many equal keys) is dealt again by its next bits. One pass of writing
and one of reading, where a merge of sorted runs would take the same and a heap besides.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_KEY_BITS = 64
_MOST_BITS = 8  # 256 files open at a time
_SORT_FACTOR = 4  # a bucket, its keys' order, the sorted copy, and what the caller makes of it


class Buckets:
    """Takes records in any order and gives them back sorted by their field `key` (uint64), stably."""

    def __init__(self, folder: Path, dtype: np.dtype, expected: int, memory: int, skip: int = 0):
        """Prepare for about `expected` records in the empty `folder`, using at most about `memory` bytes.

        Args:
            skip: leading bits of the key that are the same in all records.
        """
        self._folder, self._dtype, self._memory, self._skip = folder, dtype, memory, skip
        self._limit = max(1, memory // _SORT_FACTOR // dtype.itemsize)
        buckets = 2 * expected // self._limit
        self._bits = min(_MOST_BITS, _KEY_BITS - skip, max(0, int(buckets)).bit_length())
        self._files: dict[int, int] = {}

    def add(self, records: np.ndarray) -> None:
        """Take records of the dtype, which has a field `key`."""
        step = max(1, self._limit // 2)  # what dealing takes beside the records is twice their size
        for start in range(0, len(records), step):
            some = records[start : start + step]
            if not self._bits:
                self._append(0, some)
                continue
            where = (some["key"] << np.uint64(self._skip)) >> np.uint64(_KEY_BITS - self._bits)
            order = np.argsort(where.astype(np.uint8), kind="stable")
            cuts = np.cumsum(np.bincount(where.astype(np.int64), minlength=1 << self._bits))
            some = some[order]
            first = 0
            for bucket, last in enumerate(cuts.tolist()):
                if last > first:
                    self._append(bucket, some[first:last])
                first = last

    def sorted(self) -> Iterator[np.ndarray]:
        """The records in ascending order of their keys, some at a time; equal keys in the order they were added.

        Records of one key come in one piece unless they alone exceed the memory.
        """
        filled = sorted(self._files)
        self.close()
        for bucket in filled:
            yield from self._sorted(self._folder / str(bucket))

    def _sorted(self, path: Path) -> Iterator[np.ndarray]:
        count, used = path.stat().st_size // self._dtype.itemsize, self._skip + self._bits
        if count <= self._limit:
            records = np.fromfile(path, self._dtype)
            path.unlink()
            yield records[np.argsort(records["key"], kind="stable")]
            return
        if used == _KEY_BITS:  # one key
            for start in range(0, count, self._limit):
                yield np.fromfile(path, self._dtype, self._limit, offset=start * self._dtype.itemsize)
            path.unlink()
            return
        (folder := path.with_name(f"{path.name}.more")).mkdir()
        inner = Buckets(folder, self._dtype, count, self._memory, used)
        for start in range(0, count, self._limit):
            inner.add(np.fromfile(path, self._dtype, self._limit, offset=start * self._dtype.itemsize))
        path.unlink()
        yield from inner.sorted()

    def _append(self, bucket: int, records: np.ndarray) -> None:
        if bucket not in self._files:
            flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY
            self._files[bucket] = os.open(self._folder / str(bucket), flags, 0o666)
        rest = memoryview(records.tobytes())
        while rest:
            rest = rest[os.write(self._files[bucket], rest) :]

    def close(self) -> None:
        """Close the files that `add` writes to."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}


@contextmanager
def buckets(work: Path, dtype: np.dtype, expected: int, memory: int) -> Iterator[Buckets]:
    """Buckets in a temporary folder inside `work`, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sort-", dir=work))
    made = Buckets(folder, dtype, expected, memory)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
