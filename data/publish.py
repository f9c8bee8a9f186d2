"""Files that appear under their names only when they are whole: temporary name, fsync, rename, fsync the folder.

A reader or a rerun after a crash or a full disk therefore never meets half a file. The temporary name is the
writer's own: two processes that make the same file (one of them believed dead) don't write into each other's.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
    with published(path) as temporary:
        temporary.write_text(text + "\n", "utf-8")


@contextmanager
def locked(path: Path, held: str) -> Iterator[None]:
    """Hold a lock file at `path`, gone afterwards. Raises UserError, saying `held`, where another process holds it."""
    while True:
        try:
            file = path.open("w")
        except OSError as error:
            raise UserError(f"cannot write to {path.parent}: {error.strerror or error}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{held}. Wait for it.") from None
            with suppress(FileNotFoundError):  # else whoever held it before took it away
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    try:
                        yield
                    finally:
                        path.unlink(missing_ok=True)
                    return
