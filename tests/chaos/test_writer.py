"""A thousand faults in the checkpoint writer and the record, and every interleaving of two attempts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


def chaos(layer: str) -> tuple[int, str]:
    """`python -m tests.chaos LAYER` in a process of its own: forked children then inherit no other test's threads."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", layer], cwd=ROOT, env=environment, text=True, capture_output=True
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (count,) = re.findall(r"^(\d+) injections in \d+ s, 0 failed$", done.stdout, re.MULTILINE)
    return int(count), done.stdout


def test_whatever_strikes_the_writer_or_the_record_no_row_is_lost_or_repeated() -> None:
    count, table = chaos("writer")
    assert count >= 1000
    for kind in ("killed", "power lost", "disk full", "half of the bytes", "a flush fails", "flipped", "gone"):
        assert kind in table


def test_nothing_that_a_fenced_attempt_does_can_change_the_run() -> None:
    count, table = chaos("fencing")
    assert count >= 400
    for story in ("the newer has ended", "between its claim and its first line", "the older wakes first"):
        assert story in table
