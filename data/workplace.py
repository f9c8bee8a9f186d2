"""Where a build works, who does the work, and what is left when it fails: nothing that looks like a dataset.

Everything is made in `OUT/.building/KEY` and moved to its name at the end, `dataset.json` last. KEY is a digest of what
decides the bytes (recipe, input, library versions, the code of `data`): a build that was killed leaves the folder
behind and one with the same key goes on there; one with another key says so and starts over. A straggler of a dead
build can't harm that one: its folder is gone.
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
from pathlib import Path
from typing import Any

from data.dataset import FILE
from data.errors import UserError
from data.patience import Unreachable
from data.progress import Progress
from data.publish import locked, sync, write_json

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
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def workplace(out: Path, decides: dict[str, Any], progress: Progress) -> Iterator[Path]:
    """A folder inside `out` to work in, for one build at a time; gone after success or a user's mistake, but kept where
    input couldn't be reached for now.

    Args:
        decides: everything that decides the bytes (JSON). What a build of the same left is in the folder.
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
            work = _journalled(building, decides, progress)
            _clear(out, work)
            try:
                yield work
            except UserError as error:
                if isinstance(error.__cause__, Unreachable):
                    raise UserError(f"{error}. What is finished is kept: build again to go on.") from error.__cause__
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


def publish(work: Path, out: Path) -> None:
    """Move what was made in `work` to its names in `out`; only `dataset.json` is then missing."""
    names = sorted(path.name for path in work.iterdir() if _OURS.fullmatch(path.name))
    write_json(work / _MOVING, {"names": names})
    for name in names:
        (work / name).replace(out / name)
    sync(out)


def _journalled(building: Path, decides: dict[str, Any], progress: Progress) -> Path:
    """The folder for a build that these things decide, made if it isn't there; those of other builds are removed."""
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    work = building / key
    for left in building.iterdir():
        if left.is_dir() and left.name != key:
            progress.say(f"{left} was left by a build of another recipe, input or version: it is removed")
            shutil.rmtree(left)
    if (work / _JOURNAL).exists():
        progress.say(f"going on from what an interrupted build left in {work}")
    else:
        work.mkdir(exist_ok=True)
        write_json(work / _JOURNAL, decides)
    return work


def _clear(out: Path, work: Path) -> None:
    """Take back what a build moved before it was killed; remove what is half made or none of ours."""
    moving = work / _MOVING
    names = json.loads(moving.read_text("utf-8"))["names"] if moving.exists() else []
    for left in out.iterdir():
        if left.name in names:
            left.replace(work / left.name)
        elif left.name != BUILDING:
            left.unlink()
    moving.unlink(missing_ok=True)
    for left in work.iterdir():
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
