"""Cluster files: what is wrong with one is said at once, before anything is rendered."""

from pathlib import Path

import pytest
import yaml

from cluster.provision.cluster_file import Cluster, read
from data.errors import UserError
from data.settings import validate

HOSTS = {
    "name": "lab",
    "provider": "local",
    "ssh": {"user": "me", "key": "/home/me/.ssh/id"},
    "shared": {"path": "/mnt/luban"},
    "head": {"host": "10.0.0.1"},
    "workers": [{"hosts": ["10.0.0.2", "10.0.0.3"], "gpus": 8}],
}
AWS = {
    "name": "big",
    "provider": "aws",
    "aws": {"region": "us-west-2"},
    "image": "ami-0123456789abcdef0",
    "store": "s3://bucket/luban",
    "head": {"instance": "m7i.2xlarge"},
    "workers": [{"instance": "p5.48xlarge", "cpus": 192, "gpus": 8, "max": 4, "spot": True}],
}


def problem(tree: dict, **changed: object) -> str:
    """What is said about a tree with some of its sections replaced; None removes one."""
    with pytest.raises(UserError) as caught:
        validate(Cluster, {key: held for key, held in {**tree, **changed}.items() if held is not None}, "lab.yaml")
    return str(caught.value)


def worker(tree: dict, **changed: object) -> list[dict]:
    """The tree's only kind of workers, changed."""
    return [{key: held for key, held in {**tree["workers"][0], **changed}.items() if held is not None}]


def test_every_wrong_key_is_named_with_what_was_meant() -> None:
    said = problem(HOSTS, head={"hst": "10.0.0.1"}, workers=worker(HOSTS, gpuss=8), shard={"path": "/mnt"})
    assert "Did you mean head.host?" in said and "Did you mean workers.0.gpus?" in said and "shard: no such" in said


def test_no_such_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no cluster file"):
        read(tmp_path / "lab.yaml")


def test_unknown_provider_is_named_with_those_there_are() -> None:
    said = problem(HOSTS, provider="azure")
    assert "azure" in said and "'local'" in said and "'kubernetes'" in said


@pytest.mark.parametrize("tree", [HOSTS, AWS], ids=["hosts", "aws"])
def test_a_cluster_whose_runs_go_nowhere_is_refused(tree: dict) -> None:
    assert "where runs go is missing" in problem(tree, shared=None, store=None)


@pytest.mark.parametrize(
    ("tree", "changed", "said"),
    [
        (AWS, {"workers": worker(AWS, min=5)}, "workers.0.min 5 must not exceed workers.0.max 4"),
        (HOSTS, {"workers": worker(HOSTS, min=3)}, "workers.0.min 3 must not exceed workers.0.max 2"),
        (HOSTS, {"workers": worker(HOSTS, max=3)}, "more than its 2 hosts"),
        (HOSTS, {"workers": worker(HOSTS, hosts=None)}, "workers.0.hosts is empty"),
        (HOSTS, {"workers": worker(HOSTS, hosts=["10.0.0.1"])}, "a host is named twice"),
        (HOSTS, {"workers": worker(HOSTS, hosts=["-oProxyCommand=x"])}, "is no host's address"),
        (HOSTS, {"workers": []}, "workers is empty"),
        (HOSTS, {"workers": worker(HOSTS) * 2}, "one kind of workers"),
        (HOSTS, {"head": {}}, "head.host is missing"),
        (HOSTS, {"workers": worker(HOSTS, spot=True)}, "workers.0.spot is for provider aws or gcp, and this is local"),
        (AWS, {"workers": worker(AWS, hosts=["10.0.0.2"])}, "workers.0.hosts is for provider local"),
        (AWS, {"workers": worker(AWS, cpus=None)}, "workers.0.cpus is missing"),
        (AWS, {"workers": worker(AWS, instance=None)}, "workers.0.instance is missing"),
        (AWS, {"head": {}}, "head.instance is missing"),
        (AWS, {"aws": None}, "needs its section aws"),
        (AWS, {"image": None}, "needs an image"),
        (AWS, {"ssh": {"key": "/home/me/.ssh/id"}}, "Ray makes and keeps a key of its own"),
        (HOSTS, {"name": "Lab"}, "name:"),
        (HOSTS, {"shared": {"path": "/mnt/$(reboot)"}}, "shared.path"),
    ],
)
def test_a_cluster_that_can_not_be_is_refused(tree: dict, changed: dict, said: str) -> None:
    assert said in problem(tree, **changed)


def test_hosts_are_all_wanted_and_clouds_begin_with_none() -> None:
    hosts, cloud = (validate(Cluster, tree, "here").workers[0] for tree in (HOSTS, AWS))
    assert (hosts.least, hosts.most) == (2, 2)
    assert (cloud.least, cloud.most) == (0, 4)


def test_yaml_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(HOSTS))
    assert read(tmp_path / "lab.yaml") == validate(Cluster, HOSTS, "here")
