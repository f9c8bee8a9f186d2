"""The Slurm that tests run on is real: jobs spread over nodes and see their GPUs, and nothing is left of it."""

import multiprocessing
import os
import pwd
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.slurm_testbed.__main__ import main
from tests.slurm_testbed.configuration import Shape
from tests.slurm_testbed.daemons import TestbedError, of_jobs
from tests.slurm_testbed.loopback import Loopback

NOBODY = pwd.getpwnam("nobody")[2:4]
TASK = 'echo "$SLURMD_NODENAME $SLURM_LOCALID $CUDA_VISIBLE_DEVICES"'


def processes(folder: Path) -> list[str]:
    """Every process that names the folder in its words or its environment, this one excepted; no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
            if os.fsencode(folder) in words + (path / "environ").read_bytes() and path.name != str(os.getpid()):
                found.append(words.decode())
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    with Loopback(tmp_path_factory.mktemp("slurm") / "testbed", Shape(nodes=3)) as cluster:
        yield cluster


def test_it_comes_up_idle(cluster: Loopback):
    assert cluster.nodes() == {"n1": "idle", "n2": "idle", "n3": "idle"}


def test_a_task_runs_on_each_node_and_sees_its_own_gpu(cluster: Loopback):
    lines = cluster("srun", "-N3", "--ntasks-per-node=2", "--gpus-per-task=1", "bash", "-c", TASK).split("\n")
    assert sorted(line for line in lines if line) == [f"n{node} {task} {task}" for node in (1, 2, 3) for task in (0, 1)]


def test_a_node_s_only_task_sees_all_gpus_of_the_node(cluster: Loopback):
    lines = cluster("srun", "-N2", "--gpus-per-node=2", "bash", "-c", TASK)
    assert sorted(lines.splitlines()) == ["n1 0 0,1", "n2 0 0,1"]


def test_it_listens_on_loopback_alone(cluster: Loopback):
    folders = [Path(f"/proc/{process.pid}/fd") for process in cluster.daemons.all.values()]
    links = []
    for link in (link for folder in folders for link in folder.iterdir()):
        with suppress(FileNotFoundError):  # closed since it was listed; a listening socket stays open
            links.append(str(link.readlink()))
    inodes = {link.strip("socket:[]") for link in links if link.startswith("socket:")}
    tables = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    listening = {fields[1].partition(":")[0] for fields in tables if fields[3] == "0A" and fields[9] in inodes}
    assert listening == {"0100007F"}


def test_nothing_is_left_of_it_nor_of_its_jobs(tmp_path: Path):
    cluster = Loopback(tmp_path / "testbed", Shape(nodes=2))
    cluster.up()
    job = cluster(
        "sbatch", "--parsable", "-N2", "--output=/dev/null", "--wrap", "trap '' TERM; srun sleep 1000"
    ).strip()
    cluster.wait_for_job(job, "RUNNING")
    cluster.wait(lambda: len(list(of_jobs(cluster.conf))), lambda number: number >= 5, "the step has begun")
    assert processes(cluster.folder)
    cluster.down()
    assert not processes(cluster.folder)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_fails_at_once_in_the_daemon_s_words(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(TestbedError, match=rf"n1 has ended.*\n(.*\n)*.*{port}.*Address already in use"):
            Loopback(tmp_path / "testbed", Shape(nodes=1), port=port - 1).up()
    assert time.monotonic() - began < 30
    assert list(tmp_path.iterdir()) == [] and not processes(tmp_path)


def test_it_needs_no_rights():
    """As nobody, where the tests run as root; from a folder that nobody can reach."""
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, *NOBODY if os.geteuid() == 0 else (-1, -1))
        here, there = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=_as_nobody, args=(Path(folder), there))
        child.start()
        there.close()
        lines, left = here.recv()
        child.join()
        assert sorted(lines.splitlines()) == ["n1 0 0,1", "n2 0 0,1"]
        assert left == []


def _as_nobody(folder: Path, answer: Connection) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY[1])
        os.setuid(NOBODY[0])
    os.chdir(folder)
    with Loopback(folder / "testbed", Shape(nodes=2)) as cluster:
        lines = cluster("srun", "-N2", "--gpus-per-node=2", "bash", "-c", TASK)
    answer.send((lines, [path.name for path in folder.iterdir()]))


def test_another_process_takes_it_down_and_leaves_the_shells_that_use_it(tmp_path: Path):
    cluster = Loopback(tmp_path / "testbed", Shape(nodes=1))
    assert main(["up", "--folder", str(cluster.folder), "--nodes", "1"]) == 0
    words = ["sleep", "1000"]
    with subprocess.Popen(words, env=os.environ | cluster.environment) as shell:
        try:
            assert cluster("srun", "bash", "-c", TASK) == "n1 0 \n"
            command = [sys.executable, "-m", "tests.slurm_testbed", "down", "--folder", str(cluster.folder)]
            subprocess.run(command, check=True)
            assert processes(cluster.folder) == ["\0".join([*words, ""])]
            assert list(tmp_path.iterdir()) == []
        finally:
            shell.kill()


def test_there_is_nothing_to_take_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["down", "--folder", str(tmp_path)]) == 1
    assert f"there is no cluster in {tmp_path}" in capsys.readouterr().err


def test_a_folder_too_deep_for_a_socket_is_refused(tmp_path: Path):
    with pytest.raises(TestbedError, match="choose a shorter folder"):
        Loopback(tmp_path / ("deep" * 20)).up()
    assert list(tmp_path.iterdir()) == []
