"""Where a remote dataset's files come from: an http(s) server, any fsspec URL, or a command's output.

    https://host/datasets/web               files by name below it; `{file}` in the URL says where else the name goes
    s3://bucket/datasets/web, gs://, file:///, memory://, hf:// ...      whatever fsspec and its plug-ins know
    pipe:ssh host cat /datasets/web/{file}  the command's standard output

An origin gives bytes and checks only what the transport itself can tell (status, length, a command's exit code);
what the bytes are worth is checked by whoever asked.
"""

import os
import re
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import quote, urlsplit

from data.remote.credentials import refuse_secrets
from data.remote.patience import Damaged, Patience

PIECE = 1 << 20  # bytes asked for at once of a stream
_SPEAKS = re.compile(r"^(?:pipe:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)


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
    from data.remote.origin_fsspec import Files
    from data.remote.origin_http import Http
    from data.remote.origin_pipe import Pipe

    refuse_secrets(url)
    if url.startswith("pipe:"):
        return Pipe(url, patience)
    if urlsplit(url).scheme.lower() in ("http", "https"):
        return Http(url, patience)
    return Files(url, patience)


def place_of(base: str, file: str) -> str:
    """The URL of a file: `base` with its `{file}` replaced, or the name put at the end of its path."""
    if "{file}" in base:
        return base.replace("{file}", quote(file))
    path, mark, query = base.partition("?")
    return f"{path.rstrip('/')}/{quote(file)}{mark}{query}"


class Limited(Incoming, Protocol):
    """A file that is coming in and of which so many bytes can be asked for."""

    def read(self, most: int = PIECE) -> bytes:
        """At most so many of the next bytes; otherwise as `Incoming.read`."""
        ...


L = TypeVar("L", bound=Limited)


def skipped(incoming: L, at: int, start: int, what: str) -> L:
    """What comes in from byte `at` of a file on, read and thrown away up to byte `start`.

    Raises:
        Damaged: the file, which `what` names, ends before that.
    """
    try:
        while at < start:
            piece = incoming.read(start - at)
            if not piece:
                raise Damaged(f"{what} has {at:,} bytes, and byte {start:,} is wanted")
            at += len(piece)
    except BaseException:
        incoming.close()
        raise
    return incoming
