"""Each objective, killed on two ranks and gone on with on one: the same rows, the same labels, the same losses."""

from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.ranks import launch
from tests.trainer.lives import begun, life, told
from trainer import record
from trainer.scores import evaluate_run

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


@pytest.fixture(scope="module")
def trained(luban: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of each objective: `straight` on one rank, and `moved`, killed on two ranks, then ended on one."""
    root = tmp_path_factory.mktemp("runs")
    dataset = f"data.dataset={luban.home}/datasets/tiny"
    straight, moved = (
        [begun(root / kind / name, [*SETTINGS, *given, dataset]) for name, given in OBJECTIVES.items()]
        for kind in ("straight", "moved")
    )
    launch(life, 2, moved, "start", SAVED, KILLED, folder=root)
    launch(life, 1, moved, "restart", SAVED, folder=root)
    launch(life, 1, straight, "start", SAVED, folder=root)
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
