"""A shard of which only some ranges have come: what lets a run begin in the middle before its window is there.

A sparse file of the shard's size, without a name, mapped like a whole shard. What is missing reads as zeros and is
noted; whoever reads asks for `missing()` afterwards, has it fetched, and reads again. So the reader needs no second
code path, and the ranges of all rows of a batch are known, and fetched, together. A range is whole chunks of 64 KiB,
each compared with the shard's sums before it is put in.
"""

import mmap
import os
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.shards import IN_LOSS, START_DTYPE, USE_DTYPE, Block, MappedShard, ShardEntry, Targets
from data.sums import CHUNK, Sums

_MISSING, _PRESENT = 0, 1


class PartialShard(MappedShard):
    """The arrays of a shard as far as they have come. For one thread that reads."""

    def __init__(self, folder: Path, entry: ShardEntry, dtype: np.dtype, sums: Callable[[], Sums]):
        """Args:
        folder: where the file without a name is made.
        sums: called once, by the first thread that brings a range.
        """
        folder.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it since it was opened
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (lives as long as the shard)
        self._file.truncate(entry.file_size)
        self._map = mmap.mmap(self._file.fileno(), entry.file_size, access=mmap.ACCESS_READ)
        self._arrange(entry, dtype)
        self._sums, self._fetch_sums = None, sums
        self._chunks = bytearray(-(-entry.file_size // CHUNK))
        self._asked: set[int] = set()

    def missing(self) -> list[tuple[int, int]]:
        """Byte ranges, of whole chunks, that were asked for since the last time and aren't here; ascending."""
        ranges: list[tuple[int, int]] = []
        for chunk in sorted(self._asked):
            start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, self.entry.file_size)
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((start, stop))
        self._asked.clear()
        return ranges

    def put(self, start: int, data: bytes) -> int | None:
        """Take the bytes of a range as `missing` named it; the first byte of a wrong chunk, if one is wrong.

        Safe to call from several threads.
        """
        with self._lock:
            if self._sums is None:
                self._sums = self._fetch_sums()
        wrong = self._sums.wrong(start, data)
        if wrong is None:
            # Not through the map: a full disk is an OSError here, and SIGBUS, the end of the process, there.
            os.pwrite(self._file.fileno(), data, start)
            for chunk in range(start // CHUNK, -(-(start + len(data)) // CHUNK)):
                self._chunks[chunk] = _PRESENT
        return wrong

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop), of the shard's dtype; zeros where they are missing."""
        for block, low, high in self._pieces(start, stop):
            size = self.dtype.itemsize
            self._has(block.token_offset + low * size, block.token_offset + high * size)
        return super().tokens(start, stop)

    def uses(self, start: int, stop: int) -> np.ndarray:
        """Use bytes (uint8) of tokens [start, stop); zeros where they are missing."""
        if self._uses is None:
            return np.full(stop - start, IN_LOSS, USE_DTYPE)
        for block, low, high in self._pieces(start, stop):
            self._has(block.use_offset + low, block.use_offset + high)
        return super().uses(start, stop)

    def document_starts(self) -> np.ndarray:
        """First token of every document (int64); none of the blocks whose list of them is missing."""
        parts = [self._starts_of(number) for number in range(len(self.entry.blocks))]
        return np.array([start for part in parts for start in part], np.int64)

    def starts_between(self, begin: int, end: int) -> list[int]:
        """As of a whole shard, asking only for the lists of the blocks in question."""
        first, last = bisect_right(self._first, begin) - 1, bisect_left(self._first, end)
        found: list[int] = []
        for number in range(first, min(last, len(self.entry.blocks))):
            starts = self._starts_of(number)
            found += starts[bisect_right(starts, begin) : bisect_left(starts, end)]
        return found

    def document(self, number: int) -> tuple[int, int]:
        """As of a whole shard; (0, 0) while it isn't known."""
        begin = self._start(number)
        end = self._start(number + 1) if number + 1 < self.entry.documents else self.entry.tokens
        return (0, 0) if begin is None or end is None else (begin, end)

    def target(self, number: int, targets: Targets) -> np.ndarray:
        """As of a whole shard; zeros while they are missing."""
        self._has(*self._target_bytes(number, targets))
        return super().target(number, targets)

    def document_at(self, token: int) -> int:
        """As of a whole shard; any number while it isn't known."""
        block = bisect_right(self._first, token, hi=len(self.entry.blocks)) - 1
        starts = self._starts_of(block)
        return max(0, self._number[block] + bisect_right(starts, token) - 1)

    def _start(self, number: int) -> int | None:
        block = bisect_right(self._number, number) - 1
        starts = self._starts_of(block)
        return starts[number - self._number[block]] if starts else None

    def _starts_of(self, number: int) -> list[int]:
        """First tokens of the documents that start in a block; none while they are missing."""
        block = self.entry.blocks[number]
        if not self._has(block.document_offset, block.document_offset + block.documents * START_DTYPE.itemsize):
            return []
        inside = self._view(START_DTYPE, block.documents, block.document_offset)
        return (inside.astype(np.int64) + self._first[number]).tolist()

    def _has(self, start: int, stop: int) -> bool:
        """Whether bytes [start, stop) are here; what isn't is noted."""
        if start == stop:
            return True
        first, last = start // CHUNK, -(-stop // CHUNK)
        if self._chunks.find(_MISSING, first, last) < 0:
            return True
        self._asked.update(chunk for chunk in range(first, last) if not self._chunks[chunk])
        return False

    def _pieces(self, start: int, stop: int) -> list[tuple[Block, int, int]]:
        """(block, first, one past the last element inside it) of tokens [start, stop)."""
        found = []
        number = bisect_right(self._first, start, hi=len(self.entry.blocks)) - 1
        while start < stop:
            low, high = self._first[number], self._first[number + 1]
            found.append((self.entry.blocks[number], start - low, min(stop, high) - low))
            start, number = min(stop, high), number + 1
        return found
