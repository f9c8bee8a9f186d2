"""Who may write a run: the claim of an attempt's number, its heartbeat, its file, and the fence around all of it.

Fencing holds at any interleaving, also when a process sleeps for an hour between a check and the write it was for:
- The file is created *before* the older attempts are read. So an older one either sees the file when it looks, or has
  written what the newer one will read.
- An attempt removes a checkpoint in three acts: it writes that it will (`retire`; a rollback in its first line), looks
  for a newer attempt, removes. A newer attempt adopts nothing that an accepted line gives up; so whatever it adopts,
  nobody removes.
- A checkpoint exists for a reader only where an accepted line names it (or its attempt is the newest that anybody has
  claimed), so one that a fenced attempt publishes late is nobody's. Everything else it can write lies in files of its
  own number.
- What an attempt accepts of an older one never changes any more: it is flushed before it is accepted, and a whole line
  is never taken back. So a record that is shorter than was accepted, or has other bytes (each line ends in a checksum),
  is damaged, and a reader says where.
"""

import errno
import hashlib
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.publish import sync
from trainer import checkpoint, jsonl
from trainer.record import FORMAT, METRICS, VERSION, Attempt, incomplete, load, numbers

BEAT_S = 2.0  # how often a living attempt touches its heartbeat
STALE_S = 15.0  # a heartbeat older than this is a dead attempt's
LAST_LINE = 16384  # an attempt's last line is within so many bytes of its end
DURABLE = {"start", "checkpoint", "retire", "outcome"}  # events flushed to the disk before going on


class Held(UserError):
    """Another start of the run is alive."""


class Fenced(Exception):
    """A newer attempt of the run has begun; this one must not write any more."""


def alive(run: Path, ahead: float = 0.0) -> int | None:
    """The number of the newest attempt if it still runs: no outcome, and a fresh heartbeat.

    Args:
        ahead: seconds by which the clock of the run's file system is ahead of this machine's.
    """
    newest = max(numbers(run), default=None)
    if newest is None:
        return None
    beat = last_beat(run, newest)
    if beat is None:
        return None
    return newest if time.time() + ahead - beat < STALE_S and not ended(run, newest) else None


def ended(run: Path, number: int) -> bool:
    """Whether an attempt has written its outcome; reads its last lines alone."""
    with (run / "attempts" / f"{number:04d}.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_LINE))
        return b'{"event": "outcome"' in file.read()


def dead(run: Path, before: int) -> set[int]:
    """Numbers below `before`, the reader's own, of attempts that write no more: ended, or without a fresh heartbeat.

    Whoever has slept and is fenced by now must not take a newer attempt that sleeps for dead.
    """
    older = [number for number in numbers(run) if number < before]
    return {number for number in older if time.time() - (last_beat(run, number) or 0) > STALE_S}


def refuse_if_held(run: Path) -> None:
    """Raise Held where another start of the run is alive; waits for a heartbeat that may be a killed one's last.

    Heartbeats are times of the file system, perhaps a server's: by a clock that differs, a living attempt would look
    dead, and be fenced without a word.
    """
    if alive(run, float("-inf")) is None:  # there is none, or it has ended
        return
    ahead = _ahead(run / "attempts")
    number = alive(run, ahead)
    if number is None:
        return
    seen = last_beat(run, number)
    deadline = time.monotonic() + 3 * BEAT_S
    while time.monotonic() < deadline:
        if alive(run, ahead) != number:
            return
        if last_beat(run, number) not in (seen, None):
            raise Held(refusal(run, _holder(run, number)))
        time.sleep(0.2)


def _ahead(folder: Path) -> float:
    """Seconds by which a folder's file system is ahead of this machine's clock; 0 where nothing can be written."""
    probe = folder / f".clock-{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime - time.time()
    except OSError:
        return 0.0
    finally:
        with suppress(OSError):
            probe.unlink()


def refusal(run: Path, holder: str) -> str:
    """What a start is told while `holder` has the run."""
    return (
        f"{run} is already running: {holder}. Stop it first with luban stop {run.name}, or take it over at once with "
        "--takeover, or take another name=..."
    )


class Writer:
    """The file of the attempt that now begins; rank 0 alone has one. `close` ends it and its heartbeat."""

    def __init__(self, run: Path, by_hand: bool = False, after: int | None = None):
        """Take the next number: from now on every older attempt is fenced. `start` writes the first line.

        Args:
            by_hand: an attempt that is alive is respected, not fenced.
            after: the attempt that it must follow: the caller's own, which has had no successor.

        Raises:
            Held: another start is alive, or took the same number first.
            UserError: the record is damaged, or lacks an attempt whose checkpoint is there.
        """
        self.run, folder = run, run / "attempts"
        folder.mkdir(parents=True, exist_ok=True)
        taken = numbers(run)
        self.number = max(taken, default=0) + 1 if after is None else after + 1
        orphans = [checkpoint.attempt_of(name) for name in checkpoint.names(run)]
        if max(orphans, default=0) >= self.number:  # its number would be given out again
            raise UserError(incomplete(run, max(orphans)))
        if by_hand:  # after the number is chosen: who begins in between has it, and this one fails below
            refuse_if_held(run)
        path = folder / f"{self.number:04d}.jsonl"
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError:
            raise Held(f"{run} is being started by another process at this moment; wait for it, or stop it") from None
        self._beat_path = folder / f"{self.number:04d}.alive"
        self._ended, self._lock = threading.Event(), threading.Lock()
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        self._beat_path.write_text(json.dumps(holder))
        self._bytes, self._sha256 = 0, hashlib.sha256()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        for each in (folder, run, run.parent):
            sync(each)
        for number in taken:
            sync(folder / f"{number:04d}.jsonl")
        self.history = load(run, self.number)
        """What this attempt builds on: read after the older ones were fenced."""
        self._accepts = {f"{number:04d}": 0 for number in taken}  # also of those that may yet write their first line
        self._accepts |= {f"{attempt.number:04d}": _accepted_size(folder, attempt) for attempt in self.history.attempts}
        self._metrics = (run / METRICS).stat().st_size if (run / METRICS).exists() else 0

    def start(self, **start: Any) -> None:
        """Write the first line: what is adopted, and what of the past is accepted."""
        head = {"format": FORMAT, "version": VERSION, "attempt": self.number}
        self.append("start", **head, **start, accepts=self._accepts, metrics=self._metrics)

    def retire(self, names: list[str]) -> bool:
        """Give checkpoints up, before they are removed; False where this attempt is fenced and must not remove them."""
        self.append("retire", names=names)
        return not self.fenced()

    def append(self, event: str, **values: Any) -> None:
        """Write one event, in one write: whole, or not at all. Raises UserError for a full disk."""
        line = jsonl.sealed({"event": event, **jsonl.finite(values), "time": time.time()})
        with self._lock:  # notes come from the W&B thread too
            if self._file < 0:
                return
            size = os.fstat(self._file).st_size
            try:
                if os.write(self._file, line) < len(line):
                    os.ftruncate(self._file, size)  # half a line; a whole one may have been accepted, and stays
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if event in DURABLE:
                    os.fsync(self._file)
            except OSError as error:
                raise UserError(
                    f"cannot write the record in {self.run}/attempts ({error.strerror}). The run stands at its last "
                    "checkpoint: make room and start it again"
                ) from None
            self._bytes += len(line)
            self._sha256.update(line)

    def seal(self) -> dict[str, Any]:
        """What has been written so far, as a checkpoint keeps it: attempt, bytes, and their SHA-256."""
        with self._lock:
            return {"attempt": self.number, "bytes": self._bytes, "sha256": self._sha256.hexdigest()}

    def sync(self) -> None:
        """Make every event so far durable."""
        os.fsync(self._file)

    def fenced(self) -> bool:
        """Whether a newer attempt has begun: from then on nothing this one does counts."""
        return (self.run / "attempts" / f"{self.number + 1:04d}.jsonl").exists()

    def close(self) -> None:
        """Stop the heartbeat."""
        self._ended.set()
        self._beat_path.unlink(missing_ok=True)
        with self._lock:  # another thread may be about to write a note: its number must not go to another file
            os.close(self._file)
            self._file = -1

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(FileNotFoundError):  # closed between the wait and here
                os.utime(self._beat_path)


def _holder(run: Path, number: int) -> str:
    """Who holds the run and since when, in words."""
    try:
        held = json.loads((run / "attempts" / f"{number:04d}.alive").read_text())
    except (OSError, ValueError):
        return f"attempt {number}"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(held["since"]))
    return f"attempt {number} since {since}, rank 0 is process {held['pid']} on {held['host']}"


def last_beat(run: Path, number: int) -> float | None:
    """When an attempt's heartbeat was last touched, in Unix time; None where it has none any more."""
    try:
        return (run / "attempts" / f"{number:04d}.alive").stat().st_mtime
    except OSError:
        return None


def _accepted_size(folder: Path, attempt: Attempt) -> int:
    """Bytes of an earlier attempt that make up its accepted events."""
    text = (folder / f"{attempt.number:04d}.jsonl").read_bytes()
    end = 0
    for _ in attempt.events:
        end = text.index(b"\n", end) + 1
    return end
