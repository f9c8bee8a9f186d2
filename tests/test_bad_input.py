"""Every mistake of a user is one message that names what is wrong and how to mend it, with exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import luban as front_door
from tests.conftest import SETTINGS, CommandLine

Refused = Callable[..., str]


@pytest.fixture
def refused(
    luban: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Runs a command in this process, in an empty folder; it must end with 2 and leave no run behind."""
    monkeypatch.setenv("LUBAN_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["luban", *words])
        with pytest.raises(SystemExit) as ended:
            front_door.main()
        printed = capsys.readouterr()
        assert ended.value.code == 2, printed
        assert "Traceback" not in printed.err
        assert not (tmp_path / "runs").exists()
        return printed.err

    return run


@pytest.fixture
def dataset(luban: CommandLine, tmp_path: Path) -> Path:
    """A copy of the tiny dataset, to be damaged."""
    return Path(shutil.copytree(luban.home / "datasets" / "tiny", tmp_path / "datasets" / "tiny"))


def pretrain(dataset: Path, *more: str) -> list[str]:
    return ["pretrain", "own", "name=bad", f"data.dataset={dataset}", *SETTINGS, *more]


def test_all_wrong_settings_are_named_at_once_with_the_right_ones(refused: Refused, dataset: Path) -> None:
    text = refused(*pretrain(dataset, "optimizer.lrr=1", "train.steps=many", "trian.steps=3", "model.hidden_size=30"))
    assert "own has 4 mistakes" in text
    assert "optimizer.lrr: no such setting. Did you mean optimizer.lr?" in text
    assert "train.steps: Input should be a valid integer" in text
    assert "(got 'many')" in text
    assert "trian: no such setting. Did you mean train?" in text
    assert "model.hidden_size: must be a multiple of 8 (got 30)" in text


def test_an_unknown_recipe_names_the_known_ones(refused: Refused) -> None:
    text = refused("pretrain", "stdlob")
    assert "there is no recipe stdlob" in text
    assert "stdlib" in text


def test_a_missing_dataset_says_how_to_build_one(refused: Refused, tmp_path: Path) -> None:
    text = refused(*pretrain(tmp_path / "datasets" / "nowhere"))
    assert "nowhere" in text
    assert "luban data build" in text


def test_a_missing_shard_is_named(refused: Refused, dataset: Path) -> None:
    (dataset / "train-000001.tar").unlink()
    assert "train-000001.tar" in refused(*pretrain(dataset))


def test_a_truncated_shard_is_named_with_both_sizes(refused: Refused, dataset: Path) -> None:
    shard = dataset / "train-000000.tar"
    whole = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(whole - 512)
    text = refused(*pretrain(dataset))
    assert "train-000000.tar" in text
    assert f"{whole:,}" in text or str(whole) in text
    assert f"{whole - 512:,}" in text or str(whole - 512) in text


def test_a_tokenizer_that_does_not_belong_to_the_shards_is_refused(
    refused: Refused, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(40):
        (tmp_path / "texts" / f"{number}.txt").write_text(
            f"Another corpus, {number} times over, with other words.\n" * 9
        )
    from data import settings
    from data.build.build import train_tokenizer
    from data.recipe import DatasetRecipe

    recipe = settings.load(
        DatasetRecipe, None,
        ["name=x", f"sources=[{{kind: folder, path: {tmp_path}/texts}}]", "tokenizer.vocab_size=512", "workers=1",
         "dedup.near=false"],
    )  # fmt: skip
    train_tokenizer(recipe, tmp_path / "tokenizer").save(dataset)
    text = refused(*pretrain(dataset))
    assert "tokenizer" in text
    assert "not" in text


def test_a_vocabulary_smaller_than_the_tokenizer_s_is_refused(refused: Refused, dataset: Path) -> None:
    assert "model.vocab_size 640 is smaller than the" in refused(*pretrain(dataset, "model.vocab_size=640"))


def test_a_context_longer_than_the_corpus_names_both(refused: Refused, dataset: Path) -> None:
    text = refused(*pretrain(dataset, "model.context=1000000"))
    assert "a context of 1000000 tokens" in text
    assert "lower model.context or add text" in text


def test_a_run_folder_of_another_recipe_names_what_differs_and_of_which_kind(straight: CommandLine) -> None:
    text = straight.pretrain("straight", "train.steps=25", "seed=9", "log.every_steps=1", code=2)
    assert "train.steps (branch): 24 there, 25 here" in text
    assert "seed (fixed): 1 there, 9 here" in text
    assert "log.every_steps" not in text
    assert "--from straight" in text


def test_a_prompt_that_fills_the_context_is_refused(refused: Refused, dataset: Path) -> None:
    assert "evaluate.prompts" in refused(*pretrain(dataset, f"evaluate.prompts=['{'word ' * 200}']"))


def test_a_pattern_that_freezes_everything_is_refused(luban: CommandLine) -> None:
    text = luban.pretrain("frozen", 'train.trainable=["model.layer.*"]', code=2)
    assert "train.trainable" in text
    assert "model.layer.*" in text


def test_an_empty_corpus_and_a_file_that_is_no_text_are_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("data", "build", "folder", f"sources=[{{kind: folder, path: {tmp_path}/empty}}]")
    (tmp_path / "photo.txt").write_bytes(bytes(range(256)) * 50)
    assert "photo.txt" in refused("data", "build", f"sources=[{{kind: text, path: {tmp_path}/photo.txt}}]")
    lines = [json.dumps({"text": "fine"}), "{broken"]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    assert "some.jsonl:2" in refused("data", "build", f"sources=[{{kind: jsonl, path: {tmp_path}/some.jsonl}}]")
    assert not (tmp_path / "datasets").exists() or not list((tmp_path / "datasets").glob("*/dataset.json"))


@pytest.mark.parametrize("verb", ["status", "verify", "evaluate", "report"])
def test_an_unknown_run_is_named(refused: Refused, verb: str) -> None:
    assert "there is no run nobody" in refused(verb, "nobody")


def test_unknown_points_and_launchers_are_refused(straight: CommandLine, refused: Refused, dataset: Path) -> None:
    assert "--on cloud: no such launcher; known: local" in refused(*pretrain(dataset, "--on", "cloud"))
    assert "finetune needs --from RUN" in refused("finetune")
    assert "steps with one: 12, 16, 24" in straight("evaluate", "straight@4", code=2)
    assert "after the @ comes a step" in straight("evaluate", "straight@five", code=2)
    assert "here nothing is submitted" in straight("evaluate", "straight", "--dry-run", code=2)
