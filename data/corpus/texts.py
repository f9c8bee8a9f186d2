"""Plain text: a file that is a document (folder, stdlib), or a file that is cut into some (text).

A file of a folder is read whole, as far as `max_document_bytes`; a file to be cut is decoded a piece at a time.
"""

import codecs
import io
import re
import tokenize
from collections.abc import Iterator

from data.corpus.document import Document
from data.corpus.encodings import decode, marked
from data.corpus.files import InputFile, unpacked
from data.corpus.source import Source
from data.errors import UserError

_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_PIECE = 1 << 20


def whole_file(source: Source, file: InputFile) -> Iterator[Document]:
    """The file as one document; Python's own source in the encoding that it declares."""
    content, size = content_of(source, file)
    if content is None:
        yield Document(file.id, source.label, None, size=size, fault="too_large")
        return
    text = decode(content, source.encoding)
    if text is None and source.kind == "stdlib":
        text = _declared(content)
    yield Document(file.id, source.label, text, size=size, fault=None if text is not None else "not_text")


def cut_file(source: Source, file: InputFile) -> Iterator[Document]:
    """A file cut at blank lines, else at the ends of lines; a line longer than `max_document_bytes` where that ends.

    Raises:
        UserError: it isn't text: then it is not the file that was meant.
    """
    if not source.document_characters:
        (document,) = whole_file(source, file)
        if document.fault == "not_text":
            raise _not_text(source, file)
        yield document
        return
    slack = source.document_characters
    held, start, number, over = "", 0, 0, False
    with unpacked(source, file) as stream:
        pieces = _decoded(source, file, stream)
        while True:
            stop = _end_of_part(held, start + slack, slack, over, source.max_document_bytes)
            if stop is None:
                piece = next(pieces, None)
                over = piece is None
                held, start = held[start:] + (piece or ""), 0
                continue
            if stop <= start:
                return
            yield Document(f"{file.id}#{number:06d}", source.label, held[start:stop])
            start, number = stop, number + 1


def content_of(source: Source, file: InputFile) -> tuple[bytes | None, int]:
    """All bytes of a file, none if there are too many; and how many there are."""
    limit = source.max_document_bytes
    with unpacked(source, file) as stream:
        content = stream.read(limit + 1)
        size = len(content)
        if size <= limit:
            return content, size
        del content
        while piece := stream.read(_PIECE):
            size += len(piece)
        return None, size


def _declared(content: bytes) -> str | None:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return None
    return None if "\0" in text else text


def _decoded(source: Source, file: InputFile, stream: io.BufferedReader) -> Iterator[str]:
    encoding, begin = marked(stream.peek(4)[:4], source.encoding)
    stream.read(begin)
    decoder = codecs.getincrementaldecoder(encoding)()
    while True:
        piece = stream.read(_PIECE)
        try:
            text = decoder.decode(piece, not piece)
        except UnicodeError:
            raise _not_text(source, file) from None
        if "\0" in text:
            raise _not_text(source, file)
        if text:
            yield text
        if not piece:
            return


def _not_text(source: Source, file: InputFile) -> UserError:
    return UserError(
        f"source {source.label}: {file.shown} is not a text file (NUL bytes, or not {source.encoding.upper()}; another "
        "encoding can be named by `encoding`)"
    )


def _end_of_part(text: str, wanted: int, slack: int, over: bool, limit: int) -> int | None:
    """The end of the first blank line from `wanted` on; within `slack` there is none: of a line; else the text's.

    None: it takes more text to say. A line ends after `limit` characters at the latest.
    """
    if len(text) < wanted + slack and not over:
        return None
    if blank := _BLANK_LINE.search(text, wanted, wanted + slack):
        return blank.end()
    if end := text.find("\n", wanted, wanted + limit) + 1:
        return end
    if len(text) >= wanted + limit:
        return wanted + limit
    return len(text) if over else None
