"""Which checkpoint an attempt goes on from, agreed by all ranks and re-read by them before a byte of it is used."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from data.errors import UserError
from trainer import checkpoint, record, watchdog
from trainer.checkpoint import Checkpoint, CorruptCheckpoint, SpanReader
from trainer.mirror import places, store_of
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
    refused = next((text for text in world.gather(problem) if text), None)
    if refused:
        raise UserError(refused)
    return result  # pyright: ignore[reportReturnType]  (an action that wasn't refused has returned)


def adopt(recipe: Recipe, run: Path, writer: record.Writer | None, world: World, notes: list[str]) -> Checkpoint | None:
    """The newest checkpoint of which every byte is as its manifest says; those before it are passed over, loudly.

    The ranks divide the reading. Collective.

    Args:
        writer: rank 0's, whose history names the checkpoints.
        notes: what a person should hear is added to it.
    """

    def known() -> list[tuple[str, bool]]:
        if writer is None:
            return []
        found = places(recipe, run)
        held = set(writer.history.checkpoints(name for name, _ in found))
        return [(name, isinstance(place, Folder)) for name, place in found if name in held]

    candidates = world.gather(agree(world, known))[0]
    for name, near in reversed(candidates):
        watchdog.enter("checking a checkpoint", watchdog.START_UP_S)
        home: Place | None = Folder(run) if near else store_of(recipe, run)
        assert home is not None
        try:
            found = Checkpoint(home.child(checkpoint.FOLDER).child(name))
            problems = found.problems(world.rank, world.size)
        except CorruptCheckpoint as error:
            found, problems = None, [str(error)]
        problems = list(dict.fromkeys(problem for part in world.gather(problems) for problem in part))
        if found and not problems:
            if not near:
                notes.append(f"{name} comes from {home}: the run's folder has no whole copy")
            return found
        notes.append(f"CORRUPT CHECKPOINT passed over: {'; '.join(problems)}")
    if candidates:
        notes.append("No checkpoint of this run is whole: it begins again at step 0")
    return None


def span_by_span(found: Checkpoint) -> SpanReader:
    """Reads pieces of a checkpoint; the watchdog sees each of them, for all together may take longer than a step."""

    def read(name: str, shape: tuple[int, ...], start: int, count: int) -> dict[str, torch.Tensor]:
        watchdog.enter("restoring", watchdog.START_UP_S)
        return found.read(name, shape, start, count)

    return read
