"""Stops, hangs and takeovers of runs that real commands started: nothing is damaged, and everybody is told why."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cluster.hold import holder
from tests.conftest import CommandLine, wait_until
from trainer import checkpoint, record
from trainer.signals import LOOK_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def pids(events: Sequence[dict]) -> list[int]:
    """The ranks' processes, of an attempt that begins with these events."""
    return [rank["pid"] for rank in events[0]["ranks"]]


def at_step(step: int) -> Callable[[dict], bool]:
    return lambda event: event["event"] == "step" and event["step"] >= step


def log(luban: CommandLine, name: str, attempt: int, rank: int) -> str:
    return (luban.run(name) / "logs" / f"attempt-{attempt}" / f"rank-{rank}.log").read_text()


def test_a_request_and_the_time_budget_stop_the_run_and_a_stale_request_stops_nothing(straight: CommandLine) -> None:
    name, run = "asked", straight.run("asked")
    process = straight.start_pretrain(name, "launch.stop_after_minutes=60")
    slow = pids(straight.wait_for(name, 1, at_step(3)))[1]
    os.kill(slow, signal.SIGSTOP)  # a rank that takes its time, so that the request comes in the middle
    assert "asked attempt 1" in straight("stop", name, "--no-wait")
    time.sleep(LOOK_S)  # so that rank 0 looks in its next step: the rest of the run may take less
    os.kill(slow, signal.SIGCONT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 75, text
    asked = record.load(run).attempts[0]
    assert asked.message == f"by luban stop at step {asked.last_step}"
    assert 3 <= asked.last_step < 24
    assert (run / "attempts" / "0001.stop").exists()
    assert "has nothing to stop: attempt 1 is stopped" in straight("stop", name, code=2)

    process = straight.start_pretrain(name)
    wait_until(lambda: holder(run))
    text = straight("stop", name)  # before there is an attempt
    assert "asked attempt 2" in text
    assert "attempt 2 is stopped: by luban stop at step" in text
    assert process.wait(timeout=30) == 75

    text = straight.pretrain(name, "launch.stop_after_minutes=0.01", code=75)
    assert "by the time budget of 0.01 minutes at step" in text
    budget = record.load(straight.run(name)).attempts[-1]
    assert budget.message in straight("status", name)

    straight.pretrain(name)
    assert record.load(straight.run(name)).attempts[-1].outcome == "done"
    assert not record.load(straight.run(name)).lost
    assert "everything holds" in straight("verify", name, "--against", "straight")


def test_a_second_signal_while_a_checkpoint_is_written_damages_nothing(straight: CommandLine) -> None:
    # Rank 1's file is a pipe that nobody reads: there the writing stands still, with rank 0's file complete.
    name, folder = "impatient", straight.run("impatient") / "checkpoints" / "step-000000008.a1"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "spans-00001.safetensors")
    process = straight.start_pretrain(name)
    wait_until((folder / "spans-00000.safetensors").exists)
    ranks = pids(straight.wait_for(name, 1, at_step(1)))
    os.kill(ranks[1], signal.SIGUSR2)
    wait_until(lambda: "in _write" in log(straight, name, 1, 1))
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    text, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode == 128 + signal.SIGINT, text
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert not checkpoint.names(straight.run(name))
    straight.pretrain(name)
    assert "everything holds" in straight("verify", name, "--against", "straight")


def test_a_rank_that_hangs_is_found_and_the_run_ends_bitwise_as_the_uninterrupted_one(straight: CommandLine) -> None:
    name = "hung"
    process = straight.start_pretrain(name, "engine.timeout_s=6")
    events = straight.wait_for(name, 1, at_step(11))
    os.kill(pids(events)[1], signal.SIGSTOP)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "rank 1 is stopped by a signal (state T" in text
    assert re.search(r"rank 0: nothing has moved for \d+ s in .*: it waits for the other ranks", text), text
    stacks = log(straight, name, 1, 0)
    assert "Timeout" not in stacks.partition("luban: fault at")[0]
    assert "in all_reduce" in stacks
    assert "Thread 0x" in stacks
    history = record.load(straight.run(name))
    assert len(history.attempts) == 2
    assert "rank 1 is stopped by a signal" in history.attempts[0].message
    assert "rank 1 is stopped by a signal" in straight("status", name)
    assert "everything holds" in straight("verify", name, "--against", "straight")


def test_a_takeover_fences_a_living_holder_and_one_that_sleeps(straight: CommandLine) -> None:
    name = "taken"
    first = straight.start_pretrain(name)
    slow = pids(straight.wait_for(name, 1, at_step(3)))[1]
    os.kill(slow, signal.SIGSTOP)  # rank 0 lives and waits, or the run would be done before it can be taken over
    second = straight.start_pretrain(name, "--takeover")
    sleepers = [second.pid, *pids(straight.wait_for(name, 2, lambda event: event["event"] == "start"))]
    os.kill(sleepers[-1], signal.SIGSTOP)  # for the same reason
    os.kill(slow, signal.SIGCONT)
    text, _ = first.communicate(timeout=60)
    assert first.returncode == 2, text
    assert "was taken over by attempt 2" in text
    assert "restart" not in text
    for pid in sleepers:
        os.kill(pid, signal.SIGSTOP)

    text = straight.pretrain(name, "--takeover")
    assert "taking over from attempt 2" in text
    before = (checkpoint.names(straight.run(name)), record.load(straight.run(name)).lineage())
    for pid in sleepers:
        os.kill(pid, signal.SIGCONT)
    text, _ = second.communicate(timeout=60)
    assert second.returncode == 2, text
    assert "was taken over by attempt 3" in text
    assert not any(Path(f"/proc/{pid}").exists() for pid in sleepers)
    assert (checkpoint.names(straight.run(name)), record.load(straight.run(name)).lineage()) == before
    assert "everything holds" in straight("verify", name, "--against", "straight")
    assert "1: from the beginning on 2 ranks, taken over at step" in straight("status", name)


def test_of_starts_at_nearly_the_same_moment_one_wins_and_the_recipe_is_its_own(straight: CommandLine) -> None:
    for turn in range(3):
        name = f"race-{turn}"
        both = [straight.start_pretrain(name, "log.every_steps=5")]
        time.sleep(0.7 * (turn == 2))  # the first is within its start-up
        both.append(straight.start_pretrain(name, "log.every_steps=7"))
        loser = _first_to_end(both)
        winner = both[1 - both.index(loser)]
        text, _ = loser.communicate(timeout=60)
        assert loser.returncode == 2, text
        assert f"is already running: attempt 1, by process {winner.pid} on {os.uname().nodename} since 20" in text
        expected = f"every_steps: {(5, 7)[both.index(winner)]}"
        wait_until((straight.run(name) / "recipe.yaml").exists)
        assert expected in (straight.run(name) / "recipe.yaml").read_text().partition("\nlog:")[2]
        if turn < 2:
            for _ in range(2):
                winner.send_signal(signal.SIGINT)
                time.sleep(0.1)
            winner.communicate(timeout=30)
            continue
        text, _ = winner.communicate(timeout=120)
        assert winner.returncode == 0, text
        assert len(record.load(straight.run(name)).attempts) == 1
        assert "everything holds" in straight("verify", name, "--against", "straight")


def _first_to_end(processes: Sequence[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    wait_until(lambda: any(process.poll() is not None for process in processes))
    return next(process for process in processes if process.poll() is not None)


def test_every_rank_that_is_fenced_exits_with_0(straight: CommandLine) -> None:
    """As srun and torchrun would take anything else for a fault of the life that comes after."""
    run = straight.run("fenced")
    run.mkdir()
    shutil.copy(straight.run("straight") / "recipe.yaml", run)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rendezvous = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer", str(run)],
            env=straight.environment | rendezvous | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        straight.wait_for("fenced", 1, at_step(3), timeout=240)
        ranks[1].send_signal(signal.SIGSTOP)  # or they might be done before they are fenced
        (run / "attempts" / "0002.jsonl").touch()
        ranks[1].send_signal(signal.SIGCONT)
        for rank in ranks:
            _, said = rank.communicate(timeout=60)
            assert b"taken over: attempt 2 of" in said
            assert rank.returncode == 0
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
