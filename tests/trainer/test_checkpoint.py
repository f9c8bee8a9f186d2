"""Checkpoints: whole or not there at all, and the same state for every topology that reads them."""

import json
import os
import random
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.errors import UserError
from tests.ranks import alone, launch
from tests.trainer.saving import save
from trainer import checkpoint, place
from trainer.checkpoint import (
    MOMENTS,
    WEIGHT,
    Checkpoint,
    CorruptCheckpoint,
    Span,
    clear_partial,
    folder_name,
    names,
    remove,
    save_frozen,
    superfluous,
)
from trainer.world import World

PARTS = (WEIGHT, *MOMENTS)
SHAPES = {"embed.weight": (9, 4), "proj.weight": (4, 6), "norm.weight": (5,), "scale": ()}
State = dict[str, dict[str, Tensor]]


def whole_state(seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> State:
    """Random weights and moments, flat."""
    draw = torch.Generator().manual_seed(seed)
    sizes = {name: torch.empty(shape).numel() for name, shape in shapes.items()}
    return {name: {part: torch.randn(size, generator=draw) for part in PARTS} for name, size in sizes.items()}


def spans(state: State, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Span]:
    """All of it, as one rank would hold it."""
    return [Span(name, shapes[name], 0, parts) for name, parts in state.items()]


def said(step: int, attempt: int = 1) -> dict[str, Any]:
    """What `state.json` is to hold."""
    return {"step": step, "attempt": attempt, "zero_stage": 2, "progress": {"consumed": 8 * step, "skipped": [[8, 16]]}}


def put(run: Path, step: int, state: State | None = None, frozen: str | None = None) -> Checkpoint:
    """Save at a step, in this process alone."""
    name = folder_name(step, 1)
    save(run, name, said(step), spans(state or whole_state(step)), frozen, alone())
    return Checkpoint(run / checkpoint.FOLDER / name)


def problems(folder: Path) -> list[str]:
    """Everything that a reader would find wrong."""
    try:
        return Checkpoint(folder).problems()
    except CorruptCheckpoint as error:
        return [str(error)]


def holds(found: Checkpoint, state: State, shapes: dict[str, tuple[int, ...]] = SHAPES) -> bool:
    """Whether `found` is `state`, bit for bit."""
    return set(found.manifest["parameters"]) == set(state) and all(
        torch.equal(found.read(name, shapes[name], 0, len(parts[part]))[part], parts[part])
        for name, parts in state.items()
        for part in PARTS
    )


# -- ranks that are threads ------------------------------------------------------------------------------------------


class Meeting:
    """Where the threads exchange what they gather."""

    def __init__(self, size: int):
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=30)


@dataclass(frozen=True)
class ThreadRank(World):
    """A rank that needs no process; saving asks no more of a world than this."""

    def gather(self, value: object) -> list[Any]:
        self.control.slots[self.rank] = value
        self.control.barrier.wait()
        everyone = list(self.control.slots)
        self.control.barrier.wait()
        return everyone

    def total(self, values: Any) -> list[int]:
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    def collect(self, value: object) -> list[Any]:
        everyone = self.gather(value)
        return [] if self.rank else everyone

    def told(self, value: object) -> Any:
        return self.gather(value)[0]


def together(size: int, function: Callable[[World], Any]) -> list[Any]:
    """What `function` returned or raised on each of `size` ranks."""
    meeting, results = Meeting(size), [None] * size

    def rank(number: int) -> None:
        try:
            results[number] = function(ThreadRank(number, size, torch.device("cpu"), meeting))
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# -- what is written is what is read ---------------------------------------------------------------------------------


def test_a_round_trip_changes_no_bit(tmp_path):
    state = whole_state()
    state["norm.weight"]["weight"][:4] = torch.tensor([float("nan"), float("-inf"), -0.0, 1e-42])
    name = folder_name(400, 3)
    assert name == "step-000000400.a3"
    size = save(tmp_path, name, said(400, 3), spans(state), None, alone())
    found = Checkpoint(tmp_path / checkpoint.FOLDER / name)
    assert (found.step, found.attempt, found.name) == (400, 3, name)
    assert found.state == said(400, 3)
    assert found.problems() == []
    for parameter, parts in state.items():
        read = found.read(parameter, SHAPES[parameter], 0, len(parts[WEIGHT]))
        for part in PARTS:
            assert torch.equal(read[part].view(torch.int32), parts[part].view(torch.int32))
    assert {name: tuple(tensor.shape) for name, tensor in found.weights().items()} == SHAPES
    held = sorted(path.name for path in found.place.path.iterdir())
    assert held == ["manifest.json", "spans-00000.safetensors", "state.json"]
    assert size == sum((found.place.path / file).stat().st_size for file in held[1:])
    assert names(tmp_path) == [name]
    assert (tmp_path / checkpoint.FOLDER / "latest").resolve() == found.place.path


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.data())
def test_any_piece_reads_back_however_the_ranks_had_cut_the_state(tmp_path_factory, size, data):
    """Also ranks that hold nothing of a parameter, or nothing at all."""
    run, state = tmp_path_factory.mktemp("run"), whole_state()
    held: list[list[Span]] = [[] for _ in range(size)]
    for name, parts in state.items():
        length = len(parts[WEIGHT])
        cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=size - 1, max_size=size - 1)))
        order = data.draw(st.permutations(range(size)))
        for rank, start, stop in zip(order, [0, *cuts], [*cuts, length], strict=True):
            if start < stop:
                views = {part: tensor[start:stop] for part, tensor in parts.items()}
                held[rank].append(Span(name, SHAPES[name], start, views))
    sizes = together(size, lambda world: save(run, folder_name(4, 1), said(4), held[world.rank], None, world))
    found = Checkpoint(run / checkpoint.FOLDER / folder_name(4, 1))
    assert sizes[0] == sum(entry["bytes"] for entry in found.manifest["files"].values())
    assert found.problems() == []
    assert found.manifest["world"] == size
    assert sorted(problem for share in range(3) for problem in found.problems(share, 3)) == []
    for name, parts in state.items():
        start = data.draw(st.integers(0, len(parts[WEIGHT])))
        count = data.draw(st.integers(0, len(parts[WEIGHT]) - start))
        read = found.read(name, SHAPES[name], start, count)
        assert all(torch.equal(read[part], parts[part][start : start + count]) for part in PARTS)
        assert torch.equal(found.weights()[name], parts[WEIGHT].view(SHAPES[name]))


def test_another_model_is_refused_by_the_name_of_the_parameter(tmp_path):
    found = put(tmp_path, 1)
    with pytest.raises(UserError, match=r"holds no parameter head\.weight: it is of another model"):
        found.read("head.weight", (4, 4), 0, 16)
    with pytest.raises(UserError, match=r"holds proj\.weight as \(4, 6\), the model wants \(6, 4\)"):
        found.read("proj.weight", (6, 4), 0, 24)


def test_checkpoints_are_listed_from_the_oldest_by_step_then_attempt(tmp_path):
    for step, attempt in ((900, 2), (1000, 1), (900, 10), (20, 1)):
        save(tmp_path, folder_name(step, attempt), said(step, attempt), spans(whole_state()), None, alone())
    listed = ["step-000000020.a1", "step-000000900.a2", "step-000000900.a10", "step-000001000.a1"]
    assert names(tmp_path) == listed
    assert (tmp_path / checkpoint.FOLDER / "latest").resolve().name == "step-000000020.a1"
    (tmp_path / checkpoint.FOLDER / "latest").unlink()  # a cache, never the truth
    assert names(tmp_path) == listed


# -- frozen weights --------------------------------------------------------------------------------------------------


def test_frozen_weights_are_stored_once_and_checked_with_every_checkpoint(tmp_path):
    assert save_frozen(tmp_path, {}) is None
    assert not (tmp_path / "base").exists()
    still = {"b.weight": torch.randn(3, 5).t(), "a.weight": torch.randn(7)}
    name = save_frozen(tmp_path, still)
    assert save_frozen(tmp_path, dict(reversed(still.items()))) == name
    assert [path.name for path in (tmp_path / "base").iterdir()] == [name]
    state = whole_state()
    first, second = (put(tmp_path, step, state, name) for step in (1, 2))
    assert holds(second, state)
    assert all(torch.equal(first.frozen()[key], tensor) for key, tensor in still.items())
    assert set(second.weights()) == {*SHAPES, *still}
    assert first.problems() == second.problems() == []
    file = tmp_path / "base" / str(name)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    for found in (first, second):
        assert found.problems() == [f"{found.name}: {name} has another digest than its manifest says"]
    file.unlink()
    assert first.problems() == [f"{first.name}: {name} cannot be read (No such file or directory)"]


# -- whole or not there ----------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The power goes off."""


class Disk:
    """Counts what reaches the disk and stops the world at one of those moments; knows what would survive it."""

    def __init__(self, patch: pytest.MonkeyPatch, crash_at: int):
        self.left, self.synced, self.events = crash_at, set(), []
        for owner, name in (
            (os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "symlink_to"), (Path, "open"),
        ):  # fmt: skip
            patch.setattr(owner, name, self._watched(getattr(owner, name), name))

    def _watched(self, plain: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._tick()
            if name == "fsync":
                path = Path(f"/proc/self/fd/{args[0]}").readlink()
                self.synced.add(path.stat().st_ino)
            else:
                path = next(value for value in args if isinstance(value, Path))
            self.events.append(f"{name} {path.name}")
            result = plain(*args, **kwargs)
            self._tick()
            return result

        return call

    def _tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash


def test_everything_is_on_the_disk_before_the_manifest_gets_its_name(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, 10**6)
        put(tmp_path, 2)
    at, draft = next(
        (at, event.removeprefix("rename ")) for at, event in enumerate(disk.events) if event.startswith("rename manif")
    )
    before, after = disk.events[:at], disk.events[at + 1 :]
    for file in ("spans-00000.safetensors", "state.json", draft, folder_name(2, 1)):
        assert f"fsync {file}" in before
    assert before.index("fsync spans-00000.safetensors") > before.index("open spans-00000.safetensors")
    assert after[:2] == [f"fsync {folder_name(2, 1)}", f"fsync {checkpoint.FOLDER}"]


def test_every_single_flipped_bit_is_found_and_its_file_named(tmp_path):
    folder = put(tmp_path, 3, frozen=save_frozen(tmp_path, {"still": torch.randn(5)})).place.path
    draw = random.Random(5)
    for path in (folder / "state.json", folder / "manifest.json", folder / "spans-00000.safetensors"):
        content = path.read_bytes()
        padding = range(content.find(b" " * 16), content.rfind(b" " * 16))  # of a head: one byte is like the next
        path.write_text("[" * 100_000)  # too deep for the parser
        assert len(problems(folder)) == 1
        for at in (at for at in range(len(content)) if at not in padding or at % 64 == 0):
            damaged = bytearray(content)
            damaged[at] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            found = problems(folder)
            assert len(found) == 1 and folder.name in found[0] and path.name in found[0], (path.name, at)
        path.write_bytes(content)
    assert problems(folder) == []


@pytest.mark.parametrize("file", ["state.json", "manifest.json", "spans-00000.safetensors"])
def test_a_file_cut_short_grown_or_gone_is_found_and_named(tmp_path, file):
    folder = put(tmp_path, 3).place.path
    path = folder / file
    content = path.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], b"", content + b"\0"):
        path.write_bytes(damaged)
        found = problems(folder)
        assert len(found) == 1 and file in found[0]
        if file != "manifest.json":
            assert found[0].endswith(f"{file} has {len(damaged)} bytes instead of {len(content)}")
    path.unlink()
    assert len(problems(folder)) == 1 and f"{file} cannot be read" in problems(folder)[0]


def test_a_damaged_file_is_found_by_the_rank_that_reads_its_share(tmp_path):
    held = [[span] for span in spans(whole_state())]
    together(4, lambda world: save(tmp_path, folder_name(1, 1), said(1), held[world.rank], None, world))
    found = Checkpoint(tmp_path / checkpoint.FOLDER / folder_name(1, 1))
    (found.place.path / "spans-00002.safetensors").unlink()
    for shares in (1, 2, 3, 7):
        told = [problem for share in range(shares) for problem in found.problems(share, shares)]
        assert len(told) == 1 and "spans-00002.safetensors" in told[0]


@pytest.mark.parametrize("change", [{"version": checkpoint.VERSION + 1}, {"format": "luban-checkpoint-ng"}])
def test_a_newer_format_is_refused_by_name_and_not_taken_for_damage(tmp_path, change):
    folder = put(tmp_path, 3).place.path
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | change
    del manifest["digest"]
    path.write_text(json.dumps(manifest | {"digest": checkpoint.digest_of(manifest)}))
    with pytest.raises(UserError, match=f"{folder.name} is of format luban-checkpoint.*: use a newer Luban"):
        Checkpoint(folder)


def test_clearing_removes_what_never_got_a_manifest_and_nothing_else(tmp_path):
    kept = put(tmp_path, 3)
    partial = tmp_path / checkpoint.FOLDER / folder_name(4, 2)
    partial.mkdir()
    (partial / "spans-00000.safetensors").write_bytes(b"half")
    clear_partial(tmp_path, {1})  # attempt 2 may still be writing
    assert partial.exists()
    clear_partial(tmp_path, {1, 2})
    assert not partial.exists()
    assert kept.problems() == []
    clear_partial(tmp_path / "a run without checkpoints", {1})


# -- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "best", "kept"),
    [
        (1, 0, None, [100]),
        (2, 0, None, [90, 100]),
        (2, 30, None, [30, 60, 90, 100]),
        (1, 0, 40, [40, 100]),
        (3, 50, 20, [20, 50, 80, 90, 100]),
        (0, 0, None, [100]),
        (20, 0, None, list(range(10, 101, 10))),
        (1, 0, 100, [100]),
    ],
)
def test_the_last_ones_every_nth_and_the_best_are_kept(tmp_path, keep_last, keep_every, best, kept):
    mine = [folder_name(step, 1) for step in range(10, 101, 10)]
    for name in mine:
        (tmp_path / checkpoint.FOLDER / name).mkdir(parents=True)
        for file in ("manifest.json", "spans-00000.safetensors"):
            (tmp_path / checkpoint.FOLDER / name / file).write_text("{}")
    other = tmp_path / checkpoint.FOLDER / folder_name(5, 2)  # not in the list: of another attempt
    other.mkdir()
    (other / "manifest.json").write_text("{}")
    removed = superfluous(mine, keep_last, keep_every, folder_name(best, 1) if best else None)
    remove(tmp_path, removed)
    left = [folder_name(step, 1) for step in kept]
    assert names(tmp_path) == [other.name, *left]
    assert removed == [name for name in mine if name not in left]
    assert not any((tmp_path / checkpoint.FOLDER / name).exists() for name in removed)


def test_what_is_removed_stops_existing_before_its_files_go(tmp_path, monkeypatch):
    old, new = put(tmp_path, 1), put(tmp_path, 2)
    monkeypatch.setattr(place.shutil, "rmtree", lambda *rest, **more: None)  # killed in between
    remove(tmp_path, [old.name])
    assert (old.place.path / "spans-00000.safetensors").exists()
    assert names(tmp_path) == [new.name]


# -- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_error_that_leaves_earlier_checkpoints_intact(small_disk):
    """Wherever the disk runs out: in the spans, the state, the manifest."""
    shapes = {"a.weight": (300, 100), "b.weight": (100,)}
    state = whole_state(1, shapes)
    run, ballast = small_disk / "run", small_disk / "ballast"
    for step in (1, 2):
        save(run, folder_name(step, 1), said(step), spans(state, shapes), None, alone())
    folder = run / checkpoint.FOLDER
    remove(run, superfluous(names(run), 1, 0, None))
    causes = []
    for pages in (*range(8), 40, 80):
        free = os.statvfs(small_disk)
        ballast.write_bytes(b"x" * max(0, free.f_bavail - pages) * free.f_bsize)
        with pytest.raises(UserError) as caught:
            save(run, folder_name(3, 1), said(3), spans(state, shapes), None, alone())
        for part in ("cannot write the checkpoint step-000000003.a1", "No space left", str(run), "make room"):
            assert part in str(caught.value)
        causes.append(str(caught.value))
        assert sorted(path.name for path in folder.iterdir()) == ["latest", folder_name(2, 1)]
        assert problems(folder / folder_name(2, 1)) == []
        with pytest.raises(UserError, match=r"cannot write the frozen weights to .*base"):
            save_frozen(run, {"still": torch.zeros(100, 4096)})
        assert list((run / "base").iterdir()) == []
        ballast.unlink()
    needed = sum(-(-path.stat().st_size // 4096) for path in (folder / folder_name(2, 1)).iterdir())
    free = os.statvfs(small_disk)
    for pages in range(needed - 3, needed + 20):
        ballast.write_bytes(b"x" * (free.f_bavail - pages) * free.f_bsize)
        try:
            save(run, folder_name(3, 1), said(3), spans(state, shapes), None, alone())
        except UserError:
            assert names(run) == [folder_name(2, 1)]
        else:
            assert problems(folder / folder_name(3, 1)) == []
            break
        finally:
            ballast.unlink()
    assert pages > needed - 3
    assert names(run) == [folder_name(2, 1), folder_name(3, 1)]


def out_of_room(world: World, run: Path) -> tuple[str, list[str], list[str], int]:
    """Rank 1 may write no file larger than 64 kB for a while."""
    shapes = {"a.weight": (300, 100)}
    state = whole_state(1, shapes)
    held = spans(state, shapes) if world.rank == 1 else []
    save(run, folder_name(1, 1), said(1), held, None, world)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
    try:
        save(run, folder_name(2, 1), said(2), held, None, world)
        message = "it was saved"
    except UserError as error:
        message = str(error)
    world.gather(None)
    left = sorted(path.name for path in (run / checkpoint.FOLDER).iterdir())
    world.gather(None)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    found = problems(run / checkpoint.FOLDER / folder_name(1, 1))
    return message, left, found, save(run, folder_name(2, 1), said(2), held, None, world)


@pytest.mark.slow
def test_when_one_rank_cannot_write_every_rank_says_so_and_may_try_again(tmp_path):
    told = launch(out_of_room, 2, tmp_path / "run", folder=tmp_path)
    assert told[0][3] > 300 * 100 * 4 * 3
    for message, left, found, _ in told:
        assert message.startswith("cannot write the checkpoint step-000000002.a1 (rank 1: ")
        assert "File too large" in message
        assert left == ["latest", folder_name(1, 1)]
        assert found == []
    assert names(tmp_path / "run") == [folder_name(1, 1), folder_name(2, 1)]
    assert problems(tmp_path / "run" / checkpoint.FOLDER / folder_name(2, 1)) == []
