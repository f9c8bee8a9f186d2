"""Every byte of a dataset read again and compared with what it was written with, by all cores.

Shards against their indexes, all other files against `dataset.json`, each shard's document table and packing plans
against the shard. Hashing takes nearly all of it (some 1.5 GB/s a core) and lets threads run beside one another.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np

from data.dataset import Dataset
from data.errors import UserError
from data.order.packing import load_packing, row_lengths
from data.progress import Progress, Silent
from data.shards import SPLITS, Index

_READ_BYTES = 1 << 22


def faults(dataset: Dataset, progress: Progress | None = None) -> list[str]:
    """What is wrong, one line a fault; nothing, where every file is as it was written.

    Shards of a remote dataset that aren't in the cache are read from their origin and not kept.
    """
    progress = progress or Silent()
    lock = Lock()

    def done(count: int) -> None:
        with lock:
            progress.advance(count)

    found: list[str] = []
    indexes = [index for split in SPLITS if (index := _index(dataset, split, found)) is not None]
    names = sorted(dataset.info.get("files", {}))
    total = sum(shard.file_size for index in indexes for shard in index.shards)
    total += sum(_size(dataset.folder / name) for name in names)
    progress.begin("check", total, "bytes")
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        files = [threads.submit(_file_fault, dataset, name, done) for name in names]
        shards = [
            (index, number, threads.submit(_shard_fault, dataset, index, number, done))
            for index in indexes
            for number in range(len(index.shards))
        ]
        found += [fault for each in files if (fault := each.result())]
        damaged = {name for name in names if any(fault.startswith(f"{name} ") for fault in found)}
        for index, number, each in shards:
            if fault := each.result():
                found.append(fault)
            elif _table(index, number) not in damaged:
                found += _table_faults(dataset, index, number)
        for index in indexes:
            found += _plan_faults(dataset, index, damaged)
    progress.end(f"{total:,} bytes, {len(found)} fault{'' if len(found) == 1 else 's'}")
    return found


def _index(dataset: Dataset, split: str, found: list[str]) -> Index | None:
    """The index of a split, also where shards are missing: they are looked at one by one."""
    try:
        return dataset.index(split)
    except UserError as error:
        with suppress(UserError):
            index = Index.load(dataset.folder, split, shards_here=False)
            if index.fingerprint == dataset.info["splits"][split]["fingerprint"]:
                return index
        found.append(str(error))
        return None


def _file_fault(dataset: Dataset, name: str, done: Callable[[int], None]) -> str | None:
    if dataset.remote:
        return dataset.remote.damaged_file(name)
    try:
        same = _sha256(dataset.folder / name, done) == dataset.info["files"][name]
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"can't be read ({error.strerror or error})"
        return f"{name} in {dataset.folder} {what}"
    return None if same else f"{name} in {dataset.folder} is not the file that was written"


def _shard_fault(dataset: Dataset, index: Index, number: int, done: Callable[[int], None]) -> str | None:
    entry = index.shards[number]
    return dataset.remote.problem(entry) if dataset.remote else index.problem(entry, done)


def _table_faults(dataset: Dataset, index: Index, number: int) -> Iterator[str]:
    from pyarrow import parquet

    entry = index.shards[number]
    try:
        path = dataset.file(_table(index, number))
        starts = parquet.read_table(path, columns=["start"])["start"].to_numpy()
    except (UserError, OSError, ValueError, KeyError) as error:
        yield f"cannot read the document table of {entry.url} in {dataset.place}: {error}"
        return
    if not np.array_equal(dataset.shard(index, number).document_starts(), starts):
        yield f"the document table of {entry.url} in {dataset.place} doesn't match the shard"


def _plan_faults(dataset: Dataset, index: Index, damaged: set[str]) -> Iterator[str]:
    for row_length in row_lengths(dataset.folder, index.split):
        try:
            packing = load_packing(index, row_length, dataset.file if dataset.remote else None)
        except UserError as error:
            yield str(error)
            continue
        for number, plan in enumerate(packing.plans):
            if plan.url not in damaged:
                try:
                    packing.plan(number)
                except UserError as error:
                    yield str(error)


def _table(index: Index, number: int) -> str:
    return f"{index.shards[number].url.removesuffix('.tar')}.docs.parquet"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _sha256(path: Path, done: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            done(len(piece))
    return digest.hexdigest()
