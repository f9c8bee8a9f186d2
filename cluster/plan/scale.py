"""What grows with the number of ranks: files, manifest, sockets, the record's first line. Pure arithmetic.

The pieces of a checkpoint come from the same partitions that ZeRO makes, so that a simulation of 100,000 ranks can
build the manifest that those ranks would write, and read it as they would (`tests/bench/scale.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from cluster.plan.memory import Setup
from trainer import zero
from trainer.adapters.shapes import adapted_shapes
from trainer.manifest import file_of, joined, pieces, times_of
from trainer.models.depth import rate_scales
from trainer.models.shapes import Shapes, grouped, parameter_shapes
from trainer.place import DIGEST

HEX = "0" * 32  # of a file's digest, 128 bits
RANK_LINE = '{"rank": 00000, "host": "node-00000.cluster", "pid": 0000000}, '
GLOO_GROUPS = 2  # the engine's on a CPU, and the one for counts and flags


@dataclass(frozen=True)
class Scale:
    """What a run of so many ranks does to files and sockets."""

    ranks: int
    files: int
    """Of one checkpoint, in one folder."""
    manifest_bytes: int
    pieces: int
    """Of parameters, over all ranks."""
    runs: int
    """What the manifest writes of them."""
    opened: int
    """Files that rank 0 opens to go on at the same ranks and stage."""
    opened_half: int
    """The same on half as many ranks."""
    start_bytes: int
    """First line of an attempt, which names every rank."""
    sockets: int
    """Connections of each rank among the CPU groups."""
    logs: int
    """Files in an attempt's folder of logs."""


def runs_of(stage: int, groups: Sequence[Shapes], ranks: int) -> Iterator[tuple[str, list[list[int]]]]:
    """Each parameter's pieces as runs, as the ranks of a ZeRO stage hold them.

    Args:
        groups: the optimizer's groups of parameters, each in its order.
    """
    for group in groups:
        part, at = zero.partition(stage, [prod(shape) for shape in group.values()], ranks), 0
        for name, shape in group.items():
            size = prod(shape)
            if stage in (1, 2):
                yield name, _cut(size, part, at)
                at += size
            else:
                yield name, _cut(size, -(-size // ranks), 0)


def _cut(size: int, part: int, at: int) -> list[list[int]]:
    """[0, size), cut where at + its elements reach a multiple of `part`."""
    first = min(size, part - at % part)
    whole, rest = divmod(size - first, part)
    rank = at // part
    parts = [[0, first, rank], [first, part, rank + 1, whole], [first + whole * part, rest, rank + 1 + whole]]
    return joined([run for run in parts if run[1] and (len(run) < 4 or run[3])])


def held_by(setup: Setup, ranks: int, stage: int | None = None) -> dict[str, list[list[int]]]:
    """The runs of every parameter, as a manifest has them, of `setup`'s model on so many ranks."""
    shapes = adapted_shapes(parameter_shapes(setup.recipe.model, setup.vocab_size), setup.recipe)
    groups = grouped({name: shapes[name] for name in setup.trained}, rate_scales(setup.recipe))
    return dict(runs_of(setup.stage if stage is None else stage, groups, ranks))


def opened(saved: dict[str, list[list[int]]], wanted: dict[str, list[list[int]]], rank: int) -> int:
    """Files of a checkpoint that `rank` opens to fill what it is to hold."""
    files: set[int] = set()
    for name, runs in wanted.items():
        for start, count in own(runs, rank):
            files |= {file for _, _, file in pieces(saved[name], start, start + count)}
    return len(files)


def own(runs: list[list[int]], rank: int) -> Iterator[tuple[int, int]]:
    """(first element, elements) of the pieces of `rank`."""
    for run in runs:
        start, count, first = run[:3]
        if first <= rank < first + times_of(run):
            yield start + (rank - first) * count, count


def scale(setup: Setup) -> Scale:
    """The figures of `setup`'s own ranks."""
    ranks = setup.ranks
    runs = held_by(setup, ranks)
    entries = sum(len(found) for found in runs.values())
    half = max(1, ranks // 2)
    shapes = adapted_shapes(parameter_shapes(setup.recipe.model, setup.vocab_size), setup.recipe)
    size = len(f"{setup.owned() * 12}")
    file = len(f'"{file_of(ranks - 1)}": {{"bytes": , "{DIGEST}": "{HEX}"}}, ') + size
    named = sum(2 * len(f'"{name}": [], ') + len(str(list(shapes[name]))) for name in runs)
    spans = sum(len(str(run)) + 2 for found in runs.values() for run in found)
    return Scale(
        ranks=ranks, files=ranks + 2, manifest_bytes=ranks * file + named + spans + 400,
        pieces=sum(times_of(run) for found in runs.values() for run in found), runs=entries,
        opened=opened(runs, runs, 0), opened_half=opened(runs, held_by(setup, half), 0),
        start_bytes=1500 + ranks * len(RANK_LINE), sockets=GLOO_GROUPS * (ranks - 1), logs=ranks,
    )  # fmt: skip
