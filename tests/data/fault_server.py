"""A real HTTP server on 127.0.0.1 that gives the files of a folder, knows ranges, counts, and fails as it is told."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Fault = Callable[["Handler", bytes], bytes | None]
"""Told of each request for a file; gives other content, or None where it has answered itself."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path).rsplit("/", 1)[-1]
        self.name, self.number = name, self.server.seen(name, self.headers.get("Range"))
        path = self.server.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        fault = next((fault for pattern, fault in self.server.faults.items() if re.fullmatch(pattern, name)), None)
        if fault is not None:
            changed = fault(self, content)
            if changed is None:
                return
            content = changed
        self.give(content)

    def give(self, content: bytes, cut: int | None = None, length: int | None = None) -> None:
        """Answer with a file or the range asked for; `cut`: hang up after so many bytes of the body."""
        match = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.ranges else None
        start = int(match[1]) if match else 0
        stop = min(int(match[2]) + 1 if match and match[2] else len(content), len(content))
        if match and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(length if length is not None else stop - start))
        self.end_headers()
        body = content[start:stop][:cut]
        # Counted before it is sent: who has the body may look at the count or ask to forget it at once.
        self.server.count(self.name, len(body))
        with suppress(ConnectionError):
            self.wfile.write(body)
        if cut is not None or length is not None:
            self.close_connection = True

    def hang(self) -> None:
        """Accept and say nothing until the server closes."""
        self.server.closing.wait(60)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Serves `folder`; `faults` are by regular expression over file names."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path, ranges: bool = True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges = folder, ranges
        self.faults: dict[str, Fault] = {}
        self.requests: Counter[str] = Counter()
        self.asked: list[tuple[str, str | None]] = []
        self.bytes: Counter[str] = Counter()
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data"

    def seen(self, name: str, part: str | None) -> int:
        with self._lock:
            self.requests[name] += 1
            self.asked.append((name, part))
            return self.requests[name]

    def count(self, name: str, sent: int) -> None:
        with self._lock:
            self.bytes[name] += sent

    def shard_bytes(self) -> int:
        """Sent of all shards."""
        return sum(sent for name, sent in self.bytes.items() if name.endswith(".tar"))

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no news."""

    def forget(self) -> None:
        """Count anew."""
        with self._lock:
            self.requests.clear()
            self.asked.clear()
            self.bytes.clear()

    def close(self) -> None:
        """End; may be called twice."""
        if not self.closing.is_set():
            self.closing.set()
            self.shutdown()
            self.server_close()
            self._thread.join()


def failing(times: int, status: int = 500) -> Fault:
    """Answers the first requests for each file with an error."""

    def fault(handler: Handler, content: bytes) -> bytes | None:
        if handler.number > times:
            return content
        handler.send_error(status)
        return None

    return fault


def cutting(after: int, times: int = 10**9) -> Fault:
    """Hangs up after so many bytes of a body."""

    def fault(handler: Handler, content: bytes) -> bytes | None:
        if handler.number > times:
            return content
        handler.give(content, cut=after)
        return None

    return fault


def hanging(times: int = 10**9) -> Fault:
    """Accepts and never answers."""

    def fault(handler: Handler, content: bytes) -> bytes | None:
        if handler.number > times:
            return content
        handler.hang()
        return None

    return fault


def dripping(seconds: float) -> Fault:
    """Sends a byte every now and then, so that no read ever times out."""

    def fault(handler: Handler, content: bytes) -> bytes | None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        with suppress(ConnectionError):
            for at in range(len(content)):
                if handler.server.closing.is_set():
                    break
                handler.wfile.write(content[at : at + 1])
                handler.wfile.flush()
                time.sleep(seconds)
        handler.close_connection = True
        return None

    return fault


def other(content: bytes) -> Fault:
    """Other bytes under the name."""
    return lambda handler, _: content


def endless() -> Fault:
    """Answers a range as asked, and then never stops sending."""

    def fault(handler: Handler, content: bytes) -> bytes | None:
        match = re.match(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        if not match:
            return content
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {match[1]}-{match[2]}/{len(content)}")
        handler.send_header("Connection", "close")
        handler.end_headers()
        with suppress(ConnectionError):
            while not handler.server.closing.is_set():
                handler.wfile.write(content)
        handler.close_connection = True
        return None

    return fault
