"""A second start while the run's job is at a scheduler. The real ones are asked in the tests of their launchers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import standing, submission
from data.errors import UserError
from trainer.claim import Held


class Says:
    """A scheduler that knows one job."""

    def __init__(self, state: str | UserError | None):
        self._state = state
        self.cancelled: list[str] = []

    def state(self, id: str) -> str | None:
        if isinstance(self._state, UserError):
            raise self._state
        return self._state

    def reason(self, id: str) -> str | None:
        return None

    def cancel(self, id: str) -> None:
        self.cancelled.append(id)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    def scheduler(state: str | UserError | None) -> Says:
        found = Says(state)
        monkeypatch.setattr(standing, "scheduler", lambda on: found)
        return found

    yield scheduler


@pytest.fixture
def submitted(tmp_path: Path) -> Path:
    run = tmp_path / "first"
    run.mkdir()
    submission.write(run, "slurm", "17")
    return run


def test_a_second_start_is_refused_by_the_job_s_name_state_and_age(submitted: Path, says) -> None:
    says("queued (Resources)")
    with pytest.raises(
        Held, match=r"already running: job 17 of slurm, submitted 0.*ago \(20.*\), queued \(Resources\)"
    ):
        standing.refuse_if_submitted(submitted, takeover=False)


def test_a_takeover_cancels_the_job(submitted: Path, says) -> None:
    scheduler = says("running on n[1-2]")
    done = standing.refuse_if_submitted(submitted, takeover=True)
    assert scheduler.cancelled == ["17"]
    assert done is not None
    assert "cancelled job 17 of slurm" in done


def test_a_scheduler_that_does_not_tell_is_no_leave_to_start_but_for_a_takeover(submitted: Path, says) -> None:
    says(UserError("Slurm does not answer"))
    with pytest.raises(Held, match="can't be asked: Slurm does not answer"):
        standing.refuse_if_submitted(submitted, takeover=False)
    assert "may still be there" in (standing.refuse_if_submitted(submitted, takeover=True) or "")


def test_a_job_that_is_over_or_never_was_refuses_nobody(submitted: Path, tmp_path: Path, says) -> None:
    says(None)
    assert standing.refuse_if_submitted(submitted, takeover=False) is None
    assert standing.refuse_if_submitted(tmp_path, takeover=False) is None


def test_status_tells_a_job_that_ended_before_it_began_from_one_that_trained(submitted: Path, says) -> None:
    says(None)
    assert "over before it began an attempt" in (standing.standing(submitted) or "")
    from trainer import jsonl

    start = {"event": "start", "format": "luban-attempt", "version": 1, "attempt": 1, "accepts": {}, "metrics": 0}
    (submitted / "attempts").mkdir()
    document = json.loads((submitted / submission.FILE).read_text())
    line = jsonl.sealed(start | {"step": 0, "adopts": None, "time": document["submitted"] + 1})
    (submitted / "attempts" / "0001.jsonl").write_bytes(line)
    assert (standing.standing(submitted) or "").endswith(": over")
