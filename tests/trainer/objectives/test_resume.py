"""Each objective of examples, killed on two ranks, gone on with on one, killed again, ended on three: the same run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data import settings
from tests.ranks import launch
from tests.trainer.objectives.datasets import built
from trainer import record
from trainer.recipe import Recipe
from trainer.world import World

STEPS = 8
LIVES = ((2, 2, 4), (1, 5, 7), (3, STEPS, STEPS))
"""(ranks, save at, killed after)"""
SETTINGS = (
    "model.context=64", "model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2",
    "train.batch_rows=12", "engine.micro_batch=4", f"train.steps={STEPS}", "schedule.warmup_steps=1", "data.window=2",
    "checkpoint.every_steps=0", f"evaluate.every_steps={STEPS}", "evaluate.rows=10", "log.every_steps=1",
    "log.wandb=off", "guard.enabled=false", "model.residual_dropout=0.1",
)  # fmt: skip
OBJECTIVES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "classification": ("classification", "encoder", ("model.family=bert", "objective.label_smoothing=0.1")),
    "augmented": (
        "pair", "decoder",
        ("model.family=gpt2", "objective.augment.drop=0.2", "objective.augment.swap=0.3"),
    ),
    "regression": ("pair", "encoder", ("model.family=bert",)),
    "qa": ("qa", "", ("model.family=bert",)),
    "seq2seq": ("seq2seq", "", ("model.family=t5", "objective.label_smoothing=0.1")),
    "causal": ("seq2seq", "decoder", ("model.family=llama", "objective.label_smoothing=0.1")),
    "dropout": ("classification", "encoder", ("model.family=bert", "objective.kind=contrastive", "objective.group=2")),
    "pairs": (
        "pair", "encoder",
        ("model.family=bert", "objective.kind=contrastive", "objective.group=4", "objective.positive_class='1'"),
    ),
}  # fmt: skip


class Killed(Exception):
    """A rank falls here."""


def life(world: World, runs: list[Path], how: str, save_at: int, killed_at: int) -> None:
    """Train each of the runs until it is killed after having saved, or to its end."""
    from trainer.loop import Loop
    from trainer.session import begin

    class Doomed(Loop):
        def after_update(self, agreed: Any) -> None:
            super().after_update(agreed)
            if self.s.progress.step == save_at < STEPS:
                self.checkpoints.finish()
            if self.s.progress.step == killed_at < STEPS:
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


def told(run: Path) -> tuple[list[Any], list[float], dict[str, float]]:
    """(positions, digest of the rows, labels) of each step that made the weights, their losses, the evaluation."""
    history = record.load(run)
    applied = history.lineage()
    rows = [(event["positions"], event["rows"], event["labels"]) for event in applied]
    (figures,) = (event["metrics"] for attempt in history.attempts for event in attempt.of("evaluation"))
    return rows, [event["loss"] for event in applied], figures


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of each objective: `straight` on one rank, and `moved`, which has LIVES."""
    root = tmp_path_factory.mktemp("runs")
    first = built(root, "classification", "encoder")
    runs: dict[str, list[Path]] = {"straight": [], "moved": []}
    for name, (task, template, given) in OBJECTIVES.items():
        more = {"regression": True} if name == "regression" else {}
        dataset = first if name in ("classification", "dropout") else built(root, task, template, first, **more)
        for kind, held in runs.items():
            folder = root / kind / name
            folder.mkdir(parents=True)
            chosen = settings.load(Recipe, None, [*SETTINGS, *given, f"name={name}", f"data.dataset={dataset}"])
            (folder / "recipe.yaml").write_text(settings.dump(chosen))
            held.append(folder)
    for number, (ranks, save_at, killed_at) in enumerate(LIVES):
        launch(life, ranks, runs["moved"], "restart" if number else "start", save_at, killed_at, folder=root)
    launch(life, 1, runs["straight"], "start", STEPS, STEPS, folder=root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_on_two_ranks_then_one_then_three_is_the_run_that_never_moved(trained: Path, objective: str) -> None:
    (rows, losses, figures), (moved_rows, moved_losses, moved) = (
        told(trained / kind / objective) for kind in ("straight", "moved")
    )
    attempts = record.load(trained / "moved" / objective).attempts
    assert [(attempt.start["world"], attempt.start["step"]) for attempt in attempts] == [(2, 0), (1, 2), (3, 5)]
    assert [attempt.last_step for attempt in attempts[:2]] == [3, 6]  # updates were lost
    assert len(losses) == STEPS
    assert moved_rows == rows
    assert moved_losses == pytest.approx(losses, rel=2e-5)
    assert moved == {name: pytest.approx(value, rel=2e-4, nan_ok=True) for name, value in figures.items()}
    assert len(set(losses)) == STEPS
