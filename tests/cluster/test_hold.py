"""One start of a run at a time, and what a takeover does to it."""

import multiprocessing
import os
from pathlib import Path

import pytest

from cluster.hold import FILE, hold, holder
from trainer.claim import Held

CONTEXT = multiprocessing.get_context("fork")


def _contend(run: Path, turn: int, barrier, results) -> None:
    barrier.wait()
    try:
        with hold(run):
            (run / "mark").write_text(str(os.getpid()))
            results.put((turn, "won", os.getpid()))
            barrier.wait(30)
    except Held as error:
        results.put((turn, str(error), os.getpid()))
        barrier.wait(30)


def test_of_many_starts_at_once_one_wins_every_time_and_the_others_name_it(tmp_path: Path) -> None:
    for turn in range(5):
        run, barrier, results = tmp_path / str(turn), CONTEXT.Barrier(4), CONTEXT.Queue()
        starts = [CONTEXT.Process(target=_contend, args=(run, turn, barrier, results)) for _ in range(4)]
        for start in starts:
            start.start()
        found = [results.get(timeout=30) for _ in starts]
        for start in starts:
            start.join(30)
        (winner,) = [pid for _, what, pid in found if what == "won"]
        for _, what, _ in found:
            assert what == "won" or f"attempt 1, by process {winner} on {os.uname().nodename} since 20" in what
        assert (run / "mark").read_text() == str(winner)


def test_a_hold_ends_with_its_block_and_a_folder_that_stayed_empty_goes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ZeroDivisionError), hold(run):
        found = holder(run)
        assert found is not None
        assert (found["pid"], found["attempt"]) == (os.getpid(), 1)
        _ = 1 / 0
    assert holder(run) is None
    assert not run.exists()
    with hold(run):
        (run / "recipe.yaml").touch()
    assert run.exists()
    assert holder(run) is None


def test_looking_who_holds_a_run_keeps_nobody_from_starting_it(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / FILE).touch()
    with (tmp_path / FILE).open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        import threading

        threading.Timer(0.3, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with hold(tmp_path):
            pass


def test_a_takeover_waits_for_nobody_and_the_holder_learns_of_it(tmp_path: Path) -> None:
    with hold(tmp_path) as first:
        assert first.taken() is None
        with hold(tmp_path, takeover=True) as second:
            assert second.over is not None
            assert f"attempt 1, by process {os.getpid()}" in second.over
            assert second.taken() is None
            assert "was taken over by attempt 1" in (first.taken() or "")
            with pytest.raises(Held):
                hold(tmp_path).__enter__()
            with hold(tmp_path, takeover=True) as third:
                assert second.taken()
                assert third.taken() is None
    with hold(tmp_path, takeover=True) as free:
        assert free.over is None


def test_a_holder_that_was_taken_over_removes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hold(run), hold(run, takeover=True):
        pass
    assert not run.exists()
    first = hold(run)
    first.__enter__()
    with hold(run, takeover=True) as second:
        first.__exit__(None, None, None)
        assert second.taken() is None
