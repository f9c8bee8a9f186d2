"""Tables, a row at a time: JSON lines, JSON lists, CSV, TSV, Parquet, and text files aligned by line.

A line that exceeds `max_document_bytes` is skipped without being held, and in Parquet a row group's columns are read
in pages, only those asked for: memory is bounded by one row. A JSON list is held whole, which its size must allow.

TSV has no quotes unless the recipe says so, as GLUE's and MRPC's files have it: a quotation mark there is a character
like another. CSV has them (RFC 4180), and a cell may hold newlines.
"""

import csv
import difflib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from data.corpus.encodings import by_lines, decode, decode_exactly
from data.corpus.files import InputFile, raw, reading, unpacked
from data.corpus.source import Source
from data.corpus.texts import content_of
from data.errors import UserError

_SKIP = 1 << 20
_BATCH_ROWS = 256
_CELL_CHARACTERS = 1 << 28  # where a cell ends at the latest: the csv module's own limit is 131,072


@dataclass(frozen=True, slots=True)
class Row:
    """One row, its values not yet looked at."""

    line: int
    """The line it ends on (JSON lists: begins on), from 1; in Parquet the number of the row."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """By column; none where there is a fault or a problem."""
    size: int = 0
    """Bytes, about."""
    fault: str | None = None
    """not_text or too_large: always a counted drop."""
    problem: str = ""
    """Why it isn't a row, if it isn't: an error, or by recipe a counted drop."""
    number: int | None = None
    """Which object of a JSON list it is, from 1: the whole list may be one line."""

    @property
    def place(self) -> str:
        """Where in its file, for a person."""
        return f"{self.line}" if self.number is None else f"{self.line} (object {self.number})"


def rows(source: Source, file: InputFile, columns: Sequence[str]) -> Iterator[Row]:
    """Every row of a file of one of TABLES, good and bad, in order.

    Args:
        columns: which are needed: a file that names its columns and lacks one is an error, and Parquet reads no other.

    Raises:
        UserError: unreadable, or without one of the columns.
    """
    readers = {"jsonl": _json_lines, "json": _json_list, "csv": _cells, "tsv": _cells, "parquet": _parquet}
    return readers[source.kind](source, file, columns)


def aligned_rows(source: Source, files: Mapping[str, InputFile]) -> Iterator[Row]:
    """Rows of several text files, one column each, whose lines belong together (a parallel corpus).

    Raises:
        UserError: one can't be read, or is shorter than another.
    """
    with ExitStack() as opened:
        columns = []
        for file in files.values():
            stream, encoding = by_lines(opened.enter_context(unpacked(source, file)), source.encoding)
            columns.append((_lines(stream, source.max_document_bytes), encoding))
        for lines in zip_longest(*(lines for lines, _ in columns)):
            number = max(line[0] for line in lines if line)
            if None in lines:
                ended = list(files.values())[lines.index(None)]
                raise UserError(
                    f"source {source.label}: {ended.shown} ends before line {number}, "
                    "the files beside it don't: line-aligned files must have the same number of lines"
                )
            size = sum(line[2] for line in lines)
            if any(line[1] is None for line in lines):
                yield Row(number, size=size, fault="too_large")
                continue
            texts = [decode_exactly(line[1], held[1]) for line, held in zip(lines, columns, strict=True)]
            if None in texts:
                yield Row(number, size=size, fault="not_text")
            else:
                yield Row(
                    number, {name: str(text).rstrip("\r\n") for name, text in zip(files, texts, strict=True)}, size
                )


def missing(field: str, known: Iterable[str]) -> str:
    """That a field isn't there, those that are, and the likeliest one; without the sentence's end."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(field, names, 1, 0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"has no field {field!r}{hint}. Its fields: {', '.join(names) or 'none'}"


def _json_lines(source: Source, file: InputFile, columns: Sequence[str]) -> Iterator[Row]:
    with unpacked(source, file) as stream:
        stream, encoding = by_lines(stream, source.encoding)
        for number, line, size in _lines(stream, source.max_document_bytes):
            if line is None:
                yield Row(number, size=size, fault="too_large")
            elif not line.isspace():
                try:
                    yield _record(number, json.loads(str(line, encoding)), size)
                except UnicodeError:
                    yield Row(number, size=size, fault="not_text")
                except (ValueError, RecursionError) as error:
                    yield Row(number, size=size, problem=f"is not a JSON line: {error}")


def _record(line: int, values: Any, size: int) -> Row:
    if not isinstance(values, dict):
        return Row(line, size=size, problem=f"should hold a JSON object, not {type(values).__name__}")
    return Row(line, values, size)


def _lines(stream: io.BufferedReader, limit: int) -> Iterator[tuple[int, bytes | None, int]]:
    """(number, line, bytes) of each line; no line where it is longer than `limit`."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) <= limit:
            yield number, line, len(line)
            continue
        size = len(line)
        while line and not line.endswith(b"\n"):
            line = stream.readline(_SKIP)
            size += len(line)
        yield number, None, size


def _json_list(source: Source, file: InputFile, columns: Sequence[str]) -> Iterator[Row]:
    content, size = content_of(source, file)
    if content is None:
        raise UserError(
            f"source {source.label}: {file.shown} has {size:,} bytes, and a JSON list is held whole: make JSON lines "
            f"of it, or raise max_document_bytes ({source.max_document_bytes:,})"
        )
    text = decode(content, source.encoding)
    del content
    if text is None:
        raise UserError(f"source {source.label}: {file.shown} is not {source.encoding.upper()}: set `encoding`")
    decoder, at, line, counted, number = json.JSONDecoder(), _after_space(text, 0), 1, 0, 0
    if text[at : at + 1] != "[":
        raise UserError(
            f"source {source.label}: {file.shown} should hold a list of JSON objects. An object a line is kind: jsonl"
        )
    at = _after_space(text, at + 1)
    while text[at : at + 1] != "]":
        line, counted, begin, number = line + text.count("\n", counted, at), at, at, number + 1
        try:
            record, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(f"source {source.label}: {file.shown}:{line} is not JSON: {error}") from None
        yield replace(_record(line, record, at - begin), number=number)
        at = _after_space(text, at)
        at = _after_space(text, at + 1) if text[at : at + 1] == "," else at


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _cells(source: Source, file: InputFile, columns: Sequence[str]) -> Iterator[Row]:
    quoted = source.quoted if source.quoted is not None else source.kind == "csv"
    csv.field_size_limit(max(source.max_document_bytes, _CELL_CHARACTERS))
    with unpacked(source, file) as stream:
        stream, encoding = by_lines(stream, source.encoding)
        # What doesn't decode becomes surrogates, which no text holds: the row is dropped, its neighbours are read.
        lines = io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline="")
        table = csv.reader(
            lines, delimiter="," if source.kind == "csv" else "\t", strict=quoted,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, quotechar='"' if quoted else None,
        )  # fmt: skip
        names = list(source.header)
        try:
            if not names:
                names = next(table, [])
            if len(set(names)) < len(names):
                raise UserError(f"source {source.label}: {file.shown} names a column twice: {', '.join(names)}")
            if names:
                _need(source, file, names, columns)
            while True:
                begins = table.line_num + 1
                try:
                    values = next(table, None)
                except csv.Error as error:
                    yield _not_cells(source, file, begins, table.line_num, error)
                    continue
                if values is None:
                    return
                if values:
                    yield _decoded_cells(source, table.line_num, names, values)
        finally:
            lines.detach()


def _not_cells(source: Source, file: InputFile, begins: int, line: int, error: csv.Error) -> Row:
    """A row with quotation marks in the wrong places; what follows on the next line is read."""
    said = f"is not a row of {source.kind.upper()}: {error}"
    if "expected after" in str(error):
        return Row(line, problem=said)
    # Its end was never found, so what it swallowed can't be told apart: that is no row to drop.
    raise UserError(
        f"source {source.label}: {file.shown}:{begins} {said}. A quotation mark that opens there is never closed; "
        "where they are characters like others, say quoted: false"
    )


def _decoded_cells(source: Source, line: int, names: list[str], values: list[str]) -> Row:
    size = sum(map(len, values))
    if size > source.max_document_bytes:
        return Row(line, size=size, fault="too_large")
    if len(values) != len(names):
        said = f"has {len(values)} cells, but there are {len(names)} columns: {', '.join(names)}"
        return Row(line, size=size, problem=said)
    try:
        for value in values:
            if not value.isascii():
                value.encode()
    except UnicodeEncodeError:
        return Row(line, size=size, fault="not_text")
    return Row(line, dict(zip(names, values, strict=True)), size)


def _parquet(source: Source, file: InputFile, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    with reading(source, file), io.BufferedReader(raw(source, file)) as stream:
        number = 0
        try:
            table = parquet.ParquetFile(pa.PythonFile(stream, "r"), pre_buffer=False, buffer_size=_SKIP)
            _need(source, file, table.schema_arrow.names, columns)
            for batch in table.iter_batches(_BATCH_ROWS, columns=list(columns)):
                held = [_plain(column) for column in batch.columns]
                for values in zip(*held, strict=True):
                    number += 1
                    yield _decoded_values(source, number, dict(zip(batch.schema.names, values, strict=True)))
        except pa.ArrowException as error:
            said = f"cannot read {file.shown} after row {number}: {error}"
            raise UserError(f"source {source.label}: {said}") from None


def _plain(column: Any) -> list[Any]:
    """Values of a column; strings as bytes, since Parquet doesn't promise that they are UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _decoded_values(source: Source, number: int, values: dict[str, Any]) -> Row:
    size = sum(len(value) for value in values.values() if isinstance(value, bytes))
    if size > source.max_document_bytes:
        return Row(number, size=size, fault="too_large")
    for name, value in values.items():
        if isinstance(value, bytes):
            text = decode_exactly(value, source.encoding)
            if text is None:
                return Row(number, size=size, fault="not_text")
            values[name] = text
    return Row(number, values, size)


def _need(source: Source, file: InputFile, names: Sequence[str], columns: Sequence[str]) -> None:
    """A file that names its columns has those that are needed."""
    for column in columns:
        if column not in names:
            raise UserError(f"source {source.label}: {file.shown} {missing(column, names)}.")
