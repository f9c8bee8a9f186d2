"""A cluster file as a configuration of Ray's cluster launcher (`ray up`), for hosts reached by ssh, AWS and GCP.

Ray's own defaults are overridden where they are dangerous or wrong here:

- start commands: the defaults of AWS and GCP bind the dashboard, where code can be run, to 0.0.0.0. Ours say loopback.
- tokens: off by default. On, always, by a file that is shipped with mode 600; its text is in no file rendered here, no
  argv and no log. On the nodes it lies in ~/.luban/NAME/.
- the autoscaler: version 1. Version 2, which `ray up` turns on by itself, adds nodes for ever where the hosts are a
  fixed list; with version 1 tests bring nodes up and see them go.
- a shared folder is proven on each worker: the head leaves a mark in it, and a worker that doesn't see it isn't
  started. Two folders of one name would cost the run its checkpoints.
"""

import shlex
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from cluster.provision.cluster_file import CLOUDS, Cluster, Head, Shared, Workers
from data.errors import UserError

SHIPPED = ("data", "trainer", "cluster", "slurm", "luban", "pyproject.toml", "README.md", "LICENSE")
"""What pip needs of a copy of Luban to install it."""
DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""The packages that fsspec reaches stores with, by the scheme of their URLs."""
AUTOSCALER_NEEDS = {"aws": "boto3", "gcp": "google-api-python-client"}
"""What Ray needs to ask a cloud for nodes, here and on the head."""


def config(cluster: Cluster, token: Path, source: Path | None) -> dict[str, Any]:
    """What `ray up` is given; a pure function of its arguments.

    Args:
        cluster: with provider local, aws or gcp.
        token: the token's file on this machine; it isn't read.
        source: folder of the copy of Luban that is shipped; None where the nodes get it in another way.

    Returns:
        A tree for YAML, valid by Ray's schema; see `valid`.
    """
    workers, here = cluster.workers, home(cluster)
    mounts = {f"{here}/token": str(token)}
    if ships_source(cluster):
        assert source is not None
        mounts |= {f"{here}/source/{part}": str(source / part) for part in SHIPPED}
    tree: dict[str, Any] = {
        "cluster_name": cluster.name,
        "max_workers": sum(kind.most for kind in workers),
        "upscaling_speed": 100.0,  # ranks start together or not at all: no ramp
        "idle_timeout_minutes": cluster.idle_minutes,
        **({"min_workers": workers[0].least} if cluster.provider == "local" else {}),
        "provider": _provider(cluster),
        "auth": {"ssh_user": cluster.ssh.user, **_key(cluster)},
        "file_mounts": mounts,
        "rsync_exclude": ["__pycache__"],
        "initialization_commands": [],
        "setup_commands": [f"chmod 700 {here} && chmod 600 {here}/token", *_install(cluster), *_mount(cluster)],
        "head_setup_commands": [*_autoscaler_needs(cluster), *_leave_mark(cluster)],
        "worker_setup_commands": _find_mark(cluster),
        "head_start_ray_commands": [f"{environment(cluster)}/bin/ray stop", _start_head(cluster)],
        "worker_start_ray_commands": [f"{environment(cluster)}/bin/ray stop", _start_worker(cluster)],
    }
    if cluster.provider in CLOUDS:
        tree["available_node_types"] = {
            "head": {
                "min_workers": 0,
                "max_workers": 0,
                "resources": {} if cluster.head.cpus is None else {"CPU": cluster.head.cpus},
                "node_config": _machine(cluster, cluster.head),
            }
        } | {
            kind.name: {
                "min_workers": kind.least,
                "max_workers": kind.most,
                "resources": {"CPU": kind.cpus} | ({"GPU": kind.gpus} if kind.gpus else {}),
                "node_config": _machine(cluster, kind),
            }
            for kind in workers
        }
        tree["head_node_type"] = "head"
    return tree


def render(cluster: Cluster, token: Path, source: Path | None) -> str:
    """`config` as the YAML that `ray up` reads."""
    return yaml.safe_dump(config(cluster, token, source), sort_keys=False, allow_unicode=True, width=10**6)


def valid(tree: dict[str, Any]) -> None:
    """Check a configuration by Ray's own schema, offline.

    The functions are private to Ray (2.60): this is the only place that calls them.

    Raises:
        UserError: with the schema's words.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it advises on Docker, which isn't used
            validate_config(prepare_config(tree))
    except Exception as error:  # jsonschema's, click's, and plain ones
        message = getattr(error, "message", None) or str(error)
        raise UserError(f"Ray does not take the configuration rendered for it: {message}") from error


def home(cluster: Cluster) -> str:
    """Where the cluster's things lie on a node, for a shell."""
    return f"~/.luban/{cluster.name}"


def environment(cluster: Cluster) -> str:
    """The virtual environment on a node, for a shell."""
    given = cluster.setup.environment
    return shlex.quote(given) if given else f"{home(cluster)}/environment"


def ships_source(cluster: Cluster) -> bool:
    """Whether nodes are given this copy of Luban."""
    return cluster.setup.environment is None and cluster.setup.luban is None


def authenticated(cluster: Cluster) -> str:
    """A shell's words that make what follows present the cluster's token."""
    return f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.luban/{cluster.name}/token"


def _provider(cluster: Cluster) -> dict[str, Any]:
    if cluster.aws:
        zones = {"availability_zone": ",".join(cluster.aws.zones)} if cluster.aws.zones else {}
        return {"type": "aws", "region": cluster.aws.region, **zones, "cache_stopped_nodes": False}
    if cluster.gcp:
        region = cluster.gcp.zone.rpartition("-")[0]
        return {
            "type": "gcp",
            "region": region,
            "availability_zone": cluster.gcp.zone,
            "project_id": cluster.gcp.project,
            "cache_stopped_nodes": False,
        }
    return {"type": "local", "head_ip": cluster.head.host, "worker_ips": list(cluster.workers[0].hosts)}


def _key(cluster: Cluster) -> dict[str, str]:
    return {"ssh_private_key": str(cluster.ssh.key.expanduser())} if cluster.ssh.key else {}


def _machine(cluster: Cluster, node: Head | Workers) -> dict[str, Any]:
    """What the cloud is asked for."""
    return _aws_machine(cluster, node) if cluster.aws else _gcp_machine(cluster, node)


def _aws_machine(cluster: Cluster, node: Head | Workers) -> dict[str, Any]:
    assert cluster.aws
    machine: dict[str, Any] = {"InstanceType": node.instance, "ImageId": cluster.image}
    if node.disk_gb:
        disk = {"VolumeSize": node.disk_gb, "VolumeType": "gp3", "DeleteOnTermination": True}
        machine["BlockDeviceMappings"] = [{"DeviceName": "/dev/sda1", "Ebs": disk}]
    if isinstance(node, Workers):
        if node.spot:
            machine["InstanceMarketOptions"] = {"MarketType": "spot"}
        if cluster.aws.instance_profile:
            machine["IamInstanceProfile"] = {"Arn": cluster.aws.instance_profile}
    return machine


def _gcp_machine(cluster: Cluster, node: Head | Workers) -> dict[str, Any]:
    assert cluster.gcp
    size = {"diskSizeGb": node.disk_gb} if node.disk_gb else {}
    disk = {
        "boot": True,
        "autoDelete": True,
        "type": "PERSISTENT",
        "initializeParams": {**size, "sourceImage": cluster.image},
    }
    machine: dict[str, Any] = {"machineType": node.instance, "disks": [disk]}
    if isinstance(node, Workers):
        scheduling: dict[str, Any] = {"preemptible": True} if node.spot else {}
        if node.gpus:
            scheduling["onHostMaintenance"] = "TERMINATE"  # machines with GPUs can't be moved alive
        if scheduling:
            machine["scheduling"] = [scheduling]
        if node.accelerator:
            machine["guestAccelerators"] = [{"acceleratorType": node.accelerator, "acceleratorCount": node.gpus or 0}]
        if cluster.gcp.service_account:
            scopes = ["https://www.googleapis.com/auth/cloud-platform"]
            machine["serviceAccounts"] = [{"email": cluster.gcp.service_account, "scopes": scopes}]
    return machine


def _pip(cluster: Cluster, *words: str) -> str:
    return f"{environment(cluster)}/bin/pip install --quiet --disable-pip-version-check {' '.join(words)}"


def _install(cluster: Cluster) -> list[str]:
    setup, place = cluster.setup, environment(cluster)
    driver = DRIVERS.get((cluster.store or "").partition("://")[0])
    if setup.environment:
        return [f"test -x {place}/bin/ray || {_refuse(f'{setup.environment} holds no environment with Luban')}"]
    luban = f"{home(cluster)}/source" if setup.luban is None else shlex.quote(setup.luban)
    return [
        f"test -x {place}/bin/python || {shlex.quote(setup.python)} -m venv {place}",
        _pip(cluster, shlex.quote(setup.torch)),
        _pip(cluster, luban, *([driver] if driver else [])),
    ]


def _mount(cluster: Cluster) -> list[str]:
    return [*(_shared(cluster.shared) if cluster.shared else ()), *cluster.setup.commands]


def _shared(shared: Shared) -> list[str]:
    path = shared.path
    if shared.source is None:
        return [f"test -d {path} -a -w {path} || {_refuse(f'{path} is no folder that can be written to')}"]
    options = "nfsvers=4.1,hard,timeo=600,retrans=2,noresvport"  # hard: when the server is out, writes wait
    root = '$(test "$(id -u)" = 0 || echo sudo)'
    return [
        f"command -v mount.nfs4 >/dev/null || {root} sh -c 'apt-get -q update && apt-get -q -y install nfs-common'",
        f"{root} mkdir -p {path} && (mountpoint -q {path} || {root} mount -t nfs4 -o {options} {shared.source} {path})",
        f"test -w {path} || {root} chmod 1777 {path}",
    ]


def _leave_mark(cluster: Cluster) -> list[str]:
    return [f"date -u > {cluster.shared.path}/.luban-{cluster.name}"] if cluster.shared else []


def _find_mark(cluster: Cluster) -> list[str]:
    if cluster.shared is None:
        return []
    path = cluster.shared.path
    return [f"test -e {path}/.luban-{cluster.name} || {_refuse(f'{path} is not the folder that the head sees')}"]


def _refuse(reason: str) -> str:
    return f"(echo {shlex.quote(f'luban: {reason}')} >&2; false)"


def _autoscaler_needs(cluster: Cluster) -> list[str]:
    package = AUTOSCALER_NEEDS.get(cluster.provider)
    return [_pip(cluster, package)] if package else []


def _start(cluster: Cluster, words: list[str]) -> str:
    runs = f" LUBAN_HOME={cluster.shared.path}" if cluster.shared else ""
    exports = f"{authenticated(cluster)} RAY_enable_autoscaler_v2=0{runs}"
    return f"ulimit -n 65536; {exports}; {environment(cluster)}/bin/ray start {' '.join(words)} --disable-usage-stats"


def _start_head(cluster: Cluster) -> str:
    head, words = cluster.head, ["--head", f"--port={cluster.port}", "--dashboard-host=127.0.0.1", "--num-gpus=0"]
    if head.host and head.host.replace(".", "").isdigit():
        words.append(f"--node-ip-address={head.host}")  # by itself Ray takes the default route's
    if head.cpus is not None:
        words.append(f"--num-cpus={head.cpus}")
    return _start(cluster, [*words, "--autoscaling-config=~/ray_bootstrap_config.yaml"])


def _start_worker(cluster: Cluster) -> str:
    words, kind = [f"--address=$RAY_HEAD_IP:{cluster.port}"], cluster.workers[0]
    if cluster.provider == "local":  # elsewhere Ray is told by the kind's resources
        words += [f"--num-cpus={kind.cpus}"] if kind.cpus is not None else []
        words += [f"--num-gpus={kind.gpus}"] if kind.gpus is not None else []
    return _start(cluster, words)
