"""The doctor's visit from its front door: what it prints and ends with, and that it leaves nothing behind."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster import submission
from cluster.doctor.checkup import Checkup, examine, preflight, probe_job
from cluster.hold import Hold
from cluster.job import Job
from cluster.on_local import Local
from cluster.on_ray import request
from cluster.on_slurm import Slurm
from cluster.slurm.site import Site
from data.errors import UserError
from tests.conftest import CommandLine
from trainer.recipe import Recipe

ALONE = Recipe.model_validate({"log": {"wandb": "off"}})


def wait_for(folder: Path, pattern: str) -> Path:
    """The first path there that matches, once there is one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := next(folder.glob(pattern), None):
            return found
        time.sleep(0.02)
    raise AssertionError(f"{folder}/{pattern} never came")


def test_a_sound_machine_ends_with_0_says_what_it_measured_and_leaves_nothing(tmp_path: Path) -> None:
    luban = CommandLine(tmp_path)
    process = luban.start("doctor", "own", "--json")
    text, _ = process.communicate(timeout=240)
    found = json.loads(text)
    assert process.returncode == 0 and found["ok"], text
    assert {verdict["check"] for verdict in found["verdicts"]} == {
        "local", "ranks", "versions", "gpus", "machines", "disk", "shared folder", "clocks", "network", "bandwidth",
        "slow ranks", "wandb",
    }  # fmt: skip
    first = found["ranks"][0]
    figures = [first["disk"]["bytes"], first["disk"]["seconds"], *first["speed"]["all_reduce"],
               *first["speed"]["all_gather"], first["speed"]["compute"], first["speed"]["links"][0][2]]  # fmt: skip
    assert len(found["ranks"]) == 2 and min(figures) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mount", "fill", "why"),
    [("ro,size=1m", "true", "Read-only file system"), ("size=64k", "cat /dev/zero > $0/full", "No space left")],
)
def test_a_disk_that_takes_nothing_ends_with_1_before_a_rank_begins(
    tmp_path: Path, mount: str, fill: str, why: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    script = f'mount -t tmpfs -o {mount} none "$0"; {fill} 2> /dev/null; shift 0; exec "$@"'
    found = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(home), sys.executable, "-P", "-m", "luban", "doctor", "own"],
        env=os.environ | {"LUBAN_HOME": str(home)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.returncode == 1 and why in found.stdout, found.stdout + found.stderr
    assert "-> " in found.stdout and "Traceback" not in found.stderr


def test_what_was_asked_wrongly_ends_with_2(tmp_path: Path) -> None:
    luban = CommandLine(tmp_path)
    assert "no recipe nosuch" in luban("doctor", "nosuch", code=2)
    assert "no such launcher" in luban("doctor", "--on", "cloud", code=2)
    assert "preflght" in luban("doctor", "launch.preflght=true", code=2)


def test_a_preflight_that_fails_refuses_the_run_before_anything_is_written(tmp_path: Path) -> None:
    luban = CommandLine(tmp_path)
    text = luban("pretrain", "own", "launch.preflight=true", "launch.gpus_per_rank=1", "launch.ranks=1", code=2)
    assert "gpus:" in text and "torch sees 0 GPU(s), and its ranks need 1" in text
    assert "launch.preflight=false" in text and "dataset" not in text  # it came to none of the later checks
    assert list(tmp_path.iterdir()) == []


def test_a_preflight_that_passes_says_so_and_measures_no_speeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUBAN_HOME", str(tmp_path))
    said: list[str] = []
    preflight(ALONE, Local(), "local", said.append)
    assert said[0].startswith("preflight: ") and " checks ok in " in said[0]
    assert "--quick" in probe_job(tmp_path, ALONE, quick=True).argv
    assert "--quick" not in probe_job(tmp_path, ALONE, quick=False).argv


def test_a_rank_that_is_killed_is_told_with_1_and_the_logs_stay(tmp_path: Path) -> None:
    process = CommandLine(tmp_path).start("doctor", "own")
    facts = json.loads(wait_for(tmp_path, "runs/.doctor-*/facts/rank-1.json").read_text())
    os.kill(facts["pid"], signal.SIGKILL)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 1, text
    assert "rank 1 was killed by SIGKILL" in text and "ended in the middle" in text
    (kept,) = (tmp_path / "runs").iterdir()
    assert f"the ranks' logs are kept in {kept}/logs" in text
    assert len(list(kept.glob("logs/*/rank-*.log"))) == 2


def test_a_visit_that_is_interrupted_ends_its_ranks_and_leaves_nothing(tmp_path: Path) -> None:
    process = CommandLine(tmp_path).start("doctor", "own")
    facts = json.loads(wait_for(tmp_path, "runs/.doctor-*/facts/rank-0.json").read_text())
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and text == "", text
    assert not Path(f"/proc/{facts['pid']}").exists()
    assert list(tmp_path.glob("runs/.doctor-*")) == []


class Queue:
    """A scheduler that starts one rank when it has been asked about it three times."""

    def __init__(self, refusal: str | None = None):
        self.refusal, self.asked, self.cancelled = refusal, 0, []
        self.rank: subprocess.Popen[bytes] | None = None
        self.job: Job | None = None

    def render(self, job: Job) -> str:
        return ""

    def check(self, job: Job) -> None:
        if self.refusal:
            raise UserError(self.refusal)

    def submit(self, job: Job, held: Hold) -> int:
        print("a word of the launcher's own")
        self.job = job
        submission.write(job.run, "slurm", "7")
        return 0

    def state(self, id: str) -> str | None:
        assert id == "7" and self.job
        self.asked += 1
        if self.asked == 3:
            variables = {
                "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"
            }  # fmt: skip
            environment = os.environ | variables | dict(self.job.environment)
            self.rank = subprocess.Popen([*self.job.argv, "--life", "x"], env=environment)
        if self.rank and self.rank.poll() is not None:
            return None
        return "running on n1" if self.rank else "queued (Resources)"

    def cancel(self, id: str) -> None:
        self.cancelled.append(id)


def visit(queue: Queue, said: list[str]) -> Checkup:
    return examine(ALONE, queue, "slurm=site.yaml", said.append, quick=True)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setenv("LUBAN_HOME", str(tmp_path))
    monkeypatch.setattr("cluster.doctor.checkup.ASK_S", 0.05)
    found = Queue()
    monkeypatch.setattr("cluster.doctor.checkup.scheduler", lambda on: found)
    return found


def test_probes_that_wait_in_a_queue_are_waited_for(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    found = visit(queue, said)
    assert said == ["job 7 at slurm=site.yaml: queued (Resources)", "job 7 at slurm=site.yaml: running on n1"]
    assert [verdict.level for verdict in found.verdicts if verdict.check in ("slurm", "ranks")] == ["ok", "ok"]
    assert queue.rank and queue.rank.wait(60) == 0
    assert capsys.readouterr().out == ""  # --json is alone on standard output


def test_a_queue_that_is_interrupted_is_left(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Queue, "state", lambda self, id: "queued (Priority)")
    threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,)).start()
    with pytest.raises(KeyboardInterrupt):
        visit(queue, [])
    assert queue.cancelled == ["7"] and list(tmp_path.glob("runs/.doctor-*")) == []


def test_a_scheduler_that_has_not_what_is_asked_is_a_verdict_and_starts_nothing(queue: Queue, tmp_path: Path) -> None:
    queue.refusal = "no node has 16 GPUs"
    found = visit(queue, [])
    assert [(verdict.check, verdict.level, verdict.found) for verdict in found.verdicts] == [
        ("slurm", "fail", "no node has 16 GPUs")
    ]
    assert queue.job is None and list(tmp_path.iterdir()) == []


def test_schedulers_are_told_to_start_probes_once_and_not_to_train(tmp_path: Path) -> None:
    job = probe_job(tmp_path / "x", ALONE, quick=True)
    words = f"-P -m cluster.doctor.probe {tmp_path}/x --patience 120 --wandb off --quick"
    assert shlex.join(job.argv[1:]) == words
    assert request(job, "J")["entrypoint"].endswith(f"cluster.ray.driver {tmp_path}/x --job J --unrecorded {words}")
    script = Slurm(Site()).render(job)
    assert (
        'cluster.slurm.turn "$RUN" --unrecorded -- ' in script
        and '-m cluster.doctor.probe "$RUN" --patience 120' in script
    )
