"""The same texts (English, Chinese, code) in every format and compression, and an HTTP server that gives them."""

import bz2
import csv
import gzip
import html
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import zstandard

from data.corpus import Document, documents
from data.corpus.source import Source
from tests.data.fault_server import Server

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def read(**settings) -> list[Document]:
    """All documents of one source."""
    return list(documents([Source(**settings)]))


@pytest.fixture(scope="session")
def texts(code_texts, english_texts, chinese_texts) -> list[str]:
    """Some of each, as short as a poem and as long as a module, with quotes, tabs, newlines and empty lines in them."""
    return [text[:5000].replace("\r", "") for text in (*code_texts[:4], *english_texts[:4], *chinese_texts[:20])]


def json_lines(texts: Sequence[str]) -> bytes:
    return b"".join(
        json.dumps({"n": n, "text": text}, ensure_ascii=n % 2 == 0).encode() + b"\n" for n, text in enumerate(texts)
    )


def json_list(texts: Sequence[str]) -> bytes:
    return json.dumps([{"text": text} for text in texts], indent=1).encode()


def csv_table(texts: Sequence[str]) -> bytes:
    made = io.StringIO(newline="")
    csv.writer(made).writerows([("n", "text"), *enumerate(texts)])
    return made.getvalue().encode()


def tsv_table(texts: Sequence[str]) -> bytes:
    made = io.StringIO(newline="")
    csv.writer(made, delimiter="\t").writerows([("n", "text"), *enumerate(texts)])
    return made.getvalue().encode()


def parquet_table(texts: Sequence[str]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    made = io.BytesIO()
    table = pa.table({"n": list(range(len(texts))), "text": list(texts), "other": ["x" * 1000] * len(texts)})
    parquet.write_table(table, made, row_group_size=5)
    return made.getvalue()


def tar(members: Sequence[tuple[str, bytes]]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as file:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    return made.getvalue()


def text_tar(texts: Sequence[str]) -> bytes:
    """Every other sample a .txt, the others .json."""
    members = []
    for number, text in enumerate(texts):
        as_json = json.dumps({"text": text}).encode()
        members.append((f"{number:06d}.json", as_json) if number % 2 else (f"{number:06d}.txt", text.encode()))
    return tar(members)


def page(text: str, charset: str = "utf-8") -> bytes:
    """A page with a menu and a main text."""
    paragraphs = "".join(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n"))
    menu = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/x'>Products</a></li></ul></nav>"
    head = f"<head><meta charset='{charset}'><title>Title</title><script>var hidden = 1;</script></head>"
    return f"<!doctype html><html>{head}<body>{menu}<main><article>{paragraphs}</article></main></body></html>".encode(
        charset
    )


def response(
    url: str, body: bytes, number: int, kind: str = "text/html", status: str = "200 OK", more: str = ""
) -> bytes:
    """One response record of a WARC."""
    answer = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{number:08d}-0000>\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(answer)}\r\n\r\n"
    )
    return head.encode() + answer + b"\r\n\r\n"


TABLES: dict[str, Callable[[Sequence[str]], bytes]] = {
    "jsonl": json_lines,
    "json": json_list,
    "csv": csv_table,
    "tsv": tsv_table,
    "parquet": parquet_table,
    "webdataset": text_tar,
}
SUFFIX = {"webdataset": "tar"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serves `tmp_path/served`."""
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    yield server
    server.close()
