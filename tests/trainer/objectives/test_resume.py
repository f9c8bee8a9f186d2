"""Each objective of examples, killed on two ranks, gone on with on one, killed again, ended on three: the same run."""

from pathlib import Path

import pytest

from tests.ranks import launch
from tests.trainer.lives import begun, life, told
from tests.trainer.objectives.datasets import built
from trainer import record

STEPS = 8
LIVES = ((2, 2, 4), (1, 5, 7), (3, STEPS, None))
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
            held.append(begun(root / kind / name, [*SETTINGS, *given, f"data.dataset={dataset}"]))
    for number, (ranks, save_at, killed_at) in enumerate(LIVES):
        launch(life, ranks, runs["moved"], "restart" if number else "start", save_at, killed_at, folder=root)
    launch(life, 1, runs["straight"], "start", STEPS, folder=root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_on_two_ranks_then_one_then_three_is_the_run_that_never_moved(trained: Path, objective: str) -> None:
    (rows, losses, (figures,)), (moved_rows, moved_losses, (moved,)) = (
        told(trained / kind / objective) for kind in ("straight", "moved")
    )
    attempts = record.load(trained / "moved" / objective).attempts
    assert [(attempt.start["world"], attempt.start["step"]) for attempt in attempts] == [(2, 0), (1, 2), (3, 5)]
    assert [attempt.last_step for attempt in attempts[:2]] == [3, 6]  # updates were lost
    assert len(losses) == STEPS
    assert moved_rows == rows
    assert moved_losses == pytest.approx(losses, rel=2e-5)
    # Numbers that a model of eight steps predicts are nearly equal: their correlation magnifies the last bits.
    assert moved == {
        name: pytest.approx(value, rel=2e-4, abs=1e-3 if name == "pearson" else 0, nan_ok=True)
        for name, value in figures.items()
    }
    assert len(set(losses)) == STEPS
    lines = [line for line in record.load(trained / "straight" / objective).metrics() if line["kind"] == "train"]
    of_tokens = objective in ("seq2seq", "causal")
    assert all(("train/perplexity" in line) == ("train/tokens" in line) == of_tokens for line in lines)
    assert all(("train/examples" in line) != of_tokens for line in lines)
