"""Files of an http(s) server, through requests.

Not through fsspec's own http: that one takes a server's whole file for a range when the server knows no ranges, and
ends any download after 5 minutes.
"""

import re
import threading
import time
from typing import Any

from data.errors import UserError
from data.remote.credentials import Secrets
from data.remote.origin import PIECE, About, NoRanges, place_of, skipped
from data.remote.patience import Damaged, Patience, Unreachable, to_stderr

CONNECT_S = 10.0
RETRIED = (408, 425, 429)  # and all from 500 on


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
        return skipped(body, came_from, start, f"{file} from {self.name}")

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
            parts, held = [], 0
            # One byte more than was asked for tells that a server sends too much, which may have no end.
            while held <= stop - start and (piece := body.read(min(PIECE, stop - start + 1 - held))):
                parts.append(piece)
                held += len(piece)
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
