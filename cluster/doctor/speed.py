"""How fast the ranks compute and talk, and which of them, or which link between two, holds up the others.

A collective is as slow as its slowest member and does not say who that is. So every rank multiplies the same matrices,
and pairs of ranks bounce a message in rounds in which each has one partner: all pairs up to 16 ranks, partners at
distances 1, 2, 4 ... beyond, so that a thousand ranks take ten rounds. A rank whose best link is slow is slow itself;
a slow link between two ranks that talk fast to others is the link's. Links within a node and between nodes are
compared with their own kind. Computing is counted over one span of time for all, so that ranks which share cores
share them alike, and each link is a median of a few tries: one hiccup is no verdict, and a rank that is held up most of
the time can't hide behind its best try.

Bus bandwidth is that of nccl-tests (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md): bytes of the whole result over
the time, times 2(n-1)/n for all-reduce and (n-1)/n for all-gather, which can be compared with a link's peak at any
number of ranks n.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, median_low
from typing import Any

ALL_PAIRS = 16  # up to so many ranks each meets each; 15 rounds
TRIES = 9
COMPUTING_S = 0.3
COLLECTIVE_BYTES = {"cpu": 1 << 24, "cuda": 1 << 28}  # of the whole result
LINK_BYTES = {"cpu": 1 << 22, "cuda": 1 << 26}
MATRIX = {"cpu": 512, "cuda": 8192}
FAIR = {"cpu": 0.5, "cuda": 0.8}  # less than this share of what is usual is slow; ranks share cores, and not GPUs

Pair = tuple[int, int]


def rounds(ranks: int) -> list[list[Pair]]:
    """Who meets whom, round by round: no rank twice in one round, no pair (low, high) twice at all."""
    if ranks <= ALL_PAIRS:  # the circle method: one stays, the others turn
        seats = list(range(ranks + ranks % 2))
        found = []
        for _ in range(len(seats) - 1):
            pairs = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
            found.append(sorted((min(pair), max(pair)) for pair in pairs if max(pair) < ranks))
            seats = [seats[0], seats[-1], *seats[1:-1]]
        return found
    distances = (1 << bit for bit in range((ranks - 1).bit_length()))
    return [[(r, r ^ d) for r in range(ranks) if not r & d and r ^ d < ranks] for d in distances]


def bus_bandwidth(collective: str, size: int, seconds: float, ranks: int) -> float:
    """In bytes/s, of an "all_reduce" or "all_gather" whose result has `size` bytes; one rank sends none."""
    return size / seconds * {"all_reduce": 2, "all_gather": 1}[collective] * (ranks - 1) / ranks


@dataclass(frozen=True)
class Slow:
    """Who or what holds up the others."""

    ranks: tuple[int, ...]
    """Ranks, by computing or by all their links."""
    links: tuple[Pair, ...]
    """Links between ranks that are not slow themselves."""
    why: Mapping[int, str]
    """What is slow about a rank, with figures."""


def slow(computing: Sequence[float], links: Mapping[Pair, float], nodes: Sequence[int], fair: float) -> Slow:
    """Name the slow ones; what is usual for a rank is the median of the others, the lower one of two.

    Args:
        computing: operations/s of each rank.
        links: bytes/s of each link measured.
        nodes: of each rank, the node it is on.
        fair: the share of what is usual below which a rank or link is slow.
    """
    why: dict[int, list[str]] = {}
    for rank, speed in enumerate(computing):
        usual = median_low(others) if (others := [*computing[:rank], *computing[rank + 1 :]]) else speed
        if speed < fair * usual:
            why.setdefault(rank, []).append(f"computes at {speed / usual:.0%} of the usual speed")
    suspects: list[Pair] = []
    for inside in (True, False):
        kind = {pair: speed for pair, speed in links.items() if (nodes[pair[0]] == nodes[pair[1]]) == inside}
        best = {rank: max(kind[pair] for pair in kind if rank in pair) for rank in sorted({r for p in kind for r in p})}
        for rank, speed in best.items():
            usual = median_low(others) if (others := [best[other] for other in best if other != rank]) else speed
            if speed < fair * usual:
                where = "within its node" if inside else "to other nodes"
                why.setdefault(rank, []).append(f"talks {where} at {speed / usual:.0%} of the usual speed")
        suspects += [pair for pair, speed in kind.items() if speed < fair * min(best[pair[0]], best[pair[1]])]
    lonely = tuple(sorted(pair for pair in suspects if not set(pair) & set(why)))
    return Slow(tuple(sorted(why)), lonely, {rank: " and ".join(texts) for rank, texts in why.items()})


def measure(world: Any) -> dict[str, Any]:
    """Compute, bounce messages and run collectives together with all other ranks.

    Args:
        world: this rank's `trainer.world.World`.

    Returns:
        "device", "backend", "compute" (operations/s), "all_reduce" and "all_gather" ([bytes, seconds] of the slowest
        rank), "links" ([low, high, bytes/s] where this rank is the low one).
    """
    import torch
    import torch.distributed as dist

    kind, device = world.device.type, world.device

    def finish() -> None:
        if kind == "cuda":
            torch.cuda.synchronize()

    def timed(act: Callable[[], Any]) -> float:
        finish()
        began = time.perf_counter()
        act()
        finish()
        return time.perf_counter() - began

    def tried(act: Callable[[], Any]) -> float:
        act()  # connections are made at the first
        return median(timed(act) for _ in range(TRIES))

    side = MATRIX[kind]
    left = torch.ones(side, side, device=device, dtype=torch.bfloat16 if kind == "cuda" else torch.float32)
    out = torch.empty_like(left)

    def compute() -> float:
        times = [timed(lambda: torch.mm(left, left, out=out))]
        while sum(times) < COMPUTING_S:
            times.append(timed(lambda: torch.mm(left, left, out=out)))
        return 2 * side**3 * len(times) / sum(times)

    timed(lambda: torch.mm(left, left, out=out))  # libraries make their plans at the first
    dist.barrier(group=world.control)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else "cpu",
        "compute": compute(),
        "links": [],
    }
    if world.size == 1:
        return found
    message = torch.zeros(LINK_BYTES[kind] // 4, device=device)
    for pairs in rounds(world.size):
        dist.barrier(group=world.control)
        mine = next((pair for pair in pairs if world.rank in pair), None)
        if mine is None:
            continue
        low, high = mine

        def bounce(low: int = low, high: int = high) -> None:
            if world.rank == low:
                dist.send(message, high)
                dist.recv(message, high)
            else:
                dist.recv(message, low)
                dist.send(message, low)

        seconds = tried(bounce)
        if world.rank == low:
            found["links"].append([low, high, 2 * message.nbytes / seconds])
    piece = torch.zeros(COLLECTIVE_BYTES[kind] // 4 // world.size, device=device)
    whole = torch.zeros(len(piece) * world.size, device=device)
    collectives = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_single(whole, piece),
    }
    for name, act in collectives.items():
        dist.barrier(group=world.control)
        found[name] = [whole.nbytes, max(world.gather(tried(act)))]
    return found | {"backend": dist.get_backend()}
