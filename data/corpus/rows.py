"""Tables: JSON lines, CSV, TSV and Parquet. A row is a document, its text one named field.

Rows are read one at a time; a line that exceeds `max_document_bytes` is skipped without being held. In Parquet a row
group's columns are read in pages, only those asked for. A row that can't be used is an error that names file and row,
or by recipe a counted drop.
"""

import csv
import difflib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.corpus.document import Document
from data.corpus.encodings import by_lines, decode_exactly, is_text
from data.corpus.files import InputFile, raw, reading, unpacked
from data.errors import UserError
from data.source import Source

_SKIP = 1 << 20
_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Row:
    """One row, its values not yet looked at."""

    number: int
    """JSONL: of its line; the others: of the row, from 1, header not counted (csv, tsv: of its last line)."""
    values: Mapping[str, Any] | None
    """By column. None: there are none; `fault` says why."""
    size: int
    """Bytes, about."""
    fault: str | None = None
    """not_text, too_large or bad_row."""
    said: str = ""
    """What is wrong with a bad row."""


def rows(source: Source, file: InputFile, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Every row of a file of kind jsonl, csv, tsv or parquet, good and bad, in order.

    Args:
        columns: which are needed: a file that names its columns and lacks one is an error, and Parquet reads no other.

    Raises:
        UserError: unreadable, or without one of the columns.
    """
    readers = {"jsonl": _json_lines, "csv": _separated, "tsv": _separated, "parquet": _parquet}
    return readers[source.kind](source, file, columns)


def row_documents(source: Source, file: InputFile) -> Iterator[Document]:
    """A document for each row.

    Raises:
        UserError: as `rows`; a bad row, unless they are to be dropped.
    """
    wanted = [field for field in (source.text_field, source.completion_field) if field is not None]
    for row in rows(source, file, wanted):
        id_ = f"{file.id}:{row.number:09d}"
        fault, said, texts = row.fault, row.said, []
        if row.values is not None:
            try:
                texts = [text_of(row.values, field) for field in wanted]
            except BadRowError as error:
                fault, said = "bad_row", str(error)
            if None in texts:
                fault = "not_text"
        if fault == "bad_row" and source.on_bad_row == "error":
            raise UserError(f"source {source.label}: {file.shown}:{row.number} {said}")
        if fault:
            yield Document(id_, source.label, None, None, row.size, fault)
        else:
            yield Document(id_, source.label, texts[0], texts[1] if len(texts) > 1 else None)


class BadRowError(Exception):
    """What is wrong with a row; whoever knows its file and number says where."""


def text_of(values: Mapping[str, Any], field: str) -> str | None:
    """The text in a row's field; none if what is there is no text.

    Raises:
        BadRowError: no such field, or something else than a string.
    """
    held = values.get(field)
    if isinstance(held, str):
        return held if is_text(held) else None
    if isinstance(held, bytes):
        return decode_exactly(held, "utf-8")
    if field in values:
        raise BadRowError(f"has no text in {field!r}: it is {'null' if held is None else type(held).__name__}")
    raise BadRowError(missing(field, values))


def missing(field: str, known: Iterable[str]) -> str:
    """That a field isn't there, those that are, and the likeliest one."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(field, names, 1, 0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"has no field {field!r}. Its fields: {', '.join(names) or 'none'}.{hint}"


def _json_lines(source: Source, file: InputFile, columns: Sequence[str]) -> Iterator[Row]:
    with unpacked(source, file) as stream:
        stream, encoding = by_lines(stream, source.encoding)
        plain = encoding.replace("_", "-").lower() in ("utf-8", "utf8", "ascii")
        for number, line, size in _lines(stream, source.max_document_bytes):
            if line is None:
                yield Row(number, None, size, "too_large")
            elif line and not line.isspace():
                yield _json_row(line, number, None if plain else encoding)


def _json_row(line: bytes, number: int, encoding: str | None) -> Row:
    try:
        values = json.loads(str(line, encoding or "utf-8"))
    except UnicodeError:
        return Row(number, None, len(line), "not_text")
    except (ValueError, RecursionError) as error:
        return Row(number, None, len(line), "bad_row", f"is not a JSON line: {error}")
    if not isinstance(values, dict):
        return Row(number, None, len(line), "bad_row", f"should hold a JSON object, not {type(values).__name__}")
    return Row(number, values, len(line))


def _lines(stream: io.BufferedReader, limit: int) -> Iterator[tuple[int, bytes | None, int]]:
    """(number, line, bytes) of each line; no line where it is longer than `limit`."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) <= limit or line.endswith(b"\n"):
            yield number, line, len(line)
            continue
        size = len(line)
        while line and not line.endswith(b"\n"):
            line = stream.readline(_SKIP)
            size += len(line)
        yield number, None, size


def _separated(source: Source, file: InputFile, columns: Sequence[str]) -> Iterator[Row]:
    quoted = source.quoted if source.quoted is not None else source.kind == "csv"
    csv.field_size_limit(source.max_document_bytes)
    with unpacked(source, file) as stream:
        stream, encoding = by_lines(stream, source.encoding)
        # What doesn't decode becomes surrogates, which no text holds: the row is dropped, its neighbours are read.
        lines = io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline="")
        table = csv.reader(
            lines, delimiter="," if source.kind == "csv" else "\t", strict=True,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        )  # fmt: skip
        names = list(source.columns)
        try:
            if not names:
                names = next(table, [])
            if names:
                _need(source, file, names, columns)
            for values in table:
                if len(values) == len(names):
                    yield Row(table.line_num, dict(zip(names, values, strict=True)), sum(map(len, values)))
                elif values:
                    said = f"has {len(values)} fields, not {len(names)} as the columns named {', '.join(names)}"
                    yield Row(table.line_num, None, sum(map(len, values)), "bad_row", said)
        except csv.Error as error:
            raise UserError(f"source {source.label}: {file.shown}:{table.line_num} {error}") from None
        finally:
            lines.detach()


def _parquet(source: Source, file: InputFile, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    with reading(source, file), io.BufferedReader(raw(source, file)) as stream:
        try:
            table = parquet.ParquetFile(pa.PythonFile(stream, "r"), pre_buffer=False, buffer_size=_SKIP)
            _need(source, file, table.schema_arrow.names, columns)
            number = 0
            for batch in table.iter_batches(_BATCH_ROWS, columns=list(columns) or None):
                held = [_plain(column) for column in batch.columns]
                for values in zip(*held, strict=True):
                    number += 1
                    yield _sized(source, number, dict(zip(batch.schema.names, values, strict=True)))
        except pa.ArrowException as error:
            raise UserError(f"source {source.label}: cannot read {file.shown}: {error}") from None


def _plain(column: Any) -> list[Any]:
    """Values of a column; strings as bytes, since Parquet doesn't promise that they are UTF-8."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_dictionary(column.type):
        column = column.cast(kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _sized(source: Source, number: int, values: dict[str, Any]) -> Row:
    size = sum(len(value) for value in values.values() if isinstance(value, bytes))
    if size > source.max_document_bytes:
        return Row(number, None, size, "too_large")
    return Row(number, values, size)


def _need(source: Source, file: InputFile, names: Sequence[str], columns: Sequence[str]) -> None:
    """A file that names its columns has those that are needed."""
    for column in columns:
        if column not in names:
            raise UserError(f"source {source.label}: {file.shown} {missing(column, names)}")
