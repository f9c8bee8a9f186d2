"""Questions of SQuAD JSON (versions 1.1 and 2.0; XQuAD has the same form), each with its context and its line."""

import json
from collections.abc import Iterator

from data.corpus.encodings import decode
from data.corpus.files import InputFile
from data.corpus.tables import Row
from data.corpus.texts import content_of
from data.errors import UserError
from data.source import Source

GROUP = "article"
"""The value that tells which article a question belongs to."""


def squad_rows(source: Source, file: InputFile) -> Iterator[Row]:
    """One row a question: id, article, question, context, answers [{text, answer_start}], is_impossible.

    The line is that of the question's id in the file (in a file of one line, the path in the JSON says more: it is
    part of what a bad question is called).

    Raises:
        UserError: the file can't be read or isn't of that form.
    """
    content, size = content_of(source, file)
    if content is None:
        raise UserError(
            f"source {source.label}: {file.shown} has {size:,} bytes, and SQuAD JSON is held whole: raise "
            f"max_document_bytes ({source.max_document_bytes:,})"
        )
    text, path = decode(content), file.shown
    try:
        articles = json.loads(text or "")["data"]
        if not isinstance(articles, list):
            raise TypeError("data is not a list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = error if text else "it is not UTF-8"
        raise UserError(f'{path} is not SQuAD JSON ({{"data": [{{"paragraphs": ...}}]}}): {said}') from None
    text = text or ""
    at, line = 0, 1
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_list(article, "paragraphs", path, f"data[{a}]")):
            place = f"data[{a}].paragraphs[{p}]"
            for q, question in enumerate(_list(paragraph, "qas", path, place)):
                if not isinstance(question, dict):
                    raise UserError(f"{path}: {place}.qas[{q}] is not an object")
                written = {json.dumps(question.get("id"), ensure_ascii=escaped) for escaped in (False, True)}
                found = min((begin for form in written if (begin := text.find(form, at)) >= 0), default=-1)
                if found >= 0:
                    line, at = line + text.count("\n", at, found), found
                yield Row(
                    line,
                    {
                        "place": f"{place}.qas[{q}]",
                        GROUP: f"{a:06d}",
                        "id": question.get("id"),
                        "question": question.get("question"),
                        "context": paragraph.get("context"),
                        "answers": question.get("answers", []),
                        "is_impossible": question.get("is_impossible", False),
                    },
                )


def _list(held: object, name: str, path: str, place: str) -> list:
    inside = held.get(name) if isinstance(held, dict) else None
    if not isinstance(inside, list):
        raise UserError(f"{path}: {place} has no list {name!r}: this is not SQuAD JSON")
    return inside
