"""Who fell first: told from processes that really fell, and from what they said."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster import fate
from tests.trainer.records import RANKS
from trainer import record
from trainer.claim import Writer
from trainer.console import status


def start(*codes: str) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen([sys.executable, "-c", code]) for code in codes]


def end(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        rank.kill()
        rank.wait()


def say(logs: Path, rank: int, at: float, message: str) -> None:
    logs.mkdir(exist_ok=True)
    (logs / f"rank-{rank}.log").write_text(f"Traceback ...\nluban: fault at {at:.3f}: {message}\n")


def test_a_killed_rank_is_the_cause_whatever_the_others_said_before(tmp_path: Path) -> None:
    ranks = start("raise SystemExit(1)", "import os; os.kill(os.getpid(), 9)")
    say(tmp_path, 0, 1.0, "RuntimeError: Connection closed by peer")
    for rank in ranks:
        rank.wait()
    assert fate.cause(ranks, tmp_path) == (1, "was killed by SIGKILL")


def test_a_rank_that_is_stopped_is_the_cause_of_the_others_waiting(tmp_path: Path) -> None:
    ranks = start("raise SystemExit(1)", "import time; time.sleep(60)")
    ranks[0].wait()
    ranks[1].send_signal(signal.SIGSTOP)
    say(tmp_path, 0, 1.0, f"nothing has moved for 5 s in the update: {fate.WAITS}")
    time.sleep(0.2)
    number, what = fate.cause(ranks, tmp_path)
    end(ranks)
    assert number == 1
    assert "is stopped by a signal (state T" in what
    assert what.endswith("rank 0: nothing has moved for 5 s in the update: it waits for the other ranks")


def test_of_several_that_said_something_the_first_counts_and_who_waited_comes_last(tmp_path: Path) -> None:
    ranks = start(*["raise SystemExit(1)"] * 3)
    for rank in ranks:
        rank.wait()
    say(tmp_path, 0, 1.0, f"nothing has moved for 5 s in the update: {fate.WAITS}")
    say(tmp_path, 1, 3.0, "RuntimeError: Connection closed by peer")
    say(tmp_path, 2, 2.0, "ValueError: the cause")
    assert fate.cause(ranks, tmp_path) == (2, "ended with exit code 1: ValueError: the cause")


def test_stacks_are_asked_of_those_that_can_write_them(tmp_path: Path) -> None:
    hang = (
        "import faulthandler, signal, sys, time\nfaulthandler.register(signal.SIGUSR2, file=open(sys.argv[1], 'w'))\n"
        "def hanging(): open(sys.argv[1] + '.up', 'w'); time.sleep(60)\nhanging()"
    )
    ranks = [subprocess.Popen([sys.executable, "-c", hang, str(tmp_path / str(number))]) for number in range(2)]
    while not all((tmp_path / f"{number}.up").exists() for number in range(2)):
        time.sleep(0.02)
    ranks[1].send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    assert fate.ask_for_stacks(ranks) == [0]
    end(ranks)
    assert "in hanging" in (tmp_path / "0").read_text()
    assert (tmp_path / "1").read_text() == ""


def test_the_judgement_is_the_last_word_of_the_attempt_also_after_a_torn_line(tmp_path: Path) -> None:
    from data import settings
    from trainer.recipe import Recipe

    (tmp_path / "recipe.yaml").write_text(settings.dump(Recipe()))
    writer = Writer(tmp_path)
    writer.start(adopts=None, step=0, consumed=0, ranks=RANKS, world=2)
    writer.append("outcome", outcome="fault", message="RuntimeError: Connection closed by peer")
    writer.close()
    with (tmp_path / "attempts" / "0001.jsonl").open("a") as file:
        file.write('{"event": "no')
    fate.write_down(tmp_path, 1, "rank 1 was killed by SIGKILL")
    (attempt,) = record.load(tmp_path).attempts
    assert (attempt.outcome, attempt.message) == ("fault", "rank 1 was killed by SIGKILL")
    assert "failed at step 0: rank 1 was killed by SIGKILL" in status(tmp_path)
    assert "peer" not in status(tmp_path)
