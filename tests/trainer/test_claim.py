"""Who may write a run: fences, the first lines of attempts, full disks, heartbeats."""

import json
import os
import resource
import threading
import time
from pathlib import Path
from socket import gethostname

import pytest

from data.errors import UserError
from tests.trainer.records import RANKS, ROWS, apply, begin, file, save, steps, told
from trainer import claim
from trainer.claim import Held, Writer, alive, refuse_if_held
from trainer.record import load

# -- fencing ---------------------------------------------------------------------------------------------------------


def test_what_a_fenced_attempt_writes_later_is_void(run):
    first = begin(run)
    apply(first, 1, 3)
    saved = save(first, 3)
    assert not first.fenced()
    second = begin(run, saved, 3)
    assert first.fenced() and not second.fenced()
    apply(first, 4, 6)
    first.append("outcome", outcome="done", message="")
    apply(second, 4, 4)
    old, new = load(run).attempts
    assert [event["step"] for event in old.applied] == [1, 2, 3]
    assert old.outcome is None
    assert [event["event"] for event in old.void] == ["step"] * 3 + ["outcome"]
    assert new.void == []
    assert told(run) == steps(1, 1, 3) + steps(2, 4, 4)
    assert load(run).lost == []
    assert file(run, 1).read_bytes().count(b"\n") == 9  # nobody deletes it


def test_what_is_void_stays_void_for_later_attempts(run):
    first = begin(run)
    apply(first, 1, 2)
    second = begin(run, save(first, 2), 2)
    apply(first, 3, 5)
    apply(second, 3, 3)
    begin(run, save(second, 3), 3)
    apply(first, 6, 6)
    apply(second, 4, 4)
    assert told(run) == steps(1, 1, 2) + steps(2, 3, 3)
    old, middle, new = load(run).attempts
    assert new.start["accepts"]["0001"] == middle.start["accepts"]["0001"]
    assert (len(old.void), len(middle.void)) == (4, 1)


def test_an_attempt_that_was_fenced_before_its_first_line_never_counts(run):
    first = begin(run)
    apply(first, 1, 2)
    saved = save(first, 2)
    late = file(run, 2)
    late.touch()  # created, and no more for the moment
    third = begin(run, saved, 2)
    apply(third, 3, 3)
    assert third.number == 3
    start = {"event": "start", "format": "luban-attempt", "version": 1, "attempt": 2, "adopts": None, "step": 0}
    step = {"event": "step", "step": 1, "positions": [0, ROWS], "verdict": "applied"}
    start |= {"consumed": 0, "accepts": {"0001": 0}}
    late.write_text(json.dumps(start) + "\n" + json.dumps(step) + "\n")
    assert told(run) == steps(1, 1, 2) + steps(3, 3, 3)
    assert [attempt.number for attempt in load(run).attempts] == [1, 3]


def test_the_torn_last_line_of_a_killed_attempt_is_no_event(run):
    first = begin(run)
    apply(first, 1, 2)
    whole = file(run, 1).stat().st_size
    with file(run, 1).open("ab") as out:
        out.write(b'{"event": "step", "step": 3, "posi')
    assert told(run) == steps(1, 1, 2)
    second = begin(run)
    assert second.number == 2
    assert load(run).attempts[1].start["accepts"] == {"0001": whole}
    with file(run, 1).open("ab") as out:
        out.write(b'tions": [16, 24], "verdict": "applied"}\n')
    assert [event["step"] for event in load(run).attempts[0].applied] == [1, 2]
    assert [event["step"] for event in load(run).attempts[0].void] == [3]


@pytest.mark.parametrize("size", [0, 1, 60])
def test_an_attempt_killed_in_its_first_line_is_passed_over(run, size):
    first = begin(run)
    apply(first, 1, 2)
    second = begin(run)
    os.truncate(file(run, 2), size)
    assert [attempt.number for attempt in load(run).attempts] == [1]
    assert begin(run).number == second.number + 1


def test_of_two_starts_at_the_same_moment_one_is_refused(run, monkeypatch):
    begin(run)
    both = threading.Barrier(2)
    plain = os.open

    def together(path, *rest):
        if str(path).endswith("0002.jsonl"):
            both.wait(10)
        return plain(path, *rest)

    monkeypatch.setattr(os, "open", together)
    made: list[Writer] = []
    refused: list[str] = []

    def start() -> None:
        try:
            made.append(begin(run))
        except Held as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [writer.number for writer in made] == [2]
    assert len(refused) == 1
    assert str(run) in refused[0] and "being started by another process" in refused[0]
    assert len(load(run).attempts) == 2


def test_start_checkpoint_and_outcome_are_on_the_disk_before_anything_goes_on(run, monkeypatch):
    flushed: list[str] = []
    plain = os.fsync

    def fsync(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        plain(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    writer = begin(run)
    # the names of file, folder and run; then the line
    assert flushed == ["attempts", run.name, run.parent.name, "0001.jsonl"]
    apply(writer, 1, 2)
    assert len(flushed) == 4
    save(writer, 2)
    writer.append("outcome", outcome="done", message="")
    assert flushed[4:] == ["0001.jsonl"] * 2


def test_events_of_several_threads_are_whole_lines(run):
    writer = begin(run)
    threads = [
        threading.Thread(target=lambda: [writer.append("note", text="x" * 3000) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load(run).attempts[0].of("note")) == 200


@pytest.mark.parametrize("room", [0, 1, 40])
def test_an_event_that_the_disk_has_no_room_for_leaves_the_record_whole(run, room):
    writer = begin(run)
    apply(writer, 1, 2)
    before = file(run, 1).read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, unlimited[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write the record .*attempts.* make room and start it again"):
            apply(writer, 3, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert file(run, 1).read_bytes() == before
    apply(writer, 3, 4)
    assert told(run) == steps(1, 1, 4)


# -- heartbeat -------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """A heart that beats five times a second, so that waiting for three beats is short."""
    monkeypatch.setattr(claim, "BEAT_S", 0.2)


def beat(run: Path, number: int) -> Path:
    return run / "attempts" / f"{number:04d}.alive"


def test_an_attempt_is_alive_while_its_heart_beats(run, quick):
    begin(run)
    assert alive(run) == 1
    seen = beat(run, 1).stat().st_mtime
    time.sleep(0.5)
    assert beat(run, 1).stat().st_mtime > seen
    begin(run)
    assert alive(run) == 2  # the newest alone counts


def test_a_stale_or_missing_heartbeat_and_an_outcome_are_the_end(run):
    writer = begin(run)
    old = time.time() - claim.STALE_S - 1
    os.utime(beat(run, 1), (old, old))
    assert alive(run) is None
    beat(run, 1).touch()
    assert alive(run) == 1
    writer.append("outcome", outcome="fault", message="")
    assert alive(run) is None
    begin(run).append("note", text='so far: {"event": "outcome"}')
    assert alive(run) == 2
    beat(run, 2).unlink()
    assert alive(run) is None


def test_closing_ends_the_heartbeat(tmp_path, quick):
    writer = Writer(tmp_path)
    writer.start(adopts=None, step=0, consumed=0, ranks=RANKS)
    assert alive(tmp_path) == 1
    writer.close()
    assert alive(tmp_path) is None
    time.sleep(0.3)
    assert not beat(tmp_path, 1).exists()


def test_a_start_is_refused_while_another_is_alive_and_told_who_holds_the_run(run, quick):
    begin(run)
    begin(run)
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(load(run).attempts[1].start["time"]))
    with pytest.raises(Held) as caught:
        refuse_if_held(run)
    for part in (str(run), "attempt 2", f"process {os.getpid()}", gethostname(), f"since {since}", "Stop it first"):
        assert part in str(caught.value)


def test_a_living_attempt_is_respected_by_a_machine_whose_clock_is_wrong(run, quick, monkeypatch):
    begin(run)
    now = time.time
    for off in (-3600, 3600):
        monkeypatch.setattr(claim.time, "time", lambda off=off: now() + off)
        with pytest.raises(Held):
            refuse_if_held(run)
    assert not list((run / "attempts").glob(".*"))


def test_the_last_heartbeat_of_a_killed_attempt_holds_nobody_up_for_long(run, monkeypatch):
    begin(run)  # its heart will not beat again within this test
    monkeypatch.setattr(claim, "BEAT_S", 0.1)
    began = time.monotonic()
    refuse_if_held(run)
    assert 0.3 <= time.monotonic() - began < 2


def test_an_attempt_that_ends_while_it_is_watched_is_not_waited_for(run, monkeypatch):
    writer = begin(run)
    monkeypatch.setattr(claim, "BEAT_S", 10)
    threading.Timer(0.2, lambda: writer.append("outcome", outcome="done", message="")).start()
    began = time.monotonic()
    refuse_if_held(run)
    assert time.monotonic() - began < 5
