"""Safetensors files written tensor by tensor: no more of a model is in memory than its largest parameter.

The library's own writer takes a whole file's tensors at once. The format is a length, a JSON header and raw
little-endian bytes; what is written here any safetensors reader opens.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["fp32", "bf16"]
SHARD_BYTES = 5_000_000_000
"""Of one file, as transformers cuts them."""
_NAMES = {"fp32": "F32", "bf16": "BF16"}
_WIDTHS = {"fp32": 4, "bf16": 2}  # bytes


def write_weights(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], "Tensor"],
    precision: Precision = "fp32",
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write parameters to `folder` as `model.safetensors`, or as shards with an index; durably. Names of the files.

    Args:
        shapes: of every parameter, in the order they are written.
        tensor: a parameter in fp32, by name; asked for once.
        shard_bytes: most of a file; a larger parameter has one to itself.
    """
    width = _WIDTHS[precision]
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = prod(shape) * width
        if shards[-1] and held + size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    several = len(shards) > 1
    files = [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" if several else "model.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for file, names in zip(files, shards, strict=True):
        _write(folder / file, {name: shapes[name] for name in names}, tensor, precision)
    if several:
        total = sum(prod(shape) * width for shape in shapes.values())
        index = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
        (folder / "model.safetensors.index.json").write_text(f"{text}\n")
    return files


def _write(
    path: Path, shapes: Mapping[str, tuple[int, ...]], tensor: Callable[[str], "Tensor"], precision: Precision
) -> None:
    import torch

    entries: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    at, width = 0, _WIDTHS[precision]
    for name, shape in shapes.items():
        size = prod(shape) * width
        entries[name] = {"dtype": _NAMES[precision], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name, shape in shapes.items():
            values = tensor(name).contiguous()
            assert tuple(values.shape) == shape, name
            if precision == "bf16":
                values = values.bfloat16()
            file.write(values.view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
