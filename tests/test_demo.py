"""The short demo, as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import record
from trainer.verify import read_proof


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_short_demo_walks_the_whole_road(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "luban", "demo", "--short", "--out", "here"],
        cwd=tmp_path, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "*** kill -9" in done.stdout
    home = tmp_path / "here"
    history = record.load(home / "runs" / "stdlib")
    assert len(history.attempts) == 2
    assert history.attempts[0].outcome is None or history.attempts[0].outcome == "fault"
    assert history.lost
    proof = read_proof(home / "runs" / "stdlib")
    assert proof is not None
    assert proof["passed"]
    for name in ("stdlib", "docstrings"):
        assert (home / "runs" / name / "report.html").stat().st_size > 20_000
    summary = done.stdout[done.stdout.index("The demo took") :]
    assert len(summary.strip().splitlines()) == 10
    model, unigram = map(float, re.findall(r"([\d.]+) bits per byte.*tokens ([\d.]+)", summary)[0])
    assert model < unigram
    before, after = map(float, re.findall(r"bits per byte ([\d.]+) -> ([\d.]+)", summary)[0])
    assert after < before
