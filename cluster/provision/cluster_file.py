"""The cluster file: one short YAML, from which everything that brings nodes up is rendered.

    name: lab
    provider: local
    ssh: {user: me, key: ~/.ssh/id_ed25519}
    shared: {path: /mnt/luban}
    head: {host: 10.0.0.1}
    workers: [{hosts: [10.0.0.2, 10.0.0.3], gpus: 8}]

Every field is followed by its manual, with its unit. Some belong to some providers only, and are refused elsewhere:
a setting that is silently without effect costs an evening. Where runs go is asked for, because nodes without a shared
folder or a store lose what they trained; a run on Ray needs one of them.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data.errors import UserError
from data.settings import Section, load

Provider = Literal["local", "aws", "gcp", "kubernetes", "slurm"]
Name = Annotated[str, Field(pattern=r"^[a-z](?:[a-z0-9-]{0,28}[a-z0-9])?$")]
CLOUDS = ("aws", "gcp")

BELONGS = {
    "hosts": ("local",), "host": ("local",), "instance": CLOUDS, "spot": CLOUDS, "accelerator": ("gcp",),
    "disk_gb": (*CLOUDS, "kubernetes"), "memory_gb": ("kubernetes",), "node_selector": ("kubernetes",),
    "tolerate": ("kubernetes",),
}  # fmt: skip
"""The providers of a node's fields that not all have."""


class Ssh(Section):
    """How nodes are logged in to."""

    user: str = "ubuntu"
    """The account on every node."""
    key: Path | None = None
    """The private key's file, which nobody else may read. The head gets a copy, to start the workers. null: with local
    the hosts let each other in by themselves; AWS and GCP: Ray makes a key of its own."""


class Shared(Section):
    """A folder that every node sees, for runs and datasets."""

    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]+$")]
    """Where it is on every node; nodes get it as LUBAN_HOME."""
    source: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+:/[A-Za-z0-9._/-]*$")] | None = None
    """The NFS export HOST:/FOLDER (also EFS, Filestore) that each node mounts there; null: it is mounted already."""
    claim: Name | None = None
    """Kubernetes: the PersistentVolumeClaim (ReadWriteMany) that is mounted there."""


class Aws(Section):
    """Amazon's part."""

    region: str
    """Such as us-west-2."""
    zones: tuple[str, ...] = ()
    """Availability zones, in the order of trial; none: the region's."""
    instance_profile: str | None = None
    """ARN that workers act as, needed to reach a store in S3; the head gets Ray's own."""


class Gcp(Section):
    """Google's part."""

    project: str
    """The project's id."""
    zone: str
    """Such as us-central1-a."""
    service_account: str | None = None
    """E-mail that workers act as, needed to reach a store in Cloud Storage; the head gets Ray's own."""


class Kubernetes(Section):
    """Kubernetes' part; its KubeRay operator must be 1.5.1 or newer, for tokens."""

    namespace: Name = "default"
    """Where the cluster is made."""


class Slurm(Section):
    """Slurm's part: Ray lives inside one job."""

    partition: str | None = None
    """null: the site's default."""
    account: str | None = None
    """null: the site's default."""
    minutes: int = Field(default=0, ge=0)
    """The job's time limit, in minutes; 0: the partition's default."""


class Node(Section):
    """What one node is."""

    instance: str | None = None
    """AWS, GCP: the machine's type, such as p5.48xlarge or a3-highgpu-8g."""
    cpus: int | None = Field(default=None, ge=0)
    """CPUs that Ray hands out, in cores. null: with local what the host has; elsewhere it must be said for workers."""
    disk_gb: int | None = Field(default=None, ge=10)
    """The node's own disk, in GB; null: the image's default. Kubernetes: ephemeral storage."""
    memory_gb: int | None = Field(default=None, ge=1)
    """Kubernetes: the pod's memory, in GiB."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Kubernetes: labels of the machines to run on, such as those of spot machines."""
    tolerate: tuple[str, ...] = ()
    """Kubernetes: keys of taints to run in spite of, such as nvidia.com/gpu."""


class Head(Node):
    """The node that runs Ray's own services and no ranks: it has no GPUs to give, and a small machine will do."""

    host: str | None = None
    """Local: its address, as every other host reaches it."""


class Workers(Node):
    """Nodes of one kind."""

    name: Name = "worker"
    """Of the kind."""
    hosts: tuple[str, ...] = ()
    """Local: addresses, one a node."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs of one node. null: with local those that are found; elsewhere none."""
    accelerator: str | None = None
    """GCP: the GPUs' name where the machine's type doesn't bring them, such as nvidia-tesla-t4."""
    spot: bool = False
    """AWS, GCP: take cheaper machines that may be taken away; a run saves on the notice and goes on elsewhere."""
    min: int | None = Field(default=None, ge=0)
    """Nodes that are always there. null: with local all hosts, elsewhere none."""
    max: int | None = Field(default=None, ge=1)
    """Nodes that are there at most, brought up when ranks ask for them. null: with local all hosts, elsewhere one.
    Slurm: the nodes of the job, the head among them."""

    @property
    def least(self) -> int:
        """`min`, or its default, in nodes."""
        return len(self.hosts) if self.min is None else self.min

    @property
    def most(self) -> int:
        """`max`, or its default, in nodes."""
        return self.max if self.max is not None else len(self.hosts) or max(1, self.least)


class Setup(Section):
    """What is installed on a fresh node, before Ray is started; not with kubernetes and slurm."""

    environment: str | None = None
    """Folder of a virtual environment, the same on every node, that holds Luban already: nothing is installed. null:
    one is made on each node."""
    python: str = "python3"
    """The interpreter that the environment is made with: 3.11 to 3.13, and the same minor version as here."""
    torch: str = "torch==2.13.0"
    """What pip installs first and by itself, so that no other package's wish decides which torch it becomes."""
    luban: str | None = None
    """What pip installs then: a requirement, or a wheel's path on the nodes. null: this copy of Luban is shipped."""
    commands: tuple[str, ...] = ()
    """Further shell commands, each run on each node after the rest."""


class Cluster(Section):
    """A Ray cluster."""

    name: Name
    """Lower case letters, digits and dashes. What belongs to the cluster lies in clusters/NAME."""
    provider: Provider
    """Who has the nodes. local: hosts reached by ssh; kubernetes: through KubeRay; slurm: inside one job."""
    shared: Shared | None = None
    """Where runs go: a folder that all nodes see."""
    store: Annotated[str, Field(pattern=r"^[a-z0-9]+://\S+$")] | None = None
    """Where runs go: an fsspec URL, such as s3://bucket/luban; what a recipe's checkpoint.store then says."""
    image: str | None = None
    """AWS: an AMI with NVIDIA's driver and Python 3.11 or newer; GCP: such an image's path; kubernetes: a container
    image that holds Luban."""
    ssh: Ssh = Ssh()
    """Logging in."""
    head: Head = Head()
    """The head node."""
    workers: tuple[Workers, ...]
    """Kinds of nodes that run ranks; local and slurm know one."""
    idle_minutes: float = Field(default=10.0, gt=0)
    """A node above `min` that runs nothing for so long is given back, in minutes."""
    port: int = Field(default=6379, ge=1024, le=65535)
    """Of Ray's control service on the head; the other nodes must reach it."""
    setup: Setup = Setup()
    """What is installed."""
    aws: Aws | None = None
    """With provider aws."""
    gcp: Gcp | None = None
    """With provider gcp."""
    kubernetes: Kubernetes = Kubernetes()
    """With provider kubernetes."""
    slurm: Slurm = Slurm()
    """With provider slurm."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*self._of_another_provider(), *self._nodes()]
        if self.shared is None and self.store is None:
            problems.append(
                "where runs go is missing: set shared.path to a folder that all nodes see, or store to a URL such as "
                "s3://bucket/luban"
            )
        if self.provider in CLOUDS and getattr(self, self.provider) is None:
            problems.append(f"provider {self.provider} needs its section {self.provider}")
        if self.provider in (*CLOUDS, "kubernetes") and self.image is None:
            problems.append(f"provider {self.provider} needs an image")
        if self.provider in CLOUDS and self.ssh.key is not None:
            problems.append(f"ssh.key is for provider local: with {self.provider} Ray makes and keeps a key of its own")
        if self.provider == "kubernetes" and self.shared and not self.shared.claim:
            problems.append("shared.claim is missing: the PersistentVolumeClaim that becomes shared.path")
        if self.provider == "slurm" and self.setup.environment is None:
            problems.append("provider slurm needs setup.environment: a virtual environment with Luban on every node")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _of_another_provider(self) -> list[str]:
        """Settings that would be without effect."""
        nodes: list[tuple[str, Node]] = [("head", self.head)]
        nodes += [(f"workers.{number}", workers) for number, workers in enumerate(self.workers)]
        return [
            f"{where}.{field} is for provider {' or '.join(BELONGS[field])}, and this is {self.provider}"
            for where, node in nodes
            for field in sorted(node.model_fields_set & BELONGS.keys())
            if self.provider not in BELONGS[field]
        ]

    def _nodes(self) -> list[str]:
        if not self.workers:
            return ["workers is empty: at least one kind of nodes must run ranks"]
        problems = []
        names = [workers.name for workers in self.workers]
        if len(set(names)) < len(names) or "head" in names:
            problems.append("workers need names of their own, other than head")
        if self.provider in ("local", "slurm") and len(self.workers) > 1:
            problems.append(f"provider {self.provider} has one kind of workers, and here are {len(self.workers)}")
        if self.provider == "local" and self.head.host is None:
            problems.append("head.host is missing: the address of the host that becomes the head")
        if self.provider in CLOUDS and self.head.instance is None:
            problems.append("head.instance is missing: the head's machine type")
        for number, workers in enumerate(self.workers):
            where = f"workers.{number}"
            if workers.least > workers.most:
                problems.append(f"{where}.min {workers.least} must not exceed {where}.max {workers.most}")
            if self.provider == "local":
                problems += self._hosts(where, workers)
            elif workers.cpus is None:
                problems.append(f"{where}.cpus is missing: CPUs of one node, which are what Ray hands out")
            if self.provider in CLOUDS and workers.instance is None:
                problems.append(f"{where}.instance is missing: the machine type of one node")
        return problems

    def _hosts(self, where: str, workers: Workers) -> list[str]:
        everyone = [self.head.host, *workers.hosts]
        problems = [f"{host!r} is no host's address" for host in everyone if host and not _ADDRESS.match(host)]
        if not workers.hosts:
            problems.append(f"{where}.hosts is empty: the addresses of the hosts that become workers")
        if len(set(everyone)) < len(everyone):
            problems.append("a host is named twice; the head is not a worker")
        if workers.hosts and workers.most > len(workers.hosts):
            problems.append(f"{where}.max {workers.most} is more than its {len(workers.hosts)} hosts")
        return problems


_ADDRESS = re.compile(r"^[A-Za-z0-9][A-Za-z0-9.:_-]*$")


def read(path: Path) -> Cluster:
    """The cluster that a file describes. Raises UserError naming everything that is wrong with it at once."""
    if not path.is_file():
        raise UserError(f"there is no cluster file {path}")
    return load(Cluster, path)
