"""Makes packing plans: one a shard, written beside it, and the file that lists them (`packing.py` is their format)."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from data.build.workplace import in_order, pool
from data.dataset import FILE, Dataset, load_dataset
from data.errors import UserError
from data.order import best_fit
from data.order.packing import PLAN_DTYPE, Fill, Packing, PlanEntry, file_name, fill
from data.progress import Progress, Silent
from data.publish import locked, published, write_json
from data.shards import SPLITS, Index, MappedShard, ShardEntry

_WORTH_A_POOL = 1 << 28  # tokens that one process packs in about a second


def write_plan(folder: Path, shard: ShardEntry, dtype: np.dtype, kind: str, row_length: int) -> PlanEntry:
    """Make one shard's plan and write it beside the shard.

    Raises:
        UserError: an example is longer than a row (it is never cut), or the shard too large for 32-bit places.
    """
    if shard.tokens > np.iinfo(PLAN_DTYPE).max:
        raise UserError(f"{shard.url} in {folder} has {shard.tokens:,} tokens; packing takes shards below 2^32")
    starts = MappedShard(folder, shard, dtype).document_starts()
    longest = int(np.diff(starts, append=shard.tokens).max(initial=0))
    if kind == "examples" and longest > row_length:
        raise UserError(
            f"the longest example of {shard.url} in {folder} has {longest} tokens, and rows of a context of "
            f"{row_length - 1} take {row_length}: pack for a context of at least {longest - 1}, or build the dataset "
            f"with task.max_tokens={row_length}"
        )
    firsts, lengths = best_fit.cut(starts, shard.tokens, row_length)
    row = best_fit.best_fit(lengths, row_length)
    order = np.lexsort((firsts, row))
    pieces = np.bincount(row)
    values = np.concatenate(([0], np.cumsum(pieces), firsts[order], lengths[order])).astype(PLAN_DTYPE)
    url = f"{shard.url.removesuffix('.tar')}.pack-{row_length}.npy"
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    with published(folder / url) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    cut = int((np.diff(starts, append=shard.tokens) > row_length).sum())
    fill = Fill(
        rows=len(pieces),
        slots=len(pieces) * row_length,
        tokens=int(lengths.sum()),
        labels=int(lengths.sum()) - len(lengths),
        documents=len(starts),
        cut=cut,
        unread=0,
    )
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    return PlanEntry(shard.sha256, url, buffer.tell(), digest, len(lengths), fill)


def pack_split(index: Index, row_length: int, executor: Executor, ahead: int, done: Callable[[int], None]) -> Packing:
    """Make the plans of a split, one after another or by several processes, and the file that lists them.

    Args:
        ahead: shards under way at a time.
        done: called with the tokens of each shard that is done.

    Raises:
        UserError: as `write_plan`.
    """
    calls = ((write_plan, index.folder, shard, index.dtype, index.kind, row_length) for shard in index.shards)
    plans: list[PlanEntry] = []
    try:
        for shard, plan in zip(index.shards, in_order(executor, calls, ahead), strict=True):
            plans.append(plan)
            done(shard.tokens)
    except BaseException:
        for plan in plans:
            (index.folder / plan.url).unlink(missing_ok=True)
        raise
    packing = Packing(index.folder, index.split, row_length, index.fingerprint, tuple(plans))
    write_json(index.folder / file_name(index.split, row_length), packing.to_json())
    return packing


def pack(
    indexes: Sequence[Index], contexts: Iterable[int], executor: Executor, ahead: int, progress: Progress | None = None
) -> list[str]:
    """Make the plans of several splits for several contexts; the names of the files written.

    Raises:
        UserError: as `write_plan`.
    """
    progress = progress or Silent()
    names = []
    for context in sorted(set(contexts)):
        progress.begin(f"pack for a context of {context}", sum(index.tokens for index in indexes), "tokens")
        lines = []
        for index in indexes:
            packing = pack_split(index, context + 1, executor, ahead, progress.advance)
            names += [file_name(index.split, context + 1), *(plan.url for plan in packing.plans)]
            if packing.plans:
                lines.append(f"  {index.split:<8} best fit  {packing.fill}")
                plain = "chopped " if index.kind == "text" else "unpacked"
                lines.append(f"  {'':<8} {plain}  {fill(index, context, 'chop')}")
        progress.end(f"{sum(index.tokens for index in indexes):,} tokens")
        for line in lines:
            progress.say(line)
    return names


def pack_dataset(
    folder: Path | str, wanted: Iterable[int], workers: int = 0, progress: Progress | None = None
) -> Dataset:
    """Pack a dataset that is there for the contexts `wanted`; its `dataset.json` is otherwise the same.

    Args:
        workers: processes; 0: one a core. A handful of shards is packed in this one: that is quicker than starting any.

    Raises:
        UserError: as `write_plan`, or no dataset there, another command adds plans just now, or it can't be written.
    """
    dataset = load_dataset(folder)
    if dataset.remote:
        raise UserError(
            f"{dataset.place} can only be read here: add packing plans where it was built, and copy it anew"
        )
    workers = workers or os.cpu_count() or 1
    if dataset.index("train").tokens < _WORTH_A_POOL:
        workers = 1
    lock = dataset.folder / ".packing.tmp"
    with locked(lock, lambda who: _busy(dataset, who)), pool(workers) as executor:
        dataset = load_dataset(dataset.folder)
        indexes = [dataset.index(split) for split in SPLITS]
        try:
            names = pack(indexes, wanted, executor, 2 * workers + 2, progress)
            files = dict(dataset.info["files"])
            for name in names:
                files[name] = hashlib.sha256((dataset.folder / name).read_bytes()).hexdigest()
            info = {**dataset.info, "files": files}
            write_json(dataset.folder / FILE, info)
        except OSError as error:
            raise UserError(f"cannot write plans to {dataset.folder}: {error.strerror or error}") from None
    return Dataset(dataset.folder, info)


def _busy(dataset: Dataset, who: str) -> str:
    return f"another command ({who}) is adding plans to {dataset.folder}. Wait for it."
