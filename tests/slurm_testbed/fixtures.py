"""The testbed as fixtures: one cluster a session, its nodes idle at the start of each test that asks for it."""

from collections.abc import Iterator

import pytest

from tests.slurm_testbed.loopback import Loopback


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """Four nodes on loopback, with 4 CPUs and 2 fake GPUs each; partitions `main` and `spot`."""
    with Loopback(tmp_path_factory.mktemp("slurm") / "testbed") as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster: Loopback, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """The same for one test, which inherits what `sbatch` needs to find it; no job outlives the test."""
    for name, value in slurm_cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield slurm_cluster
    slurm_cluster.clear()
