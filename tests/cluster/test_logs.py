"""`luban logs`: the end of a rank's log, and what comes after it."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster import logs, submission
from cluster.hold import hold
from cluster.logs import ended, show
from data.errors import UserError
from tests.trainer.conftest import FakeRun


def write(run: Path, attempt: int, rank: int, text: str) -> Path:
    path = run / "logs" / f"attempt-{attempt}" / f"rank-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_newest_attempt_s_last_lines_are_shown_without_what_steers_a_terminal(tmp_path: Path) -> None:
    write(tmp_path, 2, 0, "old\n")
    path = write(tmp_path, 10, 0, "one\ntwo\nthree \x1b[2J\nlast without an end")
    said: list[str] = []
    show(tmp_path, None, 0, 3, False, said.append)
    assert said == [f"== {path}", "two", "three ·[2J", "last without an end"]
    said.clear()
    show(tmp_path, 2, 0, 0, False, said.append)
    assert said[1:] == ["old"]


def test_a_log_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    write(tmp_path, 1, 0, "")
    with pytest.raises(UserError, match=r"no log of rank 7; there is attempt-1/rank-0\.log"):
        show(tmp_path, None, 7, 10, False, print)
    with pytest.raises(UserError, match=r"no log of rank 0 in attempt 3"):
        show(tmp_path, 3, 0, 10, False, print)


def test_following_shows_whole_lines_as_they_come_takes_up_the_next_attempt_and_ends_with_the_run(
    tmp_path: Path,
) -> None:
    first = write(tmp_path, 1, 0, "a\nhal")
    said: list[str] = []
    with ExitStack() as held:
        held.enter_context(hold(tmp_path))
        follower = threading.Thread(target=show, args=(tmp_path, None, 0, 0, True, said.append))
        follower.start()
        time.sleep(1)
        assert said == [f"== {first}", "a"]
        first.write_text("a\nhalf\n")
        time.sleep(1)
        second = write(tmp_path, 2, 0, "b\n")
        time.sleep(1.5)
        assert said == [f"== {first}", "a", "half", f"== {second}", "b"]
    follower.join(timeout=5)
    assert not follower.is_alive()


def test_following_a_run_that_is_still_queued_waits_for_its_first_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Queue:
        states = iter(("queued (Resources)", "queued (Resources)", "running on n1"))

        def state(self, id: str) -> str | None:
            state = next(self.states, None)
            if state == "running on n1":
                write(tmp_path, 1, 0, "a\n")
            return state

    queue = Queue()
    submission.write(tmp_path, "slurm", "17")
    monkeypatch.setattr(logs, "scheduler", lambda on: queue)
    monkeypatch.setattr(logs, "QUEUE_S", 0.01)
    said: list[str] = []
    show(tmp_path, None, 0, 0, True, said.append)
    path = tmp_path / "logs" / "attempt-1" / "rank-0.log"
    assert said == ["job 17 of slurm is queued (Resources)", "job 17 of slurm is running on n1", f"== {path}", "a"]
    path.unlink()
    with pytest.raises(UserError, match=r"no log of rank 0; there is none"):  # the job is over by now
        show(tmp_path, None, 0, 0, True, said.append)


@pytest.mark.parametrize(
    ("outcome", "code"), [("done", 0), ("user_error", 2), ("stopped", 75), ("fault", 1), (None, 1)]
)
def test_following_ends_with_the_run_s_own_code(tmp_path: Path, outcome: str | None, code: int) -> None:
    run = FakeRun(tmp_path / "first")
    assert ended(run.folder) == 1
    run.attempt()
    if outcome:
        run.event("outcome", outcome=outcome, message="")
    assert ended(run.folder) == code


def test_following_waits_between_two_lives_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path / "first")
    run.attempt()
    run.event("outcome", outcome="stopped", message="")
    submission.write(run.folder, "slurm", "17")
    first = write(run.folder, 1, 0, "a\n")

    class Queue:
        states = iter(("queued (BeginTime)", "running on n1"))

        def state(self, id: str) -> str | None:
            state = next(self.states, None)
            if state == "running on n1":
                write(run.folder, 2, 0, "b\n")
            return state

    queue = Queue()
    monkeypatch.setattr(logs, "scheduler", lambda on: queue)
    monkeypatch.setattr(logs, "QUEUE_S", 0.01)
    said: list[str] = []
    show(run.folder, None, 0, 0, True, said.append)
    assert said == [f"== {first}", "a", f"== {run.folder}/logs/attempt-2/rank-0.log", "b"]
