"""A file behind a URL as a stream of bytes that can be trusted: whole, the same from start to end, or an error.

http(s) is read with the standard library, everything else through fsspec. A connection that breaks, hangs or ends
early is taken up again where it broke (`Range`), after a wait that doubles; a server without ranges is read from the
start and what is known already is skipped. The length that was announced must arrive, and a file that changes
meanwhile (ETag, else date) is an error. Seeking works, so that Parquet's footer can be read first.

A URL may carry credentials; `redacted` is how it may be shown.
"""

import base64
import http.client
import io
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

_PROGRESS = 1 << 20  # bytes after which earlier failures are forgiven
_LONGEST_WAIT_S = 30.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_VERSIONS = (
    "ETag", "etag", "md5Hash", "content_md5", "generation", "LastModified", "last_modified", "mtime", "updated",
    "created",
)  # fmt: skip
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError)
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server."""

    timeout_s: float = 60.0
    """For a connection, and for each next piece of data."""
    tries: int = 6
    """In a row without a megabyte of progress."""
    backoff_s: float = 0.5
    """Before the second try; doubled each time, 30 s at most."""


PATIENT = Patience()


@dataclass(frozen=True)
class Seen:
    """What a server says of a file."""

    size: int | None
    """Bytes; None: it doesn't say."""
    version: str
    """ETag, digest or date, the first that there is; empty: none."""


class RemoteError(OSError):
    """A file behind a URL that can't be read; the message names it, redacted, and says how often it was tried."""


class _Lasting(OSError):
    """An answer that asking again won't change."""


def is_url(path: str) -> bool:
    """Whether it names something that isn't a path: `https://...`, `s3://...`, `memory://...`."""
    return "://" in path


def redacted(url: str) -> str:
    """The URL without passwords, tokens and signatures: user and query values become `***`."""
    if not is_url(url):
        return url
    without_user = re.sub(r"(?<=://)[^/?#@]*@", "***@", url)
    return re.sub(r"([?&][^=&#]*=)[^&#]*", r"\1***", without_user)


def look(url: str, patience: Patience = PATIENT) -> Seen:
    """The size and version of a file, in one request.

    Raises:
        RemoteError: it isn't there, isn't allowed, or the server doesn't answer.
    """
    if not url.startswith(("http://", "https://")):
        return _tried(lambda: _seen(_file_system(url), url), url, patience)

    def ask() -> Seen:
        # HEAD is refused by servers of signed URLs, so: the first byte.
        try:
            with _ask(url, patience, "bytes=0-0") as answer:
                return _announced(answer)
        except urllib.error.HTTPError as error:
            if error.code == 416 and error.headers.get("Content-Range", "").endswith("/0"):
                return Seen(0, _version(error.headers))
            raise

    return _tried(ask, url, patience)


def open_stream(
    url: str,
    patience: Patience = PATIENT,
    expected: Seen | None = None,
    start: int = 0,
) -> "Stream":
    """The bytes of a file from `start` on.

    Args:
        expected: what `look` said; None: what the first answer says.

    Raises:
        RemoteError: here or while reading: absent, refused, short, changed, or out of patience.
    """
    opener = _open_http if url.startswith(("http://", "https://")) else _open_fsspec
    return Stream(url, opener, patience, expected, start)


class Stream(io.RawIOBase):
    """A remote file, read from front to back or by seeking; see the module for what it bears with."""

    def __init__(
        self, url: str, opener: Callable[..., Any], patience: Patience, expected: Seen | None, start: int
    ) -> None:
        self._url, self._open, self._patience = url, opener, patience
        self._seen, self._at = expected, start
        self._source: Any = None
        self._failures = 0
        self._failed_at = start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset += self.size()
        elif whence == io.SEEK_CUR:
            offset += self._at
        if offset != self._at:
            self._drop()
            self._at = offset
        return offset

    def size(self) -> int:
        """Bytes in all. Raises RemoteError where the server doesn't say."""
        if self._seen is None:
            self._seen = look(self._url, self._patience)
        if self._seen.size is None:
            raise RemoteError(f"{redacted(self._url)}: the server doesn't say how long it is")
        return self._seen.size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._seen is not None and self._seen.size is not None and self._at >= self._seen.size:
            return 0
        while True:
            try:
                if self._source is None:
                    self._source, seen = self._open(self._url, self._patience, self._at)
                    self._same(seen)
                piece = self._source.read(len(view))
                whole = None if self._seen is None else self._seen.size
                if not piece and whole is not None and self._at < whole:
                    raise OSError(f"it ended after {self._at:,} of {whole:,} bytes")
            except Exception as error:  # each store's library has exceptions of its own
                self._fail(error)
                continue
            view[: len(piece)] = piece
            self._at += len(piece)
            if self._at - self._failed_at >= _PROGRESS:
                self._failures = 0
            return len(piece)

    def close(self) -> None:
        self._drop()
        super().close()

    def _same(self, seen: Seen) -> None:
        """The file is the one that was looked at, or that reading began with."""
        if self._seen is None:
            self._seen = seen
        for was, now in ((self._seen.size, seen.size), (self._seen.version, seen.version)):
            if was is not None and was != "" and now is not None and was != now:
                raise _Lasting(f"it changed while it was read: {was} before, {now} now")

    def _fail(self, error: Exception) -> None:
        self._drop()
        self._failures += 1
        self._failed_at = self._at
        _give_up_or_wait(error, self._failures, self._url, self._patience)

    def _drop(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()


def _tried(ask: Callable[[], T], url: str, patience: Patience) -> T:
    failures = 0
    while True:
        try:
            return ask()
        except Exception as error:  # each store's library has exceptions of its own
            failures += 1
            _give_up_or_wait(error, failures, url, patience)


def _give_up_or_wait(error: Exception, failures: int, url: str, patience: Patience) -> None:
    said = f"{type(error).__name__}: {error}".replace(url, redacted(url))
    wait = min(patience.backoff_s * 2 ** (failures - 1), _LONGEST_WAIT_S)
    lasting = isinstance(error, _LASTING)
    if isinstance(error, _Lasting):
        said, lasting = str(error), True
    elif isinstance(error, urllib.error.HTTPError):
        said, lasting = f"the server answers {error.code} {error.reason}", error.code not in _PASSING
        after = error.headers.get("Retry-After", "")
        error.close()
        wait = min(float(after), _LONGEST_WAIT_S) if after.isdigit() else wait
    elif isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
        said = f"no answer for {patience.timeout_s:g} s"
    elif isinstance(error, urllib.error.URLError):
        said = str(error.reason)
    elif isinstance(error, ImportError):
        said = f"its protocol needs a package that isn't installed ({error})"
    elif type(error) is OSError:
        said = str(error)
    if lasting:
        raise RemoteError(f"{redacted(url)}: {said}") from None
    if failures >= patience.tries:
        raise RemoteError(f"{redacted(url)}: {said} (tried {failures} times)") from None
    time.sleep(wait)


def _ask(url: str, patience: Patience, wanted: str | None) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host, fragment="")))
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        # Unredirected: another host must not be told.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(pair).decode()}")
    if wanted is not None:
        request.add_header("Range", wanted)
    return urllib.request.urlopen(request, timeout=patience.timeout_s)


def _announced(answer: http.client.HTTPResponse) -> Seen:
    if answer.status == 206:
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        size = answer.headers.get("Content-Length", "")
    return Seen(int(size) if size.isdigit() else None, _version(answer.headers))


def _version(headers: Any) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _open_http(url: str, patience: Patience, start: int) -> tuple[http.client.HTTPResponse, Seen]:
    answer = _ask(url, patience, f"bytes={start}-" if start else None)
    seen = _announced(answer)
    if seen.size is None and answer.headers.get("Transfer-Encoding", "").lower() != "chunked":
        answer.close()
        raise _Lasting("the server announces neither a length nor chunks, so a cut could not be told from the end")
    if answer.status == 206:
        begins = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if begins != str(start):
            answer.close()
            raise _Lasting(f"asked for bytes from {start} on, the server sends them from {begins or '?'} on")
        return answer, seen
    left = start
    while left:
        piece = answer.read(min(left, _PROGRESS))
        if not piece:
            raise OSError(f"it ended before byte {start:,}")
        left -= len(piece)
    return answer, seen


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ValueError as error:
        raise _Lasting(str(error)) from None


def _seen(place: tuple[Any, str], url: str) -> Seen:
    files, path = place
    about = files.info(path)
    if about.get("type") == "directory":
        raise _Lasting("it is a folder")
    version = next((str(about[name]) for name in _VERSIONS if about.get(name) is not None), "")
    return Seen(about.get("size"), version)


def _open_fsspec(url: str, patience: Patience, start: int) -> tuple[Any, Seen]:
    files, path = _file_system(url)
    seen = _seen((files, path), url)
    file = files.open(path, "rb")
    if start:
        file.seek(start)
    return file, seen
