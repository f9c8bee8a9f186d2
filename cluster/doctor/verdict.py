"""Facts of probes and verdicts on them, as values, and how ranks and nodes are called in words."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Facts = dict[str, Any]
Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at."""

    check: str
    """Its name."""
    level: Level
    found: str
    """What is the case, with figures and places."""
    mend: str = ""
    """What to do about it; empty where all is well."""


@dataclass(frozen=True)
class Needs:
    """What a recipe asks of the machines."""

    ranks: int
    gpus_per_rank: int = 0
    threads: int = 1
    memory: float = 0.0
    """Of one rank, in bytes; 0: nothing is asked."""
    disk: float = 0.0
    """Of the run folder, about, in bytes."""


Check = Callable[[Sequence[Facts], Needs], Iterator[Verdict]]
"""From the facts of all ranks, in their order, to verdicts."""


def nodes_of(facts: Sequence[Facts]) -> list[Facts]:
    """The facts of each node's first rank, where it came so far as to look at its node."""
    return [each for each in facts if "folder" in each]


def node_of(facts: Sequence[Facts]) -> list[int]:
    """For each rank, the first rank of its node; ranks of a node have consecutive numbers."""
    found: list[int] = []
    for each in facts:
        found.append(each["rank"] if each["local_rank"] == 0 or not found else found[-1])
    return found


def ranks_on(facts: Sequence[Facts], node: Facts) -> int:
    """How many ranks a node has; a launcher may place them otherwise than evenly."""
    return node_of(facts).count(node["rank"])


def node_name(facts: Sequence[Facts], each: Facts) -> str:
    """A rank's node: its host, with the node's first rank where hosts share a name."""
    firsts = dict(zip((fact["rank"] for fact in facts), node_of(facts), strict=True))
    same = {firsts[fact["rank"]] for fact in facts if fact["host"] == each["host"]}
    return each["host"] if len(same) == 1 else f"{each['host']} (rank {firsts[each['rank']]})"


def rank_name(each: Facts) -> str:
    """A rank, and where it is."""
    return f"rank {each['rank']} on {each['host']}"


def numbered(ranks: Sequence[int]) -> str:
    """Ranks in words, at most eight by number."""
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"
