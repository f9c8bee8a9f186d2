"""What asks a rank to stop: signals, the time budget, and the request of `luban stop`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import signals
from trainer.signals import Stop, forget_requests, request, requested


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch):
    """A Stop that looks at every question; the handlers of this process are given back."""
    before = {number: signal.getsignal(number) for number in signals.ASK}
    monkeypatch.setattr(signals, "LOOK_S", 0.0)
    yield Stop()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "attempts").mkdir()
    return tmp_path


@pytest.mark.parametrize("number", signals.ASK)
def test_each_signal_asks_once(stop: Stop, number: signal.Signals) -> None:
    assert not stop.asked
    signal.raise_signal(number)
    assert stop.asked
    assert stop.reason == number.name


def test_a_second_signal_ends_the_process_and_the_first_after_another_reason_does_not() -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from trainer.signals import Stop\n"
        "stop = Stop(); stop.heed(Path('.'), lambda: 1, 1e-9)\n"
        "assert stop.asked; signal.raise_signal(signal.SIGTERM); print('saving', flush=True)\n"
        "signal.raise_signal(signal.SIGTERM); print('never')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "saving\n"), done.stderr


def test_a_request_is_heeded_by_the_attempts_of_this_process_and_no_other(stop: Stop, run: Path) -> None:
    attempt = 3
    stop.heed(run, lambda: attempt, minutes=0)
    request(run, 2)
    request(run, 5)
    assert not stop.asked
    attempt = 4  # rolled back in the same process, just when attempt 3 was asked
    assert not stop.asked
    request(run, 3)
    assert stop.asked
    assert stop.reason == "luban stop"


def test_a_request_that_never_met_its_attempt_is_forgotten_at_the_next_start(run: Path) -> None:
    request(run, 2)
    request(run, 3)
    forget_requests(run, begun=2)
    assert requested(run, 2, 2)
    assert not requested(run, 3, 3)


@pytest.mark.parametrize(("minutes", "words"), [(30, "30 minutes"), (1, "1 minute"), (0.5, "0.5 minutes")])
def test_the_budget_counts_what_earlier_lives_of_the_start_have_used(
    stop: Stop, run: Path, minutes: float, words: str
) -> None:
    stop.heed(run, lambda: 1, minutes, spent_s=60 * minutes - 30)
    assert not stop.asked
    stop.heed(run, lambda: 1, minutes, spent_s=60 * minutes)
    assert stop.asked
    assert stop.reason == f"the time budget of {words}"


def test_a_look_at_the_folder_is_taken_once_a_second_at_most(
    stop: Stop, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "LOOK_S", 1.0)
    looks = []
    monkeypatch.setattr(signals, "requested", lambda *what: bool(looks.append(what)))
    stop.heed(run, lambda: 1, minutes=0)
    for _ in range(1000):
        assert not stop.asked
    assert len(looks) == 1
