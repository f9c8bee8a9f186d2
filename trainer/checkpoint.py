"""Checkpoints: what one is, and how any topology reads it.

A checkpoint holds fp32 master weights and AdamW moments as *spans*: contiguous pieces of one parameter, each rank
writing those it owns straight from its live state, with no gathering (every combination of ZeRO stage and world size
tried loaded bitwise; 25 % smaller than DeepSpeed's own files, which another world size cannot load at all). What isn't
a tensor lies in `state.json`. No pickle, no conversion.

    step-000000400.a3/                 written by attempt 3
      spans-00000.safetensors ...      one a rank
      state.json                       counters, order, schedule
      manifest.json                    written last: every file's size and XXH3-128, and which file holds which span

A checkpoint *is* its manifest: every other file is written, flushed, read again and digested before the manifest
appears; a folder without a valid one doesn't exist for any reader. Frozen weights never change and are stored once a
run, in `base/`, named by their digest. `saver.py` writes checkpoints, in a run's folder or in a store alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from data.errors import UserError
from trainer.manifest import FORMAT, STATE, VERSION, contradiction, file_of, pieces
from trainer.place import DIGEST, Folder, Place

if TYPE_CHECKING:  # a supervisor and `luban status` read manifests alone, and start in half the time without torch
    from torch import Tensor

    from trainer.span_file import SpanFile

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")
FOLDER, BASE = "checkpoints", "base"
MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d{9}\.a[1-9]\d*")
"""What a checkpoint's folder is called; a copy of one that somebody has put beside it is none."""


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


class Checkpoint:
    """One checkpoint, its manifest read and checked."""

    def __init__(self, place: Place | Path, recorded: str | None = None):
        """
        Args:
            recorded: the manifest's digest as the run's record has it (`History.manifests`), where that is known.

        Raises:
            CorruptCheckpoint: there is no manifest, or it isn't the one that was written, or it contradicts itself.
            UserError: it is of a newer format.
        """
        self.place: Place = Folder(place) if isinstance(place, Path) else place
        self.name = self.place.name
        try:
            self.manifest: dict[str, Any] = json.loads(self.place.content(MANIFEST))
            claimed = self.manifest.pop("digest")
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CorruptCheckpoint(f"{self.name}: its manifest.json cannot be read ({error})") from None
        if claimed != digest_of(self.manifest):
            raise CorruptCheckpoint(f"{self.name}: its manifest.json doesn't match its own digest")
        form, version = self.manifest.get("format"), self.manifest.get("version", 0)
        if form != FORMAT or not isinstance(version, int) or version > VERSION:
            raise UserError(
                f"{self.place} is of format {form} {version}; this Luban reads {FORMAT} up to {VERSION}: use a newer "
                "Luban"
            )
        problem = contradiction(self.manifest)
        if problem:
            raise CorruptCheckpoint(f"{self.name}: its manifest.json {problem}")
        self.step: int = self.manifest["step"]
        self.attempt: int = self.manifest["attempt"]
        if folder_name(self.step, self.attempt) != self.name:
            raise CorruptCheckpoint(f"{self.name}: its manifest.json is that of {folder_name(self.step, self.attempt)}")
        if recorded not in (None, claimed):
            raise CorruptCheckpoint(f"{self.name}: its manifest.json is not the one that the run's record names")

    def problems(self, share: int = 0, shares: int = 1, past_cache: bool = False) -> list[str]:
        """What differs from the manifest, by file.

        Args:
            share: of `shares`, so that ranks can divide the reading.
            past_cache: read what is on the disk; whoever is about to load the checkpoint wants it in the cache.
        """
        found = []
        files = [(self.place, name, entry) for name, entry in sorted(self.manifest["files"].items())]
        if self.base:
            files.append((self._base, self.base, {DIGEST: self.base.partition(".")[0], "bytes": None}))
        for place, name, entry in files[share::shares]:
            try:
                size, digest = place.digest(name, past_cache)
            except OSError as error:
                found.append(f"{self.name}: {name} cannot be read ({error.strerror or error})")
                continue
            if entry["bytes"] not in (None, size):
                found.append(f"{self.name}: {name} has {size} bytes instead of {entry['bytes']}")
            elif digest != entry[DIGEST]:
                found.append(f"{self.name}: {name} has another digest than its manifest says")
        return found

    @property
    def base(self) -> str | None:
        """The file of frozen weights in `base/`, if there are any."""
        return self.manifest["base"]

    @property
    def _base(self) -> Place:
        return self.place.sibling(BASE)

    @cached_property
    def state(self) -> dict[str, Any]:
        """Counters, order and schedule."""
        return json.loads(self.place.content(STATE))

    def refuse_other_model(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError naming the first parameter that isn't in both, or has another shape than in `shapes`."""
        held = {name: tuple(shape) for name, shape in self.manifest["parameters"].items()}
        for name in [*shapes, *(name for name in held if name not in shapes)]:
            if name not in held:
                raise UserError(f"{self.place} holds no parameter {name}: it is of another model")
            if name not in shapes:
                raise UserError(f"{self.place} holds {name} {held[name]}, the model doesn't: it is of another model")
            if held[name] != tuple(shapes[name]):
                raise UserError(
                    f"{self.place} holds {name} as {held[name]}, the model wants {tuple(shapes[name])}: it is of "
                    "another model"
                )

    def read(self, name: str, shape: tuple[int, ...], start: int, count: int) -> dict[str, Tensor]:
        """The piece [start, start + count) of a parameter and its moments, from the files that hold it and no others.

        Raises:
            UserError: the parameter isn't there, or has another shape.
        """
        import torch

        held = self.manifest["parameters"].get(name)
        if held is None or tuple(held) != shape:
            self.refuse_other_model({name: shape})
        out = {part: torch.empty(count) for part in (WEIGHT, *MOMENTS)}
        for first, length, file in pieces(self.manifest["spans"][name], start, start + count):
            low, high = max(start, first), min(start + count, first + length)
            if low < high:
                for part, tensor in out.items():
                    self._open(file).read_into(f"{name}|{part}", low - first, tensor[low - start : high - start])
        return out

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, the frozen ones included; only heads of files are read."""
        learning = {name: tuple(shape) for name, shape in self.manifest["parameters"].items()}
        return learning | (self._frozen.shapes if self._frozen else {})

    def weight(self, name: str) -> Tensor:
        """One parameter whole, in fp32, frozen or not; `name` is one of `shapes`."""
        import torch

        flat = torch.empty(self.shapes[name]).view(-1)
        if name in self.manifest["parameters"]:
            for first, length, file in pieces(self.manifest["spans"][name]):
                self._open(file).read_into(f"{name}|{WEIGHT}", 0, flat[first : first + length])
        else:
            assert self._frozen is not None
            self._frozen.read_into(name, 0, flat)
        return flat.view(self.shapes[name])

    def weights(self) -> dict[str, Tensor]:
        """Every parameter whole, in fp32, the frozen ones included."""
        return {name: self.weight(name) for name in self.shapes}

    def frozen(self) -> dict[str, Tensor]:
        """The weights that don't train, in fp32."""
        return {name: self.weight(name) for name in self._frozen.shapes} if self._frozen else {}

    @cached_property
    def _frozen(self) -> SpanFile | None:
        if not self.base:
            return None
        from trainer.span_file import SpanFile

        return SpanFile.open(self._base, self.base)

    def _open(self, number: int) -> SpanFile:
        if number not in self._files:
            from trainer.span_file import SpanFile

            self._files[number] = SpanFile.open(self.place, file_of(number))
        return self._files[number]

    @cached_property
    def _files(self) -> dict[int, SpanFile]:
        return {}


def folder_name(step: int, attempt: int) -> str:
    """A checkpoint's folder: the number of applied updates, and the attempt that wrote it."""
    return f"step-{step:09d}.a{attempt}"


def step_of(name: str) -> int:
    """The number of applied updates in a checkpoint's name."""
    return int(name[5:14])


def attempt_of(name: str) -> int:
    """The attempt that wrote the checkpoint of that name."""
    return int(name.rpartition(".a")[2])


def names(run: Place | Path) -> list[str]:
    """Names of a run's checkpoints that have a manifest, oldest first (by step, then attempt)."""
    root = Folder(run) if isinstance(run, Path) else run
    folder = root.child(FOLDER)
    found = [name for name in folder.list() if NAME.fullmatch(name) and folder.child(name).holds(MANIFEST)]
    return sorted(found, key=lambda name: (step_of(name), attempt_of(name)))


def superfluous(mine: list[str], keep_last: int, keep_every: int, best: str | None) -> list[str]:
    """Those of `mine` (oldest first, each verified) that the policy doesn't keep; never the last one."""
    kept = {*mine[-max(1, keep_last) :], best}
    return [name for name in mine if name not in kept and not (keep_every and step_of(name) % keep_every == 0)]


def remove(run: Place | Path, names: Iterable[str]) -> None:
    """Remove checkpoints, the manifest first: from then on they don't exist.

    Only a name that the record has given up (`claim.Writer.retire`) may be removed: another attempt may be about to
    adopt any other.
    """
    root = Folder(run) if isinstance(run, Path) else run
    for name in names:
        root.child(FOLDER).child(name).remove(MANIFEST)


def clear_partial(run: Place | Path, dead: set[int]) -> None:
    """Remove folders that never got a manifest, left by killed attempts; those of others may yet be written."""
    folder = (Folder(run) if isinstance(run, Path) else run).child(FOLDER)
    for name in folder.list():
        if NAME.fullmatch(name) and attempt_of(name) in dead and not folder.child(name).holds(MANIFEST):
            folder.child(name).remove(MANIFEST)


def save_frozen(run: Place | Path, weights: Mapping[str, Tensor]) -> str | None:
    """Store weights that never change in `base/`, once; returns the file's name, or None if there are none."""
    if not weights:
        return None
    from safetensors.torch import save

    root = Folder(run) if isinstance(run, Path) else run
    data = save({name: weights[name].contiguous().cpu() for name in sorted(weights)})
    name = xxhash.xxh3_128_hexdigest(data) + ".safetensors"
    try:
        if not _holds(root.child(BASE), name):
            root.child(BASE).publish(name, data)
    except OSError as error:
        raise UserError(f"cannot write the frozen weights to {root.child(BASE)}: {error}") from None
    return name


def _holds(base: Place, name: str) -> bool:
    """Whether a file of frozen weights is there, and undamaged: every later checkpoint leans on it."""
    try:
        return base.digest(name)[1] == name.partition(".")[0]
    except FileNotFoundError:
        return False


def digest_of(manifest: dict[str, Any]) -> str:
    """The digest that a manifest carries of itself: the identity of its checkpoint."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
