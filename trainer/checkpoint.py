"""Checkpoints: durable, then visible; written by any topology, read by any other.

A checkpoint holds fp32 master weights and AdamW moments as *spans*: contiguous pieces of one parameter, each rank
writing those it owns straight from its live state, with no gathering (64 of 64 combinations of ZeRO stage and world
size loaded bitwise; 25 % smaller than DeepSpeed's own files, which another world size cannot load at all). What isn't
a tensor lies in `state.json`. No pickle, no conversion.

    step-000000400.a3/                 written by attempt 3
      spans-00000.safetensors ...      one a rank
      state.json                       counters, order, schedule
      manifest.json                    written last: every file's size and SHA-256, and which file holds which span

A checkpoint *is* its manifest: every other file is written, flushed to the disk, read again and digested before the
manifest is renamed into place; a folder without a valid one doesn't exist for any reader. Frozen weights never change
and are stored once a run, in `base/`, named by their digest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UserError
from data.publish import sync_folder

if TYPE_CHECKING:  # a supervisor and `luban status` read manifests alone, and start in half the time without torch
    from torch import Tensor

    from trainer.world import World

FORMAT, VERSION = "luban-checkpoint", 1
WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")
FOLDER = "checkpoints"
FENCED = "fenced"


@dataclass(frozen=True)
class Span:
    """A contiguous piece of one parameter and its moments, as 1-D views of the live fp32 state this rank holds."""

    name: str
    shape: tuple[int, ...]
    start: int
    """First element of the piece in the flattened parameter."""
    tensors: dict[str, Tensor]
    """"weight", "exp_avg" and "exp_avg_sq", equally long."""

    @property
    def count(self) -> int:
        """Elements."""
        return self.tensors[WEIGHT].numel()


SpanReader = Callable[[str, tuple[int, ...], int, int], "dict[str, Tensor]"]
"""(name, shape, start, count) -> the three tensors of that piece."""


class CorruptCheckpoint(Exception):
    """A checkpoint that isn't what its manifest says; a reader passes over it, loudly."""


def save(
    run: Path,
    name: str,
    state: dict[str, Any],
    spans: list[Span],
    frozen: str | None,
    world: World,
    fenced: Callable[[], bool] | None = None,
) -> int:
    """Write the checkpoint `name` of `run`. Collective; on return it is durable and visible.

    Args:
        state: what `state.json` holds; the same on every rank.
        spans: what this rank holds; over all ranks each element once.
        frozen: file name in `base/` of the weights that don't train.
        fenced: asked on rank 0 at the last moment; a checkpoint of a fenced attempt is not published.

    Returns:
        Its size, in bytes.

    Raises:
        UserError: the disk is full or not writable; the partial folder is removed, earlier checkpoints stay.
    """
    from safetensors.torch import save as serialize

    folder = run / FOLDER / name
    file = f"spans-{world.rank:05d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{span.name}|{part}": view.cpu() for span in spans for part, view in span.tensors.items()}
        mine: dict[str, Any] = {
            "files": {file: _write(folder / file, serialize(tensors))},
            "spans": [(span.name, list(span.shape), span.start, span.count, world.rank) for span in spans],
        }
        if world.rank == 0:
            mine["files"]["state.json"] = _write(folder / "state.json", json.dumps(state, indent=1).encode())
    except OSError as error:
        mine = {"error": f"rank {world.rank}: {error}"}
    everyone = world.gather(mine)
    failed = next((part["error"] for part in everyone if "error" in part), None)
    if failed is None and world.rank == 0:
        manifest = _manifest(name, state, everyone, frozen, world)
        failed = FENCED if fenced and fenced() else _publish(folder, manifest)
    failed = world.gather(failed)[0]
    if failed == FENCED:
        raise UserError(f"the checkpoint {name} is not published: a newer attempt of {run} has begun")
    if failed:
        if world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"cannot write the checkpoint {name} ({failed}). Earlier checkpoints are intact: make room in {run} and "
            "start the run again"
        )
    return sum(entry["bytes"] for part in everyone for entry in part["files"].values())


def save_frozen(run: Path, weights: Mapping[str, Tensor]) -> str | None:
    """Store weights that never change in `base/`, once; returns the file's name, or None if there are none."""
    if not weights:
        return None
    from safetensors.torch import save as serialize

    folder = run / "base"
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"draft-{os.getpid()}.safetensors"
    try:
        data = serialize({name: weights[name].contiguous().cpu() for name in sorted(weights)})
        name = _write(draft, data)["sha256"] + ".safetensors"
        draft.replace(folder / name)
        sync_folder(folder)
        sync_folder(run)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(f"cannot write the frozen weights to {folder}: {error}") from None
    return name


class Checkpoint:
    """One checkpoint on disk, its manifest read and checked."""

    def __init__(self, folder: Path):
        """
        Raises:
            CorruptCheckpoint: there is no manifest, or it isn't the one that was written.
            UserError: it is of a newer format.
        """
        self.folder, self.name = folder, folder.name
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
            claimed = self.manifest.pop("digest")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CorruptCheckpoint(f"{folder.name}: its manifest.json cannot be read ({error})") from None
        if claimed != digest_of(self.manifest):
            raise CorruptCheckpoint(f"{folder.name}: its manifest.json doesn't match its own digest")
        if self.manifest["format"] != FORMAT or self.manifest["version"] > VERSION:
            raise UserError(
                f"{folder} is of format {self.manifest['format']} {self.manifest['version']}; this Luban reads "
                f"{FORMAT} up to {VERSION}: use a newer Luban"
            )
        self.step: int = self.manifest["step"]
        self.attempt: int = self.manifest["attempt"]

    def problems(self, share: int = 0, shares: int = 1) -> list[str]:
        """What differs from the manifest, by file; `share` of `shares` lets ranks divide the reading."""
        found = []
        files = [(self.folder / name, entry) for name, entry in sorted(self.manifest["files"].items())]
        if self.manifest["base"]:
            digest = self.manifest["base"].partition(".")[0]
            files.append((self.base, {"sha256": digest, "bytes": None}))
        for path, entry in files[share::shares]:
            try:
                size, digest = path.stat().st_size, _sha256(path)
            except OSError as error:
                found.append(f"{self.name}: {path.name} cannot be read ({error.strerror})")
                continue
            if entry["bytes"] not in (None, size):
                found.append(f"{self.name}: {path.name} has {size} bytes instead of {entry['bytes']}")
            elif digest != entry["sha256"]:
                found.append(f"{self.name}: {path.name} has another SHA-256 than its manifest says")
        return found

    @property
    def base(self) -> Path:
        """The file of frozen weights."""
        return self.folder.parent.parent / "base" / self.manifest["base"]

    @cached_property
    def state(self) -> dict[str, Any]:
        """Counters, order and schedule."""
        return json.loads((self.folder / "state.json").read_text())

    def read(self, name: str, shape: tuple[int, ...], start: int, count: int) -> dict[str, Tensor]:
        """The piece [start, start + count) of a parameter and its moments, from the files that hold it.

        Raises:
            UserError: the parameter isn't there, or has another shape.
        """
        import torch

        if name not in self.manifest["spans"]:
            raise UserError(f"{self.folder} holds no parameter {name}: it is of another model")
        held = tuple(self.manifest["parameters"][name])
        if held != shape:
            raise UserError(f"{self.folder} holds {name} as {held}, the model wants {shape}: it is of another model")
        out = {part: torch.empty(count) for part in (WEIGHT, *MOMENTS)}
        for first, length, file in self.manifest["spans"][name]:
            low, high = max(start, first), min(start + count, first + length)
            if low < high:
                for part, tensor in out.items():
                    piece = self._open(file).get_slice(f"{name}|{part}")[low - first : high - first]
                    tensor[low - start : high - start] = piece
        return out

    def weights(self) -> dict[str, Tensor]:
        """Every parameter whole, in fp32, the frozen ones included."""
        import torch

        out = {}
        for name, shape in self.manifest["parameters"].items():
            flat = torch.empty(shape).view(-1)
            for first, length, file in self.manifest["spans"][name]:
                flat[first : first + length] = self._open(file).get_tensor(f"{name}|{WEIGHT}")
            out[name] = flat.view(shape)
        return out | self.frozen()

    def frozen(self) -> dict[str, Tensor]:
        """The weights that don't train, in fp32."""
        if not self.manifest["base"]:
            return {}
        from safetensors import safe_open

        with safe_open(self.base, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)

    def _open(self, number: int) -> Any:
        if number not in self._files:
            from safetensors import safe_open

            self._files[number] = safe_open(self.folder / f"spans-{number:05d}.safetensors", "pt")
        return self._files[number]

    @cached_property
    def _files(self) -> dict[int, Any]:
        return {}


def folder_name(step: int, attempt: int) -> str:
    """A checkpoint's folder: the number of applied updates, and the attempt that wrote it."""
    return f"step-{step:09d}.a{attempt}"


def names(run: Path) -> list[str]:
    """Names of the folders that have a manifest, oldest first (by step, then attempt)."""
    folders = (run / FOLDER).glob("step-*.a*/manifest.json")
    found = [(int(f.parent.name[5:14]), int(f.parent.name.rpartition(".a")[2]), f.parent.name) for f in folders]
    return [name for _, _, name in sorted(found)]


def retain(run: Path, mine: list[str], keep_last: int, keep_every: int, best: str | None) -> list[str]:
    """Remove the checkpoints of `mine` (oldest first, each verified) that the policy doesn't keep; returns those."""
    kept = {*mine[-max(1, keep_last) :], best}
    removed = []
    for name in mine:
        if name not in kept and not (keep_every and int(name[5:14]) % keep_every == 0):
            folder = run / FOLDER / name
            (folder / "manifest.json").unlink(missing_ok=True)  # first: from here on it doesn't exist
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(name)
    return removed


def clear_partial(run: Path, dead: set[int]) -> None:
    """Remove folders that never got a manifest, left by killed attempts; those of others may yet be written."""
    for folder in (run / FOLDER).glob("step-*.a*"):
        if int(folder.name.rpartition(".a")[2]) in dead and not (folder / "manifest.json").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _manifest(
    name: str, state: dict[str, Any], everyone: list[Any], frozen: str | None, world: World
) -> dict[str, Any]:
    parameters: dict[str, list[int]] = {}
    spans: dict[str, list[list[int]]] = {}
    for part in everyone:
        for parameter, shape, start, count, rank in part["spans"]:
            parameters[parameter] = shape
            spans.setdefault(parameter, []).append([start, count, rank])
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "step": state["step"],
        "attempt": state["attempt"],
        "world": world.size,
        "zero_stage": state["zero_stage"],
        "files": {file: entry for part in everyone for file, entry in part["files"].items()},
        "parameters": parameters,
        "spans": spans,
        "base": frozen,
    }


def _publish(folder: Path, manifest: dict[str, Any]) -> str | None:
    """The moment a checkpoint comes to be; returns what went wrong, if anything."""
    try:
        draft = folder / "manifest.json.draft"
        _write(draft, json.dumps(manifest | {"digest": digest_of(manifest)}).encode())
        sync_folder(folder)
        draft.rename(folder / "manifest.json")
        sync_folder(folder)
        sync_folder(folder.parent)
        sync_folder(folder.parent.parent)
        link = folder.parent / f"latest.{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        link.replace(folder.parent / "latest")
    except OSError as error:
        return str(error)
    return None


def _write(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file, flush it to the disk, and read it back past the page cache: it must be what was in memory.

    Raises:
        OSError: the disk is full, or gave back something else.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    digest = hashlib.sha256(data).hexdigest()
    if _sha256(path) != digest:
        raise OSError(errno.EIO, f"{path.name} reads back with other bytes than were written")
    return {"bytes": len(data), "sha256": digest}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(manifest: dict[str, Any]) -> str:
    """The digest that a manifest carries of itself: the identity of its checkpoint."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
