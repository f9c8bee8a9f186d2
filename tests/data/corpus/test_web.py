"""Web pages: main text out of HTML files and of WARC archives."""

import gzip

import pytest

from data.errors import UserError
from tests.data.corpus.conftest import PACKED, page, read, response

GERMAN = "Die Grüße kamen aus dem Süden, und niemand wußte, von wem sie waren. " * 5
CHINESE = "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 20


def test_the_main_text_of_a_page_is_taken_out(tmp_path):
    (tmp_path / "a.html").write_bytes(page(GERMAN))
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(page(CHINESE)))
    (tmp_path / "style.css").write_text("body {}")
    got = read(kind="html", path=tmp_path, name="web")
    assert [document.id for document in got] == ["web/a.html", "web/b.htm.gz"]
    assert GERMAN.strip() in got[0].text
    assert CHINESE in got[1].text
    assert not any(word in document.text for document in got for word in ("Products", "hidden", "<p>"))


@pytest.mark.parametrize(
    ("charset", "encoding", "text"),
    [
        ("gb2312", "gb18030", CHINESE),
        ("iso-8859-1", "cp1252", GERMAN + "€"),
        ("utf-8", "utf-8", GERMAN),
        ("koi8-r", "koi8-r", "Мороз и солнце; день чудесный! " * 9),
    ],
)
def test_a_page_is_decoded_as_it_declares_and_names_mean_what_browsers_take_them_for(charset, encoding, text, tmp_path):
    content = page(text).replace(b"charset='utf-8'", f"charset='{charset}'".encode()).decode().encode(encoding)
    (tmp_path / "a.html").write_bytes(content)
    (document,) = read(kind="html", path=tmp_path / "a.html")
    assert text.strip() in document.text


def test_a_page_that_does_not_decode_is_a_counted_drop(tmp_path):
    (tmp_path / "a.html").write_bytes(page("fine " * 50).replace(b"fine", b"\xff\xff", 1))
    (document,) = read(kind="html", path=tmp_path / "a.html")
    assert (document.text, document.fault) == (None, "not_text")


def archive() -> bytes:
    info = (
        b"WARC/1.0\r\nWARC-Type: warcinfo\r\nWARC-Record-ID: <urn:uuid:info>\r\nContent-Length: 4\r\n\r\nabcd\r\n\r\n"
    )
    dns = (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:dns>\r\nWARC-Target-URI: dns:x\r\n"
        b"Content-Type: text/dns\r\nContent-Length: 4\r\n\r\nabcd\r\n\r\n"
    )
    records = [
        info,
        response("https://a.example/", page(GERMAN), 1),
        dns,
        response("https://a.example/x.png", b"\x89PNG", 2, "image/png"),
        response("https://a.example/gone", page(GERMAN), 3, status="404 Not Found"),
        response("https://b.example/", gzip.compress(page(CHINESE)), 4, more="Content-Encoding: gzip\r\n"),
        response("https://c.example/", b"not gzip", 5, more="Content-Encoding: gzip\r\n"),
        response("https://d.example/", page("x" * 4000), 6),
        response("https://e.example/", page(CHINESE, "gb18030"), 7, kind="text/html; charset=GB2312"),
        response("https://f.example/", b"\xff\xfe\xfd", 8, kind="text/html; charset=utf-8"),
    ]
    return b"".join(records)


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_the_pages_of_an_archive_are_read_and_each_bad_one_is_counted(packed, tmp_path):
    (tmp_path / f"x.warc{packed}").write_bytes(PACKED[packed](archive()))
    got = read(kind="warc", path=tmp_path, name="crawl", max_document_bytes=3000)
    assert [(document.id.split(":", 1)[1], document.fault) for document in got] == [
        ("00000001-0000:https://a.example/", None),
        ("00000004-0000:https://b.example/", None),
        ("00000005-0000:https://c.example/", "not_text"),
        ("00000006-0000:https://d.example/", "too_large"),
        ("00000007-0000:https://e.example/", None),
        ("00000008-0000:https://f.example/", "not_text"),
    ]
    assert GERMAN.strip() in got[0].text
    assert CHINESE in got[1].text
    assert CHINESE in got[4].text


def test_an_archive_of_a_member_a_record_is_read_to_the_last(tmp_path):
    members = [response(f"https://a.example/{n}", page(GERMAN), n) for n in range(40)]
    (tmp_path / "x.warc.gz").write_bytes(b"".join(map(gzip.compress, members)))
    assert len(read(kind="warc", path=tmp_path / "x.warc.gz")) == 40


def test_an_archive_that_is_cut_is_an_error_and_never_a_shorter_page(tmp_path):
    whole = archive()
    begins = [at for at in range(len(whole)) if whole.startswith(b"WARC/1.0", at)]
    for cut in {*range(begins[1] + 1, begins[2], 7), begins[5] + 700, *range(begins[-1] + 1, len(whole), 11)} - {
        *begins
    }:
        (tmp_path / "x.warc").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"cannot read .*x\.warc"):
            read(kind="warc", path=tmp_path / "x.warc")


@pytest.mark.parametrize("content", [b"", b"hello world\n" * 100])
def test_a_file_that_is_no_archive_is_an_error(content, tmp_path):
    (tmp_path / "x.warc").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*x\.warc"):
        read(kind="warc", path=tmp_path / "x.warc")


def test_a_missing_library_names_the_extra_to_install(tmp_path, monkeypatch):
    import importlib.util

    (tmp_path / "x.warc").write_bytes(archive())
    (tmp_path / "x.html").write_bytes(page(GERMAN))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for kind in ("warc", "html"):
        with pytest.raises(UserError, match=r"isn't installed: pip install 'luban\[web\]'"):
            read(kind=kind, path=tmp_path / f"x.{kind}")
