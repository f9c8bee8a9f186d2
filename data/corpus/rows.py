"""Rows as documents: one named column is the text, or the columns that a task reads are its fields.

A row that can't be used is an error that names file and line, or by recipe a counted drop.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from data.corpus.document import Document, strings
from data.corpus.encodings import is_text
from data.corpus.files import InputFile
from data.corpus.source import Source
from data.corpus.squad import GROUP, squad_rows
from data.corpus.tables import Row, aligned_rows, missing, rows
from data.errors import UserError

_BRACES = re.compile(r"\{([^{}]+)\}")


class BadRowError(Exception):
    """What is wrong with a row; whoever knows its file and line says where."""


def row_documents(source: Source, file: InputFile) -> Iterator[Document]:
    """A document for each row of a table.

    Raises:
        UserError: unreadable, without a column that is needed, or a bad row (unless they are to be dropped).
    """
    asked = [each for column in source.columns.values() for each in _asked(column)] or [source.text_field]
    for row in rows(source, file, list(dict.fromkeys(asked))):
        yield _document(source, file, row, f"{file.id}:{row.number or row.line:09d}")


def aligned_documents(source: Source, files: list[InputFile]) -> Iterator[Document]:
    """A document for each line that all files have.

    Raises:
        UserError: unreadable, or not of one length.
    """
    for row in aligned_rows(source, dict(zip(source.files, files, strict=True))):
        yield _document(source, files[0], row, f"{source.label}:{row.line:09d}")


def squad_documents(source: Source, file: InputFile) -> Iterator[Document]:
    """A document for each question.

    Raises:
        UserError: unreadable, or not SQuAD JSON.
    """
    for row in squad_rows(source, file):
        where = f"{file.shown}:{row.line} ({row.values['place']})"
        fields, problem = _of_text(row.values)
        id_ = f"{file.id}#{row.values['place' if problem else 'id']}"  # what is no text is no id either
        group = f"{file.id}#{row.values[GROUP]}"
        yield Document(id_, source.label, None, fields=fields, where=where, problem=problem, group=group)


def text_of(values: Mapping[str, Any], field: str) -> str | None:
    """The text in a row's field; none if what is there is no text.

    Raises:
        BadRowError: no such field, or something else than a string.
    """
    held = values.get(field)
    if isinstance(held, str):
        return held if is_text(held) else None
    if field in values:
        raise BadRowError(f"has no text in {field!r}: it is {'null' if held is None else type(held).__name__}")
    raise BadRowError(missing(field, values))


def _document(source: Source, file: InputFile, row: Row, id_: str) -> Document:
    if row.fault:
        return Document(id_, source.label, None, row.size, row.fault)
    if source.columns or source.files:
        fields, problem = _picked(row, source.columns) if source.columns else _of_text(row.values)
        return Document(
            id_, source.label, None, fields=fields, where=f"{file.shown}:{row.place}", problem=problem,
        )  # fmt: skip
    try:
        if row.problem:
            raise BadRowError(row.problem)
        text = text_of(row.values, source.text_field)
    except BadRowError as error:
        if source.on_bad_row == "error":
            raise UserError(
                f"source {source.label}: {file.shown}:{row.place} {error}. Mend it, or leave such rows out with the "
                "source's on_bad_row: drop"
            ) from None
        return Document(id_, source.label, None, row.size, "bad_row")
    return Document(id_, source.label, text, row.size, "not_text" if text is None else None)


def _asked(column: str | tuple[str, ...]) -> list[str]:
    """The file's columns that one of a task's is made of."""
    return list(column) if isinstance(column, tuple) else _BRACES.findall(column) or [column]


def _picked(row: Row, columns: Mapping[str, str | tuple[str, ...]]) -> tuple[Mapping[str, Any], tuple[str, str] | None]:
    """What the declared columns hold, and the problem where the row lacks one."""
    if row.problem:
        return {}, ("unreadable_row", row.problem)
    picked: dict[str, Any] = {}
    for name, column in columns.items():
        asked = _asked(column)
        absent = next((each for each in asked if row.values.get(each) is None), None)
        if absent is not None:
            return {}, ("missing_column", f"has no {absent!r} for {name}; it has {', '.join(map(str, row.values))}")
        if isinstance(column, tuple):
            picked[name] = [row.values[each] for each in column]
        elif "{" in column:
            picked[name] = _BRACES.sub(lambda found: str(row.values[found[1]]), column).strip()
        else:
            picked[name] = row.values[column]
    return _of_text(picked)


def _of_text(fields: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, str] | None]:
    """The fields, or the problem where a string in them, however deep, is no text."""
    for name, value in fields.items():
        for text in strings(value):
            if not is_text(text):
                what = "a NUL character" if "\0" in text else "half a character (a lone surrogate)"
                return {}, (f"bad_{name}", f"{name} holds {what}: {repr(text)[:60]}")
    return fields, None
