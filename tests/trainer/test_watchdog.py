"""The watchdog ends a process in which nothing moves, with its stacks, and leaves alone one that moves or slept."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

HEAD = "import re, sys, threading, time\nfrom trainer import watchdog\n"
CRAWL = "def crawl():\n    while True: time.sleep(0.05)\n"


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HEAD + code], text=True, stderr=subprocess.PIPE, env=os.environ)


def test_a_phase_that_lasts_too_long_ends_the_process_with_the_stacks_of_all_threads() -> None:
    began = time.monotonic()
    process = start(
        CRAWL + "threading.Thread(target=crawl, daemon=True).start()\ndef stuck(): time.sleep(60)\n"
        "watchdog.enter('the start-up', at_least_s=60); watchdog.watch(0.5); time.sleep(1)\n"
        "watchdog.enter('the update'); stuck()"
    )
    _, text = process.communicate(timeout=30)
    assert process.returncode == 1
    assert time.monotonic() - began < 20
    assert re.search(
        r"^luban: fault at [\d.]+: nothing has moved for \d s in the update: it is in stuck",
        text,
        re.M,
    )
    assert "in stuck" in text
    assert "in crawl" in text


def test_even_where_python_s_lock_is_never_given_back() -> None:
    process = start("watchdog.enter('x'); watchdog.watch(0.3); time.sleep(0.1); re.match('(a*)*b', 'a' * 60)")
    _, text = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Timeout" in text
    assert "<module>" in text


def test_what_moves_rests_or_may_take_longer_is_left_alone() -> None:
    process = start(
        "watchdog.watch(0.4)\n"
        "for _ in range(10): watchdog.enter('evaluation'); time.sleep(0.1)\n"
        "watchdog.enter('the start-up', at_least_s=20); time.sleep(1)\n"
        "watchdog.rest(); time.sleep(1)"
    )
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


def test_another_thread_s_progress_is_not_the_rank_s() -> None:
    process = start(
        "def beat():\n    while True: watchdog.enter('writing'); time.sleep(0.05)\n"
        "watchdog.enter('the update'); threading.Thread(target=beat, daemon=True).start()\n"
        "watchdog.watch(0.5); time.sleep(60)"
    )
    assert "in the update" in process.communicate(timeout=30)[1]
    assert process.returncode == 1


def test_a_process_that_was_stopped_as_a_whole_gets_its_time_anew() -> None:
    process = start(
        "print('up', file=sys.stderr, flush=True)\n"
        "watchdog.enter('x'); watchdog.watch(3); time.sleep(4)\nwatchdog.rest()"
    )
    assert process.stderr is not None
    process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGSTOP)
    time.sleep(4.5)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


@pytest.mark.slow
def test_a_mark_costs_less_than_a_microsecond_or_so() -> None:
    code = "import timeit; sys.stderr.write(str(min(timeit.repeat(lambda: watchdog.enter('x'), number=10000)) / 10000))"
    assert float(start(code).communicate(timeout=60)[1]) < 5e-6
