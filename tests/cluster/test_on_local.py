"""The local launcher: what it renders, and how it supervises ranks that are not trainers at all."""

import re
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.hold import hold
from cluster.job import FAULT, STOPPED, Job, training_job
from cluster.on_local import Local, LocalRanks
from cluster.stop import stop
from cluster.supervisor import Supervisor
from data.errors import UserError
from trainer import record
from trainer.recipe import Recipe

GOLDEN = """\
# 2 rank(s) on this machine, logs in runs/x/logs/attempt-N/
RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=PORT OMP_NUM_THREADS=1 python -P -m trainer runs/x &
RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=PORT OMP_NUM_THREADS=1 python -P -m trainer runs/x &
wait
"""


def test_render_is_a_pure_function_of_the_job() -> None:
    job = Job(
        argv=("python", "-P", "-m", "trainer", "runs/x"), run=Path("runs/x"), steps=9, ranks_per_node=2,
        environment=(("OMP_NUM_THREADS", "1"),),
    )  # fmt: skip
    assert Local().render(job) == GOLDEN


def test_a_training_job_starts_ranks_that_a_user_s_files_cannot_shadow() -> None:
    job = training_job(Path("runs/x"), Recipe())
    assert job.argv[1:4] == ("-P", "-m", "trainer")
    assert job.ranks_per_node == Recipe().launch.ranks


def submit(job: Job) -> int:
    with hold(job.run, job.takeover) as held:
        return Local().submit(job, held)


def job(run: Path, code: str, ranks: int = 2, restarts: int = 2) -> Job:
    """Ranks that run a few lines of Python."""
    return Job(
        argv=(sys.executable, "-c", code), run=run, steps=1, ranks_per_node=ranks, max_restarts=restarts, backoff_s=0.05
    )


def test_a_fault_is_restarted_with_the_flag_and_given_up_at_the_bound(tmp_path: Path) -> None:
    code = f"import sys, os; open(r'{tmp_path}/lives', 'a').write(' '.join(sys.argv[1:]) + '|'); sys.exit(3)"
    assert submit(job(tmp_path / "run", code, ranks=1)) == FAULT
    lives = (tmp_path / "lives").read_text()
    assert re.fullmatch(r"--life \w{16}(\|--restart --spent [\d.]+ --life \w{16}){2}\|", lives)
    assert float(lives.split()[-3]) > 0  # of the time budget, which is one start's


def test_a_user_s_mistake_is_raised_and_never_retried(tmp_path: Path) -> None:
    code = f"import sys; open(r'{tmp_path}/lives', 'a').write('x'); print('luban: error: no such shard'); sys.exit(2)"
    with pytest.raises(UserError, match="no such shard"):
        submit(job(tmp_path / "run", code, ranks=1))
    assert (tmp_path / "lives").read_text() == "x"


def test_the_ranks_left_behind_by_a_dead_one_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.supervisor.GRACE_S", 0.5)
    code = "import os, signal, time; os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)"
    began = time.monotonic()
    assert submit(job(tmp_path / "run", code, restarts=0)) == FAULT
    assert time.monotonic() - began < 10


def test_a_life_that_its_launcher_moves_elsewhere_counts_as_no_fault(tmp_path: Path) -> None:
    class Moving(LocalRanks):
        moves = 2

        def moved(self) -> str | None:
            self.moves -= 1
            return "its node is taken away" if self.moves >= 0 else None

    code = f"open(r'{tmp_path}/lives', 'a').write('x'); raise SystemExit(3)"
    moving = job(tmp_path / "run", code, ranks=1, restarts=0)
    with hold(moving.run) as held:
        assert Supervisor(moving, held, Moving(moving)).run() == FAULT
    assert (tmp_path / "lives").read_text() == "xxx"


STOPPED_RANK = """
import sys
from pathlib import Path
from trainer.claim import Writer
writer = Writer(Path(sys.argv[1]))
where = {"world": 1, "device": "cpu", "precision": "fp32", "zero_stage": 1, "ranks": []}
writer.start(adopts=None, step=0, consumed=0, **where, life=sys.argv[sys.argv.index("--life") + 1])
writer.append("outcome", outcome="stopped", message="by SIGTERM at step 0")
writer.close()
"""


@pytest.mark.parametrize(("meant", "code", "lives"), [(True, STOPPED, 1), (False, FAULT, 3)])
def test_a_stop_that_nobody_meant_is_a_fault_that_is_restarted_up_to_the_bound(
    tmp_path: Path, meant: bool, code: int, lives: int
) -> None:
    class Misled(LocalRanks):
        def unmeant(self, message: str) -> str | None:
            return None if meant else f"nobody has stopped it {message}"

    run = tmp_path / "run"
    misled = Job((sys.executable, "-c", STOPPED_RANK, str(run)), run, 1, max_restarts=2, backoff_s=0.05)
    with hold(run) as held:
        assert Supervisor(misled, held, Misled(misled)).run() == code
    assert [attempt.outcome for attempt in record.load(run).attempts] == ["stopped"] * lives


def test_a_stop_during_the_back_off_ends_with_75(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Job((sys.executable, "-c", "raise SystemExit(3)"), tmp_path / "run", 1, max_restarts=3, backoff_s=30)
    threading.Timer(2.0, signal.raise_signal, (signal.SIGTERM,)).start()
    began = time.monotonic()
    assert submit(slow) == STOPPED
    assert time.monotonic() - began < 15
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_request_that_no_rank_heeded_ends_the_back_off_with_75(tmp_path: Path) -> None:
    slow = Job((sys.executable, "-c", "raise SystemExit(3)"), tmp_path / "run", 1, max_restarts=3, backoff_s=30)
    (tmp_path / "run" / "attempts").mkdir(parents=True)
    said = []
    asking = threading.Timer(2.0, lambda: said.append(stop(tmp_path / "run", False, said.append)))
    asking.start()
    began = time.monotonic()
    assert submit(slow) == STOPPED
    assert time.monotonic() - began < 15
    assert said == [f"asked attempt 1 of {tmp_path / 'run'} to stop; it finishes its step and saves", 0]
    with pytest.raises(UserError, match="nothing to stop: no attempt has begun"):
        stop(tmp_path / "run", True, said.append)


def test_a_supervisor_that_was_taken_over_starts_no_ranks_any_more(tmp_path: Path) -> None:
    code = f"open(r'{tmp_path}/lives', 'a').write('x'); raise SystemExit(3)"
    slow = Job((sys.executable, "-c", code), tmp_path / "run", 1, max_restarts=3, backoff_s=3)
    with ExitStack() as taken:
        threading.Timer(1.5, lambda: taken.enter_context(hold(tmp_path / "run", takeover=True))).start()
        with pytest.raises(UserError, match=r"was taken over by attempt 1, by process \d+ on"):
            submit(slow)
    assert (tmp_path / "lives").read_text() == "x"


def test_ranks_of_a_life_that_was_taken_over_before_it_began_are_ended(tmp_path: Path) -> None:
    slow = Job((sys.executable, "-c", "import time; time.sleep(60)"), tmp_path / "run", 1)
    began = time.monotonic()
    with ExitStack() as taken:
        threading.Timer(1.0, lambda: taken.enter_context(hold(tmp_path / "run", takeover=True))).start()
        with pytest.raises(UserError, match="was taken over by attempt 1"):
            submit(slow)
    assert time.monotonic() - began < 15
