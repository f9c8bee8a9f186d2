"""Whether a Slurm partition has anything like what a job asks for: pure functions of what `sinfo` and `scontrol` say.

Slurm itself takes a job that asks for more GPUs than any node has, and lets it wait for ever.
"""

import difflib
import re
from dataclasses import dataclass
from math import ceil

from cluster.job import Job
from cluster.slurm.client import values
from cluster.slurm.site import Site

FORMAT = "%P|%D|%c|%m|%G|%T|%f"
"""What `sinfo --exact` is asked for; `nodes` reads it."""


@dataclass(frozen=True)
class Nodes:
    """So many equal nodes of a partition."""

    partition: str
    default: bool
    count: int
    cpus: int
    memory_mib: int
    gres: str
    state: str
    features: tuple[str, ...]

    def gpus(self, gres: str) -> int:
        """Of the kind that a site calls `gres`: a name, or name:type."""
        name, _, kind = gres.partition(":")
        bare = re.sub(r"\([^)]*\)", "", self.gres)  # sockets and indices
        parts = [part.split(":") for part in bare.split(",")]
        return sum(int(p[-1]) for p in parts if p[0] == name and p[-1].isdigit() and (not kind or kind in p[1:-1]))


def nodes(text: str) -> list[Nodes]:
    """The lines of `sinfo --noheader --exact --format FORMAT`."""
    found = []
    for line in text.splitlines():
        partition, count, cpus, memory, gres, state, features = line.split("|")
        found.append(
            Nodes(
                partition.rstrip("*"), partition.endswith("*"), int(count), int(cpus.rstrip("+")),
                int(memory.rstrip("+")), gres, state, tuple(features.split(",")),
            )
        )  # fmt: skip
    return found


def memory_mib(job: Job) -> int:
    """What a node of the job needs, in MiB; 0: what the site gives by default."""
    return ceil(job.memory_gb * 1e9 * job.ranks_per_node / 2**20)


def minutes(text: str) -> float:
    """A time as Slurm writes it ("1-12:00:00", "30:00", "UNLIMITED"), in minutes."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        return float("inf")
    days, *rest = found.groups()
    given = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, mins, seconds = [*given, 0, 0][:3]
    elif len(given) == 3:
        hours, mins, seconds = given
    else:
        hours, (mins, seconds) = 0, [*given, 0][:2]
    return int(days or 0) * 1440 + hours * 60 + mins + seconds / 60


def partition_of(site: Site, there: list[Nodes]) -> str | None:
    """Where a site's jobs go; None where neither it nor Slurm says."""
    return site.partition or next((node.partition for node in there if node.default), None)


def enough(job: Job, site: Site, there: list[Nodes]) -> list[Nodes]:
    """Those of which each is large enough for the job."""
    cpus, memory, gpus = job.ranks_per_node * job.cpus_per_rank, memory_mib(job), job.ranks_per_node * job.gpus_per_rank
    return [n for n in there if n.cpus >= cpus and n.memory_mib >= memory and n.gpus(site.gres) >= gpus]


def too_few_up(job: Job, site: Site, there: list[Nodes]) -> str | None:
    """That too few nodes which could run the job are up at present, in words; None where there are enough."""
    mine = [node for node in enough(job, site, there) if node.partition == partition_of(site, there)]
    up = sum(node.count for node in mine if not re.search("down|drain|fail|maint|reboot|unknown", node.state))
    if up >= job.nodes:
        return None
    states = ", ".join(f"{node.count} {node.state}" for node in mine)
    return f"the job needs {job.nodes} nodes, and of those that could run it {up} are up ({states}): it waits"


def problems(job: Job, site: Site, there: list[Nodes]) -> list[str]:
    """What keeps a job from ever running on nodes, in words; empty where nothing does."""
    names = sorted({node.partition for node in there})
    partition = partition_of(site, there)
    if partition is None:
        return [f"Slurm has no default partition: set partition in the site file to one of {', '.join(names)}"]
    mine = [node for node in there if node.partition == partition]
    if not mine:
        near = difflib.get_close_matches(partition, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        return [f"Slurm has no partition {partition}: {hint}"]
    cpus, memory, gpus = job.ranks_per_node * job.cpus_per_rank, memory_mib(job), job.ranks_per_node * job.gpus_per_rank
    found = []
    most = max(node.gpus(site.gres) for node in mine)
    if gpus > most:
        kinds = ", ".join(sorted({node.gres for node in mine if node.gres != "(null)"})) or "no gres"
        found.append(f"{gpus} GPUs a node ({site.gres}), and no node has more than {most} ({kinds})")
    most = max(node.cpus for node in mine)
    if cpus > most:
        found.append(f"{cpus} CPUs a node (launch.threads x ranks there), and no node has more than {most}")
    most = max(node.memory_mib for node in mine)
    if memory > most:
        found.append(f"{memory} MiB a node (launch.memory_gb x ranks there), and no node has more than {most}")
    if site.constraint and re.fullmatch(r"\w+", site.constraint):
        known = sorted({feature for node in mine for feature in node.features if feature != "(null)"})
        if site.constraint not in known:
            found.append(f"nodes with {site.constraint}, and the features there are {', '.join(known) or 'none'}")
    if not found:
        total = sum(node.count for node in enough(job, site, mine))
        if total < job.nodes:
            found.append(
                f"{job.nodes} nodes (launch.nodes), and {total} of its {sum(n.count for n in mine)} are enough"
            )
    return [f"partition {partition}: the job asks for {problem}" for problem in found]


def limits(job: Job, site: Site, shown: str) -> list[str]:
    """What keeps a job from ever running in a partition as `scontrol show partition -o` shows it."""
    told = values(shown)
    found = []
    if told.get("State", "UP") != "UP":
        found.append(f"it is {told['State']}")
    longest = minutes(told.get("MaxTime", "UNLIMITED"))
    if job.time_limit_minutes > longest:
        found.append(f"launch.time_limit_minutes {job.time_limit_minutes} is more than its {longest:g} minutes")
    given = job.time_limit_minutes or min(longest, minutes(told.get("DefaultTime", "NONE")))
    if given * 60 <= site.lead_s:
        found.append(
            f"a time limit of {given:g} minutes is not more than lead_s {site.lead_s}: no time would be left to train"
        )
    if told.get("MaxNodes", "").isdigit() and job.nodes > int(told["MaxNodes"]):
        found.append(f"launch.nodes {job.nodes} is more than its MaxNodes {told['MaxNodes']}")
    for name, wanted in (("AllowAccounts", site.account), ("AllowQos", site.qos)):
        allowed = told.get(name, "ALL")
        if wanted and allowed != "ALL" and wanted not in allowed.split(","):
            found.append(f"{wanted} is not among its {name}: {allowed}")
    return [f"partition {told.get('PartitionName', '')}: {problem}" for problem in found]
