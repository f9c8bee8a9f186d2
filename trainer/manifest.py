"""What a checkpoint's manifest says and must say: each element of each parameter once, in listed files.

A digest only tells that a manifest is as somebody wrote it, and whoever edits one by hand writes the digest too. A hole
in the spans would leave freshly allocated memory among the weights without an error, and a file that isn't listed would
be read without being checked. No tensor is read for this.

A parameter's pieces are written as runs, [first element, elements, rank, times]: `times` pieces of equal size, one
after the other, of consecutive ranks; a run of one leaves `times` out. ZeRO cuts evenly, so any number of ranks needs
two or three runs a parameter: for the 290 parameters of a 7 G model under ZeRO 3, 1,000 ranks write 0.14 MB instead of
6, 100,000 ranks 9 MB instead of 530, nearly all of it the files' digests (`tests/bench/scale.py`).
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from trainer.place import DIGEST

FORMAT, VERSION = "luban-checkpoint", 1
STATE = "state.json"
SPANS_FILE = re.compile(r"spans-(\d{5,})\.safetensors")


def file_of(rank: int) -> str:
    """Name of the file that holds a rank's spans."""
    return f"spans-{rank:05d}.safetensors"


def times_of(run: Sequence[int]) -> int:
    """Of how many pieces a run is."""
    return run[3] if len(run) > 3 else 1


def joined(runs: Iterable[Sequence[int]]) -> list[list[int]]:
    """Pieces (first element, elements, rank) or runs of one parameter, in as few runs as there can be."""
    found: list[list[int]] = []
    for run in sorted(runs, key=lambda run: run[0]):
        start, count, rank = run[:3]
        if found:
            first, each, owner, times = found[-1]
            if count == each and start == first + each * times and rank == owner + times:
                found[-1][3] += times_of(run)
                continue
        found.append([start, count, rank, times_of(run)])
    return [run if run[3] > 1 else run[:3] for run in found]


def pieces(runs: Iterable[Sequence[int]], start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, int]]:
    """(first element, elements, rank) of the pieces of `runs` that hold any of the elements [start, stop)."""
    for run in runs:
        (first, count, rank), times = run[:3], times_of(run)
        low = max(0, (start - first) // count)
        high = times if stop is None else min(times, -(-(stop - first) // count))
        yield from ((first + count * number, count, rank + number) for number in range(low, high))


def compose(
    name: str, state: Mapping[str, Any], world: int, base: str | None, everyone: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The manifest of a checkpoint, without its digest.

    Args:
        state: what `state.json` holds.
        everyone: of each rank, its `files` (size and digest by name) and `spans` (parameter, shape, start, count,
            rank).
    """
    parameters: dict[str, list[int]] = {}
    spans: dict[str, list[tuple[int, int, int]]] = {}
    for part in everyone:
        for parameter, shape, start, count, rank in part["spans"]:
            parameters[parameter] = shape
            spans.setdefault(parameter, []).append((start, count, rank))
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "step": state["step"],
        "attempt": state["attempt"],
        "world": world,
        "zero_stage": state["zero_stage"],
        "files": {file: entry for part in everyone for file, entry in part["files"].items()},
        "parameters": parameters,
        "spans": {parameter: joined(held) for parameter, held in spans.items()},
        "base": base,
    }


def contradiction(manifest: dict[str, Any]) -> str | None:
    """The first thing in which a manifest contradicts itself, in words; None where there is none."""
    try:
        return _contradiction(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"lacks something or holds it in another form ({type(error).__name__}: {error})"


def _contradiction(manifest: dict[str, Any]) -> str | None:
    counts = {name: manifest[name] for name in ("step", "attempt", "world", "zero_stage")}
    odd = next((name for name, value in counts.items() if not isinstance(value, int)), None)
    if odd:
        return f"has {counts[odd]!r} for its {odd}"
    if manifest["base"] is not None and not isinstance(manifest["base"], str):
        return f"has {manifest['base']!r} for its base"
    files, parameters, spans = manifest["files"], manifest["parameters"], manifest["spans"]
    odd = next((name for name, entry in files.items() if not {"bytes", DIGEST} <= entry.keys()), None)
    if odd:
        return f"lacks the size or the digest of {odd}"
    odd = min(parameters.keys() ^ spans.keys(), default=None)
    if odd:
        return f"has {odd} among its {'spans' if odd in spans else 'parameters'} alone"
    if STATE not in files:
        return f"doesn't list {STATE}"
    numbers = (SPANS_FILE.fullmatch(file) for file in files)
    listed = sorted(rank for number in numbers if number and (rank := int(number[1])) < counts["world"])
    for name, runs in spans.items():
        problem = _wrong_spans(name, tuple(parameters[name]), sorted(runs), listed)
        if problem:
            return problem
    if len(files) - 1 != counts["world"]:  # every rank has one, beside the state
        return f"lists {len(files) - 1} files of spans for {counts['world']} ranks"
    return None


def _wrong_spans(name: str, shape: tuple[int, ...], runs: list[list[int]], listed: list[int]) -> str | None:
    """What is wrong with one parameter's runs.

    Args:
        listed: the ranks that have a file, ascending.
    """
    at, taken = 0, []  # ranks [from, to) that hold a piece
    for run in runs:
        (start, count, rank), times = run[:3], times_of(run)
        last = rank + times
        low, high = bisect_left(listed, rank), bisect_left(listed, last)
        if times < 1 or high - low != times:
            lost = next((r for r, held in zip(range(rank, last), listed[low:high], strict=False) if r != held), None)
            lost = rank + high - low if lost is None else lost
            return f"has a piece of {name} in {file_of(lost)}, which it doesn't list"
        place = bisect_left(taken, (rank + 1, 0))
        before, after = taken[place - 1] if place else (0, 0), taken[place] if place < len(taken) else (last, last)
        if count < 1 or before[1] > rank or after[0] < last:
            return f"has {count} elements of {name} from {start} on for rank {rank}, beside its other piece or empty"
        if start != at:
            what = f"twice from element {start}" if start < at else f"without elements {at} to {start - 1}"
            return f"holds {name} {what}"
        at += count * times
        taken.insert(place, (rank, last))
    if at != prod(shape):
        return f"holds {at} elements of {name} {shape}, which has {prod(shape)}"
    return None
