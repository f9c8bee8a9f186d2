"""Runs on a real Slurm of several nodes: handed over, told about, refused, cancelled, and trained until done."""

import json
import re
from pathlib import Path

import pytest

from cluster.job import training_job
from cluster.launchers import launcher
from cluster.standing import standing
from cluster.training import Asked, train
from data.errors import UserError
from data.settings import apply
from tests.conftest import CommandLine
from tests.slurm_testbed.loopback import Loopback
from trainer.ancestor import pin_ancestor
from trainer.recipe import Launch, Recipe
from trainer.run import read_recipe

TWO_BY_TWO = ("launch.ranks=4", "launch.nodes=2", "launch.gpus_per_rank=1")


@pytest.fixture
def here(luban: CommandLine, slurm: Loopback) -> CommandLine:
    """The command line on a machine that can submit; its runs are seen by all nodes, for they are this machine."""
    (luban.home / "site.yaml").write_text("shared: true\nlead_s: 60\n")
    (luban.home / "held.yaml").write_text("shared: true\nsbatch: [--hold]\n")
    return CommandLine(luban.home)


def job_of(here: CommandLine, name: str) -> str:
    return json.loads((here.run(name) / "job.json").read_text())["id"]


def place(pid: int) -> tuple[str, str]:
    """(node, local rank) of a process."""
    words = Path(f"/proc/{pid}/environ").read_text().split("\0")
    there = dict(word.split("=", 1) for word in words if "=" in word)
    assert there["CUDA_VISIBLE_DEVICES"] == "0,1"
    return there["SLURMD_NODENAME"], there["LOCAL_RANK"]


@pytest.mark.slow
def test_two_nodes_of_two_ranks_train_until_done(here: CommandLine, slurm: Loopback) -> None:
    shown = here.pretrain("pair", *TWO_BY_TWO, "--on", "slurm=site.yaml", "--dry-run")
    assert not here.run("pair").exists()
    said = here.pretrain("pair", *TWO_BY_TWO, "--on", "slurm=site.yaml")
    job = job_of(here, "pair")
    assert f"submitted job {job}, " in said
    assert (
        slurm("scontrol", "write", "batch_script", job, "-") == shown == (here.run("pair") / "job.sbatch").read_text()
    )
    again = here.pretrain("pair", *TWO_BY_TWO, "--on", "slurm=site.yaml", code=2)
    assert re.search(rf"already running: (job {job} of slurm, submitted|.*, job {job} of slurm since)", again)
    begun = here.wait_for("pair", 1, lambda event: event["event"] == "step")
    assert sorted(place(rank["pid"]) for rank in begun[0]["ranks"]) == [
        ("n1", "0"),
        ("n1", "1"),
        ("n2", "0"),
        ("n2", "1"),
    ]
    assert re.search(rf"job +{job} of slurm, submitted .* running on n\[1-2\]", here("status", "pair"))
    assert slurm.wait_for_job(job, "COMPLETED", "FAILED")["ExitCode"] == "0:0"
    assert "exactly once" in here("verify", "pair")
    assert "done: step 24 reached" in (here.run("pair") / "logs" / f"slurm-{job}.log").read_text()
    assert here("logs", "pair", "--rank", "3")
    assert "has nothing to stop: attempt 1 is done" in here("stop", "pair", code=2)
    assert "is done" in here.pretrain("pair", *TWO_BY_TWO, "--on", "slurm=site.yaml")
    _from_a_run_that_had_no_checkpoint_yet(here)


def _from_a_run_that_had_no_checkpoint_yet(here: CommandLine) -> None:
    """What `--from pair --after pair` leaves open at first is settled when the run begins."""
    here.pretrain("later", "--from", "pair@best", "--after", "pair", "--on", "slurm=held.yaml")
    assert "afterok" not in (here.run("later") / "job.sbatch").read_text()  # there is nothing to wait for any more
    assert (read_recipe(here.run("later")).ancestor or "").endswith("/pair@best")
    pin_ancestor(here.run("later"))
    assert re.search(r"/pair@\d+$", read_recipe(here.run("later")).ancestor or "")


def test_a_queued_job_is_told_respected_taken_over_and_cancelled(here: CommandLine, slurm: Loopback) -> None:
    here.environment |= {"SBATCH_JOB_NAME": "other", "SLURM_JOB_ID": "1"}
    here.pretrain("queued", "--on", "slurm=held.yaml")
    first = job_of(here, "queued")
    assert slurm.job(first)["JobName"] == "queued"  # as the script says
    assert re.search(rf"job +{first} of slurm, submitted .*: queued \(JobHeldUser\)", here("status", "queued"))
    recipe = (here.run("queued") / "recipe.yaml").read_text()
    for on in ("slurm=held.yaml", "local"):
        said = here.pretrain("queued", "train.steps=48", "--on", on, code=2)
        assert re.search(rf"job {first} of slurm, submitted .* ago \(.*\), queued \(JobHeldUser\)", said)
    assert (here.run("queued") / "recipe.yaml").read_text() == recipe
    said = here.pretrain("queued", "--on", "slurm=held.yaml", "--takeover")
    second = job_of(here, "queued")
    assert f"cancelled job {first} of slurm" in said
    assert slurm.job(first)["JobState"] == "CANCELLED"
    assert f"cancelled job {second} of slurm, which was queued" in here("stop", "queued")
    assert slurm.job(second)["JobState"] == "CANCELLED"
    told = here("status", "queued")
    assert "over before it began an attempt" in told
    assert f"recipe.yaml --on slurm={here.home}/held.yaml" in told


def test_a_job_waits_for_another_one_and_never_comes_when_that_failed(here: CommandLine, slurm: Loopback) -> None:
    here.pretrain("base", "--on", "slurm=held.yaml")
    here.pretrain("next", "--from", "base", "--after", "base", "--on", "slurm=site.yaml")
    base, follower = job_of(here, "base"), job_of(here, "next")
    assert slurm.job(follower)["Dependency"].startswith(f"afterok:{base}")
    assert read_recipe(here.run("next")).model == read_recipe(here.run("base")).model
    assert "queued (Dependency)" in here("status", "next")
    here("stop", "base")
    slurm.wait_for_job(follower, "CANCELLED")
    said = here.pretrain("orphan", "--after", "base", "--on", "slurm=site.yaml", code=2)
    assert f"--after base: job {base} is over, and {here.run('base')} is not done" in said


def test_a_job_that_failed_is_told_with_its_last_word_and_does_not_come_again(
    here: CommandLine, slurm: Loopback
) -> None:
    here.pretrain("torn", "--on", "slurm=held.yaml")
    (here.run("torn") / "recipe.yaml").write_text("seed: [")
    slurm("scontrol", "release", job_of(here, "torn"))
    assert slurm.wait_for_job(job_of(here, "torn"), "FAILED", "COMPLETED")["ExitCode"] == "2:0"
    assert re.search(
        r"of slurm, submitted .*: failed: .*recipe\.yaml is not valid YAML", standing(here.run("torn")) or ""
    )


def test_a_sweep_is_one_job_array_of_runs_that_are_told_and_stopped_one_by_one(
    here: CommandLine, slurm: Loopback
) -> None:
    said = here.pretrain("sweep", "--array", "optimizer.lr=[1e-3, 2e-3]", "--on", "slurm=held.yaml")
    one, other = job_of(here, "sweep-0"), job_of(here, "sweep-1")
    array = one.removesuffix("_0")
    assert other == f"{array}_1"
    assert f"submitted job {array}, with sweep-0 as {one}, sweep-1 as {other}" in said
    assert [read_recipe(here.run(f"sweep-{index}")).optimizer.lr for index in (0, 1)] == [1e-3, 2e-3]
    assert f"cancelled job {one} of slurm, which was queued" in here("stop", "sweep-0")
    assert re.search(rf"job +{one} of slurm, submitted .*: over before it began", here("status", "sweep-0"))
    assert re.search(rf"job +{other} of slurm, submitted .*: queued", here("status", "sweep-1"))


@pytest.mark.parametrize(
    ("launch", "site", "said"),
    [
        ({}, "partition: mian", "no partition mian: did you mean main?"),
        ({"gpus_per_rank": 1, "ranks": 8}, "", "8 GPUs a node (gpu), and no node has more than 2 (gpu:fake:2)"),
        ({"nodes": 5, "ranks": 5}, "", "5 nodes (launch.nodes), and 4 of its 4 are enough"),
        ({"threads": 9, "memory_gb": 9.0}, "", "9 CPUs a node"),
        ({"time_limit_minutes": 3}, "", "a time limit of 3 minutes is not more than lead_s 180"),
        ({}, "environment: {SOME_API_KEY: null}", "passes SOME_API_KEY on by name, and it is not set here"),
        ({}, "shared: false", "which each node has its own of"),
        ({}, "sbatch: [--reservation=none]", "Slurm says no: "),
    ],
)
def test_what_slurm_would_never_run_is_said_before_it_is_submitted(
    slurm: Loopback, tmp_path: Path, launch: dict, site: str, said: str
) -> None:
    (tmp_path / "site.yaml").write_text(site if "shared" in site else f"shared: true\n{site}\n")
    job = training_job(tmp_path / "run", Recipe(launch=Launch(**launch)))
    with pytest.raises(UserError) as raised:
        launcher(f"slurm={tmp_path}/site.yaml").check(job)
    assert said in str(raised.value)


def test_a_job_may_wait_for_nodes_that_are_down(
    slurm: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.yaml").write_text("shared: true\n")
    job = training_job(tmp_path / "run", Recipe(launch=Launch(nodes=2, ranks=2)))
    slurm("scontrol", "update", "nodename=n[1-3]", "state=drain", "reason=test")
    try:
        launcher(f"slurm={tmp_path}/site.yaml").check(job)
    finally:
        slurm("scontrol", "update", "nodename=n[1-3]", "state=resume")
    assert "needs 2 nodes, and of those that could run it 1 are up (" in capsys.readouterr().out


def test_a_refused_run_leaves_nothing_behind_and_ends_with_2(here: CommandLine) -> None:
    said = here.pretrain("bad", "launch.nodes=2", "launch.ranks=16", "--on", "slurm=site.yaml", code=2)
    assert "8 CPUs a node" in said
    assert "there is no run nobody" in here.pretrain("bad", "--after", "nobody", "--on", "slurm=site.yaml", code=2)
    assert "only --on slurm lets a job wait" in here.pretrain("bad", "--after", "17", code=2)
    said = here.pretrain("bad", "--after", "999999", "--on", "slurm=site.yaml", code=2)
    assert "--after 999999: Slurm knows no such job" in said  # sbatch itself would begin the run at once
    said = here.pretrain("bad", "--array", "optimizer.lr=[1e-3]", code=2)
    assert "--array optimizer.lr=[1e-3]: only --on slurm makes a job array" in said
    assert not here.run("bad").exists()


def test_without_slurm_or_its_controller_the_message_says_which_is_missing(here: CommandLine, tmp_path: Path) -> None:
    there = here.environment
    here.environment = there | {"PATH": str(tmp_path)}
    assert "there is no command sinfo: Slurm is not installed here" in here.pretrain(
        "no", "--on", "slurm=site.yaml", code=2
    )
    conf = Path(there["SLURM_CONF"]).read_text()
    (tmp_path / "slurm.conf").write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1\nMessageTimeout=2", conf))
    here.environment = there | {"SLURM_CONF": str(tmp_path / "slurm.conf")}
    said = here.pretrain("no", "--on", "slurm=site.yaml", code=2)
    assert "Slurm does not answer: " in said
    assert not here.run("no").exists()


def test_a_run_whose_speed_is_known_asks_for_the_time_it_needs_within_what_the_partition_allows(
    here: CommandLine, slurm: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit(hours: float | None, *more: str) -> list[str]:
        monkeypatch.setattr("cluster.plan.pace.hours", lambda recipe, run: hours)
        said: list[str] = []
        tree = apply({}, ["name=timed", *more])
        site = f"slurm={here.home}/site.yaml"
        assert train(Asked(tree, "the recipe", on=site, dry_run=True), said.append) == 0
        return re.findall(r"^#SBATCH --time=(\d+)$", said[0], re.MULTILINE)

    monkeypatch.setenv("LUBAN_HOME", str(here.home))
    assert limit(None) == []
    assert limit(2.0) == ["165"]
    assert limit(2.0, "launch.time_limit_minutes=7") == ["7"]
    slurm("scontrol", "update", "PartitionName=main", "MaxTime=100")
    try:
        assert limit(2.0) == ["100"]
    finally:
        slurm("scontrol", "update", "PartitionName=main", "MaxTime=UNLIMITED")
