"""The parts of a build on disk: Arrow files, a row a document, that appear when they are whole and are never redone.

`000012.part` holds what some 2 MB of input became: texts, digests, band keys; `000012.tokens` the tokens of those of
its rows that survive. What was dropped on the way is beside it, and was there first: a part that is there is all
there. The files are mapped, not read: a pass over one column of all parts costs that column's bytes.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.publish import published

_ABOUT = b"luban"


@dataclass(frozen=True)
class Drop:
    """One document that doesn't reach the dataset."""

    stage: str
    rule: str
    id: str
    bytes: int
    sample: str = ""
    """The beginning of its text, where that is at hand."""


def part_file(work: Path, part: int) -> Path:
    """Where a part's rows are."""
    return work / f"{part:06d}.part"


def token_file(work: Path, part: int) -> Path:
    """Where the tokens of a part's rows are."""
    return work / f"{part:06d}.tokens"


def write_part(path: Path, columns: dict[str, Any], about: dict[str, Any], drops: Sequence[Drop]) -> None:
    """Publish columns of one length (Arrow arrays), what else is to be known of them, and what was dropped."""
    import pyarrow
    from pyarrow import ipc

    with published(_drop_file(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(vars(drop), ensure_ascii=False) + "\n" for drop in drops)
    batch = pyarrow.record_batch(list(columns.values()), list(columns))
    batch = batch.replace_schema_metadata({_ABOUT: json.dumps(about)})
    with published(path) as temporary, temporary.open("wb") as file, ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def read_part(path: Path) -> Any:
    """A part's rows as an Arrow record batch over the mapped file: a column costs memory when it is looked at."""
    import pyarrow
    from pyarrow import ipc

    with pyarrow.memory_map(str(path)) as file:
        return ipc.open_file(file).get_batch(0)


def about_part(path: Path) -> dict[str, Any] | None:
    """What `write_part` was told beside the columns; none if the part isn't there."""
    from pyarrow import ipc

    try:
        with path.open("rb") as file:
            return json.loads(ipc.open_file(file).schema.metadata[_ABOUT])
    except FileNotFoundError:
        return None


def read_drops(path: Path) -> Iterator[Drop]:
    """What was dropped where this part was made."""
    with _drop_file(path).open(encoding="utf-8") as lines:
        for line in lines:
            yield Drop(**json.loads(line))


def _drop_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.drops")


@dataclass(frozen=True)
class Rows:
    """The rows of all parts, numbered through in the order of the parts; a mask says which are still there."""

    work: Path
    starts: np.ndarray
    """Number of each part's first row, and after the last part their total. Shape [parts + 1]."""
    mask: str | None = None
    """Name of the mask's file in `work`; none: every row is there."""

    @classmethod
    def of(cls, work: Path, sizes: Iterable[int]) -> "Rows":
        """Every row of parts of these sizes."""
        return cls(work, np.cumsum([0, *sizes], dtype=np.int64))

    def __len__(self) -> int:
        """Rows, also those that aren't there any more."""
        return int(self.starts[-1])

    @property
    def parts(self) -> range:
        """Numbers of the parts."""
        return range(len(self.starts) - 1)

    def there(self, part: int) -> np.ndarray:
        """Which of a part's rows are there (bool)."""
        first, last = self.starts[part], self.starts[part + 1]
        if self.mask is None:
            return np.ones(last - first, bool)
        return np.array(np.load(self.work / self.mask, mmap_mode="r")[first:last])

    def columns(self, *names: str) -> Iterator[tuple[np.ndarray, ...]]:
        """Part by part, the numbers (int64) of the rows that are there and those columns of theirs."""
        for part in self.parts:
            which = self.there(part)
            batch = read_part(part_file(self.work, part))
            numbers = np.flatnonzero(which) + self.starts[part]
            yield numbers, *(batch[name].to_numpy()[which] for name in names)

    def without(self, gone: Iterable[np.ndarray], name: str) -> "Rows":
        """The rows that are left when those of these numbers are taken away; the mask is published as `name`."""
        path = self.work / name
        with published(path) as temporary:
            mask = np.lib.format.open_memmap(temporary, "w+", bool, (len(self),))
            for part in self.parts:
                mask[self.starts[part] : self.starts[part + 1]] = self.there(part)
            for numbers in gone:
                mask[numbers] = False
            mask.flush()
        return Rows(self.work, self.starts, name)

    def lost(self, fewer: "Rows", stage: str, rule: str) -> Iterator[Drop]:
        """The rows that are there and in `fewer` aren't, as drops."""
        for part in self.parts:
            which = self.there(part) & ~fewer.there(part)
            if which.any():
                batch = read_part(part_file(self.work, part))
                places = np.flatnonzero(which)
                ids, sizes = batch["id"].take(places).to_pylist(), batch["bytes"].to_numpy()[places].tolist()
                for id_, size in zip(ids, sizes, strict=True):
                    yield Drop(stage, rule, id_, size)
