"""Append-only files of one JSON object a line, which may lose power in the middle of a line.

A line is one `write` of one buffer that ends in a newline, so whoever reads sees whole lines and at most one torn one
at the end. Figures that are not finite become null: NaN is not JSON, and a gap in a curve is what a reader can show.
The record's lines end in a checksum of themselves: most flipped bits leave a line that is JSON, and says another thing.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Appender:
    """Writes lines to the end of a file; a torn last line, left by a process that was killed, is ended first.

    Nothing is ever cut off: another process may be appending at this moment.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def append(self, values: Mapping[str, Any]) -> None:
        """One line, handed to the kernel before this returns."""
        text = json.dumps(finite(values), ensure_ascii=False, allow_nan=False)
        data = f"{text}\n".encode("utf-8", "backslashreplace")  # half a surrogate pair becomes JSON's own escape
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Nothing can be appended any more."""
        os.close(self._file)


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of `path` from byte `offset` on, and the offset to go on from.

    A missing file has no lines, a torn last line is not read yet, and a line that is no JSON object is passed over.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    parsed = (parse(line) for line in whole.split(b"\n")[:-1])
    return [found for found in parsed if found is not None], offset + len(whole)


def read_with_offsets(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The whole lines of `path`, each with its first byte; what is no JSON object is passed over."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    found, at = [], 0
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        parsed = parse(line)
        if parsed is not None:
            found.append((at, parsed))
        at += len(line)
    return found


def finite(value: Any) -> Any:
    """`value` with every float that is not finite replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [finite(held) for held in value]
    return value


def sealed(values: Mapping[str, Any]) -> bytes:
    """A line of these (finite) values that ends in its own CRC-32."""
    body = json.dumps(values)
    return f'{body[:-1]}, "crc": "{zlib.crc32(body.encode()):08x}"}}\n'.encode()


def intact(line: bytes) -> bool:
    """Whether a line has the bytes that its checksum says; one without a checksum is taken as it is."""
    body, mark, seal = line.rpartition(b', "crc": "')
    return not mark or seal[:8] == f"{zlib.crc32(body + b'}'):08x}".encode()


def parse(line: bytes) -> dict[str, Any] | None:
    """One line as a JSON object; None where it is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
