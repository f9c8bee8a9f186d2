"""Builds that are killed, run out of disk or meet another one in their folder."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from data.build.build import build
from data.errors import UserError
from data.progress import Silent
from data.recipe import DatasetRecipe, Source, Split, TokenizerTraining
from data.settings import dump
from tests.data.build.test_build import digests
from tests.data.conftest import english

ROOT = Path(__file__).parents[3]
PART = 120_000
BUILD = (
    "import sys; from pathlib import Path; import data.build.pipeline, data.build.build;"
    "from data.recipe import DatasetRecipe; from data.settings import load; from data.progress import Lines;"
    f"data.build.pipeline._CHUNK_CHARACTERS = {PART};"
    "data.build.build.build(load(DatasetRecipe, Path(sys.argv[1])), Path(sys.argv[2]), progress=Lines())"
)
REMADE = re.compile(r"journal\.json|moving\.json|links|sort-.*|\..*\.tmp|lock|.*\.index\.json")
"""Files of a build that another may make anew: they cost nothing."""


class Lines(Silent):
    """Keeps the remarks it is told."""

    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


@pytest.fixture
def recipe(tmp_path):
    """Some 1.1 MB of text in ten parts, with copies, and ten shards."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(90):
        (folder / f"{number:02d}.txt").write_text(english(number % 80, 2500))
    return DatasetRecipe(
        name="made",
        sources=(Source(kind="folder", path=folder, name="made"),),
        split=Split(valid=0.2),
        tokenizer=TokenizerTraining(vocab_size=768, sample_bytes=200_000),
        shard_tokens=60_000,
        workers=2,
    )


@pytest.fixture
def undisturbed(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("data.build.pipeline._CHUNK_CHARACTERS", PART)
    return digests(build(recipe.model_copy(update={"workers": 1}), tmp_path / "undisturbed").folder)


def vouched(held):
    """Those of a build's files that are finished: a shard has its entry, what was dropped its part."""
    shards = {name.removeprefix("entry-").removesuffix(".tar.json") for name in held if name.startswith("entry-")}
    return {
        name: inode
        for name, inode in held.items()
        if not name.endswith(".drops") and (not name.startswith(("train-", "valid-")) or name.split(".")[0] in shards)
    }


def files(out):
    """The inode of each file of a build in progress, by name."""
    found = {}
    for folder, _, names in os.walk(out):
        for name in names:
            if not any(REMADE.fullmatch(part) for part in (name, Path(folder).name)):
                with suppress(FileNotFoundError):
                    found[name] = (Path(folder) / name).stat().st_ino
    return found


def start(recipe, out, script=BUILD):
    file = out.with_suffix(".yaml")
    file.write_text(dump(recipe))
    argv = [sys.executable, "-c", script, str(file), str(out)]
    return subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def workers_of(process):
    """Its worker processes; another child of it only tracks shared memory."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_build_killed_at_random_moments_gives_the_same_bytes_and_makes_no_file_twice(recipe, undisturbed, tmp_path):
    draw = random.Random(20)
    out = tmp_path / "chaos"
    kills = 0
    before = {}
    while True:
        wanted = len(files(out)) + draw.randint(5, 25)
        process = start(recipe, out)
        while process.poll() is None and len(files(out)) < wanted:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        if process.poll() is None:
            whom = draw.choice(["all", "driver", "worker"])
            workers = workers_of(process)
            if whom == "worker" and workers:
                os.kill(draw.choice(workers), signal.SIGKILL)
            else:
                (os.killpg if whom == "all" else os.kill)(process.pid, signal.SIGKILL)
            kills += 1
        said = process.communicate()[1]
        after = files(out)
        same = {name for name in before if after.get(name) == before[name]}
        if process.returncode == 0:
            assert same == {name for name in before if (out / name).exists()}, said
            break
        assert same == before.keys(), said
        before = vouched(after)
    assert digests(out) == undisturbed
    assert kills >= 2


@contextmanager
def small_disk(folder, kilobytes):
    """A file system of its own with so much room, mounted at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_message_and_the_build_goes_on_once_there_is_room(recipe, undisturbed, tmp_path):
    with small_disk(tmp_path / "disk", 1000) as disk:
        out = disk / "out"
        stopped = []
        for room in (1000, 2000, 4000):
            subprocess.run(["mount", "-o", f"remount,size={room}k", disk], check=True)
            before = vouched(files(out))
            with pytest.raises(
                UserError, match=r"the disk that holds .*/out is full: No space left.*build again to go"
            ):
                build(recipe.model_copy(update={"workers": 1}), out)
            after = vouched(files(out))
            assert {name: after.get(name) for name in before} == before
            stopped.append(len(after))
        assert 0 < stopped[0] < stopped[1] < stopped[2]
        assert not list(out.glob("*.tar"))
        subprocess.run(["mount", "-o", "remount,size=64000k", disk], check=True)
        lines = Lines()
        assert digests(build(recipe.model_copy(update={"workers": 1}), out, progress=lines).folder) == undisturbed
        assert "going on from what an interrupted build left" in lines.said[0]
        assert not (out / ".building").exists()


def test_a_build_of_another_recipe_does_not_use_what_one_left(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("data.build.pipeline._CHUNK_CHARACTERS", PART)
    recipe, out = recipe.model_copy(update={"workers": 1, "seed": 7}), tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("data.build.pipeline.write_index", lambda *given: signal.raise_signal(signal.SIGINT))
        build(recipe, out)
    left = files(out)
    assert any(name.endswith(".part") for name in left)
    lines = Lines()
    other = recipe.model_copy(update={"seed": 8})
    got = digests(build(other, out, progress=lines).folder)
    assert "was left by a build of another recipe, input or version: it is removed" in lines.said[0]
    assert got == digests(build(other, tmp_path / "again").folder)


def test_a_tokenizer_that_is_too_small_is_mended_without_reading_and_cleaning_again(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("data.build.pipeline._CHUNK_CHARACTERS", PART)
    characters = "".join(chr(0x4E00 + number) for number in range(400))
    (tmp_path / "texts" / "many.txt").write_text(f"{characters}\n" * 3)

    def sized(pieces):
        wanted = TokenizerTraining(vocab_size=pieces, character_coverage=1.0)
        return recipe.model_copy(update={"workers": 1, "tokenizer": wanted})

    out, lines = tmp_path / "out", Lines()
    with pytest.raises(UserError, match=r"vocab_size is 512, .*\(What was read and cleaned is kept: .*`tokenizer`"):
        build(sized(512), out)
    read = {name: inode for name, inode in files(out).items() if name.endswith(".part") or name.startswith("after-")}
    assert len(read) > 10
    cleaned = []
    with monkeypatch.context() as patched:
        patched.setattr("data.build.chunks._kept", lambda *given: cleaned.append(given) or [])
        got = build(sized(1000), out, progress=lines)
    assert not cleaned
    assert "size of shards: it is removed" in lines.said[0]
    assert digests(got.folder) == digests(build(sized(1000), tmp_path / "again").folder)
    assert not (out / ".building").exists()


def test_memory_changes_nothing_in_the_result(recipe, undisturbed, tmp_path):
    tight = recipe.model_copy(update={"workers": 1, "memory": 1_000_000})
    assert digests(build(tight, tmp_path / "tight").folder) == undisturbed
