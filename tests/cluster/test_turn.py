"""One turn in a Slurm job: whom it respects, whom it fences, what it tells of an end, and when it comes again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import submission
from cluster.hold import hold, holder
from cluster.slurm import turn
from cluster.slurm.allocation import Allocation
from cluster.slurm.ranks import cause
from cluster.slurm.turn import idle_turns, requeued_codes, take
from data.errors import UserError
from trainer.claim import Held
from trainer.record import Attempt, History


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was handed over as job 17; nobody waits long for anything."""
    monkeypatch.setattr(turn, "HANDED_S", 0.3)
    run = tmp_path / "run"
    run.mkdir()
    submission.write(run, "slurm", "17")
    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> turn.Asked:
    before = signal.getsignal(signal.SIGUSR1)
    heard = turn.Asked()
    signal.signal(signal.SIGUSR1, before)
    return heard


def test_a_requeued_turn_takes_the_lock_from_its_own_earlier_life(run: Path, asked: turn.Asked) -> None:
    submission.write(run, "slurm", "18")  # at which a turn that has the lock ends here
    with hold(run, job="17 of slurm") as earlier:
        with pytest.raises(UserError, match=r"job 17 is not .*'s any more: it is job 18 of slurm"):
            take(run, ["srun"], Allocation("17", restarts=1), False, asked)
        assert earlier.taken() is not None


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_turn_respects_a_start_that_somebody_else_has_made(run: Path, asked: turn.Asked, restarts: int) -> None:
    with hold(run) as other:
        with pytest.raises(Held, match=f"by process {os.getpid()}"):
            take(run, ["srun"], Allocation("17", restarts), False, asked)
        assert other.taken() is None


def test_only_the_first_turn_of_a_takeover_takes_over(run: Path, asked: turn.Asked) -> None:
    submission.write(run, "slurm", "18")
    with hold(run) as other:
        with pytest.raises(Held):
            take(run, ["srun"], Allocation("17", restarts=1), True, asked)
        with pytest.raises(UserError, match="any more"):
            take(run, ["srun"], Allocation("17", restarts=0), True, asked)
        assert other.taken() is not None


def test_who_holds_a_run_is_told_with_its_job(run: Path) -> None:
    with hold(run, job="17 of slurm"):
        assert (holder(run) or {})["job"] == "17 of slurm"
        with pytest.raises(Held, match=rf"on {os.uname().nodename}, job 17 of slurm since 20"), hold(run):
            pass


def test_an_element_of_an_array_has_the_name_that_sbatch_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": "19", "ARRAY_JOB_ID": "17", "ARRAY_TASK_ID": "2", "RESTART_COUNT": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert Allocation.here() == Allocation("17_2", restarts=3)
    assert Allocation.here().family == "slurm-17_2-"


def test_outside_of_a_job_a_turn_ends_with_2_and_says_why(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    words = [sys.executable, "-P", "-m", "cluster.slurm.turn", str(tmp_path), "--", "srun"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "SLURM_JOB_ID is not set" in done.stderr


@pytest.mark.parametrize(
    ("config", "codes"),
    [
        ("RequeueExit             = (null)\nRequeueExitHold         = (null)\n", set()),
        ("RequeueExit             = 75\nRequeueExitHold         = 1-3,9\n", {75, 1, 2, 3, 9}),
    ],
)
def test_a_site_s_own_codes_for_queueing_again_are_read(config: str, codes: set[int]) -> None:
    assert requeued_codes(config) == codes


def test_turns_without_a_checkpoint_are_counted_up_to_the_last_that_had_one() -> None:
    saved = {"event": "checkpoint", "name": "step-000000008.a1"}

    def attempt(outcome: str, *events: dict) -> Attempt:
        return Attempt(1, [*events, {"event": "outcome", "outcome": outcome, "message": ""}])

    stopped = attempt("stopped")
    assert idle_turns(History(Path(), [attempt("stopped"), attempt("stopped", saved), stopped, stopped])) == 2
    assert idle_turns(History(Path(), [stopped, attempt("fault")])) == 0


SAID = """\
1: trainer FAILED
1: Root Cause (first observed failure):
1: [0]:
1:   time      : 2026-11-27_18:00:33
1:   host      : localhost
1:   rank      : 3 (local_rank: 1)
1:   exitcode  : {} (pid: 12788)  (SIGKILL)
1:   error_file: <N/A>
srun: error: n2: task 1: Exited with exit code 1
"""


@pytest.mark.parametrize(
    ("srun", "ranks", "told"),
    [
        (SAID.format(-9), {0: "luban: fault at 9999999999.0: lost a peer\n"}, "rank 3 was killed by SIGKILL"),
        (
            SAID.format(1),
            {0: "luban: fault at 9999999999.5: lost a peer\n", 3: "luban: fault at 9999999999.0: no such shard\n"},
            "rank 3: no such shard",
        ),
        ("srun: error: Node failure on n2\nsrun: error: n1: task 0: Killed\n", {}, "Node failure on n2"),
        ("srun: error: n1: task 0: Exited with exit code 127\n", {}, "its last word was 'srun: "),
        ("", {}, "srun ended with 1, and its last word was 'nothing'"),
    ],
)  # fmt: skip
def test_who_fell_first_is_told_from_what_torchrun_srun_and_the_ranks_left(
    tmp_path: Path, srun: str, ranks: dict[int, str], told: str
) -> None:
    for rank, text in ranks.items():
        (tmp_path / f"rank-{rank}.log").write_text(text)
    assert told in cause(srun, 1, tmp_path, since=9999999998.0)
