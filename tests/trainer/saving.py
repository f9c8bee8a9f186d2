"""A whole save in one call, for tests that care about what lies on the disk and not about when."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.checkpoint import Span
from trainer.place import Folder, Place
from trainer.saver import Saver
from trainer.world import World


def save(
    run: Path | Place,
    name: str,
    state: dict[str, Any],
    spans: list[Span],
    base: str | None,
    world: World,
    fenced: Callable[[], bool] = lambda: False,
) -> int:
    """Begin and finish; the checkpoint's size in bytes on rank 0, 0 elsewhere. Collective."""
    sizes = [0]
    saver = Saver(Folder(run) if isinstance(run, Path) else run, world, spans, fenced)
    saver.begin(name, state, spans, base, lambda manifest, size: sizes.append(size))
    saver.finish()
    return sizes[-1]
