"""Where a remote dataset's files come from: an http(s) server, any fsspec URL, or a command's output.

    https://host/datasets/web               files by name below it; `{file}` in the URL says where else the name goes
    s3://bucket/datasets/web, gs://, file:///, memory://, hf:// ...      whatever fsspec and its plug-ins know
    pipe:ssh host cat /datasets/web/{file}  the command's standard output

An origin gives bytes and checks only what the transport itself can tell (status, length, a command's exit code);
what the bytes are worth is checked by whoever asked. http(s) goes through requests and not through fsspec's own http:
that one takes a server's whole file for a range when the server knows no ranges, and ends any download after 5 minutes.

Secrets never stand in a URL, because the URL is in recipes, records and logs: `${NAME}` in it is replaced by that
variable of the environment when a file is asked for, and an error that would show its value shows `${NAME}`.
"""

import os
import re
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from data.errors import UserError
from data.patience import Damaged, Patience, Unreachable, to_stderr

PIECE = 1 << 20  # bytes asked for at once of a stream
CONNECT_S = 10.0
RETRIED = (408, 425, 429)  # and all from 500 on
_SECRET = re.compile(r"[?&][^=&]*(?:sig|token|key|secret|password|credential)[^=&]*=(?!\$\{)[^&]", re.IGNORECASE)
_SPEAKS = re.compile(r"^(?:pipe:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What an origin says of a file."""

    size: int | None
    """Bytes."""
    version: str
    """ETag, digest or date, the first that there is; empty: none."""


class Incoming(Protocol):
    """A file that is coming in."""

    size: int | None
    """Bytes of the whole file, where the transport tells."""
    version: str
    """What tells this content from another (ETag, else date), where the transport tells; else empty."""

    def read(self) -> bytes:
        """Some of the next bytes; b"" at the end. Raises OSError where the end comes too early."""
        ...

    def close(self) -> None:
        """Whatever is left is not wanted."""
        ...


class Origin(Protocol):
    """A folder of files somewhere else. Safe to use from several threads."""

    name: str
    """Its URL or command, without secrets."""
    ranges: bool
    """Whether parts of a file can be asked for; turns False when a server turns out not to."""

    def open(self, file: str, start: int = 0) -> Incoming:
        """The bytes of `file` from `start` on.

        Raises:
            UserError: it isn't there, or access is denied.
            OSError: it can't be had for now.
        """
        ...

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file.

        Raises:
            NoRanges: this origin only gives whole files.
            Damaged: the file ends before `stop`.
            UserError, OSError: as `open`.
        """
        ...

    def about(self, file: str) -> About:
        """The size and version of a file, without reading it. Raises as `open`."""
        ...


class NoRanges(Exception):
    """The server answers a range with the whole file."""


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether `place` is a URL or a pipe, not a folder."""
    return _SPEAKS.match(str(place)) is not None


def short_name(place: str) -> str:
    """The last words of a folder, URL or pipe, as a label."""
    path = place.partition("?")[0].replace("/{file}", "").removesuffix("{file}")
    return re.split(r"[/\s]", path.rstrip("/ "))[-1]


def open_origin(url: str, patience: Patience) -> Origin:
    """The origin that a URL or `pipe:` command names; nothing is fetched yet.

    Raises:
        UserError: a secret stands in it, a variable in it isn't set, or no library for its protocol is installed.
    """
    refuse_secrets(url)
    if url.startswith("pipe:"):
        return Pipe(url, patience)
    scheme = urlsplit(url).scheme.lower()
    if scheme in ("http", "https"):
        return Http(url, patience)
    return Files(url, patience)


def refuse_secrets(url: str) -> None:
    """Raise UserError where a URL or command shows a password or a signature: it would be in every record."""
    if re.search(r"://[^/@\s]*:(?!\$\{)[^/@\s]+@", url) or _SECRET.search(url):
        shown = re.sub(r"(://)[^/@\s]*@", r"\1...@", url).partition("?")[0]
        raise UserError(
            f"{shown}: a password or signature stands in the URL, and recipes and records would keep it. Write "
            "${NAME} in its place, and set that variable of the environment wherever ranks run"
        )


class Secrets:
    """`${NAME}` -> the environment's value, and back."""

    def __init__(self, text: str):
        self._values = {}
        for name in re.findall(r"\$\{(\w+)\}", text):
            value = os.environ.get(name)
            if not value:
                raise UserError(f"{text}: the variable {name} of the environment is not set")
            self._values[name] = value
        self.text = re.sub(r"\$\{(\w+)\}", lambda match: self._values[match[1]], text)

    def hide(self, text: object) -> str:
        said = str(text)
        for name, value in self._values.items():
            for shown in (value, quote(value), quote(value, safe="")):
                said = said.replace(shown, f"${{{name}}}")
        return said


def place_of(base: str, file: str) -> str:
    """The URL of a file: `base` with its `{file}` replaced, or the name put at the end of its path."""
    if "{file}" in base:
        return base.replace("{file}", quote(file))
    path, mark, query = base.partition("?")
    return f"{path.rstrip('/')}/{quote(file)}{mark}{query}"


# -- http and https --------------------------------------------------------------------------------------------------


class Http:
    """Files of an http(s) server: keep-alive connections, one session a thread; proxies, certificates and ~/.netrc
    as requests takes them from the environment."""

    def __init__(self, url: str, patience: Patience):
        self.name, self.ranges = url, True
        self._secrets = Secrets(url)
        self._timeout_s = patience.timeout_s
        self._local = threading.local()

    def open(self, file: str, start: int = 0) -> "_Body":
        response = self._ask(file, f"bytes={start}-" if start else None)
        if start and response.status_code == 200:  # no ranges: what lies before is read and thrown away
            self._no_ranges()
        came_from, size = _extent(response)
        body = _Body(response, size, self._timeout_s, self._secrets)
        try:
            while came_from < start:
                piece = body.read(start - came_from)
                if not piece:
                    raise Damaged(f"{file} from {self.name} has {came_from:,} bytes, and byte {start:,} is wanted")
                came_from += len(piece)
        except BaseException:
            body.close()
            raise
        return body

    def read(self, file: str, start: int, stop: int) -> bytes:
        if not self.ranges:
            raise NoRanges
        response = self._ask(file, f"bytes={start}-{stop - 1}")
        if response.status_code == 200:
            response.close()
            self._no_ranges()
            raise NoRanges
        came_from, _ = _extent(response)
        body = _Body(response, None, self._timeout_s, self._secrets)
        try:
            parts = []
            while piece := body.read():
                parts.append(piece)
        finally:
            body.close()
        data = b"".join(parts)
        if came_from != start or len(data) != stop - start:
            raise Damaged(f"{file} from {self.name}: asked for bytes {start:,} to {stop:,}, {len(data):,} came")
        return data

    def about(self, file: str) -> About:
        incoming = self.open(file)
        incoming.close()
        return About(incoming.size, incoming.version)

    def _no_ranges(self) -> None:
        if self.ranges:
            self.ranges = False
            to_stderr(f"{self.name} doesn't answer ranges of bytes: rows wait until their shard has come up to them")

    def _ask(self, file: str, part: str | None) -> Any:
        import requests

        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
        headers = {"Accept-Encoding": "identity"} | ({"Range": part} if part else {})
        try:
            response = session.get(
                place_of(self._secrets.text, file), headers=headers, stream=True, timeout=(CONNECT_S, self._timeout_s)
            )
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise UserError(f"{self.name} is no URL that can be opened: {self._secrets.hide(error)}") from None
        except requests.RequestException as error:
            raise Unreachable(_short(self._secrets.hide(error))) from None
        status = response.status_code
        if status in (200, 206):
            return response
        response.close()
        said = f"{file} from {self.name}: the server answers {status} {response.reason}"
        if status == 416:
            raise Damaged(f"{said}: the file is shorter than when it was written")
        if status in RETRIED or status >= 500:
            raise Unreachable(f"the server answers {status} {response.reason}")
        raise UserError(f"{said}. {_MENDS.get(status, 'Look at the URL')}")


_MENDS = {
    401: "Give credentials: https://${USER}:${PASSWORD}@host/... with these variables set, or ~/.netrc",
    403: "Access is denied: look at the credentials",
    404: "Is the URL right, and was all of it copied?",
}


class _Body:
    """A response's bytes. A server that sends next to nothing counts as one that hangs."""

    def __init__(self, response: Any, size: int | None, timeout_s: float, secrets: Secrets):
        self.size = size
        self.version: str = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        self._response, self._timeout_s, self._secrets = response, timeout_s, secrets
        self._failure: Unreachable | None = None

    def read(self, most: int = PIECE) -> bytes:
        from urllib3.exceptions import HTTPError

        parts, held, deadline = [], 0, time.monotonic() + self._timeout_s
        try:
            if self._failure:
                raise self._failure
            while held < most and (piece := self._response.raw.read1(most - held)):
                parts.append(piece)
                held += len(piece)
                if time.monotonic() > deadline:
                    raise Unreachable(f"only {held:,} bytes came in {self._timeout_s:g} s")
        except (HTTPError, OSError) as error:
            self._failure = Unreachable(_short(self._secrets.hide(error)))
            if not parts:  # else what came first is handed on, and the next call fails
                raise self._failure from None
        return b"".join(parts)

    def close(self) -> None:
        self._response.close()


def _extent(response: Any) -> tuple[int, int | None]:
    """(first byte, size of the whole file if told) of a response."""
    if response.status_code == 206:
        match = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            raise Unreachable("the server answers a range and doesn't say which")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length and "Content-Encoding" not in response.headers else None


def _short(error: str) -> str:
    """Of a library's nested error, the innermost words: what the system said, where it said something."""
    error = re.sub(r" \(_ssl\.c:\d+\)", "", error)
    if system := re.search(r"\[(?:Errno -?\d+|SSL: \w+)\] ([^()'\"\[\]]+)['\")]*$", error):
        return system[1]
    found = re.search(r"\(['\"]?(?:<[^>]+>[:,] )?['\"]?([^()'\"]+)['\"]?(?:, \d+)?\)+['\"]?\)*$", error)
    return found[1] if found and len(error) > 120 else error


# -- fsspec ----------------------------------------------------------------------------------------------------------


_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "LastModified", "last_modified", "mtime")


class Files:
    """Files of anything fsspec opens, in pieces of 8 MiB, each a request of its own."""

    PIECE = 1 << 23

    def __init__(self, url: str, patience: Patience):
        import fsspec

        self.name, self.ranges = url, True
        self._secrets, self._timeout_s = Secrets(url), patience.timeout_s
        try:
            self._files, self._base = fsspec.core.url_to_fs(self._secrets.text, use_listings_cache=False)
        except (ImportError, ValueError, OSError) as error:
            raise UserError(
                f"{url} can't be opened ({self._secrets.hide(error)}): take a URL that fsspec knows, such as "
                "file:///path, or install the package that it names"
            ) from None

    def open(self, file: str, start: int = 0) -> "_Pieces":
        return _Pieces(lambda at: self._cat(file, at, at + self.PIECE), start, self.PIECE)

    def read(self, file: str, start: int, stop: int) -> bytes:
        data = self._cat(file, start, stop)
        if len(data) != stop - start:
            raise Damaged(f"{file} from {self.name}: asked for bytes {start:,} to {stop:,}, {len(data):,} came")
        return data

    def about(self, file: str) -> About:
        said = self._ask(file, lambda path: self._files.info(path))
        if said.get("type") == "directory":
            raise UserError(f"{file} of {self.name} is a folder")
        return About(said.get("size"), next((str(said[name]) for name in _VERSIONS if said.get(name) is not None), ""))

    def _cat(self, file: str, start: int, stop: int) -> bytes:
        return self._ask(file, lambda path: self._files.cat_file(path, start=start, end=stop))

    def _ask(self, file: str, ask: Callable[[str], T]) -> T:
        path = self._base.replace("{file}", file) if "{file}" in self._base else f"{self._base.rstrip('/')}/{file}"
        try:
            return within(self._timeout_s, lambda: ask(path))
        except FileNotFoundError:
            raise UserError(f"{file} is missing from {self.name}") from None
        except PermissionError as error:
            raise UserError(f"{self.name} denies access to {file}: {self._secrets.hide(error)}") from None
        except Unreachable:
            raise
        except Exception as error:  # each plug-in raises what its own client does
            raise Unreachable(f"{type(error).__name__}: {self._secrets.hide(error)}") from None


class _Pieces:
    """A file read by consecutive ranges; the first that is short is the last."""

    def __init__(self, fetch: Callable[[int], bytes], start: int, piece: int):
        self.size: int | None = None
        self.version = ""
        self._fetch, self._at, self._piece = fetch, start, piece
        self._over = False

    def read(self) -> bytes:
        if self._over:
            return b""
        data = self._fetch(self._at)
        self._at += len(data)
        self._over = len(data) < self._piece
        return data

    def close(self) -> None:
        self._over = True


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`; a plug-in that hangs has no timeout of ours to obey, so its thread is left behind.

    Raises:
        Unreachable: no answer in that time.
    """
    box: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            box.append((call(), None))
        except BaseException as error:  # raised again below, in the thread that asked
            box.append((None, error))

    thread = threading.Thread(target=run, name="fetch", daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        raise Unreachable(f"no answer in {seconds:g} s")
    result, error = box[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


# -- commands --------------------------------------------------------------------------------------------------------


class Pipe:
    """A command's standard output, a process a file. Reading from the middle reads from the start."""

    def __init__(self, url: str, patience: Patience):
        self.name, self.ranges = url, False
        self._command, self._timeout_s = url.removeprefix("pipe:"), patience.timeout_s
        if "{file}" not in self._command:
            raise UserError(
                f"{url}: write {{file}} where the command takes the name of a file, as pipe:cat /x/{{file}}"
            )

    def open(self, file: str, start: int = 0) -> "_Output":
        import shlex

        output = _Output(self._command.replace("{file}", shlex.quote(file)), self._timeout_s)
        skipped = 0
        try:
            while skipped < start:
                piece = output.read(start - skipped)
                if not piece:
                    raise Damaged(f"{file} from {self.name} has {skipped:,} bytes, and byte {start:,} is wanted")
                skipped += len(piece)
        except BaseException:
            output.close()
            raise
        return output

    def read(self, file: str, start: int, stop: int) -> bytes:
        raise NoRanges

    def about(self, file: str) -> About:
        return About(None, "")


class _Output:
    def __init__(self, command: str, timeout_s: float):
        self.size: int | None = None
        self.version = ""
        self._timeout_s = timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the command)
        self._process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
            start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self._stream, self._poll = self._process.stdout, select.poll()
        self._poll.register(self._stream, select.POLLIN)

    def read(self, most: int = PIECE) -> bytes:
        if not self._poll.poll(self._timeout_s * 1000):
            raise Unreachable(f"the command wrote nothing for {self._timeout_s:g} s")
        piece = os.read(self._stream.fileno(), most)
        if not piece:
            self._refuse_failure()
        return piece

    def close(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stream.close()
        self._errors.close()

    def _refuse_failure(self) -> None:
        try:
            code = self._process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            raise Unreachable(f"the command closed its output and did not end in {self._timeout_s:g} s") from None
        if code:
            self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 400))
            said = self._errors.read().decode("utf-8", "replace").strip()
            raise Unreachable(f"the command ended with {code}" + (f": {said}" if said else ""))
