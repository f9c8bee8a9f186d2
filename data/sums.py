"""A digest of every 64 KiB of a shard, in a small file beside it, so that any part of it can be checked by itself.

A shard's sha256 vouches for the whole and says nothing of a range read over a network before the rest has come. With
`SHARD.sums.npy`, whose own sha256 is in `dataset.json`, a range is checked when it arrives, a cut download goes on
from its last whole chunk, and another file under a shard's name is found in its first 64 KiB. XXH3-128 runs at some
10 GB/s a core (sha256: 1.5), and 16 bytes a chunk are 0.024 % of the shard. It isn't cryptographic: it finds what
networks, disks and mistaken copies do to a file; the sha256 of the index still has the last word on a whole shard.
"""

from pathlib import Path

import numpy as np
import xxhash

from data.npy_header import npy_array

CHUNK = 1 << 16  # bytes


def sums_name(shard: str) -> str:
    """The file of a shard's sums."""
    return f"{shard.removesuffix('.tar')}.sums.npy"


class Summing:
    """Takes a file piece by piece and keeps the digest of each chunk."""

    def __init__(self) -> None:
        self._open, self._held = xxhash.xxh3_128(), 0
        self._done: list[bytes] = []

    def update(self, piece: bytes | memoryview) -> None:
        """The file's next bytes."""
        rest = memoryview(piece)
        while rest:
            taken = rest[: CHUNK - self._held]
            self._open.update(taken)
            self._held += len(taken)
            rest = rest[len(taken) :]
            if self._held == CHUNK:
                self._done.append(self._open.digest())
                self._open, self._held = xxhash.xxh3_128(), 0

    def sums(self) -> np.ndarray:
        """(chunks, 16) uint8: the digest of each chunk, the last one maybe short."""
        last = [self._open.digest()] if self._held else []
        return np.frombuffer(b"".join([*self._done, *last]), np.uint8).reshape(-1, 16)


class Sums:
    """The digests that a shard was written with."""

    def __init__(self, digests: np.ndarray, size: int):
        """Args:
        digests: (chunks, 16) uint8.
        size: of the shard, in bytes.

        Raises:
            ValueError: they are of a file of another size.
        """
        if digests.shape != (-(-size // CHUNK), 16) or digests.dtype != np.uint8:
            raise ValueError(f"sums of shape {digests.shape} for a file of {size:,} bytes")
        self.size = size
        self._digests = [row.tobytes() for row in digests]

    @classmethod
    def load(cls, path: Path, size: int) -> "Sums":
        """Read `SHARD.sums.npy`. Raises ValueError where it isn't the sums of a file of `size` bytes."""
        return cls(npy_array(path.read_bytes()), size)

    def wrong(self, start: int, data: bytes | memoryview) -> int | None:
        """The first byte of the first chunk that isn't what was written; None where all are.

        `data` are whole chunks from byte `start` of the file on; `start` is a multiple of CHUNK.
        """
        held = memoryview(data)
        for at in range(0, len(held), CHUNK):
            if xxhash.xxh3_128_digest(held[at : at + CHUNK]) != self._digests[(start + at) // CHUNK]:
                return start + at
        return None
