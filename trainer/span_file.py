"""One rank's spans as a safetensors file (the public format: a length, a JSON header, raw little-endian bytes).

Any safetensors reader opens it. Written here straight from the host copy, because the library serialises into a second
copy of the whole state first; read here by byte ranges, because a rank wants pieces of tensors, from a disk or a store,
and no more memory than the pieces. Each piece of a parameter is one range.
"""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from trainer.place import PAGE, Place

FLOAT = 4  # bytes


def header(tensors: Iterable[tuple[str, int]]) -> np.ndarray:
    """The head of a file of 1-D fp32 tensors (name, elements), whose bytes follow in this order; uint8.

    Whole pages, filled up with the spaces that the format allows, so that the bytes can be written with O_DIRECT.
    """
    entries, at = {}, 0
    for name, count in tensors:
        entries[name] = {"dtype": "F32", "shape": [count], "data_offsets": [at, at + FLOAT * count]}
        at += FLOAT * count
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return np.frombuffer(struct.pack("<Q", len(text)) + text, np.uint8)


@dataclass(frozen=True)
class SpanFile:
    """A file of spans, its head read."""

    place: Place
    name: str
    ranges: dict[str, tuple[int, int]]
    """Bytes [from, to) of each tensor."""
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def open(cls, place: Place, name: str) -> "SpanFile":
        """Raises OSError where it can't be read or has no head."""
        length = np.empty(8, np.uint8)
        place.read_into(name, 0, length)
        (size,) = struct.unpack("<Q", length.tobytes())
        if size > 1 << 30:
            raise OSError(f"{name} has no safetensors head")
        text = np.empty(size, np.uint8)
        place.read_into(name, 8, text)
        try:
            entries = json.loads(text.tobytes())
        except ValueError as error:
            raise OSError(f"{name} has no safetensors head ({error})") from None
        entries.pop("__metadata__", None)
        data = {key: entry["data_offsets"] for key, entry in entries.items()}
        ranges = {key: (8 + size + first, 8 + size + last) for key, (first, last) in data.items()}
        return cls(place, name, ranges, {key: tuple(entry["shape"]) for key, entry in entries.items()})

    def read_into(self, tensor: str, first: int, out: Tensor) -> None:
        """Fill `out` (1-D, fp32, contiguous, on the CPU) with the elements of a tensor from `first` on.

        Raises:
            UserError: the file doesn't hold them, so the manifest that says so was written by hand.
        """
        begin, end = self.ranges.get(tensor, (0, 0))
        at = begin + FLOAT * first
        if at + FLOAT * out.numel() > end:
            last = first + out.numel()
            raise UserError(
                f"{self.place}: {self.name} has no elements {first} to {last - 1} of {tensor}, as manifest.json says: "
                "restore the manifest, or remove this checkpoint to go on from an older one"
            )
        self.place.read_into(self.name, at, out.detach().numpy())


def bytes_of(tensor: Tensor) -> np.ndarray:
    """A contiguous CPU tensor as uint8, without a copy."""
    return tensor.detach().view(-1).view(torch.uint8).numpy()
