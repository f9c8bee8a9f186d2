"""Writes checkpoints behind the training's back: the step waits only for a copy to host memory.

    begin      every rank copies its spans to the host buffer, and its thread writes, flushes, re-reads and digests them
    collect    once every rank has written (the loop's agreement says so, at one step): rank 0 learns the digests
    publish    rank 0's thread writes the manifest: from here on the checkpoint exists

The buffer is planned: 12 bytes for each fp32 element this rank owns, taken once (pinned where there is a GPU), so a
second save waits for the first instead of queueing. Whatever goes wrong in a thread surfaces at the next collective
call, on every rank. The threads run at a lower priority, where the system allows it, than the training beside them.

At 99 M parameters on two ranks the step is stalled for 0.07 to 0.17 of what DeepSpeed's own save takes, which flushes
nothing, and all of a save takes 0.22 s of a core for each 595 MB, a fifth of DeepSpeed's (`tests/bench/README.md`).
"""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data.errors import UserError
from trainer import checkpoint, watchdog
from trainer.checkpoint import FOLDER, MANIFEST, Span, digest_of
from trainer.claim import Fenced
from trainer.manifest import STATE, compose, file_of
from trainer.place import PAGE, Folder, Place
from trainer.sizes import SAVED_FLOATS
from trainer.span_file import bytes_of, header
from trainer.world import World

NICENESS = 10
LONGEST_S = 3600.0  # a write that takes longer hangs
POLL_S = 0.1


@dataclass
class Saving:
    """One save under way."""

    name: str
    state: dict[str, Any]
    text: bytes
    """`state.json`: written down at once, because what it is made of goes on changing."""
    base: str | None
    spans: list[tuple[str, list[int], int, int, int]]
    """(parameter, shape, start, count, rank) of this rank's pieces."""
    published: Callable[[dict[str, Any], int], None]
    began: float = field(default_factory=time.monotonic)
    files: dict[str, Any] = field(default_factory=dict)
    """Size and digest of what this rank has written."""
    error: str | None = None
    fenced: bool = False
    collected: bool = False


class Saver:
    """One rank's writer. `begin`, `collect` and `finish` are collective."""

    def __init__(
        self,
        root: Place,
        world: World,
        spans: list[Span],
        fenced: Callable[[], bool] = lambda: False,
        sync: Callable[[str], None] = lambda name: None,
    ):
        """
        Args:
            root: the run's folder, or its place in a store.
            spans: what this rank will save, for the size of the buffer.
            fenced: whether a newer attempt has begun; asked on rank 0 before publishing.
            sync: called with its name in rank 0's thread before that: makes the record of the steps durable.
        """
        self.root, self.world = root, world
        self._fenced, self._sync = fenced, sync
        floats = SAVED_FLOATS * sum(span.count for span in spans)
        taken = torch.empty(floats + PAGE // 4, pin_memory=world.device.type == "cuda")
        at = -taken.data_ptr() % PAGE // 4  # whole pages, for O_DIRECT
        self._host = taken[at : at + floats]
        self._host.zero_()  # the pages are taken now, not while a step waits
        self._now: Saving | None = None
        self._thread: threading.Thread | None = None

    @property
    def host_bytes(self) -> int:
        """Size of the host buffer."""
        return self._host.numel() * self._host.element_size()

    @property
    def written(self) -> bool:
        """This rank's part is on the disk, or has failed, and `collect` hasn't been called since."""
        return self._now is not None and not self._now.collected and not self._working

    @property
    def failed(self) -> bool:
        """Publishing went wrong on this rank; `finish` says how."""
        now = self._now
        return now is not None and now.collected and not self._working and (now.error is not None or now.fenced)

    def begin(
        self,
        name: str,
        state: dict[str, Any],
        spans: list[Span],
        base: str | None,
        published: Callable[[dict[str, Any], int], None] = lambda manifest, size: None,
    ) -> None:
        """Copy the state and start to write it. Collective; the save before must be finished.

        Args:
            name: the checkpoint's.
            state: what `state.json` holds; rank 0's is written.
            spans: what this rank holds; over all ranks each element once.
            base: file name in `base/` of the weights that don't train.
            published: called with the manifest and the checkpoint's size, in rank 0's thread, once it exists.

        Raises:
            RuntimeError: a save is under way.
        """
        if self._now is not None:
            raise RuntimeError(f"{self._now.name} is still being saved: finish it first")
        at = 0
        for part in (checkpoint.WEIGHT, *checkpoint.MOMENTS):
            for span in spans:
                self._host[at : at + span.count].copy_(span.tensors[part], non_blocking=True)
                at += span.count
        if self._host.is_pinned():
            torch.cuda.current_stream().synchronize()
        mine = [(span.name, list(span.shape), span.start, span.count, self.world.rank) for span in spans]
        text = json.dumps(state, indent=1).encode()
        self._now = Saving(name, json.loads(text), text, base, mine, published)
        self._start(self._write)

    def collect(self) -> str | None:
        """Every rank has written: tell rank 0, which publishes. Collective; returns the name, None if there is nothing.

        Raises:
            UserError: a rank could not write; the partial folder is removed, earlier checkpoints stay.
            RuntimeError: the same, in a store.
        """
        now = self._now
        if now is None or now.collected:
            return None
        self._wait()
        now.collected = True
        everyone = self.world.collect({"files": now.files, "spans": now.spans, "error": now.error})
        failed = self.world.told(next((part["error"] for part in everyone if part["error"]), None))
        if failed:
            self._give_up(now, failed)
        if self.world.rank == 0:
            self._start(lambda: self._publish(everyone))
        return now.name

    def finish(self) -> None:
        """Wait until the save under way, if any, is published. Collective.

        Raises:
            UserError: it failed.
            Fenced: a newer attempt has begun, and it was not published.
        """
        now = self._now
        if now is None:
            return
        self.collect()
        self._wait()
        failed, fenced = self.world.told((now.error, now.fenced))
        if fenced:
            self._now = None
            raise Fenced(f"{now.name} is not published: a newer attempt of {self.root} has begun")
        if failed:
            self._give_up(now, failed)
        self._now = None

    def join(self, seconds: float | None = None) -> None:
        """Wait for this rank's own thread, so long at most."""
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def _working(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._guarded, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        """Until no rank's thread works any more. Collective, in short ones: a slow disk is no hung rank."""
        deadline = time.monotonic() + LONGEST_S
        while self.world.total([self._working])[0]:
            watchdog.enter("waiting for a checkpoint to be written")
            if time.monotonic() > deadline:
                raise RuntimeError(f"a checkpoint has not been written within {LONGEST_S:.0f} s")
            self.join(POLL_S)

    def _guarded(self, work: Callable[[], None]) -> None:
        now = self._now
        assert now is not None
        with suppress(OSError):  # a thread's own niceness, on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            work()
        except BaseException as error:  # whatever it was, nothing may be published
            known = isinstance(error, OSError | UserError)
            now.error = f"rank {self.world.rank}: {error if known else f'{type(error).__name__}: {error}'}"

    def _write(self) -> None:
        now = self._now
        assert now is not None
        folder = self.root.child(FOLDER).child(now.name)
        parts = (checkpoint.WEIGHT, *checkpoint.MOMENTS)
        head = header((f"{name}|{part}", count) for part in parts for name, _, _, count, _ in now.spans)
        floats = SAVED_FLOATS * sum(count for *_, count, _ in now.spans)
        file = file_of(self.world.rank)
        now.files[file] = folder.write(file, [head, bytes_of(self._host[:floats])])
        if self.world.rank == 0:
            now.files[STATE] = folder.write(STATE, [np.frombuffer(now.text, np.uint8)])

    def _publish(self, everyone: list[dict[str, Any]]) -> None:
        now = self._now
        assert now is not None
        manifest = compose(now.name, now.state, self.world.size, now.base, everyone)
        self._sync(now.name)  # the steps that made these weights are on the disk before the weights are
        if self._fenced():
            now.fenced = True
            return
        data = json.dumps(manifest | {"digest": digest_of(manifest)}).encode()
        folder = self.root.child(FOLDER)
        folder.child(now.name).publish(MANIFEST, data)
        if isinstance(folder, Folder):
            _point(folder, now.name)
        now.published(manifest, sum(entry["bytes"] for entry in manifest["files"].values()))

    def _give_up(self, now: Saving, problem: str) -> None:
        """End the attempt on every rank; a checkpoint without a manifest leaves no files.

        A disk is a person's to mend; a store that is out of reach is a fault, after which a supervisor tries again.
        """
        self._now = None
        if self._fenced():  # the newer attempt clears away what this one was writing
            raise Fenced(f"{now.name} is not published: a newer attempt of {self.root} has begun")
        folder = self.root.child(FOLDER).child(now.name)
        with suppress(OSError):
            if self.world.rank == 0 and folder.holds(MANIFEST) is None:
                folder.remove(MANIFEST)
        said = f"cannot write the checkpoint {now.name} ({problem}). Earlier checkpoints are intact"
        if not isinstance(self.root, Folder):
            raise RuntimeError(f"{said} in {self.root}")
        full = any(os.strerror(number) in problem for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
        mend = "make room in" if full else "see to the disk of"
        raise UserError(f"{said}: {mend} {self.root} and start the run again")


def _point(folder: Folder, name: str) -> None:
    """`checkpoints/latest`: a cache for people, never the truth."""
    link = folder.path / f"latest.{os.getpid()}"
    with suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        link.replace(folder.path / "latest")
