"""Each objective, killed on two ranks and gone on with on one: the same rows, the same labels, the same losses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data import settings
from tests.conftest import CommandLine
from tests.ranks import launch
from trainer import record
from trainer.recipe import Recipe
from trainer.scores import evaluate_run
from trainer.world import World

STEPS, SAVED, KILLED = 6, 3, 5
SETTINGS = (
    "model.context=64", "model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2",
    "train.batch_rows=12", f"train.steps={STEPS}", "schedule.warmup_steps=1", "checkpoint.every_steps=0",
    f"evaluate.every_steps={STEPS}", "evaluate.rows=7", "log.every_steps=1", "log.wandb=off", "data.window=2",
    "guard.enabled=false",
)  # fmt: skip
OBJECTIVES = {
    "masked": ("model.family=bert", "objective.whole_word=true"),
    "next_sentence": ("model.family=bert", "objective.next_sentence=true", "data.lanes=2"),
    "span": ("model.family=t5",),
    "prefix": ("model.family=transformer", "objective.kind=prefix"),
}


class Killed(Exception):
    """A rank falls here."""


def lives(world: World, runs: dict[str, str], how: str) -> None:
    """Train each of the runs; on two ranks, until all of them are killed after having saved."""
    from trainer.loop import Loop
    from trainer.session import begin

    class Doomed(Loop):
        def after_update(self, agreed: Any) -> None:
            super().after_update(agreed)
            if self.s.world.size > 1 and self.s.progress.step == SAVED:
                self.checkpoints.finish()
            if self.s.world.size > 1 and self.s.progress.step == KILLED:
                raise Killed

    for run in runs.values():
        session = begin(Path(run), world, how)
        loop = Doomed(session, SimpleNamespace(asked=False, reason=None), save_at=SAVED)  # pyright: ignore[reportArgumentType]
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


@pytest.fixture(scope="module")
def trained(luban: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of each objective: `straight` on one rank, and `moved`, killed on two ranks, then ended on one."""
    root = tmp_path_factory.mktemp("runs")
    runs: dict[str, dict[str, str]] = {"straight": {}, "moved": {}}
    for kind, held in runs.items():
        for name, given in OBJECTIVES.items():
            folder = root / kind / name
            folder.mkdir(parents=True)
            chosen = [*SETTINGS, *given, f"name={name}", f"data.dataset={luban.home}/datasets/tiny"]
            (folder / "recipe.yaml").write_text(settings.dump(settings.load(Recipe, None, chosen)))
            held[name] = str(folder)
    launch(lives, 2, runs["moved"], "start", folder=root)
    launch(lives, 1, runs["moved"], "restart", folder=root)
    launch(lives, 1, runs["straight"], "start", folder=root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_killed_on_two_ranks_goes_on_with_one_as_if_nothing_had_happened(trained: Path, objective: str) -> None:
    (rows, losses, figures), (moved_rows, moved_losses, moved_figures) = (
        told(trained / kind / objective) for kind in ("straight", "moved")
    )
    attempts = record.load(trained / "moved" / objective).attempts
    assert [(attempt.start["world"], attempt.start["step"]) for attempt in attempts] == [(2, 0), (1, SAVED)]
    assert attempts[0].last_step > SAVED  # updates were lost
    assert len(losses) == STEPS
    assert moved_rows == rows
    assert moved_losses == pytest.approx(losses, rel=2e-5)
    assert moved_figures == [pytest.approx(each, rel=2e-4) for each in figures]
    assert len(figures) == 1


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_its_checkpoint_is_evaluated_to_the_figures_of_the_run(trained: Path, objective: str) -> None:
    text = evaluate_run(str(trained / "moved" / objective), None, 7, 0)
    (figures,) = told(trained / "moved" / objective)[2]
    assert f"{figures.get('masked_loss', figures['loss']):10.4f}" in text
    assert f"{figures['accuracy']:10.4f}" in text
    assert f"over {figures['tokens']:,.0f} label tokens in 7 rows" in text
    assert ("next sentence" in text) == (objective == "next_sentence")
