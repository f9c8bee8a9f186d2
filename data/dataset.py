"""A dataset: a folder of shards, tables, indexes and a tokenizer, and `dataset.json`, which says what it is.

That file is written last: without it the folder is not a dataset but a build that was interrupted. Everything in
it is the same for the same recipe, input and library versions: no dates, durations or host names.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.progress import Progress
from data.remote.origin import is_remote
from data.remote.remote import Access, Remote, known_info, open_remote, refuse_paths
from data.shards import Index, MappedShard
from data.tokenizer.tokenizer import Tokenizer

FORMAT = "luban-dataset"
VERSION = 1
FILE = "dataset.json"
FETCHED_AT_ONCE = 8  # small files


@dataclass(frozen=True)
class DocumentRow:
    """One line of a shard's document table."""

    id: str
    source: str
    shard: int
    """Number of the shard in its split."""
    start: int
    """First token, counted from the shard's."""
    tokens: int
    """How many, EOS included."""
    text_bytes: int
    digest: str
    """xxh3_128 of the text, hex."""
    about: dict[str, Any] = field(default_factory=dict)
    """What an evaluation needs beside an example's tokens: a question's id and answers, a target's references."""


@dataclass(frozen=True)
class Dataset:
    """A complete dataset."""

    folder: Path
    """Of a remote one: that of the cache, which holds what has come."""
    info: dict[str, Any]
    """The content of `dataset.json`."""
    remote: Remote | None = None
    """Where what isn't in the folder comes from."""

    @property
    def place(self) -> str:
        """Its folder or its URL, for messages."""
        return self.remote.origin.name if self.remote else str(self.folder)

    @property
    def name(self) -> str:
        """Its name in the recipe that built it."""
        return self.info["name"]

    @property
    def kind(self) -> str:
        """ "text" or "examples"."""
        return self.info["kind"]

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text a token stands for on average, over all splits."""
        return self.info["bytes_per_token"]

    def index(self, split: str) -> Index:
        """The shards of "train", "valid" or "heldout" (none, where the split is empty).

        Raises:
            UserError: no such split, a shard missing or of another size, an index of another build.
        """
        if self.remote and f"{split}.index.json" in self.info.get("files", {}):
            self.remote.file(f"{split}.index.json")
        index = Index.load(self.folder, split, shards_here=self.remote is None)
        if self.remote:
            refuse_paths((shard.url for shard in index.shards), self.place)
        recorded = self.info["splits"].get(split, {}).get("fingerprint")
        if index.fingerprint != recorded:
            raise UserError(
                f"{split}.index.json in {self.place} belongs to another build than its {FILE}: "
                f"{index.fingerprint[:12]} there, {str(recorded)[:12]} here. Copy the dataset again, or rebuild it."
            )
        return index

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the shards."""
        return self._tokenizer

    def file(self, name: str) -> Path:
        """A file of the dataset other than a shard, fetched if need be; of a local one it may not exist."""
        return self.remote.file(name) if self.remote else self.folder / name

    def fetch(self, names: Sequence[str]) -> None:
        """Have these files here, several fetched at a time; nothing to do for a local dataset."""
        if self.remote:
            with ThreadPoolExecutor(FETCHED_AT_ONCE) as threads:
                list(threads.map(self.remote.file, names))

    def shard(self, index: Index, number: int) -> MappedShard:
        """A shard of one of the splits, mapped; a remote one is fetched whole, and waited for.

        Raises:
            UserError: it is missing, or another than was written.
        """
        entry = index.shards[number]
        if self.remote is None:
            return MappedShard(self.folder, entry, index.dtype)
        held = self.remote.whole(entry)
        try:
            return MappedShard(self.folder, entry, index.dtype)  # what is mapped stays, also when it is evicted
        finally:
            held.release()

    def rows(self, split: str) -> Iterator[DocumentRow]:
        """The split's documents in the order of their tokens."""
        from pyarrow import parquet

        for number, shard in enumerate(self.index(split).shards):
            path = self.file(f"{shard.url.removesuffix('.tar')}.docs.parquet")
            try:
                table = parquet.read_table(path)
            except FileNotFoundError:
                raise UserError(f"the document table {path.name} is missing from {self.place}") from None
            except (OSError, ValueError) as error:
                raise UserError(f"cannot read the document table {path}: {error}") from None
            for row in table.to_pylist():
                about = json.loads(row.get("about") or "{}")
                yield DocumentRow(
                    row["id"], row["source"], number, row["start"], row["tokens"], row["bytes"], row["xxh3"], about
                )

    def documents(self, split: str) -> Iterator[tuple[DocumentRow, np.ndarray]]:
        """Each document of the split with its tokens, EOS included."""
        index = self.index(split)
        shard: tuple[int, MappedShard] | None = None
        for row in self.rows(split):
            if shard is None or shard[0] != row.shard:
                shard = (row.shard, self.shard(index, row.shard))
            yield row, shard[1].tokens(row.start, row.start + row.tokens)

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Re-read every file against its digest; what is wrong, one line each (`data/check.py`)."""
        from data.check import faults  # it looks at plans too, which know datasets

        return faults(self, progress)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a dataset but its shards, which their indexes vouch for, and `dataset.json`."""
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".tar" and path.name != FILE]
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if not path.name.startswith(".")
    }


def load_dataset(place: Path | str, access: Access | None = None) -> Dataset:
    """Open a complete dataset: a folder, or a URL or pipe (`data/remote/origin.py`). Shards are looked at by `index`.

    Args:
        access: how a remote one is fetched and kept.

    Raises:
        UserError: no dataset there, an interrupted build, a newer version, a tokenizer other than the shards'.
        Unreachable: a remote one can't be had for now.
    """
    remote = None
    if is_remote(place):
        info, remote = open_remote(str(place), access or Access())
        folder, shown = remote.folder, f"{FILE} from {remote.origin.name}"
    else:
        folder = Path(place).expanduser()
        info, shown = _read(folder), str(folder / FILE)
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise UserError(f"{shown} doesn't describe a Luban dataset: its format should be {FORMAT!r}")
    if info.get("version") != VERSION:
        raise UserError(
            f"{shown} has version {info.get('version')} of {FORMAT}; this Luban reads version {VERSION}. "
            "Use the Luban that wrote it, or rebuild the dataset."
        )
    dataset = Dataset(folder, info, remote)
    _check_tokenizer(dataset)
    return dataset


def _read(folder: Path) -> Any:
    path = folder / FILE
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(_absent(folder)) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def known(place: str, cache: Path) -> dict[str, Any] | None:
    """What `dataset.json` says, without asking the network: of a remote dataset, what a node learnt when it opened it.

    Raises:
        UserError: a dataset of a folder is damaged.
    """
    if is_remote(place):
        return known_info(place, cache)
    return load_dataset(place).info if (Path(place) / FILE).is_file() else None


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `dataset.json` says of its tokenizer."""
    return {
        "make": tokenizer.make,
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "padded_vocab_size": tokenizer.padded_vocab_size,
        "special": tokenizer.special,
        "losses": list(tokenizer.losses),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in tokenizer.files().items()},
    }


def _check_tokenizer(dataset: Dataset) -> None:
    """Compare bytes first: parsing the model is only needed to say what differs."""
    recorded = dataset.info["tokenizer"]
    differing = []
    for name, digest in recorded["files"].items():
        path = dataset.folder / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"cannot read the dataset's tokenizer {path}: {error.strerror or error}") from None
        if found != digest:
            differing.append(name)
    if not differing:
        return
    fingerprint = dataset.tokenizer().fingerprint
    if fingerprint != recorded["fingerprint"]:
        raise UserError(
            f"{', '.join(differing)} in {dataset.folder} is not the tokenizer that made these shards: its fingerprint "
            f"is {fingerprint[:12]}, theirs {recorded['fingerprint'][:12]}. Put the right one back, or rebuild the "
            "dataset."
        )


def _absent(folder: Path) -> str:
    if not folder.is_dir():
        if (meant := folder.parent / "datasets" / folder.name).is_dir():
            return f"there is no dataset at {folder}. Is it {meant} that you mean?"
        return f"there is no dataset at {folder}. Build one with: luban data build RECIPE --out {folder}"
    if any(folder.glob("*.tar")) or (folder / ".building").is_dir():
        return (
            f"the dataset {folder} is incomplete: its build was interrupted before {FILE} was written. Build it again."
        )
    return f"{folder} is not a dataset: it holds no {FILE}"
