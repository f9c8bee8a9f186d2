"""`luban verify --resume` on real ranks: it holds where resuming works, and finds out where it doesn't."""

from pathlib import Path

import pytest

import luban as front_door
from data import settings
from tests.conftest import SETTINGS, CommandLine
from trainer.recipe import Recipe

LATE = """
import sys
if "--restart" in sys.orig_argv:
    from trainer import feed
    begin = feed.Feed.__init__
    def late(self, *arguments):
        consumed = arguments[7] + arguments[2].train.batch_rows
        begin(self, *arguments[:7], consumed, *arguments[8:])
    feed.Feed.__init__ = late
"""
FORGETFUL = """
import sys
if "--restart" in sys.orig_argv:
    from trainer import checkpoint
    read = checkpoint.Checkpoint.read
    def forget(*arguments):
        held = read(*arguments)
        held["exp_avg"].zero_()
        return held
    checkpoint.Checkpoint.read = forget
"""


def run(luban: CommandLine, name: str, *more: str) -> Path:
    """A run that has a recipe and nothing else: a proof needs no more."""
    given = [*SETTINGS, f"name={name}", f"data.dataset={luban.home}/datasets/tiny", *more]
    folder = luban.run(name)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(settings.dump(settings.load(Recipe, None, given)))
    return folder


def results(text: str) -> dict[str, str]:
    """The words of each check's result, by its name."""
    lines = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {line[0]: line[1] for line in cells if len(line) == 4}


def scratch(luban: CommandLine, name: str) -> list[Path]:
    return list((luban.home / "runs").glob(f".resume-of-{name}-*"))


@pytest.mark.slow
def test_the_same_ranks_resume_bitwise_and_leave_nothing_behind(luban: CommandLine) -> None:
    folder = run(luban, "plain", "model.residual_dropout=0.1")
    before = (folder / "recipe.yaml").stat().st_mtime_ns
    text = luban("verify", "plain", "--resume", "--steps", "4,3")
    assert "promised: everything is the same bit for bit (the same ranks and ZeRO stage)" in text
    found = results(text)
    assert {found[name] for name in found if name != "check"} == {"same"}, text
    assert {
        "resumed", "rows of each step", "weights", "moments exp_avg_sq", "lr of each step", "loss of each step",
        "grad_norm of each step", "adam_step", "order", "random", "counters", "dropout seeds of each step",
        "validation", "lr by the recipe",
    } <= set(found)  # fmt: skip
    assert "from step-000000004.a1, steps 5" in text
    assert "plain: resuming changes nothing that was promised" in text
    assert not scratch(luban, "plain")
    assert list(folder.iterdir()) == [folder / "recipe.yaml"]
    assert (folder / "recipe.yaml").stat().st_mtime_ns == before


@pytest.mark.slow
def test_other_ranks_and_another_stage_resume_within_the_tolerance(luban: CommandLine) -> None:
    run(luban, "widened")
    text = luban("verify", "widened", "--resume", "--steps", "2,8", "--ranks", "2,1", "--zero", "3", "--keep")
    assert "8 resumed on 1 rank at ZeRO 3" in text
    assert "so is everything up to step 2; in the 5 updates after it" in text
    found = results(text)
    assert found["rows of each step"] == found["lr of each step"] == found["counters"] == "same"
    assert found["loss of each step"].startswith("within ")
    assert found["grad_norm of each step"].startswith("within ")
    assert found["weights"] == "differs, as it may"
    (kept,) = scratch(luban, "widened")
    assert {path.name for path in kept.iterdir()} == {"straight", "killed"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "first"), [(LATE, "positions of each step"), (FORGETFUL, "loss of each step")], ids=["late", "forgetful"]
)
def test_a_resume_that_changes_something_is_found_and_named(
    luban: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, first: str,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    name = request.node.callspec.id
    run(luban, name, "launch.ranks=1")
    (tmp_path / "sitecustomize.py").write_text(fault)
    path = luban.environment.get("PYTHONPATH", "")
    monkeypatch.setitem(luban.environment, "PYTHONPATH", f"{tmp_path}:{path}")
    text = luban("verify", name, "--resume", "--steps", "3", code=1)
    found = results(text)
    assert "the promise is BROKEN" in text
    assert f"; first by {first}: first differs at step {4 if name == 'late' else 5}" in text
    assert found["resumed"] == "same"
    assert found["weights"] == found["moments exp_avg"] == "DIFFERS"
    assert found["rows of each step"] == ("DIFFERS" if name == "late" else "same")
    assert len(scratch(luban, name)) == 1
    assert f"both runs lie in {scratch(luban, name)[0]}" in text


def test_a_proof_that_cannot_be_made_is_one_clear_error(
    luban: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LUBAN_HOME", str(luban.home))
    run(luban, "short", "train.steps=9")
    run(luban, "huge", "model.hidden_size=65536", "model.num_hidden_layers=400", "model.num_attention_heads=512")
    (luban.home / "runs" / "empty").mkdir()

    def refused(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["luban", "verify", *words])
        with pytest.raises(SystemExit) as ended:
            front_door.main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "there is no run nobody" in refused("nobody", "--resume")
    assert "runs/empty holds no recipe.yaml" in refused("empty", "--resume")
    assert "--steps 5,5 are 10 updates, and short has 9 (train.steps)" in refused("short", "--resume", "--steps", "5")
    for steps in ("0", "3,x", "1,2,3", "-1", "²"):
        assert f"--steps {steps}: positive whole numbers are needed" in refused("short", "--resume", f"--steps={steps}")
    for ranks in ("2", "0,1", "2,-1"):
        assert f"--ranks {ranks}: positive whole numbers" in refused("short", "--resume", f"--ranks={ranks}")
    assert "--zero 4: DeepSpeed ZeRO has the stages 0 to 3" in refused("short", "--resume", "--zero", "4")
    assert "for its checkpoints, and" in refused("huge", "--resume")
    assert "belong to --resume" in refused("short", "--steps", "3")
    assert "two questions" in refused("short", "--resume", "--against", "huge")
    assert not scratch(luban, "")
