"""What happens to jobs on a real Slurm: nodes fail, jobs are preempted, time runs out; the run goes on, exactly.

Each fault is the real thing, in its fastest form: a node that is set down loses its jobs at once, a time limit is
lowered under a running job, and a node in namespaces of its own loses its power.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.slurm_testbed.cluster import Cluster
from tests.slurm_testbed.configuration import Shape
from tests.slurm_testbed.loopback import Loopback
from tests.slurm_testbed.namespaced import Namespaced
from trainer import record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PATIENCE_S = 300.0  # for what takes ten seconds on an idle machine: a job begins, and its ranks import torch
SITE = "shared: true\nlead_s: 60\n"
ENDLESS = ("train.steps=1000000", "checkpoint.every_steps=10", "evaluate.every_steps=100000", "launch.nodes=2")


class LoginNode(CommandLine):
    """`luban` where the users of a cluster are."""

    def __init__(self, home: Path, cluster: Cluster):
        super().__init__(home)
        self.environment |= cluster.environment
        self._cluster = cluster

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Begin a command there."""
        return subprocess.Popen(
            self._cluster.words(sys.executable, "-P", "-m", "luban", *words), cwd=self.home, env=self.environment,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait_for(
        self, name: str, attempt: int, happened: Callable[[dict], bool], timeout: float = PATIENCE_S
    ) -> list[dict]:
        """As everywhere, but for a scheduler's time."""
        return super().wait_for(name, attempt, happened, timeout)

    def submit(self, name: str, *more: str, site: str = SITE) -> str:
        """Hand a run over; returns its job."""
        (self.home / f"{name}.site.yaml").write_text(site)
        self.pretrain(name, *more, "--on", f"slurm={name}.site.yaml")
        return json.loads((self.run(name) / "job.json").read_text())["id"]


@pytest.fixture
def here(luban: CommandLine, slurm: Loopback) -> LoginNode:
    return LoginNode(luban.home, slurm)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Namespaced]:
    with Namespaced(tmp_path / "slurm", Shape(nodes=2)) as cluster:
        yield cluster


def saved(event: dict) -> bool:
    return event["event"] == "checkpoint"


def stopped(event: dict) -> bool:
    return event["event"] == "outcome" and event["outcome"] == "stopped"


def at(step: int) -> Callable[[dict], bool]:
    return lambda event: event["event"] == "step" and event["step"] >= step


def test_a_run_outlives_node_failure_preemption_and_time_limit_and_heeds_scancel(
    here: LoginNode, slurm: Loopback
) -> None:
    job = here.submit("slurm-tried", *ENDLESS, site=f"{SITE}partition: spot\n")
    here.wait_for("slurm-tried", 1, saved)
    slurm("scontrol", "update", f"nodename={node_of(slurm, job)}", "state=down", "reason=test")

    here.wait_for("slurm-tried", 2, saved)
    assert slurm.job(job)["Restarts"] == "1"
    other = slurm("sbatch", "--parsable", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1").strip()
    here.wait_for("slurm-tried", 2, stopped)
    slurm.wait_for_job(other, "COMPLETED", timeout=PATIENCE_S)

    here.wait_for("slurm-tried", 3, at(1))
    assert slurm.job(job)["Restarts"] == "2"
    slurm("scontrol", "update", f"jobid={job}", "TimeLimit=1")
    here.wait_for("slurm-tried", 3, stopped)
    slurm.wait(lambda: slurm.job(job)["Restarts"], lambda times: times == "3", "queued again")
    slurm("scontrol", "update", f"jobid={job}", "TimeLimit=30")  # before it begins, or it would be told to stop again

    here.wait_for("slurm-tried", 4, at(1))
    slurm("scancel", job)
    here.wait_for("slurm-tried", 4, stopped)
    assert slurm.wait_for_job(job, "CANCELLED", "COMPLETED", "FAILED", "PENDING")["JobState"] == "CANCELLED"

    history = record.load(here.run("slurm-tried"))
    _, preempted, timed_out, cancelled = history.attempts
    for attempt, signal in ((preempted, "SIGUSR1"), (timed_out, "SIGUSR1"), (cancelled, "SIGTERM")):
        assert attempt.message == f"by {signal} at step {attempt.last_step}"
    assert {number for number, _, _ in history.lost} <= {1}  # those that were asked to stop have saved first
    assert timed_out.start["step"] == preempted.last_step and cancelled.start["step"] == timed_out.last_step
    assert "exactly once" in here("verify", "slurm-tried")


def node_of(slurm: Loopback, job: str) -> str:
    """The last node of a running job."""
    return slurm("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()[-1]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="nodes with a network of their own need root")


@needs_root
def test_a_node_that_loses_power_costs_the_steps_since_the_last_checkpoint(
    luban: CommandLine, machines: Namespaced
) -> None:
    here = LoginNode(luban.home, machines)
    job = here.submit("slurm-crashed", *ENDLESS)
    here.wait_for("slurm-crashed", 1, saved)
    batch_host = machines.job(job)["BatchHost"]
    machines.crash(batch_host)
    # What a site's monitoring does, and Slurm itself after SlurmdTimeout.
    machines("scontrol", "update", f"nodename={batch_host}", "state=down", "reason=dead")
    machines.boot(batch_host)
    here.wait_for("slurm-crashed", 2, at(1))
    first, second = record.load(here.run("slurm-crashed")).attempts
    assert first.outcome is None
    assert second.start["step"] >= first.of("checkpoint")[-1]["step"] >= 10
    here("stop", "slurm-crashed")
    assert "exactly once" in here("verify", "slurm-crashed")
