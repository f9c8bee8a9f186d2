"""Nodes fail here as machines do: by a crash, or with their network while their processes live on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_testbed.configuration import Shape
from tests.slurm_testbed.daemons import TestbedError, of_jobs
from tests.slurm_testbed.namespaced import PORT, Namespaced
from tests.slurm_testbed.test_loopback import processes

WHERE = 'echo "$SLURMD_NODENAME $(hostname) $(ip -4 -o addr show eth0 | grep -o "10[0-9.]*" | head -n 1)"'


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespaced]:
    with Namespaced(tmp_path_factory.mktemp("slurm") / "testbed", Shape(nodes=2)) as cluster:
        yield cluster


def tasks(cluster: Namespaced) -> int:
    """How many processes of jobs there are, on all nodes."""
    return len([process for process in of_jobs(cluster.conf) if process.name == "task"])


def reached(cluster: Namespaced, name: str) -> bool:
    """Whether a node's slurmd can be called from the controller."""
    call = f": <>/dev/tcp/{cluster.address(name)}/{PORT + 1}"
    return cluster.attempt("timeout", "1", "bash", "-c", call).returncode == 0


def test_each_node_is_a_machine_of_its_own(cluster: Namespaced):
    lines = cluster("srun", "-N2", "bash", "-c", WHERE)
    assert sorted(lines.splitlines()) == ["n1 n1 10.77.0.11", "n2 n2 10.77.0.12"]
    assert cluster.attempt("hostname").stdout == "ctl\n"


def test_on_a_cut_node_a_task_lives_on_out_of_reach(cluster: Namespaced):
    cluster("sbatch", "-w", "n2", "--output=/dev/null", "--wrap", "exec sleep 1000")
    cluster.wait(lambda: tasks(cluster), bool, "the task has begun")
    assert reached(cluster, "n2")
    cluster.cut("n2")
    assert not reached(cluster, "n2") and reached(cluster, "n1")
    assert tasks(cluster) == 1
    cluster.heal("n2")
    cluster.wait(lambda: reached(cluster, "n2"), bool, "n2 is back")
    cluster.clear()
    assert tasks(cluster) == 0


def test_a_crash_leaves_no_process_of_a_node_and_it_boots_again(cluster: Namespaced):
    cluster("sbatch", "-w", "n2", "--no-requeue", "--output=/dev/null", "--wrap", "exec sleep 1000")
    cluster.wait(lambda: tasks(cluster), bool, "the task has begun")
    cluster.crash("n2")
    assert tasks(cluster) == 0
    assert [name for name in processes(cluster.folder) if "\0n2\0" in name] == []
    cluster.boot("n2")
    cluster.clear()
    assert cluster("srun", "-w", "n2", "hostname") == "n2\n"


def test_nothing_is_left_of_it(tmp_path: Path):
    with Namespaced(tmp_path / "testbed", Shape(nodes=1)) as cluster:
        cluster("sbatch", "--output=/dev/null", "--wrap", "exec sleep 1000")
        cluster.wait(lambda: tasks(cluster), bool, "the task has begun")
        networks = {Path(f"/proc/{p.pid}/ns/net").readlink() for p in cluster.daemons.all.values()}
        assert len(networks) == 3  # munged's, the controller's and the node's
    assert processes(cluster.folder) == []
    assert list(tmp_path.iterdir()) == []
    here = Path("/proc/self/ns/net").readlink()
    assert _networks() & networks == {here}


def test_without_root_it_says_what_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(TestbedError, match="need root; without it, there is Loopback"):
        Namespaced(tmp_path / "testbed").up()
    assert list(tmp_path.iterdir()) == []


def _networks() -> set[Path]:
    """The network namespaces that processes are in."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(path.readlink())
        except OSError:
            continue
    return found
