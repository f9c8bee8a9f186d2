"""Runs on a real Ray cluster of several nodes, through what happens to clusters. One cluster serves the whole file."""

import json
from collections.abc import Iterator

import pytest

from cluster import submission
from tests.conftest import CommandLine
from tests.ray_testbed.cluster import RayCluster, wait
from tests.ray_testbed.command_line import OnCluster
from trainer import record
from trainer.record import Attempt

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
PATIENCE_S = 400  # for each thing that happens; a life begins within 10 s where the cores are free


class Runs(OnCluster):
    """Runs on the cluster, and what became of them."""

    def submit(self, name: str, *more: str, code: int = 0) -> str:
        return self.pretrain(name, "launch.gpus_per_rank=1", *more, "--on", "ray", code=code)

    def attempt(self, name: str, ranks: int, after: int = 0) -> Attempt:
        """The first attempt after another that trains on so many ranks, as soon as it has written a checkpoint."""

        def found() -> list[Attempt]:
            return [
                attempt
                for attempt in record.load(self.run(name)).attempts
                if attempt.number > after and len(attempt.start["ranks"]) == ranks and attempt.of("checkpoint")
            ]

        wait(found, PATIENCE_S, f"{ranks} ranks after attempt {after}: {self.told(name)}")
        return found()[0]

    def told(self, name: str) -> str:
        """Where the run stands and what its job has said."""
        job = submission.read(self.run(name))
        assert job
        attempts = [(a.number, len(a.start["ranks"]), a.last_step, a.outcome) for a in self.attempts(name)]
        return f"{attempts}\n{self.cluster.get(f'/api/jobs/{job.id}/logs')['logs'][-6000:]}"

    def attempts(self, name: str) -> list[Attempt]:
        return record.load(self.run(name)).attempts

    def over(self, name: str) -> dict:
        """What Ray tells of the run's job, as soon as it is over."""
        job = submission.read(self.run(name))
        assert job

        def ended() -> dict | None:
            found = self.cluster.get(f"/api/jobs/{job.id}")
            return found if found["status"] not in ("PENDING", "RUNNING") else None

        wait(ended, PATIENCE_S, f"the end of {job.id}")
        return self.cluster.get(f"/api/jobs/{job.id}")


@pytest.fixture(scope="module")
def ray(luban: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Nodes 2 and 3 with a GPU each, beside the head."""
    with RayCluster(tmp_path_factory.mktemp("ray") / "cluster") as cluster:
        cluster.add(2)
        cluster.add(3)
        yield Runs(luban.home, cluster)


def test_what_the_cluster_cannot_do_is_refused_before_anything_is_written(ray: Runs) -> None:
    assert "has room for 2 of 5 ranks: 3 nodes with 2 GPUs" in ray.submit("many", "launch.ranks=5", code=2)
    assert "no node for a rank of 64 CPUs" in ray.submit("wide", "launch.threads=64", code=2)
    token, ray.environment["RAY_AUTH_TOKEN"] = ray.environment["RAY_AUTH_TOKEN"], "0" * 32
    refused = ray.submit("other", code=2)
    assert "refuses the token (403)" in refused
    assert "0" * 32 not in refused
    ray.environment["RAY_AUTH_MODE"] = "disabled"
    assert "asks for a token" in ray.submit("other", code=2)
    ray.environment |= {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token"}
    assert not any(ray.run(name).exists() for name in ("many", "wide", "other"))


def test_a_run_survives_what_happens_to_a_cluster_and_grows_and_shrinks_with_it(ray: Runs) -> None:
    cluster = ray.cluster
    settings = (
        "train.steps=100000", "checkpoint.every_steps=50", "evaluate.every_steps=0", "log.every_steps=50",
        "launch.ranks=3", "launch.min_ranks=1",
    )  # fmt: skip
    assert "submitted luban-long-" in ray.submit("long", *settings)
    started = ray.attempt("long", ranks=2)
    assert "already running" in ray.submit("long", *settings, code=2)

    # a rank dies: its worker begins the next life
    workers = {process.pid for process in cluster.processes("RayTrainWorker")}
    cluster.kill_inside(started.start["ranks"][1]["pid"])
    again = ray.attempt("long", ranks=2, after=started.number)
    assert {process.pid for process in cluster.processes("RayTrainWorker")} == workers
    assert "was killed by SIGKILL" in ray.attempts("long")[started.number - 1].message

    # a worker dies, and its rank with it: Ray Train begins another group
    cluster.processes("RayTrainWorker")[-1].kill()
    regrouped = ray.attempt("long", ranks=2, after=again.number)

    # a run that finds no room waits, and can be stopped
    ray.submit("second", "launch.ranks=1")
    wait(lambda: (ray.run("second") / "logs" / "attempt-1" / "life").exists(), PATIENCE_S, "the second's first life")
    assert "running" in ray("status", "second")
    ray("stop", "second")
    assert ray.over("second")["driver_exit_code"] == 75
    assert not ray.attempts("second")

    # a node comes: the ranks save first, so no step is lost
    cluster.add(4)
    larger = ray.attempt("long", ranks=3, after=regrouped.number)
    assert_nothing_lost(ray, larger)

    # a node is going to be taken away: they save, and go on without it
    cluster.drain(4, seconds=60)
    smaller = ray.attempt("long", ranks=2, after=larger.number)
    assert_nothing_lost(ray, smaller)
    cluster.kill(4)

    # a node loses its power
    cluster.kill(3)
    alone = ray.attempt("long", ranks=1, after=smaller.number)

    # the controller of Ray Train dies
    cluster.processes("TrainController")[0].kill()
    last = ray.attempt("long", ranks=1, after=alone.number)
    assert last.number == alone.number + 1

    wait(lambda: "ray_luban_train_loss" in cluster.metrics(), PATIENCE_S, "the run's figures among Ray's")
    following = ray.start("logs", "--follow", "long")
    assert "attempt" in ray("stop", "long")
    text, _ = following.communicate(timeout=60)
    assert f"attempt-{last.number}/rank-0.log" in text
    assert ray.over("long")["driver_exit_code"] == 75
    assert ray.attempts("long")[-1].outcome == "stopped"
    assert "over" in ray("status", "long")
    assert "nothing to stop" in ray("stop", "long", code=2)
    assert not cluster.processes("-m trainer")

    # the same command goes on; Ray's own way to stop a job saves, too
    ray.submit("long", *settings)
    resumed = ray.attempt("long", ranks=1, after=last.number)
    assert resumed.start["step"] == ray.attempts("long")[last.number - 1].last_step
    job = submission.read(ray.run("long"))
    assert job
    cluster.post(f"/api/jobs/{job.id}/stop")
    assert ray.over("long")["status"] == "STOPPED"
    stopped = ray.attempts("long")[-1]
    assert (stopped.number, stopped.outcome) == (resumed.number, "stopped")
    assert stopped.of("checkpoint")[-1]["step"] == stopped.last_step
    ray("verify", "long")
    spoken = json.dumps([ray.told("long"), [path.read_text() for path in ray.run("long").rglob("*.log")]])
    assert ray.environment["RAY_AUTH_TOKEN"] not in spoken


def assert_nothing_lost(ray: Runs, attempt: Attempt) -> None:
    """The attempt went on at the very step at which the one before it stopped."""
    before = ray.attempts("long")[attempt.number - 2]
    assert (before.outcome, before.last_step) == ("stopped", attempt.start["step"]), before.message


def test_a_run_trains_to_its_end_and_the_job_succeeds(ray: Runs) -> None:
    ray.submit("whole", "launch.ranks=1")
    assert ray.over("whole")["status"] == "SUCCEEDED", ray.told("whole")
    assert "Nothing to do" in ray.submit("whole", "launch.ranks=1")
    ray("verify", "whole")


def test_a_run_folder_that_a_node_does_not_share_is_one_clear_error(ray: Runs) -> None:
    ray.cluster.add(5, gpus=2, blind=ray.home / "runs")
    ray.submit("apart", "launch.ranks=2", "launch.max_restarts=0")
    ended = ray.over("apart")
    assert ended["driver_exit_code"] == 2
    assert "doesn't see what the driver writes to" in ended["message"]
    assert "127.0.0.5" in ray("status", "apart")
    assert not ray.attempts("apart")
