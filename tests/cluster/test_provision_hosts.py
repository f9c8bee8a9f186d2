"""Hosts by ssh, for real: an sshd on each, a Ray that joins by it, and nothing left when the cluster is down."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.ssh_hosts import SshHosts


class Rack:
    """Two hosts, a cluster file of them, and the command line beside them."""

    def __init__(self, folder: Path):
        self.hosts = SshHosts(folder, 2)
        self.home = folder / "here"
        self.shared = folder / "shared"
        self.file = folder / "lab.yaml"
        self.home.mkdir()
        self.shared.mkdir()
        self.tree = {
            "name": "lab",
            "provider": "local",
            "ssh": {"user": "root", "key": str(self.hosts.key)},
            "shared": {"path": str(self.shared)},
            "head": {"host": self.hosts.addresses[0], "cpus": 1},
            "workers": [{"hosts": self.hosts.addresses[1:], "cpus": 1, "gpus": 2}],
            "setup": {"environment": sys.prefix},
        }
        self.file.write_text(yaml.safe_dump(self.tree))

    @property
    def folder(self) -> Path:
        """What is kept of the cluster on the side of the command line."""
        return self.home / "clusters" / "lab"

    def __call__(self, *words: str, code: int = 0) -> str:
        """`luban cluster VERB lab.yaml`, from where the hosts can be reached."""
        kept = {key: held for key, held in os.environ.items() if not key.startswith("RAY_")}
        done = subprocess.run(
            self.hosts.inside(sys.executable, "-P", "-m", "luban", "cluster", *words, str(self.file)),
            cwd=self.home,
            env=kept | {"LUBAN_HOME": str(self.home), "HOME": str(self.home), "RAY_AUTH_MODE": "disabled"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
        )
        assert done.returncode == code and "Traceback" not in done.stdout, done.stdout
        return done.stdout


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    """Ends with everything that ran on the hosts."""
    rack = Rack(tmp_path)
    yield rack
    rack.hosts.remove()


def test_an_unreachable_host_is_named_and_nothing_is_started(rack: Rack) -> None:
    nobody = f"{rack.hosts.network}.99"
    rack.tree["workers"][0]["hosts"] = [nobody]
    rack.file.write_text(yaml.safe_dump(rack.tree))
    said = rack("up", code=2)
    assert "not every host is ready" in said and f"{nobody}: ssh: connect to host" in said
    assert rack.hosts.addresses[0] not in said
    assert not list(rack.hosts.home(0).glob(".luban")) and not rack.folder.exists()


@pytest.mark.slow
def test_a_host_that_can_not_be_ended_is_named_and_not_forgotten(rack: Rack) -> None:
    nobody = f"{rack.hosts.network}.99"
    rack.tree["workers"][0]["hosts"] = [nobody]
    rack.file.write_text(yaml.safe_dump(rack.tree))
    rack.folder.mkdir(parents=True)
    (rack.folder / "cluster.yaml").write_text(rack.file.read_text())
    (rack.folder / "ray.yaml").write_text(rack("render"))
    said = rack("down", code=2)
    assert "could not be ended everywhere" in said and f"{nobody}: ssh: connect to host" in said
    assert rack.hosts.addresses[0] not in said and (rack.folder / "ray.yaml").exists()


@pytest.mark.slow
def test_hosts_join_show_their_gpus_and_keep_nothing_when_down(rack: Rack) -> None:
    said = rack("up")
    token = (rack.folder / "token").read_text()
    head, worker = rack.hosts.addresses

    services = [line for line in rack.hosts.on(0) if "gcs_server" in line]
    assert len(services) == 1 and "is up already" in rack("up")
    rack.file.write_text(yaml.safe_dump(rack.tree | {"idle_minutes": 1}))
    assert "--restart ends what runs there" in rack("up", code=2)
    assert [line for line in rack.hosts.on(0) if "gcs_server" in line] == services  # nobody restarted it

    lines = rack("status").splitlines()
    assert lines[0].split() == ["head", head, "1", "CPU", "0", "GPU"]
    assert lines[1].split() == ["worker", worker, "1", "CPU", "2", "GPU"]
    assert f"127.0.0.1:8265 root@{head}" in "\n".join(lines)

    assert "127.0.0.1:8265" in rack.hosts.listening(0)  # the dashboard, and on no other address
    assert [address for address in rack.hosts.listening(0) if address.endswith(":8265")] == ["127.0.0.1:8265"]
    for number in (0, 1):
        shipped = rack.hosts.home(number) / ".luban" / "lab" / "token"
        assert shipped.read_text() == token and shipped.stat().st_mode & 0o777 == 0o600
        assert not any(token in line for line in rack.hosts.on(number))
    kept = [path for path in rack.folder.rglob("*") if path.is_file() and path.name != "token"]
    assert len(kept) > 3 and not any(token in text for text in [said, *(path.read_text() for path in kept)])
    assert (rack.folder / "token").stat().st_mode & 0o777 == 0o600
    ray = f"{sys.prefix}/bin/ray"
    refused = rack.hosts.login(0, f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'1' * 64} {ray} list nodes")
    assert refused.returncode != 0 and "authent" in (refused.stdout + refused.stderr).lower()

    (same_folder,) = yaml.safe_load((rack.folder / "ray.yaml").read_text())["worker_setup_commands"]
    assert rack.hosts.login(1, same_folder).returncode == 0

    assert "cluster lab is down" in rack("down")
    for number in (0, 1):
        assert all("sshd" in line for line in rack.hosts.on(number)), rack.hosts.on(number)
        assert not [path for path in rack.hosts.home(number).iterdir() if path.name.startswith(("ray_", ".luban"))]
    assert not rack.folder.exists() and not list(rack.shared.iterdir())
    kept = Path(tempfile.gettempdir()).glob("ray-config-*")  # Ray's cache of configurations
    assert not [path for path in kept if str(rack.shared) in path.read_text()]
    another = rack.hosts.login(1, same_folder)  # what a worker says whose folder has nothing of the head's in it
    assert another.returncode != 0 and f"{rack.shared} is not the folder that the head sees" in another.stderr
