"""Which checkpoint an attempt goes on from, agreed by all ranks and re-read by them before a byte of it is used."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from data.errors import UserError
from trainer import checkpoint, record, watchdog
from trainer.checkpoint import Checkpoint, CorruptCheckpoint, SpanReader
from trainer.mirror import places, refuse_vanished, store_of
from trainer.place import Folder, Place
from trainer.recipe import Recipe
from trainer.world import World

T = TypeVar("T")


def agree(world: World, action: Callable[[], T]) -> T:
    """Do `action` here; if it was refused on any rank, refuse on all, with the same words. Collective."""
    result: T | None = None
    problem = None
    try:
        result = action()
    except UserError as error:
        problem = str(error)
    if world.total([problem is not None])[0]:  # a number first: that all is well need not be said by each to each
        raise UserError(next(text for text in world.gather(problem) if text))
    return result  # pyright: ignore[reportReturnType]  (an action that wasn't refused has returned)


class Offer(NamedTuple):
    """A checkpoint that the record vouches for."""

    name: str
    near: bool
    """It lies in the run's folder, not in its store."""
    manifest: str | None
    """Its manifest's digest, where the record has it."""


def candidates(recipe: Recipe, run: Path, history: record.History) -> list[Offer]:
    """The checkpoints that the record vouches for, oldest first.

    Of one that is in the store too, the near copy comes after the other, so that who begins at the end meets it first.
    """
    found = places(recipe, run)
    held = set(history.checkpoints(name for name, _ in found))
    return [
        Offer(name, isinstance(place, Folder), history.manifests.get(name)) for name, place in found if name in held
    ]


def offers(recipe: Recipe, run: Path, history: record.History) -> list[Offer]:
    """`candidates` to go on from.

    Raises:
        UserError: the record names checkpoints, and not one of them is there.
    """
    found = candidates(recipe, run, history)
    refuse_vanished(recipe, run, history, [offer.name for offer in found])
    return found


def place_of(recipe: Recipe, run: Path, name: str, near: bool) -> Place:
    """Where a checkpoint lies, in the run's folder or in its store."""
    home: Place | None = Folder(run) if near else store_of(recipe, run)
    assert home is not None
    return home.child(checkpoint.FOLDER).child(name)


def adopt(
    recipe: Recipe,
    run: Path,
    world: World,
    offered: list[Offer],
    notes: list[str],
    damaged: list[str],
    again: bool = True,
) -> Checkpoint | None:
    """The last of `offered` of which every byte is as its manifest says; those after it are passed over, loudly.

    The ranks divide the reading. Collective.

    Args:
        offered: as `candidates` gives them; rank 0's count.
        notes: what a person should hear is added to it.
        damaged: names of checkpoints passed over are added to it, where an older one is adopted.
        again: where all that is offered is damaged, the run may begin again at step 0.

    Raises:
        UserError: all that is offered is damaged, and the run must not begin again.
        RuntimeError: some of it can't be read at present, and none of the rest is whole.
    """
    offered = world.told(offered)
    unreadable: list[str] = []
    passed: list[str] = []
    for name, near, manifest in reversed(offered):
        watchdog.enter("checking a checkpoint", watchdog.START_UP_S)
        place = place_of(recipe, run, name, near)
        try:
            found = Checkpoint(place, manifest)
            problems = found.problems(world.rank, world.size)
        except CorruptCheckpoint as error:
            found, problems = None, [str(error)]
        if world.total([len(problems)])[0]:
            problems = list(dict.fromkeys(problem for part in world.gather(problems) for problem in part))
        if found and not problems:
            if not near:
                notes.append(f"{name} comes from {place}: the run's folder has no whole copy")
            damaged += [other for other in dict.fromkeys(passed) if other != name]
            return found
        passed.append(name)
        notes.append(f"CORRUPT CHECKPOINT passed over: {'; '.join(problems)}")
        gone = os.strerror(errno.ENOENT)
        unreadable += [text for text in problems if "cannot be read" in text and gone not in text]
    if unreadable:  # a file system or a store that is away for a moment is no reason to begin again
        raise RuntimeError(f"no checkpoint of {run} is whole, and some can't be read: {'; '.join(unreadable[:3])}")
    if offered and not again:
        raise UserError(f"no checkpoint of {run} to go back to is whole: {'; '.join(notes[-3:])}")
    if offered:
        notes.append("No checkpoint of this run is whole: it begins again at step 0")
    return None


def span_by_span(found: Checkpoint) -> SpanReader:
    """Reads pieces of a checkpoint; the watchdog sees each of them, for all together may take longer than a step."""

    def read(name: str, shape: tuple[int, ...], start: int, count: int) -> dict[str, torch.Tensor]:
        watchdog.enter("restoring", watchdog.START_UP_S)
        return found.read(name, shape, start, count)

    return read
