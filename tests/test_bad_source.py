"""`--from` what is no whole run, and a run of another model: one clear error, before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.test_bad_input import Refused, dataset, pretrain, refused  # noqa: F401  (fixtures)
from trainer.checkpoint import digest_of


@pytest.fixture(scope="module")
def origin(luban: CommandLine) -> Path:
    """A run of 5 steps with two checkpoints."""
    luban.pretrain("origin", "train.steps=5", "checkpoint.every_steps=3", "evaluate.every_steps=0", "launch.ranks=1")
    return luban.run("origin")


@pytest.fixture
def copy(origin: Path, tmp_path: Path) -> Path:
    """The run, to be damaged."""
    return Path(shutil.copytree(origin, tmp_path / "copies" / "origin", symlinks=True))


def newest(run: Path) -> Path:
    """The folder of its last checkpoint."""
    return run / "checkpoints" / "step-000000005.a1"


def edited(run: Path, change: Callable[[dict], object], renew: bool) -> None:
    """Its manifest, changed by hand."""
    path = newest(run) / "manifest.json"
    manifest = json.loads(path.read_text())
    digest = manifest.pop("digest")
    change(manifest)
    path.write_text(json.dumps(manifest | {"digest": digest_of(manifest) if renew else digest}))


def flipped(path: Path) -> None:
    """One bit of a file, in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def hole(manifest: dict) -> None:
    """Half of a parameter is said to be nowhere."""
    manifest["spans"]["model.norm.weight"] = [[0, 16, 0]]


SPANS = "spans-00000.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a flipped bit": (lambda run: flipped(newest(run) / SPANS), [f"{SPANS} has another digest", "origin@STEP"]),
    "no spans": (lambda run: (newest(run) / SPANS).unlink(), [f"{SPANS} cannot be read (No such file", "origin@STEP"]),
    "an edited manifest": (
        lambda run: edited(run, hole, renew=False),
        ["its manifest.json doesn't match its own digest", "origin@STEP"],
    ),
    "a hole": (
        lambda run: edited(run, hole, renew=True),
        ["its manifest.json holds 16 elements of model.norm.weight (32,), which has 32", "origin@STEP"],
    ),
    "an overlap": (
        lambda run: edited(run, lambda m: m["spans"]["model.norm.weight"].append([16, 16, 1]), renew=True),
        ["has a piece of model.norm.weight in spans-00001.safetensors, which it doesn't list", "origin@STEP"],
    ),
    "a file not listed": (
        lambda run: edited(run, lambda m: m["files"].pop(SPANS), renew=True),
        [f"in {SPANS}, which it doesn't list", "origin@STEP"],
    ),
    "no JSON": (
        lambda run: (newest(run) / "manifest.json").write_text("{"),
        ["step-000000005.a1: its manifest.json cannot be read", "origin@STEP"],
    ),
    "no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), ["has no checkpoint yet; steps with one: none"]),
    "a damaged record": (
        lambda run: (run / "attempts" / "0001.jsonl").write_text("nonsense\n"),
        ["attempts/0001.jsonl line 1 is damaged: restore the file from a copy"],
    ),
    "no recipe": (lambda run: (run / "recipe.yaml").unlink(), ["copies/origin holds neither recipe.yaml"]),
    "a recipe that is none": (lambda run: (run / "recipe.yaml").write_text("model: [1"), ["recipe.yaml"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_no_ancestor_and_nothing_is_written(
    refused: Refused,  # noqa: F811
    dataset: Path,  # noqa: F811
    copy: Path,
    damage: str,
) -> None:
    change, words = DAMAGES[damage]
    change(copy)
    before = sorted(path for path in copy.rglob("*") if path.is_file())
    text = refused(*pretrain(dataset, "--from", str(copy)))
    for part in words:
        assert part in text
    assert text.count("luban: ") == 1
    assert sorted(path for path in copy.rglob("*") if path.is_file()) == before


@pytest.mark.slow
def test_a_folder_or_a_file_that_is_no_run_is_no_ancestor(refused: Refused, dataset: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "weights.bin").write_bytes(b"\0" * 100)
    said = refused(*pretrain(dataset, "--from", str(dataset)))
    assert f"{dataset} holds neither recipe.yaml, as a run does, nor config.json" in said
    for name in (tmp_path / "weights.bin", tmp_path / "nowhere"):
        assert f"there is no run {name}" in refused(*pretrain(dataset, "--from", str(name)))


@pytest.mark.slow
def test_a_run_whose_recipe_was_edited_to_another_model_names_the_first_shape_that_differs(
    luban: CommandLine, origin: Path
) -> None:
    run = luban.home / "runs" / "edited"
    shutil.copytree(origin, run, symlinks=True)
    recipe, record = run / "recipe.yaml", run / "attempts" / "0001.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    ended = next(number for number, line in enumerate(lines) if '"event": "outcome"' in line)
    record.write_text("".join(lines[:ended]))  # killed before its outcome
    told = recipe.read_text().replace("steps: 5", "steps: 7").replace("name: origin", "name: edited")
    recipe.write_text(told.replace("hidden_size: 32", "hidden_size: 48"))
    text = luban("pretrain", str(recipe), code=2)
    assert "step-000000005.a1 holds model.embed_tokens.weight as (1024, 32), the model wants (1024, 48)" in text
    assert "it is of another model" in text
    recipe.write_text(told)  # nothing was harmed
    luban("pretrain", str(recipe))
    assert (run / "checkpoints" / "step-000000007.a3").is_dir()
