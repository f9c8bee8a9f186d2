"""Where a build works, who does the work, and what is left when it fails: nothing that looks like a dataset.

Everything is made in `OUT/.building/READ/MADE` and moved to its name at the end, `dataset.json` last. READ is a digest
of what decides what is read, cleaned and kept (recipe, input, library versions, the code of `data`), MADE one of what
decides the rest (tokenizer, size of shards). A build that was killed leaves the folders behind and one with the same
keys goes on there; with another tokenizer it goes on from what was read; else it says so and starts over. A straggler
of a dead build can't harm that one: its folder is gone.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.dataset import FILE
from data.errors import UserError
from data.progress import Progress
from data.publish import locked, sync, write_json
from data.remote.patience import Unreachable

BUILDING = ".building"
_LOCK = "lock"
_JOURNAL = "journal.json"
_MOVING = "moving.json"
_OURS = re.compile(
    r"(train|valid|heldout)(-\d{6}\.[a-z0-9.-]+|\.[a-z0-9-]+\.json)|tokenizer(\.(model|json)|_config\.json)|"
    r"sentencepiece\.model"
)
_TEMPORARY = re.compile(r"\..*\.tmp|sort-.*|links")
_HALF_WRITTEN = re.compile(rf"\.{re.escape(FILE)}\..*\.tmp")
_KEY = re.compile(r"[0-9a-f]{16}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class Work:
    """Where a build's files are until it is done."""

    read: Path
    """What was read and cleaned, part by part, and which of its rows stay."""
    made: Path
    """What was made of them: tokenizer, tokens, shards."""
    keep: bool = False
    """Reading is over: what was read stays also where the rest meets a user's mistake."""


@contextmanager
def workplace(out: Path, reads: dict[str, Any], makes: dict[str, Any], progress: Progress) -> Iterator[Work]:
    """Folders inside `out` to work in, for one build at a time; gone after success or a user's mistake, but kept where
    input couldn't be reached for now, and once everything is read.

    Args:
        reads: everything that decides what is read and kept (JSON). What a build of the same left is in the folder.
        makes: what decides, with it, the bytes of the dataset.
        progress: is told when what another build left is thrown away.

    Raises:
        UserError: `out` holds something else, another build is at work there or has just ended, the disk is full or
            not writable, a worker died.
    """
    fresh = not out.exists()
    try:
        _refuse_strangers(out)
        building = out / BUILDING
        with locked(building / _LOCK, lambda who: _busy(out, who)):
            if (out / FILE).exists():
                shutil.rmtree(building)
                raise UserError(f"another build has just finished in {out}. Build again to see whether it is this one.")
            work = _journalled(building, reads, makes, progress)
            _clear(out, work)
            try:
                yield work
            except UserError as error:
                if isinstance(error.__cause__, Unreachable):
                    raise UserError(f"{error}. What is finished is kept: build again to go on.") from error.__cause__
                if work.keep:
                    raise UserError(
                        f"{error} (What was read and cleaned is kept: a build that differs in `tokenizer` or "
                        "`shard_tokens` goes on from there.)"
                    ) from error
                shutil.rmtree(building, ignore_errors=True)
                raise
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"the disk that holds {out} is full: {error.strerror}. What is finished is kept: free some space and "
                "build again to go on. A build needs about four times the text's size there."
            ) from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise UserError(f"cannot write the dataset to {out}: {error.strerror}. Choose another --out.") from error
        raise
    except BrokenExecutor as error:
        raise UserError(
            "a process of the build died: it was killed, perhaps for want of memory (then lower `workers`). What is "
            "finished is kept: build again to go on."
        ) from error
    finally:
        if fresh and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def publish(work: Work, out: Path) -> None:
    """Move what was made to its names in `out`; only `dataset.json` is then missing."""
    names = sorted(path.name for path in work.made.iterdir() if _OURS.fullmatch(path.name))
    write_json(work.made / _MOVING, {"names": names})
    for name in names:
        (work.made / name).replace(out / name)
    sync(out)


def _journalled(building: Path, reads: dict[str, Any], makes: dict[str, Any], progress: Progress) -> Work:
    """The folders for a build that these things decide, made if they aren't there; other builds' are removed."""
    read = building / _key(reads)
    made = read / _key(makes)
    for left in _others(building, read):
        progress.say(f"{left} was left by a build of another recipe, input or version: it is removed")
        shutil.rmtree(left)
    for left in _others(read, made) if read.exists() else ():
        progress.say(f"{left} was left by a build with another tokenizer or size of shards: it is removed")
        shutil.rmtree(left)
    if (read / _JOURNAL).exists():
        progress.say(f"going on from what an interrupted build left in {read}")
    for folder, decides in ((read, reads), (made, makes)):
        if not (folder / _JOURNAL).exists():
            folder.mkdir(exist_ok=True)
            write_json(folder / _JOURNAL, decides)
    return Work(read, made)


def _key(decides: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _others(folder: Path, ours: Path) -> list[Path]:
    """The folders beside ours that are named by a key."""
    return [path for path in folder.iterdir() if path.is_dir() and path != ours and _KEY.fullmatch(path.name)]


def _clear(out: Path, work: Work) -> None:
    """Take back what a build moved before it was killed; remove what is half made or none of ours."""
    moving = work.made / _MOVING
    names = json.loads(moving.read_text("utf-8"))["names"] if moving.exists() else []
    for left in out.iterdir():
        if left.name in names:
            left.replace(work.made / left.name)
        elif left.name != BUILDING:
            left.unlink()
    moving.unlink(missing_ok=True)
    for left in (*work.read.iterdir(), *work.made.iterdir()):
        if _TEMPORARY.fullmatch(left.name):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _refuse_strangers(out: Path) -> None:
    """Without a killed build's folder beside it, a file of such a name as ours may be anybody's."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; a dataset is a folder. Choose another --out.")
    held = {path.name for path in out.iterdir()} if out.is_dir() else set()
    ours = {BUILDING, FILE}
    if held & ours:
        ours.update(name for name in held if _OURS.fullmatch(name) or _HALF_WRITTEN.fullmatch(name))
    strange = sorted(held - ours)
    if strange:
        raise UserError(f"{out} is not empty and not a dataset: it holds {strange[0]!r}. Choose another --out.")


def _busy(out: Path, who: str) -> str:
    return f"another build ({who}) is writing to {out}. Wait for it, or choose another --out."


class InProcess(Executor):
    """Does each call at once, in this process: one worker."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Run the call; the future is done when this returns."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def pool(workers: int) -> Iterator[Executor]:
    """An executor of `workers` processes, spawned; calls not yet begun are cancelled if the caller fails."""
    if workers == 1:
        yield InProcess()
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(os.getpid(),))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def in_order(executor: Executor, calls: Iterable[tuple[Any, ...]], ahead: int) -> Iterator[Any]:
    """Results of the calls (function, *arguments) in their order, at most `ahead` of them under way."""
    pending: deque[Future] = deque()
    for call in calls:
        pending.append(executor.submit(*call))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _begin_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and don't outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
