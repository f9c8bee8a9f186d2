"""A run's place in a store: checkpoints and record copied there behind the training, and brought back from there.

A checkpoint is offered to the mirror when it is published in the run's folder. Each rank sends the file it wrote; rank
0 waits until the store holds all of them, sends the record (so that the copy can prove itself), and writes the
manifest last: the same protocol as in a folder. One checkpoint is sent at a time; while it is on its way only the
newest one offered waits. A store that fails is said and tried again with the next checkpoint: the run's folder has
everything. With `checkpoint.store_role: primary` there is no mirror: the saver itself writes to the store, and the
record follows each checkpoint there.
"""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.publish import published
from trainer import checkpoint, record, watchdog
from trainer.checkpoint import FOLDER, MANIFEST, digest_of
from trainer.manifest import file_of
from trainer.place import Folder, Place, Store, open_store
from trainer.recipe import Recipe

POLL_S = 0.5
PATIENCE_S = 600.0  # for the other ranks' files to arrive in the store
LAST_S = 600.0  # for the last checkpoint, at the end of an attempt
RECORD = "record"  # folder of the store that holds copies of the record, one for each checkpoint sent
FILES, DIGESTS = ("recipe.yaml", "metrics.jsonl"), "digests.json"


def store_of(recipe: Recipe, run: Path) -> Store | None:
    """The run's place in the store of its recipe, if it has one. Raises UserError for a URL nothing can open."""
    return open_store(recipe.checkpoint.store).child(run.name) if recipe.checkpoint.store else None


def root_of(recipe: Recipe, run: Path) -> Place:
    """Where the run's checkpoints are written first."""
    store = store_of(recipe, run) if recipe.checkpoint.store_role == "primary" else None
    return store or Folder(run)


def places(recipe: Recipe, run: Path) -> list[tuple[str, Place]]:
    """(name, folder) of every checkpoint in the run's folder and in its store, oldest first; of one that is in both,
    the store's copy first, so that a reader who begins at the end meets the near one first.

    Raises:
        UserError: the store can't be read, and the run's folder holds no checkpoint to go on from instead.
    """
    near, store = checkpoint.names(run), store_of(recipe, run)
    found = [(name, Folder(run).child(FOLDER).child(name)) for name in near]
    if store is not None:
        try:
            far = checkpoint.names(store)
        except OSError as error:
            if not near:
                raise _unreadable(store, error) from None
            far = []  # the mirror says so with the next checkpoint
        found = [(name, store.child(FOLDER).child(name)) for name in far] + found
    return sorted(found, key=lambda each: (checkpoint.step_of(each[0]), checkpoint.attempt_of(each[0])))


def refuse_vanished(recipe: Recipe, run: Path, history: record.History, found: Sequence[str]) -> None:
    """Raise UserError where the record names checkpoints and none is there: to begin again must be asked for."""
    last = history.newest_saved()
    if last is None or found:
        return
    where = [str(run / FOLDER)] if recipe.checkpoint.store_role == "mirror" or not recipe.checkpoint.store else []
    where += [recipe.checkpoint.store] if recipe.checkpoint.store else []
    raise UserError(
        f"the record of {run} names {last}, and there is no checkpoint in {' or '.join(where)}: mount or restore it; "
        "to begin anew, take another name=..."
    )


def refuse_older(recipe: Recipe, run: Path) -> None:
    """Raise UserError where the store holds checkpoints of attempts that the run's folder knows nothing of.

    The folder is an older copy, or the run went on elsewhere: what begins here would take numbers that are given out,
    and write over what the newer attempts have saved.
    """
    store = store_of(recipe, run)
    if store is None:
        return
    try:
        far = checkpoint.names(store)
    except OSError:
        return  # whoever needs it says so
    known = record.numbers(run)
    newest = max(far, key=_age, default=None)
    if newest is None or checkpoint.attempt_of(newest) <= max(known, default=0):
        return
    if known:
        raise UserError(
            f"{store} holds {newest}, and the record of {run} ends at attempt {max(known)}: the folder is an older "
            "copy, or the run went on elsewhere. Move the folder away, and the same command brings the newer one back "
            "from the store; or take another name=..."
        )
    raise UserError(
        f"{store} holds {newest}, and no whole copy of its record: restore {run / 'attempts'} from a copy, or take "
        "another name=..."
    )


def check_store(recipe: Recipe, run: Path) -> None:
    """Write a file to the store of a run that has not begun, and remove it again.

    Raises:
        UserError: it can't be written.
    """
    store = store_of(recipe, run)
    if store is None:
        return
    probe = store.child("probe")
    try:
        probe.publish("probe", b"luban")
        probe.remove("probe")
    except OSError as error:
        raise UserError(
            f"checkpoint.store {recipe.checkpoint.store} can't be written ({error.strerror or error}): take another, "
            "mount it, or set checkpoint.store=null"
        ) from None


def send_record(run: Path, store: Place, name: str) -> None:
    """Copy what explains a checkpoint, before its manifest: recipe, attempts, metrics, and last of all their digests.

    Into a folder of the checkpoint's name, so that nothing is overwritten: a copy cut off in the middle isn't one, and
    what a fenced attempt sends late lies below the newer one's. Copies of older checkpoints are removed.
    """
    there = store.child(RECORD).child(name)
    attempts = [f"attempts/{path.name}" for path in record.files(run)]
    sent = {}
    for file in (*FILES, *attempts):
        if (run / file).exists():
            data = (run / file).read_bytes()
            there.publish(_flat(file), data)
            sent[file] = hashlib.sha256(data).hexdigest()
    there.publish(DIGESTS, json.dumps(sent).encode())
    for other in _copies(store):
        if _age(other) < _age(name):
            store.child(RECORD).child(other).remove(DIGESTS)


def restore(recipe: Recipe, run: Path) -> bool:
    """Bring the record of a run back from its store where the folder has none; returns whether it did.

    Raises:
        UserError: the store can't be opened or read.
    """
    store = store_of(recipe, run)
    if store is None or record.files(run):
        return False
    try:
        copies = sorted(_copies(store), key=_age, reverse=True)
        files = next((held for held in (_copy(store.child(RECORD).child(name)) for name in copies) if held), None)
        if files is None:
            return False
        whole = run / ".restoring"
        shutil.rmtree(whole, ignore_errors=True)
        (whole / "attempts").mkdir(parents=True)
        for file, data in files.items():
            with published((whole if file.startswith("attempts/") else run) / file) as draft:
                draft.write_bytes(data)
        with suppress(FileNotFoundError):
            (run / "attempts").rmdir()
        (whole / "attempts").rename(run / "attempts")  # all at once: half of them would be another history
        whole.rmdir()
    except OSError as error:
        raise _unreadable(store, error) from None
    return True


def _copies(store: Place) -> list[str]:
    return [name for name in store.child(RECORD).list() if checkpoint.NAME.fullmatch(name)]


def _copy(there: Place) -> dict[str, bytes] | None:
    """The files of one copy of the record; None where it isn't whole."""
    if there.holds(DIGESTS) is None:
        return None
    try:
        sent = json.loads(there.content(DIGESTS))
        files = {file: there.content(_flat(file)) for file in sent}
    except (ValueError, FileNotFoundError):
        return None
    return files if all(hashlib.sha256(data).hexdigest() == sent[file] for file, data in files.items()) else None


def _flat(file: str) -> str:
    return file.replace("/", "-")


def _age(name: str) -> tuple[int, int]:
    return checkpoint.attempt_of(name), checkpoint.step_of(name)


def _unreadable(store: Place, error: OSError) -> UserError:
    return UserError(
        f"cannot read the run's copy in {store} ({error.strerror or error}): see that the store can be reached, or set "
        "checkpoint.store=null to begin without it"
    )


class Mirror:
    """One rank's sender. `offer` returns at once; `finish` waits."""

    def __init__(self, run: Path, store: Store, rank: int, retired: Callable[[], set[str]], say: Callable[[str], None]):
        """
        Args:
            rank: of this process; rank 0 sends what is everybody's, and the manifest.
            retired: names of checkpoints given up, whose copies go too.
            say: takes a sentence for the person, from any thread.
        """
        self.run, self.store, self._rank, self._retired, self._say = run, store, rank, retired, say
        self._waiting: tuple[str, dict[str, Any] | None, list[str]] | None = None
        self._wake = threading.Condition()
        self._busy = self._ended = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def offer(self, name: str, manifest: dict[str, Any] | None, whole: bool = False) -> None:
        """A checkpoint of the run's folder is to be copied; rank 0 offers it with its manifest.

        Args:
            whole: send every rank's file from here: it is an older attempt's, killed before it could.
        """
        files = [file for file in manifest["files"] if file != checkpoint.STATE] if whole and manifest else []
        with self._wake:
            self._waiting = name, manifest, files or [file_of(self._rank)]
            self._wake.notify_all()

    def finish(self) -> None:
        """Wait until everything offered is sent, for ten minutes at most; what isn't is said."""
        deadline = time.monotonic() + LAST_S
        with self._wake:
            while (self._busy or self._waiting) and time.monotonic() < deadline:
                watchdog.enter("waiting for the store")
                self._wake.wait(POLL_S)
            if self._busy or self._waiting:
                self._say(
                    f"{self.store}: the last checkpoint is not there yet after {LAST_S:.0f} s; it is in {self.run}"
                )
            self._ended = True
            self._wake.notify_all()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._busy = False
                self._wake.notify_all()
                while self._waiting is None and not self._ended:
                    self._wake.wait()
                if self._waiting is None:
                    return
                (name, manifest, files), self._waiting, self._busy = self._waiting, None, True
            try:
                self._send(name, manifest, files)
            except Exception as error:
                said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                with suppress(OSError, UserError):  # the record's disk may be full
                    self._say(f"NOT IN THE STORE: {name} is not copied to {self.store}: {said}; it is in {self.run}")

    def _send(self, name: str, manifest: dict[str, Any] | None, files: list[str]) -> None:
        here, there = Folder(self.run / FOLDER / name), self.store.child(FOLDER).child(name)
        for file in files:
            there.write(file, _mapped(here.path / file))
        if manifest is None:
            return
        there.write(checkpoint.STATE, _mapped(here.path / checkpoint.STATE))
        if manifest["base"] and self.store.child(checkpoint.BASE).holds(manifest["base"]) is None:
            base = self.run / checkpoint.BASE / manifest["base"]
            self.store.child(checkpoint.BASE).write(base.name, _mapped(base))
        self._wait_for(here, there, manifest)
        send_record(self.run, self.store, name)
        there.publish(MANIFEST, json.dumps(manifest | {"digest": digest_of(manifest)}).encode())
        gone = self._retired()
        checkpoint.remove(self.store, [held for held in checkpoint.names(self.store) if held in gone])

    def _wait_for(self, here: Place, there: Place, manifest: dict[str, Any]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        missing = dict(manifest["files"])
        while missing:
            missing = {file: entry for file, entry in missing.items() if there.holds(file) != entry["bytes"]}
            if missing and (self._waiting or here.holds(MANIFEST) is None):
                raise OSError("a newer one came before every rank had sent its part")
            if missing and time.monotonic() > deadline:
                raise OSError(f"{next(iter(missing))} has not arrived within {PATIENCE_S:.0f} s")
            if missing:
                time.sleep(POLL_S)


def _mapped(path: Path) -> Sequence[np.ndarray]:
    return [np.memmap(path, np.uint8, "r")]
