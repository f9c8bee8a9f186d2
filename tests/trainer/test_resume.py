"""Each objective, killed on two ranks and gone on with on one: the same rows, the same labels, the same losses."""

from pathlib import Path

import pytest
import torch

from tests.conftest import CommandLine
from tests.ranks import launch
from tests.trainer.lives import begun, life, told
from trainer import record
from trainer.generation.prompts import continued
from trainer.generation.settings import Decoding
from trainer.hf.export import export
from trainer.hf.read import Directory
from trainer.recipe_objective import Objective
from trainer.run import Source, read_recipe
from trainer.scores import evaluate_run, load_model

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
    "prefix_decoder": ("model.family=llama", "model.attention=prefix", "objective.label_smoothing=0.1"),
    "adversarial": (
        "model.attention=full", "objective.kind=adversarial", "objective.prompt_tokens=4", "objective.sample_tokens=8",
        "objective.samples=2", "engine.zero_stage=3",
    ),
}  # fmt: skip


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
    assert ("judge advantage" in text) == (objective == "adversarial")


@pytest.mark.slow
def test_of_two_nets_the_one_that_writes_is_exported_asked_and_gone_on_with(trained: Path, tmp_path: Path) -> None:
    run, said = trained / "straight" / "adversarial", list[str]()
    assert any("EXPERIMENTAL" in event["text"] for event in record.load(run).attempts[0].of("note"))
    figures = told(run)[2][0]
    assert figures["discriminator_advantage"] == pytest.approx(2 * figures["discriminator_accuracy"] - 1)
    export(str(run), tmp_path / "out", checked=False, say=said.append)
    loaded, written = load_model(str(run)), Directory(tmp_path / "out")
    generator = {name: tensor.detach() for name, tensor in loaded.model.generator.named_parameters()}
    assert all(torch.equal(written.weight(name), tensor) for name, tensor in generator.items())
    assert "LlamaForCausalLM" in said[-1]
    assert len(continued(loaded, ["The "], Decoding(5, seed=1))[0]) == 1
    shapes, weight = Source.parse(str(run)).weights(read_recipe(run).model_copy(update={"objective": Objective()}))
    assert list(shapes) == list(generator)
    assert all(torch.equal(weight(name), tensor) for name, tensor in generator.items())
