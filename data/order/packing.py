"""Packing plans: which pieces of documents share a row, made once, kept beside the shards.

A plan is local to a shard and made for one row length, so that reading a row of it needs that shard alone. It lies in
`train-000000.pack-257.npy`: uint32, for R rows of P pieces the first piece of each row and P (R + 1 values), then each
piece's first token in the shard (P), then its tokens (P); 8 bytes a piece, mapped by the reader. What they are plans of
is in `train.pack-257.json`: algorithm, row length, the digest of the shards, and each plan's own digest and counts.
A plan that is missing, swapped or of other shards is an error that names it, and the order's fingerprint holds all of
it, so no run goes on over another plan than it began with.

One core packs 110 to 620 Mtok/s, files included, in rows that are at least 99.7 % full (`tests/bench/packing.py`).
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.errors import UserError
from data.npy_header import MOST, npy_header
from data.order import best_fit
from data.order.layout import Layout
from data.shards import SPLITS, Index, MappedShard

FORMAT, VERSION = "luban-packing", 1
ALGORITHM = "best-fit-decreasing"
PLAN_DTYPE = np.dtype("<u4")
_NAMED = 6
_LOOKED_AT = 16  # shards whose documents are counted to say how many chopping cuts, spread over the split


@dataclass(frozen=True)
class Fill:
    """How documents fill the rows of an epoch."""

    rows: int
    slots: int
    """Tokens that the rows have room for."""
    tokens: int
    """Of documents in them; a token that two rows overlap by counts twice."""
    labels: int
    """Tokens predicted from one before in the same row; in examples only those in the loss count, which are fewer."""
    documents: int
    cut: int | None
    """Documents that don't lie whole in a row; None: not known."""
    unread: int
    """Tokens in no row, as labels."""

    @property
    def utilisation(self) -> float:
        """Share of the slots that hold tokens."""
        return self.tokens / self.slots if self.slots else 0.0

    def __str__(self) -> str:
        cut = "" if self.cut is None else f"{self.cut / max(1, self.documents):.1%} of the documents cut, "
        return f"{self.rows:,} rows, {self.utilisation:.1%} full, {cut}{self.unread:,} tokens unread an epoch"


@dataclass(frozen=True)
class PlanEntry:
    """What the index says of one shard's plan."""

    shard: str
    """The shard's sha256."""
    url: str
    """The plan's file name, relative to the index."""
    file_size: int
    """Bytes."""
    sha256: str
    pieces: int
    fill: Fill


class Plan:
    """One shard's plan, mapped and checked."""

    def __init__(self, values: np.ndarray, rows: int, pieces: int):
        """From a plan file's array."""
        self.first, self.start, self.length = np.split(values, [rows + 1, rows + 1 + pieces])

    def spans(self, row: int) -> list[tuple[int, int]]:
        """First token and one past the last, in the shard, of each piece of a row, in the order in which they lie."""
        low, high = self.first[row : row + 2].tolist()
        starts = self.start[low:high].tolist()
        return [(start, start + held) for start, held in zip(starts, self.length[low:high].tolist(), strict=True)]

    def documents(self, starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The documents in `rows`: which of the rows (position in `rows`) and the document's number, a pair a piece.

        Args:
            starts: first token of each document of the shard, ascending.
        """
        low, high = self.first[rows].astype(np.int64), self.first[rows + 1].astype(np.int64)
        which, pieces = ranges(low, high)
        return which, np.searchsorted(starts, self.start[pieces], side="right") - 1

    def rows(self, starts: np.ndarray, tokens: int, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inverse: which of `documents` (position in it) and a row that holds a piece of it, a pair a piece.

        Args:
            starts: first token of each document of the shard, ascending.
            tokens: of the shard.
        """
        order = np.argsort(self.start, kind="stable")
        ends = np.append(starts[1:], tokens)
        low, high = (np.searchsorted(self.start, edge[documents], sorter=order) for edge in (starts, ends))
        which, places = ranges(low, high)
        return which, np.searchsorted(self.first, order[places], side="right") - 1


@dataclass(frozen=True)
class Packing:
    """The plans of one split for one row length."""

    folder: Path
    split: str
    row_length: int
    """Tokens of a row: the context and one, by which the pieces of a long document overlap."""
    shards: str
    """Fingerprint of the shards they are plans of."""
    plans: tuple[PlanEntry, ...]
    """One a shard, in their order."""
    find: Callable[[str], Path] | None = None
    """Where a plan of that name is; None: in the folder."""

    @property
    def fill(self) -> Fill:
        """Of an epoch."""
        return Fill(*(sum(getattr(plan.fill, each.name) for plan in self.plans) for each in fields(Fill)))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the shards, the row length, the algorithm and every plan: the identity of the rows."""
        said = [ALGORITHM, self.row_length, self.shards, [[plan.shard, plan.sha256] for plan in self.plans]]
        return hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).hexdigest()

    def layout(self) -> Layout:
        """Its rows, for an order."""
        return Layout.packed(self.shards, (plan.fill.rows for plan in self.plans), self.fingerprint, self.row_length)

    def plan(self, shard: int) -> Plan:
        """Map a shard's plan.

        Raises:
            UserError: it is missing, or has other bytes than when it was written.
        """
        said = self.plans[shard]
        path = self.find(said.url) if self.find else self.folder / said.url
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"cannot read the packing plan {path}: {error.strerror or error}. {self._mend()}") from None
        if found != said.sha256:
            other = next((plan.url for plan in self.plans if plan.sha256 == found), None)
            why = f"it is {other}" if other else "its sha256 differs"
            raise UserError(f"{path} is not the packing plan that was written there: {why}. {self._mend()}")
        with path.open("rb") as file:
            dtype, shape, start = npy_header(file.read(MOST))
        values = np.memmap(path, dtype, "r", start, shape)
        return Plan(np.asarray(values), said.fill.rows, said.pieces)

    def to_json(self) -> dict[str, Any]:
        """The content of its file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "algorithm": ALGORITHM,
            "split": self.split,
            "row_length": self.row_length,
            "shards": self.shards,
            "plans": [asdict(plan) for plan in self.plans],
        }

    def _mend(self) -> str:
        return f"Make the plans again: {_command(self.folder, self.row_length)}"


def load_packing(index: Index, row_length: int, find: Callable[[str], Path] | None = None) -> Packing:
    """The plans of a split for rows of `row_length` tokens. A plan is there with its recorded size; its bytes are
    compared when a row of it is read.

    Args:
        find: gives a plan of a dataset that is elsewhere, by its name, when it is asked for.

    Raises:
        UserError: there are none, or of other shards than these, or one is missing or of another size, or the file that
            lists them is damaged or newer.
    """
    path = index.folder / file_name(index.split, row_length)
    command = _command(index.folder, row_length)
    try:
        said = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        lengths = ", ".join(str(length - 1) for length in row_lengths(index.folder, index.split)) or "none"
        raise UserError(
            f"{index.folder} has no packing plans for a context of {row_length - 1} (of {index.split} there are plans "
            f"for: {lengths}). Make them: {command}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}. Make the plans again: {command}") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise UserError(f"{path} lists no packing plans: its format should be {FORMAT!r}. Make them: {command}")
    if said.get("version") != VERSION or said.get("algorithm") != ALGORITHM:
        raise UserError(
            f"{path} has version {said.get('version')} of {FORMAT}, by {said.get('algorithm')}; this Luban reads "
            f"version {VERSION}, by {ALGORITHM}. Use the Luban that wrote it, or make the plans again: {command}"
        )
    try:
        plans = tuple(PlanEntry(**{**plan, "fill": Fill(**plan["fill"])}) for plan in said["plans"])
        packing = Packing(index.folder, said["split"], said["row_length"], said["shards"], plans, find)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}). Make the plans again: {command}"
        ) from None
    own = [shard.sha256 for shard in index.shards]
    if (packing.split, packing.row_length, packing.shards) != (index.split, row_length, index.fingerprint) or [
        plan.shard for plan in packing.plans
    ] != own:
        raise UserError(
            f"{path} lists plans of other shards or rows than {index.split} of this dataset: split {packing.split}, "
            f"rows of {packing.row_length}, shards {packing.shards[:12]}, not {index.split}, {row_length}, "
            f"{index.fingerprint[:12]}. Make them again: {command}"
        )
    here = plans if find is None else ()
    problems = [problem for plan in here if (problem := _size_problem(index.folder, plan))]
    if problems:
        raise UserError("\n".join(problems[:_NAMED]) + f"\nMake the plans again: {command}")
    return packing


def row_lengths(folder: Path, split: str) -> list[int]:
    """The row lengths for which a split has plans, ascending."""
    names = (path.name.removeprefix(f"{split}.pack-") for path in folder.glob(f"{split}.pack-*.json"))
    return sorted(int(number) for name in names if (number := name.removesuffix(".json")).isdigit())


def contexts(folder: Path) -> set[int]:
    """The contexts for which every split has plans."""
    return {length - 1 for length in set.intersection(*(set(row_lengths(folder, split)) for split in SPLITS))}


def file_name(split: str, row_length: int) -> str:
    """Of the list of a split's plans."""
    return f"{split}.pack-{row_length}.json"


def fill(index: Index, context: int, packing: Literal["chop", "best_fit"], here: bool = True,
         overlap: int = 1) -> Fill:  # fmt: skip
    """How an epoch's rows are filled.

    For chopped text, documents are looked at in 16 shards at most, spread over the split, and the cut ones scaled up
    from those; which ones are cut changes from epoch to epoch.

    Args:
        context: tokens from one row of chopped text to the next; those of a plan hold one more.
        here: shards can be looked at; else it isn't known how many documents chopping cuts.
        overlap: tokens of chopped text that a row shares with the next.

    Raises:
        UserError: as `load_packing`.
    """
    if packing == "best_fit":
        return load_packing(index, context + 1, None if here else index.folder.joinpath).fill
    if index.kind == "examples":
        slots = index.documents * (context + 1)
        return Fill(index.documents, slots, index.tokens, index.tokens - index.documents, index.documents, 0, 0)
    length = context + overlap
    rows = sum(max(0, shard.tokens - overlap) // context for shard in index.shards)
    count = len(index.shards)
    cut = seen = 0
    for number in spread(count, _LOOKED_AT) if here else ():
        shard = index.shards[number]
        starts = MappedShard(index.folder, shard, index.dtype).document_starts()
        cut += best_fit.chopped(starts, shard.tokens, length, overlap)
        seen += len(starts)
    return Fill(
        rows=rows,
        slots=rows * length,
        tokens=rows * length,
        labels=rows * (length - 1),
        documents=index.documents,
        cut=round(cut / seen * index.documents) if seen else None,
        unread=sum(max(0, shard.tokens - overlap) for shard in index.shards) - rows * context,
    )


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly spread."""
    return sorted({step * count // min(count, most) for step in range(min(count, most))})


def _size_problem(folder: Path, plan: PlanEntry) -> str | None:
    try:
        size = (folder / plan.url).stat().st_size
    except OSError as error:
        return f"cannot read the packing plan {folder / plan.url}: {error.strerror or error}"
    if size == plan.file_size:
        return None
    return f"the packing plan {folder / plan.url} is {size:,} bytes long, but was written with {plan.file_size:,}"


def ranges(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every integer of the ranges [low, high), with the number of its range: two int64 arrays."""
    counts = high - low
    which = np.repeat(np.arange(len(low)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return which, low[which] + within


def _command(folder: Path, row_length: int) -> str:
    return f"luban data pack {folder} --context {row_length - 1}"
