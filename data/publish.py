"""Files that appear under their names only when they are whole: temporary name, fsync, rename, fsync the folder.

A reader or a rerun after a crash or a full disk therefore never meets half a file. The temporary name is the
writer's own: two processes that make the same file (one of them believed dead) don't write into each other's.
"""

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data.errors import UserError


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`, else remove it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make the names in a folder durable, or the bytes that anybody has written to a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Publish `content` as JSON, keys sorted, the same bytes each time."""
    text = json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True)
    write_bytes(path, f"{text}\n".encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Publish a small file."""
    with published(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def locked(path: Path, busy: Callable[[str], str]) -> Iterator[None]:
    """Hold a lock file at `path`, whose folder is made if it isn't there; the file is gone afterwards.

    A flock, so a killed process leaves none behind. The folder may be removed while the lock is held.

    Args:
        busy: what to say where another process holds it, given which process that is, on which machine.

    Raises:
        UserError: another process holds it, or the folder can't be written to.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except FileNotFoundError:
            continue  # whoever held it before took the folder away
        except OSError as error:
            raise UserError(f"cannot write to {path.parent}: {error.strerror or error}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(busy(file.read(1000) or "just begun")) from None
            if not _is_at(path, file):
                continue  # whoever held it before took it away
            file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", end="", file=file, flush=True)
            try:
                yield
            finally:
                if _is_at(path, file):  # else somebody holds another of that name
                    path.unlink()
            return


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
