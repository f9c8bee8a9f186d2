"""One start of a run at a time: who holds it, and how it is taken over.

Whoever starts a run locks `.supervisor` in its folder before anything else there is written, so that of two starts
the loser leaves the winner's recipe alone. The kernel lets go of the lock when the holder dies, and the file tells
everybody else who that is. A takeover does not wait: it puts a file of its own, locked, in the place of the holder's.
The holder finds another file under the name, and starts no ranks any more; its ranks are fenced by the new attempt,
at their next step. Where the folder is shared and locks are not, the attempt's heartbeat does the same work later.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.errors import UserError
from trainer import claim, record

FILE = ".supervisor"
PATIENCE_S = 1.0  # longer than `holder` has the lock, to see whether it is free
RETRY_S = 0.05


class Hold:
    """The lock of one start of a run, as long as its process lives or `hold` lasts."""

    def __init__(self, run: Path, file: int, over: str | None = None):
        self.run, self._file = run, file
        self.over = over
        """In words, whom it was taken from."""

    def taken(self) -> str | None:
        """In words, who has taken the run over; None as long as nobody has."""
        if _is_at(self.run / FILE, self._file):
            return None
        return f"{self.run} was taken over by {_who(self.run)}"


@contextmanager
def hold(run: Path, takeover: bool = False, job: str | None = None, patience_s: float = PATIENCE_S) -> Iterator[Hold]:
    """Hold a run against other starts; makes its folder, and removes it again where nothing came into it.

    Args:
        takeover: whoever holds it loses it, at once.
        job: the scheduler's job that holds it, in words; it may come again on another machine, and must know itself.
        patience_s: how long a lock that is taken may take to become free, in seconds.

    Raises:
        Held: another start holds it.
        UserError: the folder can't be written.
    """
    try:
        held = _acquire(run, takeover, job, patience_s)
    except OSError as error:
        raise UserError(f"cannot write {run / FILE}: {error.strerror or error}") from None
    try:
        yield held
    finally:
        with suppress(OSError):
            if held.taken() is None and [path.name for path in run.iterdir()] == [FILE]:
                (run / FILE).unlink()
                run.rmdir()
                run.parent.rmdir()  # where nothing else is in it
        os.close(held._file)


def holder(run: Path) -> dict[str, Any] | None:
    """Who holds a run's lock: pid, host, since (Unix time), attempt (the first it begins), job (where a scheduler
    runs it); None where it is free.

    Looking takes the lock for a moment; a start that meets it then tries again.
    """
    try:
        file = os.open(run / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(run)
    finally:
        os.close(file)
    return None


def _acquire(run: Path, takeover: bool, job: str | None, patience_s: float) -> Hold:
    path, deadline = run / FILE, time.monotonic() + patience_s
    while True:
        run.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):  # else it was taken over, or removed, between the opening and here
                _write(run, file, job)
                return Hold(run, file)
        except BlockingIOError:
            if takeover:
                os.close(file)
                return _take_over(run, job)
            if time.monotonic() > deadline:
                os.close(file)
                raise claim.Held(claim.refusal(run, _who(run))) from None
            time.sleep(RETRY_S)
        os.close(file)


def _take_over(run: Path, job: str | None) -> Hold:
    over = _who(run)
    draft = run / f"{FILE}.{os.getpid()}"
    file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    fcntl.flock(file, fcntl.LOCK_EX)
    _write(run, file, job)
    draft.replace(run / FILE)
    return Hold(run, file, over)


def _who(run: Path) -> str:
    """The holder in words, with the number that its attempt has by now."""
    found = _read(run)
    if not found:
        return "another command"
    attempt = max([found["attempt"], *record.numbers(run)])
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))
    job = f", job {found['job']}" if found.get("job") else ""
    return f"attempt {attempt}, by process {found['pid']} on {found['host']}{job} since {since}"


def _read(run: Path) -> dict[str, Any]:
    """What the holder says of itself; empty where it had no time to, or no room."""
    try:
        found = json.loads((run / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"pid", "host", "since", "attempt"} <= set(found) else {}


def _write(run: Path, file: int, job: str | None) -> None:
    begins = max(record.numbers(run), default=0) + 1
    me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "attempt": begins}
    me |= {"job": job} if job else {}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(me).encode(), 0)


def _is_at(path: Path, file: int) -> bool:
    try:
        there, mine = path.stat(), os.fstat(file)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
