"""What happens to jobs on a real Slurm: nodes fail, jobs are preempted, time runs out; the run goes on, exactly.

Each fault is the real thing, in its fastest form: a node that is set down loses its jobs at once, a time limit is
lowered under a running job, and of nodes in namespaces one loses its power and another only its network.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import SETTINGS, CommandLine
from tests.slurm_testbed.cluster import Cluster
from tests.slurm_testbed.configuration import Shape
from tests.slurm_testbed.daemons import of_jobs
from tests.slurm_testbed.loopback import Loopback
from tests.slurm_testbed.namespaced import Namespaced
from trainer import record
from trainer.run import read_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PATIENCE_S = 300.0  # for what takes ten seconds on an idle machine: a job begins, and its ranks import torch
SITE = "shared: true\nlead_s: 120\n"
NOT_THE_MODEL = [setting for setting in SETTINGS if not setting.startswith("model.")]
ENDLESS = ("train.steps=1000000", "checkpoint.every_steps=10", "evaluate.every_steps=100000", "launch.nodes=2",
           "launch.time_limit_minutes=30")  # fmt: skip


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
    near = minutes_run(slurm, job) + 2  # within lead_s, and a minute away: on a crowded machine a stop takes its time
    slurm("scontrol", "update", f"jobid={job}", f"TimeLimit={near}")
    here.wait_for("slurm-tried", 3, stopped)
    slurm.wait(lambda: slurm.job(job)["Restarts"], lambda times: times == "3", "queued again")
    slurm("scontrol", "update", f"jobid={job}", "TimeLimit=30")  # before it begins, or it would be told to stop again

    here.wait_for("slurm-tried", 4, at(1))
    slurm("scancel", "--signal=TERM", f"{job}.0")  # the step alone: nobody has asked for the run to stop
    here.wait_for("slurm-tried", 5, at(1))
    assert slurm.job(job)["Restarts"] == "3"
    slurm("scancel", job)
    here.wait_for("slurm-tried", 5, stopped)
    assert slurm.wait_for_job(job, "CANCELLED", "COMPLETED", "FAILED", "PENDING")["JobState"] == "CANCELLED"

    history = record.load(here.run("slurm-tried"))
    _, preempted, timed_out, bereft, cancelled = history.attempts
    for attempt, signal in (
        (preempted, "SIGUSR1"), (timed_out, "SIGUSR1"), (bereft, "SIGTERM"), (cancelled, "SIGTERM"),
    ):  # fmt: skip
        assert attempt.message == f"by {signal} at step {attempt.last_step}"
    assert {number for number, _, _ in history.lost} <= {1}  # those that were asked to stop have saved first
    for before, after in pairwise(history.attempts[1:]):
        assert after.start["step"] == before.last_step
    assert "exactly once" in here("verify", "slurm-tried")


def minutes_run(slurm: Loopback, job: str) -> int:
    """Whole minutes for which a job runs by now."""
    hours, minutes, _ = slurm.job(job)["RunTime"].split(":")
    return 60 * int(hours) + int(minutes)


def node_of(slurm: Loopback, job: str) -> str:
    """The last node of a running job."""
    return slurm("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()[-1]


def test_pretrain_finetune_and_evaluate_follow_one_another(here: LoginNode, slurm: Loopback) -> None:
    build_pairs(here)
    first = here.submit("slurm-chain", "train.steps=8")
    here("finetune", "docstrings", "name=slurm-tuned", f"data.dataset={here.home}/datasets/chain-pairs", *NOT_THE_MODEL,
         "train.steps=8", "evaluate.prompts=[]", "--from", "slurm-chain", "--after", "slurm-chain",
         "--on", "slurm=slurm-chain.site.yaml")  # fmt: skip
    second = json.loads((here.run("slurm-tuned") / "job.json").read_text())["id"]
    said = here(
        "evaluate", "slurm-tuned", "--generations", "0", "--after", "slurm-tuned", "--on", "slurm=slurm-chain.site.yaml"
    )
    last, log = re.findall(r"submitted job (\d+), .*; what it prints goes to (.*)", said)[0]
    assert slurm.wait_for_job(last, "COMPLETED", "FAILED", "CANCELLED", timeout=PATIENCE_S)["JobState"] == "COMPLETED"
    assert [slurm.job(job)["JobState"] for job in (first, second)] == ["COMPLETED", "COMPLETED"]
    begun = [slurm.job(job)["StartTime"] for job in (first, second, last)]
    assert begun == sorted(begun)
    assert "bits per byte" in Path(log).read_text()
    assert record.load(here.run("slurm-tuned")).attempts[0].start["step"] == 0
    assert re.search(r"/slurm-chain@8$", read_recipe(here.run("slurm-tuned")).ancestor or "")


def build_pairs(here: LoginNode) -> None:
    """A dataset of examples."""
    words = [{"question": f"Is {number} even?", "answer": f"{number % 2 == 0}"} for number in range(200)]
    (here.home / "chain.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in words))
    here(
        "data", "build", "name=chain-pairs", "kind=examples",
        f"sources=[{{kind: jsonl, path: {here.home}/chain.jsonl, columns: {{prompt: question, completion: answer}}}}]",
        "task.kind=prompt_completion", "task.max_tokens=65", "task.min_completion_characters=1", "dedup.near=false",
        "tokenizer.reuse=datasets/tiny", "split.valid=0.1",
    )  # fmt: skip


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
    # What a site's monitoring does, and Slurm itself after SlurmdTimeout, as in the next test.
    machines("scontrol", "update", f"nodename={batch_host}", "state=down", "reason=dead")
    machines.boot(batch_host)
    here.wait_for("slurm-crashed", 2, at(1))
    first, second = record.load(here.run("slurm-crashed")).attempts
    assert first.outcome is None
    assert second.start["step"] >= first.of("checkpoint")[-1]["step"] >= 10
    here("stop", "slurm-crashed")
    assert "exactly once" in here("verify", "slurm-crashed")


@needs_root
def test_ranks_that_live_on_behind_a_cut_cable_are_fenced_and_their_job_s_next_life_is_left_alone(
    luban: CommandLine, machines: Namespaced
) -> None:
    here = LoginNode(luban.home, machines)
    job = here.submit("slurm-cut", *ENDLESS, "launch.nodes=1")
    here.wait_for("slurm-cut", 1, saved)
    cut_off = machines.job(job)["BatchHost"]
    machines.cut(cut_off)
    assert len(ranks(machines, cut_off)) == 2
    before_cut = record.load(here.run("slurm-cut")).attempts[0].last_step
    here.wait_for("slurm-cut", 2, saved)  # Slurm has given the node up, and the job runs elsewhere
    assert machines.job(job)["BatchHost"] != cut_off

    path = here.run("slurm-cut") / "attempts" / "0001.jsonl"
    machines.wait(lambda: tasks(machines, cut_off), lambda left: not left, "all out there have ended")
    first, second = record.load(here.run("slurm-cut")).attempts
    assert first.last_step > before_cut  # out of reach they trained ...
    said = [event["outcome"] for event in first.events + first.void if event["event"] == "outcome"]
    assert said == ["fenced"]  # ... until they saw that a newer attempt had the run, without Slurm's help
    before = path.read_bytes()
    machines.heal(cut_off)
    machines.wait_for_nodes("idle", cut_off)  # what there was to be said out there has been said
    here.wait_for("slurm-cut", 2, at(record.load(here.run("slurm-cut")).attempts[1].last_step + 50))
    assert second.start["adopts"] and path.read_bytes() == before
    here("stop", "slurm-cut")
    last = record.load(here.run("slurm-cut")).attempts[-1]
    assert (last.number, last.message) == (2, f"by luban stop at step {last.last_step}")
    assert machines.job(job)["Restarts"] == "1"
    assert "exactly once" in here("verify", "slurm-cut")


def tasks(machines: Namespaced, node: str) -> dict[int, bytes]:
    """What jobs have left running on a node: process ids and command lines."""
    inside = Path(f"/proc/{machines.daemons.all[node].pid}/ns/net").readlink()
    found = {}
    for task in of_jobs(machines.conf):
        with suppress(OSError):
            if task.name == "task" and Path(f"/proc/{task.pid}/ns/net").readlink() == inside:
                found[task.pid] = Path(f"/proc/{task.pid}/cmdline").read_bytes()
    return found


def ranks(machines: Namespaced, node: str) -> list[int]:
    """The ranks on a node."""
    found = tasks(machines, node).items()
    return [pid for pid, words in found if b"\0trainer\0" in words and b"torch.distributed.run" not in words]
