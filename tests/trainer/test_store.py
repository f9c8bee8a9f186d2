"""Places and mirrors: one protocol for a folder and a store, and a run that comes back from its store."""

import errno
import fcntl
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
import pytest
import torch
import xxhash

from data import settings
from data.errors import UserError
from tests.chaos import play
from tests.chaos.judge import judge
from tests.conftest import CommandLine
from tests.ranks import alone
from tests.trainer.saving import save
from trainer import checkpoint, disk, mirror, place, record
from trainer.checkpoint import Checkpoint, CorruptCheckpoint, Span, folder_name
from trainer.place import BLOCK, PAGE, Folder, Place, Store, open_store, page_aligned
from trainer.recipe import Recipe
from trainer.run import dataset_path, open_run
from trainer.verify import check_run


@pytest.fixture(params=["folder", "file", "memory"])
def somewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A run's place of each kind."""
    if request.param == "folder":
        yield Folder(tmp_path / "run")
    elif request.param == "file":
        yield open_store(f"file://{tmp_path}/store").child("run")
    else:
        yield open_store("memory://store").child("run")
        fsspec.filesystem("memory").rm("/store", recursive=True)


def numbers(*sizes: int) -> list[np.ndarray]:
    draw = np.random.default_rng(3)
    return [draw.integers(0, 256, size, np.uint8) for size in sizes]


# -- places ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_every_way_of_reading_gives(somewhere, monkeypatch):
    monkeypatch.setattr(place, "CHUNK", 1000)
    parts = numbers(17, 4096, 0, 999)
    whole = np.concatenate(parts).tobytes()
    there = somewhere.child("a").child("b")
    told = there.write("data", parts)
    assert told["bytes"] == len(whole)
    assert there.digest("data") == (told["bytes"], told["xxh3_128"])
    assert there.content("data") == whole
    assert there.holds("data") == len(whole)
    for offset, count in ((0, 17), (5, 3000), (len(whole) - 1, 1), (20, 0)):
        out = np.empty(count, np.uint8)
        there.read_into("data", offset, out)
        assert out.tobytes() == whole[offset : offset + count]
    floats = np.empty(4, np.float32)
    there.read_into("data", 4, floats)
    assert floats.tobytes() == whole[4:20]
    assert there.write("data", parts[:1])["bytes"] == 17  # a second try replaces the first
    assert there.holds("data") == 17


def test_what_reads_back_otherwise_than_it_was_written_is_an_error(somewhere, monkeypatch):
    """A disk or a store changes one byte after it has said that all is written: in a whole page, in the last piece."""
    monkeypatch.setattr(place.time, "sleep", lambda seconds: None)
    kind, size = type(somewhere._fs) if isinstance(somewhere, Store) else fsspec.AbstractFileSystem, 3 * PAGE + 100
    read_some, read_all = os.readv, cast(Callable[..., bytes], kind.cat_file)
    for bad in (5, size - 1):

        def readv(handle: int, buffers: list[memoryview], bad: int = bad) -> int:
            got, at = read_some(handle, buffers), os.lseek(handle, 0, os.SEEK_CUR)
            if at - got <= bad < at:
                buffers[0][bad - (at - got)] ^= 1
            return got

        def cat_file(files: Any, path: str, *span: int, bad: int = bad) -> bytes:
            data = bytearray(read_all(files, path, *span))
            data[bad] ^= 1
            return bytes(data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "readv", readv)
            patch.setattr(kind, "cat_file", cat_file)
            with pytest.raises(OSError, match="data reads back"):
                somewhere.write("data", numbers(size))
    assert somewhere.write("data", numbers(size))["bytes"] == size


@pytest.mark.parametrize("refusing", ["nothing", "the flag", "the write", "the memory"])
def test_a_folder_is_written_and_reread_past_the_page_cache_unless_the_file_system_refuses(
    tmp_path, monkeypatch, refusing
):
    parts = [page_aligned(2 * PAGE), page_aligned(BLOCK + 5 * PAGE), page_aligned(PAGE)[:77]]
    for part, content in zip(parts, numbers(*map(len, parts)), strict=True):
        part[:] = content
    plain, readv, direct = fcntl.fcntl, os.readv, {"written": 0, "read": 0}

    def switch(file: Any, command: int, *flags: int) -> int:
        if refusing == "the flag" and command == fcntl.F_SETFL and flags[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return plain(file, command, *flags)

    class Raw(io.FileIO):
        def write(self, data: Any, /) -> int:
            if plain(self, fcntl.F_GETFL) & os.O_DIRECT:
                if refusing in ("the write", "the memory"):
                    number = errno.EINVAL if refusing == "the write" else errno.EFAULT
                    raise OSError(number, os.strerror(number))
                direct["written"] += len(data)
            return super().write(data)

    def read(handle: int, buffers: list[memoryview]) -> int:
        got = readv(handle, buffers)
        direct["read"] += got if plain(handle, fcntl.F_GETFL) & os.O_DIRECT else 0
        return got

    monkeypatch.setattr(fcntl, "fcntl", switch)
    monkeypatch.setattr(os, "readv", read)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, buffering: Raw(path, mode.replace("b", "")))
        told = Folder(tmp_path).write("data", parts)
    whole = b"".join(part.tobytes() for part in parts)
    assert (tmp_path / "data").read_bytes() == whole
    assert told == {"bytes": len(whole), "xxh3_128": xxhash.xxh3_128_hexdigest(whole)}
    assert direct["written"] == (len(whole) - 77 if refusing == "nothing" else 0)
    assert direct["read"] == (0 if refusing == "the flag" else len(whole))
    before = direct["read"]
    assert Folder(tmp_path).digest("data") == (len(whole), told["xxh3_128"])
    assert direct["read"] == before
    assert Folder(tmp_path).digest("data", past_cache=True) == (len(whole), told["xxh3_128"])
    assert direct["read"] == 2 * before


def test_verify_rereads_the_disk_and_a_start_what_it_is_about_to_load(tmp_path, monkeypatch):
    plain, asked = Folder.digest, []

    def digest(folder: Folder, name: str, past_cache: bool = False) -> tuple[int, str]:
        asked.append(past_cache)
        return plain(folder, name, past_cache)

    run = tmp_path / "run"
    play.attempt(run)
    (run / "recipe.yaml").write_text(settings.dump(play.recipe()))
    monkeypatch.setattr(Folder, "digest", digest)
    assert next(check_run(run)).equal
    assert len(asked) > 2 and all(asked)
    asked.clear()
    play.attempt(run, steps=play.STEPS + 3)
    assert asked[0] is False


STRAYS: dict[str, Callable[[Path, Path], object]] = {
    "a copy of a checkpoint": lambda run, last: shutil.copytree(last, last.with_name(f"{last.name}.bak")),
    "another copy": lambda run, last: shutil.copytree(last, last.with_name(f"{last.name} (copy)")),
    "an empty folder": lambda run, last: last.with_name("step-last").mkdir(),
    "a file": lambda run, last: last.with_name("step-notes.txt").write_text("x"),
    "a copy of an attempt": lambda run, last: shutil.copy(run / "attempts/0001.jsonl", run / "attempts/0001 (2).jsonl"),
    "notes": lambda run, last: (run / "attempts" / "notes.jsonl").write_text("{}"),
    "a link to a checkpoint elsewhere": lambda run, last: last.rename(run / "x") and last.symlink_to(run / "x"),
}


@pytest.mark.parametrize("stray", STRAYS)
def test_what_somebody_puts_into_the_folders_of_a_run_disturbs_nobody_and_stays(tmp_path, stray):
    run = tmp_path / "run"
    store: dict[str, Any] = {"checkpoint.store": f"file://{tmp_path}/store"}
    chosen = play.recipe(play.STEPS, **store)
    play.attempt(run, chosen=chosen)
    (run / "recipe.yaml").write_text(settings.dump(chosen))
    last = run / checkpoint.FOLDER / checkpoint.names(run)[-1]
    before = set(run.rglob("*"))
    STRAYS[stray](run, last)
    strays = set(run.rglob("*")) - before
    (tmp_path / "store" / "run" / "record" / "notes").mkdir()
    assert next(check_run(run)).equal
    play.attempt(run, chosen=play.recipe(play.STEPS + 3, **store))
    assert record.load(run).attempts[1].start["adopts"] == last.name
    assert strays and all(path.exists() for path in strays)


def test_a_mounted_folder_as_store_that_can_not_flush_has_written_nothing(tmp_path, monkeypatch):
    there, flushed, plain = open_store(f"file://{tmp_path}/store").child("run"), [], os.fsync

    def fsync(handle: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        plain(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    there.write("data", numbers(10))
    assert flushed == [f"{tmp_path}/store/run/data", f"{tmp_path}/store/run", f"{tmp_path}/store", str(tmp_path)]

    def broken(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    monkeypatch.setattr(place.time, "sleep", lambda seconds: None)
    with pytest.raises(OSError, match="Input/output error"):
        there.write("more", numbers(10))


def test_what_is_not_there_is_an_error_and_not_waited_for(somewhere, monkeypatch):
    monkeypatch.setattr(place.time, "sleep", lambda seconds: pytest.fail("it waited"))
    somewhere.write("short", numbers(10))
    for ask in (lambda: somewhere.content("none"), lambda: somewhere.digest("none")):
        with pytest.raises(FileNotFoundError):
            ask()
    assert somewhere.holds("none") is None
    assert somewhere.child("none").list() == []
    with pytest.raises(OSError, match="ends too early"):
        somewhere.read_into("short", 5, np.empty(6, np.uint8))


def test_names_children_and_siblings_are_those_of_the_path(somewhere):
    assert (somewhere.name, somewhere.child("checkpoints").name) == ("run", "checkpoints")
    step = somewhere.child("checkpoints").child("step")
    step.publish("manifest.json", b"{}")
    step.sibling("base").publish("weights", b"w")
    assert somewhere.child("base").content("weights") == b"w"
    assert somewhere.list() == ["base", "checkpoints"]
    assert step.list() == ["manifest.json"]
    step.publish("manifest.json", b"{1}")
    assert step.content("manifest.json") == b"{1}"
    assert str(somewhere) in str(step)
    step.remove("manifest.json")
    assert (step.list(), step.holds("manifest.json")) == ([], None)
    step.remove("manifest.json")  # a second time nothing happens


def spans(step: int) -> list[Span]:
    draw = torch.Generator().manual_seed(step)
    parts = {part: torch.randn(24, generator=draw) for part in (checkpoint.WEIGHT, *checkpoint.MOMENTS)}
    return [Span("proj.weight", (4, 6), 0, parts)]


def test_a_checkpoint_is_whole_or_not_there_and_damage_is_named_wherever_it_lies(somewhere):
    base = checkpoint.save_frozen(somewhere, {"still": torch.ones(3)})
    for step in (1, 2, 3):
        save(somewhere, folder_name(step, 1), {"step": step, "attempt": 1, "zero_stage": 1}, spans(step), base, alone())
    assert checkpoint.names(somewhere) == [folder_name(step, 1) for step in (1, 2, 3)]
    home = somewhere.child(checkpoint.FOLDER)
    found = Checkpoint(home.child(folder_name(2, 1)))
    assert found.problems() == [] and found.state["step"] == 2
    (span,) = spans(2)
    read = found.read("proj.weight", (4, 6), 5, 7)
    assert all(torch.equal(read[part], span.tensors[part][5:12]) for part in span.tensors)
    assert torch.equal(found.weights()["still"], torch.ones(3))
    for file in home.child(folder_name(2, 1)).list():
        content = home.child(folder_name(2, 1)).content(file)
        damaged = bytearray(content)
        damaged[len(content) // 2] ^= 4
        home.child(folder_name(2, 1)).write(file, [np.frombuffer(bytes(damaged), np.uint8)])
        try:
            (problem,) = Checkpoint(home.child(folder_name(2, 1))).problems()
        except CorruptCheckpoint as error:
            problem = str(error)
        assert folder_name(2, 1) in problem and file in problem
        home.child(folder_name(2, 1)).write(file, [np.frombuffer(content, np.uint8)])
    home.child(folder_name(4, 1)).write("spans-00000.safetensors", numbers(10))
    assert folder_name(4, 1) not in checkpoint.names(somewhere)
    checkpoint.clear_partial(somewhere, {1})
    checkpoint.remove(somewhere, [folder_name(1, 1)])
    left = [name for name in home.list() if name != "latest"]
    assert left == checkpoint.names(somewhere) == [folder_name(2, 1), folder_name(3, 1)]


def test_damaged_frozen_weights_are_written_anew(somewhere):
    """By size alone they would look as before, and every later checkpoint would lean on them."""
    still = {"still": torch.arange(9.0)}
    name = checkpoint.save_frozen(somewhere, still)
    assert name is not None
    base = somewhere.child(checkpoint.BASE)
    content = bytearray(base.content(name))
    content[-2] ^= 1
    base.write(name, [np.frombuffer(bytes(content), np.uint8)])
    assert checkpoint.save_frozen(somewhere, still) == name
    assert base.digest(name)[1] + ".safetensors" == name


# -- a store that fails ----------------------------------------------------------------------------------------------


class Flaky:
    """A file system whose requests fail `times` times, or while `broken`."""

    def __init__(self, files: Any, times: int = 0):
        self.files, self.times, self.broken, self.asked = files, times, False, 0

    def __getattr__(self, name: str) -> Any:
        plain = getattr(self.files, name)
        if name in ("invalidate_cache", "unstrip_protocol"):
            return plain

        def ask(*args: Any, **more: Any) -> Any:
            self.asked += 1
            if self.times or self.broken:
                self.times -= not self.broken
                raise ConnectionError("503 slow down")
            return plain(*args, **more)

        return ask


@pytest.fixture
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Flaky, Store, list[float]]:
    """A failing file system, the store on it, and how long was waited between tries."""
    waits: list[float] = []
    files = Flaky(fsspec.filesystem("file"))
    monkeypatch.setattr(place.time, "sleep", waits.append)
    return files, Store(files, f"{tmp_path}/store"), waits


ASKS: dict[str, Callable[[Store], Any]] = {
    "write": lambda store: store.write("file", numbers(5)),
    "content": lambda store: store.content("file"),
    "read_into": lambda store: store.read_into("file", 0, np.empty(2, np.uint8)),
    "digest": lambda store: store.digest("file"),
    "holds": lambda store: store.holds("file"),
    "list": lambda store: store.list(),
    "remove": lambda store: store.remove("file"),
}


@pytest.mark.parametrize("name", ASKS)
def test_a_request_that_fails_is_tried_again_with_growing_patience(flaky, name):
    files, store, waits = flaky
    store.write("file", numbers(5))
    files.times = 2
    ASKS[name](store)
    assert waits == [0.5, 1.0]
    store.write("file", numbers(5))
    files.broken = True
    del waits[:]
    with pytest.raises(OSError, match=r"store: ConnectionError: 503 slow down"):
        ASKS[name](store)
    assert waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("url", ["nosuch://x/y", "backup/here", "", "s3://bucket/luban"])
def test_a_store_that_cannot_be_opened_is_one_clear_error_before_anything_is_made(tmp_path, url):
    if url.startswith("s3") and _installed("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(UserError, match=r"checkpoint\.store .*(nosuch|no URL|s3fs)"):
        open_store(url)
    if url:
        chosen = settings.load(Recipe, None, [f"checkpoint.store={url}", f"data.dataset={tmp_path}"])
        with pytest.raises(UserError, match=r"checkpoint\.store"):
            open_run(chosen, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


# -- a run and its store ---------------------------------------------------------------------------------------------

MORE = play.STEPS + 3


@pytest.fixture(params=["mirror", "primary"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], Recipe]]]:
    """A run's folder, and its recipe for so many steps, with a store on another disk."""
    more = {"checkpoint.store": f"file://{tmp_path}/store", "checkpoint.store_role": request.param}
    yield tmp_path / "run", lambda steps: play.recipe(steps, **more)


def copies(recipe: Recipe, run: Path) -> dict[str, Place]:
    """What the store holds."""
    store = mirror.store_of(recipe, run)
    assert store is not None
    return {name: store.child(checkpoint.FOLDER).child(name) for name in checkpoint.names(store)}


def test_the_store_holds_what_retention_keeps_each_whole(stored):
    run, recipe = stored
    play.attempt(run, chosen=recipe(play.STEPS))
    held = copies(recipe(play.STEPS), run)
    assert list(held) == [folder_name(6, 1), folder_name(9, 1)]
    assert all(Checkpoint(there).problems() == [] for there in held.values())
    store = mirror.store_of(recipe(play.STEPS), run)
    assert store is not None
    assert store.child("record").list() == [folder_name(9, 1)]
    near = checkpoint.names(run)
    assert near == (list(held) if recipe(MORE).checkpoint.store_role == "mirror" else [])


def test_a_run_whose_checkpoints_are_gone_goes_on_from_its_store(stored):
    run, recipe = stored
    play.attempt(run, chosen=recipe(play.STEPS))
    shutil.rmtree(run / checkpoint.FOLDER, ignore_errors=True)
    play.attempt(run, chosen=recipe(MORE))
    _judge_far(recipe(MORE), run, [folder_name(9, 1)])


def test_a_run_whose_folder_is_gone_comes_back_from_its_store(stored):
    run, recipe = stored
    play.attempt(run, chosen=recipe(play.STEPS))
    shutil.rmtree(run)
    assert mirror.restore(recipe(MORE), run)
    assert not mirror.restore(recipe(MORE), run)  # it has a record now
    play.attempt(run, chosen=recipe(MORE))
    _judge_far(recipe(MORE), run, [folder_name(9, 1)])


def test_an_older_copy_of_the_folder_and_a_store_without_the_record_begin_nothing(stored):
    run, recipe = stored
    play.attempt(run, chosen=recipe(play.STEPS))
    (run / "recipe.yaml").write_text(settings.dump(dataset_path(recipe(play.STEPS))))
    older = Path(shutil.copytree(run, run.with_name("older"), symlinks=True))
    play.attempt(run, chosen=recipe(MORE))
    held = copies(recipe(MORE), run)
    shutil.rmtree(run)
    older.rename(run)
    with pytest.raises(UserError, match=rf"holds {folder_name(MORE, 2)}, and the record of .* ends at attempt 1: the"):
        open_run(recipe(play.STEPS), run)
    shutil.rmtree(run)
    assert mirror.restore(recipe(MORE), run)
    mirror.refuse_older(recipe(MORE), run)
    store = mirror.store_of(recipe(MORE), run)
    assert store is not None
    (Path(store.path) / "record" / folder_name(MORE, 2) / mirror.DIGESTS).unlink()
    shutil.rmtree(run)
    with pytest.raises(UserError, match=r"no whole copy of its record: restore .*attempts from a copy"):
        open_run(recipe(play.STEPS), run)
    assert copies(recipe(MORE), run).keys() == held.keys()


def _judge_far(recipe: Recipe, run: Path, adopted: list[str]) -> None:
    """The run is what it would have been; its checkpoints are judged in its folder, brought there from the store."""
    assert [attempt.start["adopts"] for attempt in record.load(run).attempts[1:]] == adopted
    store = mirror.store_of(recipe, run)
    assert store is not None
    shutil.rmtree(run / checkpoint.FOLDER, ignore_errors=True)
    shutil.copytree(Path(store.path) / checkpoint.FOLDER, run / checkpoint.FOLDER)
    shutil.copytree(Path(store.path) / checkpoint.BASE, run / checkpoint.BASE, dirs_exist_ok=True)
    found = judge(run, MORE)
    assert (found.problems, found.lost, found.repeated) == ([], 0, 0)


def test_a_store_that_fails_for_a_while_is_said_and_has_the_next_checkpoint(tmp_path, monkeypatch):
    files = Flaky(fsspec.filesystem("file"))
    monkeypatch.setattr(place, "BACKOFF_S", 0.0)
    monkeypatch.setattr(mirror, "open_store", lambda url: Store(files, f"{tmp_path}/store"))
    run, chosen = tmp_path / "run", play.recipe(**{"checkpoint.store": "file:///anywhere"})
    plain = mirror.Mirror._send

    def send(self: mirror.Mirror, name: str, *rest: Any) -> None:
        files.broken = name == folder_name(3, 1)
        plain(self, name, *rest)

    monkeypatch.setattr(mirror.Mirror, "_send", send)
    play.attempt(run, chosen=chosen)
    (said,) = [note["text"] for note in record.load(run).attempts[0].of("note") if "STORE" in note["text"]]
    assert said.startswith("NOT IN THE STORE: step-000000003.a1") and "503 slow down" in said and str(run) in said
    assert judge(run).problems == []
    assert folder_name(9, 1) in copies(chosen, run)


def test_a_mirror_that_never_answers_stops_neither_the_run_nor_its_next_start(tmp_path, monkeypatch):
    files = Flaky(fsspec.filesystem("file"))
    monkeypatch.setattr(place, "BACKOFF_S", 0.0)
    monkeypatch.setattr(mirror, "open_store", lambda url: Store(files, f"{tmp_path}/store"))
    run = tmp_path / "run"
    play.attempt(run, 3, chosen=play.recipe(3))
    files.broken = True
    play.attempt(run, chosen=play.recipe(**{"checkpoint.store": "file:///anywhere"}))
    assert judge(run).problems == []
    shutil.rmtree(run / checkpoint.FOLDER)  # but it doesn't begin at 0 where the store may have what is missing here
    with pytest.raises(
        UserError, match=r"cannot read the run's copy in .*store.*503 slow down.*checkpoint\.store=null"
    ):
        play.attempt(run, chosen=play.recipe(**{"checkpoint.store": "file:///anywhere"}))


def test_a_copy_of_the_record_that_was_cut_off_or_came_late_is_not_the_one_restored(tmp_path):
    run, late = tmp_path / "run", tmp_path / "late"
    chosen = play.recipe(**{"checkpoint.store": f"file://{tmp_path}/store"})
    play.attempt(run, 6, chosen=play.recipe(6))
    shutil.copytree(run, late, symlinks=True)  # what the first attempt knew when it fell asleep
    play.attempt(run, 9, chosen=play.recipe(9))
    store = mirror.store_of(chosen, run)
    assert store is not None
    mirror.send_record(run, store, folder_name(9, 2))
    mirror.send_record(late, store, folder_name(12, 1))  # it wakes
    cut = store.child("record").child(folder_name(12, 2))
    for name in store.child("record").child(folder_name(9, 2)).list():
        content = store.child("record").child(folder_name(9, 2)).content(name)
        cut.publish(name, content[: len(content) // 2] if "0002" in name else content)
    there = (run / "attempts" / "0002.jsonl").read_bytes()
    shutil.rmtree(run)
    assert mirror.restore(chosen, run)
    assert (run / "attempts" / "0002.jsonl").read_bytes() == there
    assert [attempt.number for attempt in record.load(run).attempts] == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_folder_that_is_deleted_comes_back_from_the_store_bitwise(straight: CommandLine) -> None:
    luban, store = straight, f"checkpoint.store=file://{straight.home}/store"
    process = luban.start_pretrain("away", store)
    luban.wait_for("away", 1, lambda event: event["event"] == "step" and event["step"] >= 11)
    process.terminate()
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 75, text
    shutil.rmtree(luban.run("away"))
    luban.pretrain("away", store)
    first, second = record.load(luban.run("away")).attempts
    assert second.start["adopts"] == folder_name(first.last_step, 1)
    assert any("comes from file://" in note["text"] for note in second.of("note"))
    assert "everything holds" in luban("verify", "away", "--against", "straight")
    assert "checkpoint.store nosuch://x" in luban.pretrain("nowhere", "checkpoint.store=nosuch://x", code=2)
    assert not luban.run("nowhere").exists()


# -- the disk under a run --------------------------------------------------------------------------------------------


def test_the_file_system_of_a_folder_is_that_of_its_nearest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    lines = (
        "/dev/sda / ext4 rw 0 0", f"host {tmp_path} nfs4 rw 0 0", f"tmpfs {tmp_path}/in\\040memory tmpfs rw 0 0",
        f"x {tmp_path}/in vfat rw 0 0", f"y {tmp_path}/over overlay rw 0 0", f"y {tmp_path}/over xfs rw 0 0",
    )  # fmt: skip
    mounts.write_text("\n".join(lines) + "\n")
    kinds = {"in memory/runs/a": "tmpfs", "in": "vfat", "in/a": "vfat", "inside": "nfs4", "over/a": "xfs", "": "nfs4"}
    assert {name: disk.file_system(tmp_path / name, str(mounts)) for name in kinds} == kinds
    assert disk.file_system(Path("/usr"), str(mounts)) == "ext4"
    assert disk.file_system(tmp_path, str(tmp_path / "none")) == ""


@pytest.mark.parametrize(
    ("kind", "said"),
    [("tmpfs", "lies in memory (tmpfs)"), ("fuse.s3fs", "lies on fuse.s3fs, which doesn't promise"), ("ext4", None)],
)
def test_what_a_file_system_does_not_promise_is_said(tmp_path, monkeypatch, kind, said):
    monkeypatch.setattr(disk, "file_system", lambda folder: kind)
    told = disk.shortcomings(tmp_path)
    assert (not told) if said is None else (len(told) == 1 and said in told[0] and str(tmp_path) in told[0])
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_takes_no_direct_writes_is_said(tmp_path, monkeypatch):
    plain = os.open

    def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return plain(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    told = disk.shortcomings(tmp_path)
    assert len(told) == 1 and "refuses O_DIRECT: its checkpoints go through the page cache" in told[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no tmpfs to look at")
def test_a_run_in_memory_is_told_so():
    assert disk.file_system(Path("/dev/shm")) == "tmpfs"


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_cannot_flush_or_rename_is_said(tmp_path, monkeypatch, call):
    def fail(*rest: Any) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, call, fail)
    told = disk.shortcomings(tmp_path)
    assert "can't flush or rename files" in told[0] and "checkpoints are not safe here" in told[0]
    assert list(tmp_path.iterdir()) == []
