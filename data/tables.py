"""Rows of tables, each with the line it begins on: JSON lines, JSON lists, CSV, TSV, Parquet, line-aligned files.

Rows are streamed but for a JSON list, which is held whole as text. A row that can't be read is handed on with its
problem: whether it ends the build or is dropped is the recipe's to say.

TSV has no quotes, as GLUE's and MRPC's files have it: a quotation mark there is a character like another. CSV has
them, and a cell may hold newlines.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from data.errors import UserError

KINDS = ("jsonl", "json", "csv", "tsv", "parquet")
_CELL_CHARACTERS = 1 << 27  # the csv module's own limit is 131,072
_PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Row:
    """One row as it was read."""

    line: int
    """The line it begins on, from 1; in Parquet the number of the row."""
    values: Mapping[str, Any]
    problem: str | None = None
    """Why it can't be read, if it can't: `values` is then empty."""


def rows(path: Path, kind: str, header: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a file of one of KINDS.

    Args:
        header: CSV and TSV: names of the columns, where the first line doesn't hold them.

    Raises:
        UserError: the file can't be read, isn't UTF-8, or has no header.
    """
    if kind == "parquet":
        yield from _parquet(path)
        return
    line = 0
    try:
        with _open(path) as file:
            made = {"jsonl": _json_lines, "json": _json_list}.get(kind)
            for row in made(file) if made else _cells(file, path, kind, header):
                line = row.line
                yield row
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 after line {line}: {error.reason}. Convert it first.") from None
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise UserError(f"cannot read {path} after line {line}: {error}") from None


def aligned(paths: Mapping[str, Path]) -> Iterator[Row]:
    """Rows of several text files, one column each, whose lines belong together (a parallel corpus).

    Raises:
        UserError: one can't be read, or is shorter than another.
    """
    opened = {name: _open(path) for name, path in paths.items()}
    number = 0
    try:
        texts = {name: io.TextIOWrapper(file, "utf-8-sig", newline="\n") for name, file in opened.items()}
        while True:
            number += 1
            lines = {name: text.readline() for name, text in texts.items()}
            ended = [name for name, line in lines.items() if not line]
            if len(ended) == len(lines):
                return
            if ended:
                raise UserError(
                    f"{paths[ended[0]]} ends before line {number}, the files beside it don't: line-aligned files must "
                    "have the same number of lines"
                )
            yield Row(number, {name: line.rstrip("\r\n") for name, line in lines.items()})
    except UnicodeDecodeError as error:
        raise UserError(f"{', '.join(map(str, paths.values()))}: line {number} is not UTF-8: {error.reason}") from None
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise UserError(f"cannot read {', '.join(map(str, paths.values()))} at line {number}: {error}") from None
    finally:
        for file in opened.values():
            file.close()


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))


def _json_lines(file: BinaryIO) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(number, {}, f"is not a JSON line: {error}")
            continue
        yield _record(number, record)


def _json_list(file: BinaryIO) -> Iterator[Row]:
    text = file.read().decode("utf-8-sig")
    decoder, at, line, counted = json.JSONDecoder(), _after_space(text, 0), 1, 0
    if text[at : at + 1] != "[":
        yield Row(1, {}, "should be a list of JSON objects")
        return
    at = _after_space(text, at + 1)
    while text[at : at + 1] not in ("]", ""):
        line, counted = line + text.count("\n", counted, at), at
        try:
            record, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield Row(line, {}, f"is not JSON: {error}")
            return
        yield _record(line, record)
        at = _after_space(text, at)
        at = _after_space(text, at + 1) if text[at : at + 1] == "," else at


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _record(line: int, record: Any) -> Row:
    if not isinstance(record, dict):
        return Row(line, {}, f"should hold a JSON object, not {type(record).__name__}")
    return Row(line, record)


def _cells(file: BinaryIO, path: Path, kind: str, header: Sequence[str]) -> Iterator[Row]:
    csv.field_size_limit(_CELL_CHARACTERS)
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    reader = (
        csv.reader(text, strict=True)
        if kind == "csv"
        else csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
    )
    names = list(header)
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, {}, f"is not a row of {kind.upper()}: {error}")
            return
        if not names:
            names = cells
            if len(set(names)) < len(names):
                raise UserError(f"{path} names a column twice in its first line: {', '.join(names)}")
        elif cells and len(cells) != len(names):
            yield Row(line, {}, f"has {len(cells)} cells, but there are {len(names)} columns: {', '.join(names)}")
        elif cells:
            yield Row(line, dict(zip(names, cells, strict=True)))
        line = reader.line_num + 1


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowInvalid, parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield Row(number, record)
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"cannot read {path} after row {number}: {error}") from None
