"""The doctor's visit to a real Slurm: the probes are a job of its own."""

import json
from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.slurm_testbed.loopback import Loopback

SHARED = "shared: true\n"  # the nodes are processes of this machine


@pytest.mark.slow
def test_two_nodes_are_looked_at_by_a_job_of_their_own_and_nothing_is_left(slurm: Loopback, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(SHARED)
    (tmp_path / "home").mkdir()
    luban = CommandLine(tmp_path / "home")
    process = luban.start("doctor", "own", "launch.nodes=2", "launch.ranks=2", "--on", f"slurm={site}")
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "answers, and has what is asked" in lines["slurm"]
    assert "2 on 2 node(s) met" in lines["ranks"]
    assert "the same one on 2 nodes" in lines["shared folder"] and "2 nodes reach each other" in lines["network"]
    assert "running" in text and list((tmp_path / "home").iterdir()) == []


def test_more_gpus_than_any_node_has_are_a_verdict_before_anything_is_submitted(
    slurm: Loopback, tmp_path: Path
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(SHARED)
    (tmp_path / "home").mkdir()
    luban = CommandLine(tmp_path / "home")
    words = ("doctor", "own", "launch.ranks=8", "launch.gpus_per_rank=1", "--on", f"slurm={site}", "--json")
    found = json.loads(luban(*words, code=1))
    (verdict,) = found["verdicts"]
    assert (verdict["check"], verdict["level"]) == ("slurm", "fail") and "GPU" in verdict["found"]
    assert list((tmp_path / "home").iterdir()) == []
