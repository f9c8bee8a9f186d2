"""What is submitted to Slurm, as text: golden files, and the parts that are pure functions.

`python -m tests.cluster.test_slurm_rendering` writes the golden files anew; read the difference before it is kept.
"""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.job import Job, command_job
from cluster.on_slurm import TEMPLATES, Slurm
from cluster.slurm import fit as slurm_fit
from cluster.slurm.site import Container, Site, read_site
from data import settings
from data.errors import UserError
from trainer.recipe import Recipe

GOLDEN = Path(__file__).with_name("golden")
RUN = Path("/shared/runs/first")
JOB = Job(
    argv=("/usr/bin/python3", "-P", "-m", "trainer", str(RUN)), run=RUN, steps=600, nodes=2, ranks_per_node=2,
    min_ranks=4, cpus_per_rank=2, environment=(("OMP_NUM_THREADS", "2"),),
)  # fmt: skip
GPUS = replace(JOB, nodes=8, ranks_per_node=4, min_ranks=32, gpus_per_rank=1, memory_gb=60.0, time_limit_minutes=720)
PYTHON = "/shared/venv/bin/python"
IMAGE = Container(image="registry.example#lab/luban:1", runtime="pyxis", mounts=("/data:/mnt",))
CASES = {
    "plain": (Slurm(Site(python=PYTHON)), JOB),
    "site": (
        Slurm(
            Site(
                partition="gpu", account="physics", qos="long", constraint="h100", gres="gpu:h100", python=PYTHON,
                modules=("cuda/12.8", "nccl"), environment={"NCCL_SOCKET_IFNAME": "ib0", "WANDB_API_KEY": None},
                sbatch=("--exclusive", "--mail-type=FAIL"), lead_s=300,
            )
        ),
        GPUS,
    ),
    "shrinking": (Slurm(Site(python=PYTHON), after="17"), replace(GPUS, min_ranks=24, takeover=True)),
    "apptainer": (Slurm(Site(python=PYTHON, container=Container(image="/shared/it's.sif", mounts=("/shared",)))), GPUS),
    "pyxis": (Slurm(Site(python=PYTHON, requeue=False, container=IMAGE)), GPUS),
}  # fmt: skip
ELEMENTS = {
    index: replace(
        JOB, run=RUN.with_name(f"sweep-{index}"), argv=(*JOB.argv[:-1], str(RUN.with_name(f"sweep-{index}")))
    )
    for index in (0, 2)
}
COMMAND = command_job(RUN, Recipe(), ("evaluate", f"{RUN}@best", "--rows", "0"))


def rendered() -> dict[str, str]:
    """What each golden file should hold."""
    return {
        **{case: launcher.render(job) for case, (launcher, job) in CASES.items()},
        "array": CASES["plain"][0].render_array(ELEMENTS),
        "command": CASES["pyxis"][0].render_command(COMMAND),
    }


@pytest.mark.parametrize("case", [*CASES, "array", "command"])
def test_the_batch_script_is_the_golden_one(case: str) -> None:
    assert rendered()[case] == (GOLDEN / f"{case}.sbatch").read_text()


@pytest.mark.parametrize("case", CASES)
def test_the_batch_script_and_the_script_inside_it_are_bash(case: str) -> None:
    text = (GOLDEN / f"{case}.sbatch").read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    shown = subprocess.run(  # what srun would be given, its last words first
        ["bash", "-c", 'exec() { printf "%s\\0" "$@"; }; ' + text.partition("set -euo pipefail")[2]],
        capture_output=True, text=True, check=True, env={"WANDB_API_KEY": "secret", "PATH": "/usr/bin:/bin"},
    ).stdout  # fmt: skip
    *_, bash, flag, inner, name, _ = shown.split("\0")
    assert (bash, flag, name) == ("bash", "-c", "life")
    subprocess.run(["bash", "-n"], input=inner, text=True, check=True)


def test_a_secret_is_named_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "do-not-write-me")
    text = Slurm(Site(environment={"WANDB_API_KEY": None})).render(JOB)
    assert "WANDB_API_KEY:?" in text
    assert "do-not-write-me" not in text
    with pytest.raises(UserError, match="WANDB_API_KEY looks like a secret"):
        settings.validate(Site, {"environment": {"WANDB_API_KEY": "do-not-write-me"}}, "site.yaml")


def test_every_mistake_in_a_site_file_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(
        "partitoin: gpu\naccount: two words\nlead_s: 5\nsbatch: [--nodes=9, exclusive]\ncontainer: {runtime: docker}\n"
    )
    with pytest.raises(UserError) as raised:
        read_site(path)
    text = str(raised.value)
    assert "has 6 mistakes" in text
    for part in ("Did you mean partition?", "one word", "lead_s", "--nodes comes from", "--name=value", "'apptainer'"):
        assert part in text
    with pytest.raises(UserError, match=r"there is no site file .*gone\.yaml: copy slurm/site\.yaml"):
        read_site(tmp_path / "gone.yaml")


def test_the_example_of_a_site_says_the_defaults_and_is_right_when_uncommented(tmp_path: Path) -> None:
    example = TEMPLATES / "site.yaml"
    assert read_site(example) == Site()
    lines = example.read_text().splitlines()
    path = tmp_path / "site.yaml"
    path.write_text("\n".join(line.removeprefix("# ") for line in lines if not line.startswith(("# What", "# How"))))
    given = set(settings.given(settings.read_yaml(path)))
    assert {name.split(".")[0] for name in given} == set(Site.model_fields)
    assert read_site(path).container.mounts == ("/shared",)


THERE = slurm_fit.nodes(
    "main*|3|64|256000|gpu:a100:4(S:0-1),shard:8|idle|a100,ib\n"
    "main*|1|64+|256000+|gpu:a100:8|down*|a100\n"
    "cpu|10|128|512000|(null)|mixed|(null)\n"
)


def test_a_job_that_fits_has_no_problem() -> None:
    fitting = replace(GPUS, nodes=4, memory_gb=10.0)
    assert slurm_fit.problems(fitting, Site(gres="gpu:a100", constraint="ib"), THERE) == []


@pytest.mark.parametrize(
    ("job", "site", "said"),
    [
        (replace(JOB, gpus_per_rank=1, ranks_per_node=9), Site(), "9 GPUs a node (gpu), and no node has more than 8"),
        (replace(JOB, gpus_per_rank=1), Site(gres="gpu:h100"), "2 GPUs a node (gpu:h100), and no node has more than 0"),
        (replace(JOB, gpus_per_rank=1, ranks_per_node=8), Site(), "2 nodes (launch.nodes), and 1 of its 4 are enough"),
        (replace(JOB, cpus_per_rank=40), Site(), "80 CPUs a node"),
        (replace(JOB, memory_gb=200.0), Site(), "381470 MiB a node"),
        (JOB, Site(partition="cpus"), "no partition cpus: did you mean cpu?"),
        (JOB, Site(constraint="h100"), "nodes with h100, and the features there are a100, ib"),
    ],
)
def test_what_no_node_has_is_named_with_what_there_is(job: Job, site: Site, said: str) -> None:
    assert said in "\n".join(slurm_fit.problems(job, site, THERE))


def test_a_site_without_a_default_partition_asks_for_one() -> None:
    there = slurm_fit.nodes("cpu|10|128|512000|(null)|mixed|(null)\n")
    assert "set partition in the site file to one of cpu" in slurm_fit.problems(JOB, Site(), there)[0]


def test_the_limits_of_a_partition_are_checked() -> None:
    shown = (
        "PartitionName=gpu AllowAccounts=chemistry AllowQos=ALL DefaultTime=00:02:00 MaxNodes=4 MaxTime=1-00:00:00 "
        "State=DRAIN"
    )
    found = slurm_fit.limits(replace(GPUS, time_limit_minutes=1441), Site(account="physics", qos="any"), shown)
    for part in (
        "it is DRAIN",
        "1441 is more than its 1440 minutes",
        "more than its MaxNodes 4",
        "AllowAccounts: chem",
    ):
        assert any(part in problem for problem in found), part
    assert len(found) == 4
    assert "a time limit of 2 minutes is not more than lead_s 180" in slurm_fit.limits(JOB, Site(), shown)[0 + 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 5),
        ("90:30", 90.5),
        ("02:00:00", 120),
        ("1-12", 36 * 60),
        ("2-00:30:00", 2910),
        ("UNLIMITED", float("inf")),
    ],
)
def test_slurm_s_times_are_read(text: str, expected: float) -> None:
    assert slurm_fit.minutes(text) == expected


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (GOLDEN / f"{name}.sbatch").write_text(text)
