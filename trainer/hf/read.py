"""A local Hugging Face directory as the weights a run starts from: names and shapes first, then tensor by tensor.

Safetensors, one file or shards, are mapped; a pytorch_model.bin is unpickled by torch with `weights_only=True`, which
builds tensors and nothing else, and mapped too where its format allows. So no more than one tensor is held in fp32 at
a time, beside the model itself. Names are brought to those of the family's class with a head: bare models lack the
body's prefix, BERT files of 2018 say gamma and beta, and some files hold buffers that nothing learns.
"""

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from data.errors import UserError
from data.tokenizer.tokenizer import Tokenizer
from trainer.hf import config as hf_config
from trainer.hf.families import Family
from trainer.models.shapes import parameter_shapes
from trainer.recipe import Model, Recipe
from trainer.recipe_adapter import Adapter

if TYPE_CHECKING:  # a command that only looks for a directory starts without torch
    from torch import Tensor

SAFE, BIN = "model.safetensors", "pytorch_model.bin"
_FORMATS = (SAFE, BIN)
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Entry:
    """One tensor of a directory."""

    file: str
    key: str
    """Its name in the file."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Directory:
    """A model as `save_pretrained` leaves it. Reads nothing but JSON until it is asked for weights."""

    path: Path
    known: str | None = None
    """The digest that it must have, where a run has begun from it."""

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.path)

    @staticmethod
    def parse(text: str) -> "Directory | None":
        """The directory that `text` names, pinned or not; None where it is no model's directory."""
        pinned = re.fullmatch(r"(.*)@sha256:([0-9a-f]{64})", text)
        if pinned:
            return Directory(Path(pinned[1]), pinned[2])
        path = Path(text).expanduser()
        return Directory(path) if (path / hf_config.FILE).is_file() else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.json says. Raises UserError where there is none."""
        return hf_config.read_config(self.path)

    @cached_property
    def family(self) -> Family:
        """Raises UserError for an architecture that Luban hasn't."""
        return hf_config.family_of(self.config, str(self.path))

    def model(self) -> tuple[Model, list[str]]:
        """The `model` section it wants, and what a person should hear. Raises UserError as `hf_config.model_of`."""
        return hf_config.model_of(self.config, str(self.path))

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Names of the files with weights: safetensors, else pytorch_model.bin.

        Raises:
            UserError: there are none, or a shard of the index is missing.
        """
        for name in _FORMATS:
            index = self.path / f"{name}.index.json"
            if index.is_file():
                return self._shards(index)
            if (self.path / name).is_file():
                return (name,)
        others = sorted(
            path.name for path in self.path.glob("*") if path.suffix in (".h5", ".msgpack", ".gguf", ".pth")
        )
        held = f"; it holds {', '.join(others)}, which Luban doesn't read" if others else ""
        raise UserError(f"{self.path} holds neither {SAFE} nor {BIN}, whole or in shards with an index{held}")

    def _shards(self, index: Path) -> tuple[str, ...]:
        try:
            named = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"cannot read {index}: {error}") from None
        odd = [name for name in named if not isinstance(name, str) or Path(name).name != name]
        if odd:
            raise UserError(f"{index} names {odd[0]!r}, which is no file beside it")
        missing = [name for name in named if not (self.path / name).is_file()]
        if missing:
            raise UserError(f"{self.path} lacks {', '.join(missing)}, of {len(named)} shards that {index.name} names")
        return tuple(named)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over config.json and the XXH3-128 of each file of weights: what a run's record calls these weights.

        Reads every byte, about 1 s for 3 GB that the page cache holds.
        """
        whole = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in self.files:
            digest = xxhash.xxh3_128()
            with (self.path / name).open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            whole.update(f"{name}\0{digest.hexdigest()}\0".encode())
        return whole.hexdigest()

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every tensor by the name that Luban's model has for it; buffers that nothing learns are left out.

        Raises:
            UserError: a file is damaged, or two tensors mean the same parameter.
        """
        found: dict[str, Entry] = {}
        for file in self.files:
            for key, shape in self._listed(file):
                if any(fnmatchcase(key, pattern) for pattern in self.family.dropped):
                    continue
                if key in found:
                    raise UserError(f"{self.path} holds {key} in {found[key].file} and again in {file}")
                found[key] = Entry(file, key, shape)
        if not found:
            raise UserError(f"{self.path} holds no tensor in {', '.join(self.files)}")
        named: dict[str, Entry] = {}
        whole = _has_prefix(self.family, found)
        for key, entry in found.items():
            name = _renamed(self.family, key, whole)
            if name in named:
                raise UserError(f"{self.path}: {key} and {named[name].key} both mean {name}")
            named[name] = entry
        return named

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every parameter that Luban's model has, by its name there."""
        return {name: entry.shape for name, entry in self._own.items()}

    def adapter(self) -> Adapter:
        """None: a directory with one holds the base model's weights too, or is given by adapter.source."""
        return Adapter()

    def weights(self, recipe: Recipe) -> "tuple[Mapping[str, tuple[int, ...]], Callable[[str], Tensor]]":
        """Every parameter's shape, and what reads one."""
        return self.shapes(), self.weight

    def weight(self, name: str) -> "Tensor":
        """A parameter, in fp32. Raises UserError where it isn't one of floating point numbers."""
        entry = self.entries[name]
        tensor = self._open(entry.file).tensor(entry.key)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{self.path} holds values in {name} that are not finite: such weights can't be trained")
        if not tensor.is_floating_point():
            raise UserError(
                f"{self.path} holds {name} as {tensor.dtype}: quantized weights can't be trained, take the directory "
                "that they were made from"
            )
        return tensor.float()

    @cached_property
    def _own(self) -> dict[str, Entry]:
        return {name: entry for name, entry in self.entries.items() if name not in self._copies}

    @cached_property
    def _copies(self) -> dict[str, str]:
        """Name -> the parameter that it must be a copy of, of those that are there."""
        alias, owner = self.family.tied
        tied = {alias: owner} if self.model()[0].tie_word_embeddings else {}
        return {name: other for name, other in {**self.family.copies, **tied}.items() if name in self.entries}

    def check(self) -> None:
        """Raise UserError where it has changed since it was pinned, or what should be copies of a tensor aren't."""
        if self.known is not None and self.digest != self.known:
            raise UserError(
                f"{self.path} has changed since this run was set up: its digest is {self.digest[:12]}, and was "
                f"{self.known[:12]}. Put the old files back, or start another run from the new ones"
            )
        for name, owner in self._copies.items():
            if owner in self.entries and not self.weight(name).equal(self.weight(owner)):
                raise UserError(
                    f"{self.path} holds {name} and {owner} with different values, and its {hf_config.FILE} says that "
                    "they are one (tie_word_embeddings)"
                )

    def pinned(self) -> str:
        """Its path and digest."""
        return f"{self.path.absolute()}@sha256:{self.digest}"

    def refuse_other_tokenizer(self, tokenizer: Tokenizer, dataset: str) -> str | None:
        """Raise UserError unless the dataset's tokenizer gives the ids that these weights know."""
        mend = f"build {dataset} with tokenizer.reuse={self.path}"
        try:
            own = Tokenizer.load(self.path, tokenizer.special)
        except UserError as error:
            return f"whether the tokenizer of {dataset} is that of {self.path} can't be told: {error}"
        if own.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the weights of {self.path} know the ids of its own tokenizer ({own.make}, {own.vocab_size:,} pieces, "
                f"{own.fingerprint[:12]}), and {dataset} was made with another ({tokenizer.make}, "
                f"{tokenizer.vocab_size:,} pieces, {tokenizer.fingerprint[:12]}): {mend}"
            )
        return None

    def refuse_other_model(self, config: Model, vocab_size: int) -> None:
        """Raise UserError where its names and shapes below the head aren't those of `config`; safetensors need no torch
        for it."""
        from trainer.origin import refuse_unlike

        heads, wanted = self.family.heads, parameter_shapes(config, vocab_size)
        refuse_unlike(config, heads, self.name, wanted, self.shapes())

    def ancestry(self) -> dict[str, Any]:
        """Which directory, and which weights in it."""
        digest = self.known or self.digest
        return {"checkpoint": f"{self.path}@sha256:{digest}", "manifest": digest, "model_type": self.family.model_type}

    def _listed(self, file: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        path = self.path / file
        if path.suffix != ".safetensors":
            yield from self._open(file).shapes()
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as header:  # a command that starts a run reads it without torch
                names = header.keys()
                yield from [(name, tuple(header.get_slice(name).get_shape())) for name in names]
        except (SafetensorError, OSError) as error:
            raise UserError(_unreadable(path, error)) from None

    def _open(self, file: str) -> "_Weights":
        if file not in self._files:
            self._files.clear()  # one at a time: a .bin that can't be mapped is all in memory
            self._files[file] = _Weights(self.path / file)
        return self._files[file]

    @cached_property
    def _files(self) -> "dict[str, _Weights]":
        return {}


class _Weights:
    """A file of weights, its tensors mapped."""

    def __init__(self, path: Path):
        """Raises UserError where it can't be read."""
        import torch

        self._safe, self._held = None, {}
        try:
            if path.suffix == ".safetensors":
                from safetensors import safe_open

                self._safe = safe_open(path, "pt")
                self._names = list(self._safe.keys())
                return
            try:
                self._held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before torch 1.6 can't be mapped
                self._held = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # its words advise to unpickle anything
            raise UserError(
                f"{path} can't be read as weights: it is damaged, or holds more than tensors, which Luban doesn't "
                "unpickle. Take the model's safetensors"
            ) from None
        except Exception as error:  # torch and safetensors raise many kinds of their own
            raise UserError(_unreadable(path, error)) from None
        if not isinstance(self._held, dict) or not all(isinstance(each, torch.Tensor) for each in self._held.values()):
            raise UserError(f"{path} doesn't hold a model's weights by name")
        self._names = list(self._held)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of each tensor."""
        for name in self._names:
            yield name, tuple(self._safe.get_slice(name).get_shape() if self._safe else self._held[name].shape)

    def tensor(self, name: str) -> "Tensor":
        """One tensor."""
        return self._safe.get_tensor(name) if self._safe else self._held[name]


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path} can't be read as weights: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _has_prefix(family: Family, keys: dict[str, Entry]) -> bool:
    """Whether the body's parameters are named as under a head."""
    return not family.prefix or any(key.startswith(family.prefix) for key in keys)


def _renamed(family: Family, key: str, whole: bool) -> str:
    if family.name == "bert":
        key = re.sub(r"LayerNorm\.(gamma|beta)$", _of_norm, key)
    if not whole and not key.startswith(family.heads):
        key = family.prefix + key
    return key


def _of_norm(match: re.Match[str]) -> str:
    return "LayerNorm.weight" if match[1] == "gamma" else "LayerNorm.bias"
