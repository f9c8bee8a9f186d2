"""Lives of runs, ended in the middle: what a test needs to see that the next one goes on where the last one saved."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from data import settings
from trainer import record
from trainer.recipe import Recipe
from trainer.world import World


class Killed(Exception):
    """A rank falls here."""


def begun(run: Path, chosen: Sequence[str]) -> Path:
    """The folder `run` with the recipe of `chosen` settings."""
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(settings.dump(settings.load(Recipe, None, [*chosen, f"name={run.name}"])))
    return run


def life(world: World, runs: Sequence[Path], how: str, save_at: int, killed_at: int | None = None) -> None:
    """Train each of the runs until it is killed after having saved; None: to its end."""
    from trainer.loop import Loop
    from trainer.session import begin

    class Doomed(Loop):
        def after_update(self, agreed: Any) -> None:
            super().after_update(agreed)
            if self.s.progress.step == save_at and killed_at is not None:
                self.checkpoints.finish()
            if self.s.progress.step == killed_at:
                raise Killed

    for run in runs:
        session = begin(run, world, how)
        loop = Doomed(session, SimpleNamespace(asked=False, reason=None), save_at=save_at)  # pyright: ignore[reportArgumentType]
        try:
            loop.train()
        except Killed:
            pass
        finally:
            session.feed.close()
            if session.writer:
                session.writer.close()


def told(run: Path) -> tuple[list[Any], list[float], list[dict[str, float]]]:
    """(positions, digest of the rows, labels) of each step that made the weights, their losses, and evaluations."""
    history = record.load(run)
    applied = history.lineage()
    rows = [(event["positions"], event["rows"], event["labels"]) for event in applied]
    figures = [event["metrics"] for attempt in history.attempts for event in attempt.of("evaluation")]
    return rows, [event["loss"] for event in applied], figures
