"""What `luban verify` says of a run that lacks something, or can't be written."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from data import settings
from data.errors import UserError
from tests.chaos import play
from trainer import checkpoint, record, verify
from trainer.run import dataset_path, open_run


def trained(run: Path) -> Path:
    """A run of the toy model."""
    play.attempt(run)
    (run / "recipe.yaml").write_text(settings.dump(play.recipe()))
    return run


def test_a_comparison_that_a_read_only_folder_can_not_keep_is_made_and_that_is_said(tmp_path, monkeypatch):
    mine, theirs = trained(tmp_path / "mine"), trained(tmp_path / "theirs")

    def refuse(path: Path, content: dict[str, Any]) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(verify, "write_json", refuse)
    said: list[str] = []
    verify.verify_run(str(mine), str(theirs), said.append)
    assert f"{mine / verify.PROOF} can't be written (Read-only file system)" in said[-2]
    assert any(line.startswith("ok   weights") for line in said)
    assert said[-1].startswith("mine: ")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_record_that_was_cut_short_is_found_and_begins_nothing(tmp_path, share):
    run = trained(tmp_path / "run")
    (run / "recipe.yaml").write_text(settings.dump(dataset_path(play.recipe())))
    path = run / "attempts" / "0001.jsonl"
    content, newest = path.read_bytes(), checkpoint.names(run)[-1]
    path.write_bytes(content[: int(len(content) * share)])
    before = set(run.rglob("*"))
    with pytest.raises(UserError, match=rf"{newest} is there, and no line of .*0001.jsonl leads to it: .* cut short"):
        open_run(play.recipe(), run)
    assert set(run.rglob("*")) == before
    found = next(verify.check_run(run))
    assert not found.equal
    assert f"{newest} is there, and no line" in found.detail


def test_a_checkpoint_given_up_and_not_yet_removed_is_no_sign_of_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "remove", lambda run, names: None)  # killed between the line and the removal
    run = trained(tmp_path / "run")
    assert record.load(run).retired & {*checkpoint.names(run)}
    assert next(verify.check_run(run)).equal


@pytest.mark.parametrize("how", ["by its folder", "by its manifest"])
def test_an_older_checkpoint_that_is_gone_is_named(tmp_path, how):
    run = trained(tmp_path / "run")
    assert "not there" not in next(verify.check_run(run)).compared
    older = run / checkpoint.FOLDER / checkpoint.names(run)[0]
    shutil.rmtree(older) if how == "by its folder" else (older / checkpoint.MANIFEST).unlink()
    found = next(verify.check_run(run))
    assert found.equal  # somebody may have made room
    assert f"1 kept by the record and not there: {older.name}" in found.compared
