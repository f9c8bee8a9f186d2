"""Web pages, as HTML files or as the responses in WARC archives: their main text, by resiliparse.

Taking it out runs at some 10 MB/s a core, finding pages in an archive at 90: so pages are handed on as they are, and
whoever cleans them, a worker among many, makes them `ready` first.

A page's text is decoded as its byte order mark says, else the server's header, else its own meta element, else the
source's `encoding`; names of encodings mean what browsers take them for. A page that doesn't decode is dropped as
`not_text`: guessing gets one in some hundred wrong, quietly.

A response's id ends with its record id and its URL, so that a document can be asked for by either.
"""

import re
from collections.abc import Iterator
from typing import Any

from data.corpus.document import Document, Page
from data.corpus.encodings import decode_exactly, marked
from data.corpus.ending import Ending
from data.corpus.files import InputFile, unpacked
from data.corpus.source import Source
from data.corpus.texts import content_of
from data.errors import UserError

_META = re.compile(rb"<meta[^>]{1,400}?charset\s*=\s*[\"']?\s*([A-Za-z0-9._:-]+)", re.IGNORECASE)
_HEAD = 4096  # bytes in which a charset is looked for; browsers look at 1024
_HTTP_HEADER = (
    b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n"
)
_RECORD_END = b"\r\n\r\n"
_HTML = ("text/html", "application/xhtml+xml")


def html_file(source: Source, file: InputFile) -> Iterator[Document]:
    """A page, its text still to be taken out."""
    _need("resiliparse")
    content, size = content_of(source, file)
    if content is None:
        yield Document(file.id, source.label, None, size=size, fault="too_large")
    else:
        yield _page(source, file.id, content, None)


def warc_file(source: Source, file: InputFile) -> Iterator[Document]:
    """A page for each response of status 200 that is HTML, its text still to be taken out.

    Raises:
        UserError: cut, damaged, or not an archive.
    """
    _need("fastwarc")
    _need("resiliparse")
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    seen = False
    with unpacked(source, file) as stream:
        ending = Ending(stream, len(_RECORD_END))
        for record in ArchiveIterator(ending, record_types=WarcRecordType.any_type, parse_http=False):
            seen = True
            wanted = record.record_type == WarcRecordType.response and record.is_http
            yield from _response(source, file, record, wanted)
        ending.finish()
        if not seen:
            raise EOFError("it holds no WARC record")
        if ending.last != _RECORD_END:  # to fastwarc the header of a last record that is cut is a whole record
            raise EOFError(f"it ends after {ending.size:,} bytes inside a record: it is cut")


def _response(source: Source, file: InputFile, record: Any, wanted: bool) -> Iterator[Document]:
    """The page in a record, if it is one. fastwarc takes a cut record for a short one, so bytes are counted."""
    from fastwarc.warc import WarcRecord

    size, limit = record.content_length, source.max_document_bytes
    number = (record.record_id or "").removeprefix("<urn:uuid:").removesuffix(">")
    if not number:
        raise EOFError("it ends in the header of a record, or one has no id")
    block = record.reader.read() if wanted and size <= limit else None
    read = len(block) if block is not None else record.reader.consume()
    if read != size:
        raise EOFError(f"its record {number} ends after {read:,} of {size:,} bytes")
    if not wanted:
        return
    id_ = f"{file.id}:{number}:{record.headers.get('WARC-Target-URI', '')}"
    if block is None:
        yield Document(id_, source.label, None, size=size, fault="too_large")
        return
    try:
        # A record of its own: after an error in this one the archive's iterator ends as if nothing were left.
        answer = WarcRecord.from_bytes(_HTTP_HEADER % size + block)
        answer.parse_http(auto_decode="all")
        page = answer.reader.read(limit + 1) if _is_page(answer) else None
    except OSError:  # neither HTTP nor what its encoding says: a bad page, not a bad archive
        yield Document(id_, source.label, None, size=size, fault="not_text")
        return
    if page is not None and len(page) > limit:
        yield Document(id_, source.label, None, size=len(page), fault="too_large")
    elif page is not None:
        yield _page(source, id_, page, answer.http_charset)


def _is_page(record: Any) -> bool:
    headers = record.http_headers
    return headers is not None and headers.status_code == 200 and record.http_content_type in _HTML


def ready(document: Document) -> Document:
    """The document with its page's main text, if it has a page."""
    page = document.page
    if page is None:
        return document
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import map_encoding_to_html5

    content = page.content
    encoding, begin = marked(content[:4], "")
    if not encoding:
        meta = _META.search(content, 0, _HEAD)
        declared = page.charset or (meta and meta.group(1).decode()) or ""
        encoding = map_encoding_to_html5(declared, fallback_utf8=False) or page.encoding
    text = decode_exactly(content[begin:], encoding)
    if text is None:
        return Document(document.id, document.source, None, size=len(content), fault="not_text")
    return Document(document.id, document.source, extract_plain_text(text, main_content=True))


def _page(source: Source, id_: str, content: bytes, charset: str | None) -> Document:
    return Document(id_, source.label, None, page=Page(content, charset, source.encoding))


def _need(library: str) -> None:
    from importlib.util import find_spec

    if find_spec(library) is None:
        raise UserError(f"web pages are read with {library}, which isn't installed: pip install 'luban[web]'")
