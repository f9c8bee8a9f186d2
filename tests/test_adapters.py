"""Adapters through the real command: trained, resumed after a kill, evaluated, saved alone, gone on with and merged."""

from pathlib import Path

import pytest
import torch

from data import settings
from data.errors import UserError
from tests.conftest import CommandLine, kill_rank
from tests.test_finetune import finetune, finetuning, losses, pretrained  # noqa: F401  (pretrained is a fixture)
from trainer import record
from trainer.adapters import peft
from trainer.adapters.adapt import model_of
from trainer.adapters.save import save_adapter
from trainer.ancestor import with_ancestor
from trainer.checkpoint import step_of
from trainer.recipe import Recipe
from trainer.run import Source, dataset_path, held_by, open_run, read_recipe
from trainer.scores import load_model, measure
from trainer.weights import give_weights
from trainer.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
LORA = ("adapter.kind=lora", "adapter.rank=4", "adapter.dropout=0.1", "optimizer.lr=1e-2")
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def tuned(pretrained: CommandLine) -> CommandLine:  # noqa: F811
    """A run `lora`, one rank of which was killed on its way, and `tuned-prompt`."""
    process = pretrained.start(*finetuning(pretrained, "lora", *LORA))
    kill_rank(pretrained.wait_for("lora", 1, lambda event: event["event"] == "step" and event["step"] >= 20), 1)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    finetune(pretrained, "tuned-prompt", "adapter.kind=prompt", "adapter.tokens=8", "optimizer.lr=5e-2")
    return pretrained


def recipe_from(luban: CommandLine, name: str, source: str, *given: str) -> Recipe:
    """That of a run `name` that starts --from `source`, as the command makes it."""
    tree = settings.load(
        Recipe, None, [f"name={name}", f"data.dataset={luban.home}/datasets/pairs", "model.context=64", *given]
    )
    return dataset_path(with_ancestor(tree, luban.run(name), source, {each.partition("=")[0] for each in given}))


def checkpoint_before_last(luban: CommandLine) -> int:
    """A step of `straight` that has other weights than its last."""
    return [step_of(name) for name in held_by(luban.run("straight"))][-2]


def test_a_killed_lora_run_learns_and_accounts_for_every_row(tuned: CommandLine) -> None:
    history = record.load(tuned.run("lora"))
    assert len(history.attempts) == 2
    figures = losses(tuned, "lora")
    assert figures == sorted(figures, reverse=True)
    assert figures[-1] < figures[0] - 0.1
    assert history.attempts[-1].start["trainable"] < 0.3 * history.attempts[-1].start["parameters"]
    assert "everything holds" in tuned("verify", "lora")
    held = Source.parse(str(tuned.run("lora"))).checkpoint()
    assert all(map(peft.is_own, held.manifest["parameters"]))
    base = Source.parse(str(tuned.run("straight"))).checkpoint().weights()
    assert all(torch.equal(tensor, base[name]) for name, tensor in held.frozen().items())
    assert len(list((tuned.run("lora") / "base").iterdir())) == 1


@pytest.mark.parametrize("name", ["lora", "tuned-prompt"])
def test_an_adapted_model_is_evaluated_with_its_adapter(tuned: CommandLine, name: str, monkeypatch) -> None:
    monkeypatch.setenv("LUBAN_HOME", str(tuned.home))
    assert measure(load_model(name))[0]["loss"] == pytest.approx(losses(tuned, name)[-1], abs=1e-6)


def test_a_prompted_model_writes_what_it_learned(tuned: CommandLine) -> None:
    assert tuned("generate", "tuned-prompt", "Box 7 is painted red. Which colour?", "--tokens", "8").strip()


def test_an_adapter_alone_begins_another_run_and_only_on_its_base(tuned: CommandLine, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LUBAN_HOME", str(tuned.home))
    assert [path.name for path in save_adapter("lora", tmp_path, "straight")] == [peft.CONFIG, peft.WEIGHTS]
    given = (*LORA, f"adapter.source={tmp_path}")
    chosen = recipe_from(tuned, "again", "straight", *given)
    open_run(chosen, tmp_path / "opened")
    younger = recipe_from(tuned, "astray", f"straight@{checkpoint_before_last(tuned)}", *given)
    with pytest.raises(UserError, match=r"for another base: it was trained on weights .* start --from the weights"):
        open_run(younger, tuned.run("astray"))
    assert not tuned.run("astray").exists()
    model, notes = model_of(chosen, 1024), []
    give_weights(tmp_path / "again", chosen, model, None, ALONE, notes)
    assert notes == [f"the adapter begins with the weights in {tmp_path}"]
    wanted = Source.parse("lora").checkpoint().weights()
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in model.named_parameters())


def test_a_run_from_an_adapted_one_goes_on_with_its_adapter_or_merges_it(tuned: CommandLine, tmp_path, monkeypatch):
    monkeypatch.setenv("LUBAN_HOME", str(tuned.home))
    loaded = load_model("lora")
    on = recipe_from(tuned, "on", "lora")
    assert on.adapter == read_recipe(tuned.run("lora")).adapter
    model = model_of(on, loaded.model.vocab_size)
    give_weights(tmp_path / "on", on, model, None, ALONE, [])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.model.parameters(), strict=True))
    plain = recipe_from(tuned, "plain", "lora", "adapter.kind=none")
    merged = model_of(plain, loaded.model.vocab_size)
    give_weights(tmp_path / "plain", plain, merged, None, ALONE, [])
    assert not any(peft.is_own(name) for name, _ in merged.named_parameters())
    ids = torch.arange(300, 340)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(ids), loaded.model(ids), rtol=1e-4, atol=1e-4)


def test_what_an_adapter_cannot_do_is_refused_before_anything_is_written(tuned: CommandLine, monkeypatch) -> None:
    monkeypatch.setenv("LUBAN_HOME", str(tuned.home))
    for words, source, given in (
        ("leave the adapter's settings out to go on with it", "lora", ("adapter.kind=lora", "adapter.rank=2")),
        ("which can't be merged into weights", "tuned-prompt", ("adapter.kind=none",)),
    ):
        with pytest.raises(Exception, match=words):
            recipe_from(tuned, "refused", source, *given)
    plain = settings.load(Recipe, None, ["adapter.kind=lora", f"data.dataset={tuned.home}/datasets/pairs"])
    with pytest.raises(Exception, match="start it --from a run that has learned"):
        open_run(plain, tuned.run("refused"))
    text = finetune(tuned, "refused", "adapter.kind=lora", "adapter.targets=[q_prj]", code=2)
    assert "'q_prj' matches no projection; there are q_proj" in text
    long = finetune(tuned, "refused", "adapter.kind=prompt", "adapter.tokens=50", code=2)
    assert "the longest example of" in long
    assert not (tuned.run("refused") / "recipe.yaml").exists()
