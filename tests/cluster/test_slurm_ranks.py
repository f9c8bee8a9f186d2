"""What a turn says to Slurm of its ranks, and that one whose job was started again elsewhere says nothing."""

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.hold import Hold, hold
from cluster.job import Job
from cluster.slurm import allocation
from cluster.slurm import ranks as slurm_ranks
from cluster.slurm.allocation import Allocation, Superseded
from cluster.slurm.client import Unanswered
from cluster.slurm.ranks import SlurmRanks
from cluster.supervisor import Life
from tests.conftest import wait_until
from trainer.claim import Writer

# Stands for srun: it is killed alone, as srun is, and what it has started lives on, as a step's tasks do: a rank that
# waits at a pipe of its own.
SRUN = """\
#!/bin/bash
setsid bash -c 'read <> <(:)' rank --life "$LUBAN_LIFE" --logs . &
echo $! > "$0.rank"
exec sleep 1000
"""
JOB = Allocation("17_2", restarts=0)


class Slurm:
    """What stands for its controller: remembers what it was told."""

    def __init__(self) -> None:
        self.restarts, self.state, self.there = 0, "RUNNING", True
        self.told: list[str] = []
        """Commands that change something."""

    def __call__(self, *words: str) -> str:
        if not self.there:
            raise Unanswered("Slurm does not answer")
        if words[:3] == ("scontrol", "show", "job"):
            return f"JobId=17 ArrayTaskId=2 JobState={self.state} Requeue=1 Restarts={self.restarts} NodeList=n[1-2]\n"
        if words[0] == "squeue":
            return "17_2.0\n17_2.batch\n"
        self.told.append(" ".join(words))
        return ""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    stand_in = Slurm()
    monkeypatch.setattr(allocation, "ask", stand_in)
    monkeypatch.setattr(slurm_ranks, "addresses", lambda nodes: ["127.0.0.1", "127.0.0.1"])
    monkeypatch.setattr(slurm_ranks, "END_S", 0.5)
    return stand_in


class Turn:
    """A turn of job 17_2 with a life that is running."""

    def __init__(self, folder: Path, held: Hold):
        self.run, self.life = held.run, Life(f"slurm-17_2-{folder.name}", 1, folder, ("--life", "x"))
        srun = folder / "srun"
        srun.write_text(SRUN)
        srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
        self.ranks = SlurmRanks(Job(("python",), self.run, steps=1, nodes=2), [str(srun)], JOB, held)
        self.ranks.start(self.life)
        self._rank = srun.with_name("srun.rank")
        wait_until(lambda: self._rank.exists() and self._rank.read_text().endswith("\n"))
        self.rank = int(self._rank.read_text())
        wait_until(lambda: f"--life\0{self.life.name}\0" in Path(f"/proc/{self.rank}/cmdline").read_text())

    def srun_is_there(self) -> bool:
        assert self.ranks._step
        return self.ranks._step.poll() is None

    def rank_is_there(self) -> bool:
        try:
            return "\nState:\tZ" not in Path(f"/proc/{self.rank}/status").read_text()
        except FileNotFoundError:
            return False

    def open_attempt(self) -> Writer:
        writer = Writer(self.run)
        writer.start(adopts=None, step=0, consumed=0, ranks=[], life=self.life.name)
        return writer


@pytest.fixture
def opened(tmp_path: Path, slurm: Slurm) -> Iterator[tuple[Turn, ExitStack]]:
    with ExitStack() as stack:
        (tmp_path / "life").mkdir()
        turn = Turn(tmp_path / "life", stack.enter_context(hold(tmp_path / "run", job=JOB.holder)))
        yield turn, stack
        slurm.there = True
        slurm.restarts = -1
        turn.ranks.end()
        if turn.rank_is_there():
            os.kill(turn.rank, signal.SIGKILL)
        assert turn.ranks._step
        turn.ranks._step.wait()


@pytest.fixture
def turn(opened: tuple[Turn, ExitStack]) -> Turn:
    return opened[0]


@pytest.fixture
def taken(opened: tuple[Turn, ExitStack]) -> Callable[[str | None], None]:
    """Have somebody else take the run over: the job of that name, or None for a start by hand."""
    turn, stack = opened
    return lambda job: stack.enter_context(hold(turn.run, takeover=True, job=job)) and None


def test_a_life_is_ended_by_slurm_as_long_as_the_job_is_the_turn_s(turn: Turn, slurm: Slurm) -> None:
    turn.ranks.end()
    assert slurm.told == ["scancel --signal=KILL 17_2.0"]


def test_a_turn_whose_job_was_started_again_ends_its_life_without_a_word_to_slurm(turn: Turn, slurm: Slurm) -> None:
    slurm.restarts = 1
    turn.ranks.end()
    assert not turn.srun_is_there()
    wait_until(lambda: not turn.rank_is_there())
    assert slurm.told == []


def test_so_does_a_turn_that_cannot_ask(turn: Turn, slurm: Slurm) -> None:
    slurm.there = False
    turn.ranks.end()
    assert not turn.srun_is_there()
    wait_until(lambda: not turn.rank_is_there())


def test_when_a_later_turn_takes_the_lock_srun_is_killed_before_it_can_tell_how_the_ranks_end(
    turn: Turn, slurm: Slurm, taken: Callable[[str | None], None]
) -> None:
    writer = turn.open_attempt()
    slurm.there = False  # behind a cut cable nobody answers, and nobody need
    assert turn.ranks.running()
    taken(JOB.holder)
    assert not turn.ranks.running()
    assert not turn.srun_is_there()
    assert turn.rank_is_there()  # it sees the fence by itself, and writes that it did
    writer.close()


def test_ranks_that_would_fence_the_later_turn_are_killed(
    turn: Turn, slurm: Slurm, taken: Callable[[str | None], None]
) -> None:
    taken(JOB.holder)
    assert not turn.ranks.running()
    wait_until(lambda: not turn.rank_is_there())
    assert slurm.told == []


def test_to_a_start_by_hand_the_turn_gives_way_with_slurm_s_help(
    turn: Turn, slurm: Slurm, taken: Callable[[str | None], None]
) -> None:
    taken(None)
    assert turn.ranks.running()
    turn.ranks.end()
    assert slurm.told == ["scancel --signal=KILL 17_2.0"]


def test_a_superseded_turn_does_not_ask_the_later_one_s_attempt_to_stop(
    turn: Turn, slurm: Slurm, taken: Callable[[str | None], None]
) -> None:
    mine = turn.open_attempt()
    turn.ranks.signal(signal.SIGTERM)
    taken(JOB.holder)
    later = Writer(turn.run)
    turn.ranks.signal(signal.SIGTERM)
    assert [path.name for path in (turn.run / "attempts").glob("*.stop")] == ["0001.stop"]
    for writer in (mine, later):
        writer.close()


@pytest.mark.parametrize(
    ("message", "state", "restarts", "goes_on"),
    [
        ("by SIGTERM at step 9", "RUNNING", 0, True),
        ("by a signal to another rank at step 9", "RUNNING", 0, True),
        ("by SIGTERM at step 9", "CANCELLED", 0, False),
        ("by SIGTERM at step 9", "COMPLETING", 0, False),
        ("by SIGTERM at step 9", "RUNNING", 1, False),
        ("by luban stop at step 9", "RUNNING", 0, False),
        ("by the time budget of 5 minutes at step 9", "RUNNING", 0, False),
    ],
)
def test_a_cancelled_step_of_a_job_that_runs_was_no_stop(
    turn: Turn, slurm: Slurm, message: str, state: str, restarts: int, goes_on: bool
) -> None:
    slurm.state, slurm.restarts = state, restarts
    assert bool(turn.ranks.unmeant(message)) == goes_on


def test_a_superseded_turn_neither_queues_its_job_again_nor_cancels_it(slurm: Slurm) -> None:
    JOB.requeue()
    JOB.cancel()
    assert slurm.told == ["scontrol requeue 17_2", "scancel 17_2"]
    slurm.restarts = 2
    for act in (JOB.requeue, JOB.cancel, JOB.kill_steps, JOB.nodes):
        with pytest.raises(Superseded, match=r"started job 17_2 again \(Restarts=2, and this is 0\)"):
            act()
    assert len(slurm.told) == 2
