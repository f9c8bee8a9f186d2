"""Where a build works, who does the work, and what is left when it fails: nothing that looks like a dataset.

Everything is made in `OUT/.building` and moved to its name at the end, `dataset.json` last. A build that was
killed leaves that folder behind; the next one holds the lock on it, so it knows that nobody uses it, and clears it.
"""

import errno
import fcntl
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.dataset import FILE
from data.errors import UserError
from data.publish import sync

BUILDING = ".building"
_LOCK = "lock"
_OURS = re.compile(
    r"(train|valid|heldout)(-\d{6}\.(tar|docs\.parquet|pack-\d+\.npy)|\.(index|pack-\d+)\.json)"
    r"|tokenizer(\.(model|json)|_config\.json)|\..*\.tmp"
)
_SCRATCH = re.compile(r"\d{6,}\.(text|tokens)|" + _LOCK)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """An empty folder inside `out` to work in, for one build at a time; gone afterwards, whatever happened.

    Raises:
        UserError: `out` holds something else, another build is at work there, the disk is full or not writable.
    """
    fresh = not out.exists()
    try:
        _refuse_strangers(out)
        work = out / BUILDING
        with _locked(work):
            for left in [*out.iterdir(), *work.iterdir()]:
                if left.name not in (BUILDING, _LOCK):
                    left.unlink()
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"the disk that holds {out} is full: {error.strerror}. What was made so far is removed. A build needs "
                "about three times the text's size there; free some, or choose another --out."
            ) from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise UserError(f"cannot write the dataset to {out}: {error.strerror}. Choose another --out.") from error
        raise
    finally:
        if fresh and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def publish(work: Path, out: Path) -> None:
    """Move what was made in `work` to its names in `out`; only `dataset.json` is then missing."""
    for path in sorted(work.iterdir()):
        if not _SCRATCH.fullmatch(path.name):
            path.replace(out / path.name)
    sync(out)


def _refuse_strangers(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; a dataset is a folder. Choose another --out.")
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    strange = [name for name in held if name not in (BUILDING, FILE) and not _OURS.fullmatch(name)]
    if strange:
        raise UserError(f"{out} is not empty and not a dataset: it holds {strange[0]!r}. Choose another --out.")


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    while True:
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {work.parent}: {error.strerror or error}") from None
        try:
            file = (work / _LOCK).open("w")
        except FileNotFoundError:
            continue  # another build ended and took the folder away
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another build is writing to {work.parent}. Wait for it, or choose another --out."
                ) from None
            try:
                still_there = os.path.samestat(os.fstat(file.fileno()), (work / _LOCK).stat())
            except FileNotFoundError:
                still_there = False
            if still_there:
                yield
                return


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
