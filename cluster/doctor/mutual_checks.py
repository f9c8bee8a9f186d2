"""What is judged of the ranks together: that they meet, are alike, share a folder, a time and a network, and how fast
they talk; and what rank 0 alone needs."""

from collections.abc import Iterator, Sequence
from statistics import median

from cluster.doctor.speed import FAIR, bus_bandwidth, slow
from cluster.doctor.verdict import Facts, Needs, Verdict, node_name, node_of, nodes_of, numbered, rank_name
from trainer.claim import STALE_S
from trainer.units import short, size

SKEW_S = 1.0  # clocks further apart than this make logs hard to read
BEAT_SKEW_S = STALE_S / 2  # and these make a living attempt look dead: heartbeats are compared with the clock

STAGES = {
    "began": "it began",
    "alone": "a look at its machine",
    "met": "it met the others",
    "looked": "a look at the other nodes",
    "wrote": "it wrote to the disk",
}


def check_ranks(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """Whether every rank came, met the others and got to its end."""
    for each in facts:
        if "crashed" in each:
            mend = "see the rank's log; a probe that falls is a bug, or the network fell while it ran"
            yield Verdict("ranks", "fail", f"{rank_name(each)} fell: {each['crashed']}", mend)
    said = {each["rank"] for each in facts}
    silent = [rank for rank in range(needs.ranks) if rank not in said]
    if silent:
        mend = "see their logs; on another machine: is the folder shared with it, and is Luban installed there"
        yield Verdict("ranks", "fail", f"nothing came from {numbered(silent)} of {needs.ranks}", mend)
    unmet = [each for each in facts if (each.get("meeting") or {}).get("error")]
    cut_off = [each for each in unmet if each["rank"]]
    for each in cut_off:
        met = each["meeting"]
        yield Verdict(
            "ranks", "fail",
            f"{rank_name(each)} didn't reach rank 0 at {met['at']} in {met['seconds']:.0f} s: {met['error']}",
            f"let {each['host']} connect to {met['at']} (firewall, name resolution, interface); it must be an address "
            "of rank 0's node that the others can reach",
        )  # fmt: skip
    for each in unmet[: not cut_off]:
        met = each["meeting"]
        absent = f"; nothing heard of {numbered(met['absent'])}" if met.get("absent") else ""
        mend = "free the port, or take another, if it is in use; else see the logs of the ranks that are missing"
        yield Verdict("ranks", "fail", f"rank 0 at {met['at']} met nobody: {met['error']}{absent}", mend)
    cut_short = [each for each in facts if each["stage"] != "done" and "crashed" not in each and each not in unmet]
    for each in cut_short[: not unmet]:
        mend = "see the ranks' logs for who fell first; out of memory (dmesg), or ended from outside"
        others = f"; so did {len(cut_short) - 1} more" if len(cut_short) > 1 else ""
        yield Verdict(
            "ranks", "fail", f"{rank_name(each)} ended in the middle, after {STAGES[each['stage']]}{others}", mend
        )
    if not (silent or unmet or cut_short or any("crashed" in each for each in facts)):
        nodes = nodes_of(facts)
        slowest = max(each["meeting"]["seconds"] for each in facts)
        yield Verdict("ranks", "ok", f"{len(facts)} on {len(nodes)} node(s) met within {slowest:.1f} s")


def check_shared(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """Whether all nodes see one and the same run folder."""
    nodes = nodes_of(facts)
    path = nodes[0]["folder"]["path"] if nodes else ""
    mend = "put runs/ (LUBAN_HOME) on a file system that all nodes mount at the same path"
    blind = [node for node in nodes if not node["folder"]["seen"]]
    for node in blind:
        yield Verdict("shared folder", "fail", f"{path} is not there on {node_name(facts, node)}", mend)
    by_rank = {each["rank"]: each for each in facts}
    unread = {(rank, node["rank"]) for node in nodes for rank in (node.get("shared") or {}).get("unread", ())}
    for written, reader in sorted(unread):
        if by_rank[reader] not in blind and written in by_rank and by_rank[written] not in blind:
            writer, other = node_name(facts, by_rank[written]), node_name(facts, by_rank[reader])
            yield Verdict("shared folder", "fail", f"{other} doesn't read in {path} what {writer} wrote there", mend)
    asked = [node for node in nodes if "shared" in node]
    if asked and not blind and not unread:
        found = "one node" if len(nodes) == 1 else f"the same one on {len(nodes)} nodes"
        yield Verdict("shared folder", "ok", f"{found}: {path.rpartition('/')[0]}")


def check_clock(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """How far the clocks of the nodes and of the file system are apart."""
    nodes = nodes_of(facts)
    mend = "run a time service (chrony, systemd-timesyncd) on all nodes and on the file server"
    apart = []
    for node in nodes:
        if node["rank"] and node.get("clock"):
            ahead, error = node["clock"]["ahead_s"], node["clock"]["error_s"]
            apart.append((ahead, error, f"the clock of {node_name(facts, node)} is {_off(ahead)} rank 0's"))
        if node["folder"].get("clock_s") is not None:
            found = f"the file system's clock is {_off(node['folder']['clock_s'])} that of {node_name(facts, node)}"
            apart.append((node["folder"]["clock_s"], 0.0, found))
    for ahead, error, found in apart:
        if abs(ahead) - error > BEAT_SKEW_S:
            yield Verdict("clocks", "fail", f"{found}: heartbeats would look dead", mend)
        elif abs(ahead) - error > SKEW_S:
            yield Verdict("clocks", "warn", found, mend)
    if apart and all(abs(ahead) - error <= SKEW_S for ahead, error, _ in apart):
        most = max(abs(ahead) + error for ahead, error, _ in apart)
        between = "node and file system" if len(nodes) == 1 else f"{len(nodes)} nodes and the file system"
        yield Verdict("clocks", "ok", f"within {max(1, round(most * 1000))} ms of each other: {between}")


def check_network(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """Whether the nodes can connect to each other."""
    by_rank = {each["rank"]: each for each in facts}
    asked = [node for node in nodes_of(facts) if "unreached" in node]
    for node in asked:
        for tried in node["unreached"]:
            other = node_name(facts, by_rank[tried["rank"]]) if tried["rank"] in by_rank else f"rank {tried['rank']}"
            yield Verdict(
                "network", "fail",
                f"{node_name(facts, node)} can't connect to {other} at {tried['at']}: {tried['error']}",
                "ranks listen on ports that the kernel picks (net.ipv4.ip_local_port_range): open them between the "
                "nodes, or set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to an interface where they are",
            )  # fmt: skip
    if asked and not any(node["unreached"] for node in asked):
        alone = "one node: nothing to reach"
        yield Verdict("network", "ok", alone if len(asked) == 1 else f"{len(asked)} nodes reach each other")


def check_versions(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """Whether all ranks have the same code and libraries."""
    facts = [each for each in facts if "versions" in each]
    all_names = sorted({name for each in facts for name in each["versions"]})
    bad = False
    for name in [*all_names, "nccl"]:
        seen: dict[str, list[Facts]] = {}
        for each in facts:
            known = each["versions"].get(name) if name != "nccl" else (each.get("torch") or {}).get("nccl")
            if known or name != "nccl":
                seen.setdefault(known or "none", []).append(each)
        if len(seen) > 1:
            bad = True
            places = {each: sorted({node_name(facts, fact) for fact in group}) for each, group in seen.items()}
            found = "; ".join(f"{each} on {', '.join(places[each][:4])}" for each in sorted(places))
            mend = "install the same on all nodes, or share one environment"
            yield Verdict("versions", "fail", f"{'the code of luban' if name == 'code' else name}: {found}", mend)
    if facts and not bad:
        shown = {**facts[0]["versions"], "nccl": (facts[0].get("torch") or {}).get("nccl")}
        names = [name for name in ("python", "torch", "deepspeed", "luban", "nccl") if shown.get(name)]
        yield Verdict("versions", "ok", f"equal: {', '.join(f'{name} {shown[name]}' for name in names)}")


def check_bandwidth(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """Bus bandwidth of collectives over all ranks."""
    first = facts[0].get("speed")
    if facts[0].get("cut"):
        found = "not measured: some ranks don't reach each other, or have no GPU of their own"
        yield Verdict("bandwidth", "warn", found, "mend that first")
    if not first or "all_reduce" not in first:
        return
    figures = []
    for name in ("all_reduce", "all_gather"):
        amount, seconds = first[name]
        bus = bus_bandwidth(name, amount, seconds, facts[0]["world"])
        figures.append(f"{name.replace('_', '-')} {short(bus)}B/s")
    found = f"{', '.join(figures)} of bus bandwidth ({first['backend']}, {size(first['all_reduce'][0])})"
    yield Verdict("bandwidth", "ok", found)


def check_slow(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """Which ranks or links hold up the others."""
    measured = [each for each in facts if "speed" in each]
    if len(measured) < max(2, facts[0]["world"]):
        return
    links = {(low, high): speed for each in measured for low, high, speed in each["speed"]["links"]}
    fair = FAIR["cpu" if measured[0]["speed"]["device"] == "cpu" else "cuda"]
    found = slow([each["speed"]["compute"] for each in measured], links, node_of(facts), fair)
    for rank in found.ranks:
        mend = "look for what else runs there, for held-down clocks, a bad cable or port; leave the node out"
        yield Verdict("slow ranks", "warn", f"{rank_name(facts[rank])} {found.why[rank]}", mend)
    for low, high in found.links:
        between = f"between {rank_name(facts[low])} and {rank_name(facts[high])}"
        speeds = f"{short(links[low, high])}B/s, usual are {short(median(links.values()))}B/s"
        yield Verdict("slow ranks", "warn", f"the link {between} is slow: {speeds}", "look at cables, switch and route")
    if not found.ranks and not found.links:
        compute = [each["speed"]["compute"] for each in measured]
        text = f"none: {short(min(compute))} to {short(max(compute))} operations/s, "
        low, high = min(links.values()), max(links.values())
        talk = f"{len(links)} links of {short(low)}B/s to {short(high)}B/s" if len(links) > 1 else f"{short(low)}B/s"
        yield Verdict("slow ranks", "ok", text + talk)


def check_wandb(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """Whether rank 0 can reach Weights & Biases, where the recipe lets it."""
    found = facts[0].get("wandb")
    if not found:
        return
    if found["mode"] in ("off", "offline"):
        yield Verdict("wandb", "ok", found["mode"])
    elif not found["key"] and not found["error"]:
        mend = "wandb login, or WANDB_API_KEY" if found["mode"] == "online" else ""
        yield Verdict("wandb", "warn" if mend else "ok", "offline: no key is configured", mend)
    elif found["error"]:
        mend = "the run will be kept offline, for wandb sync; or let rank 0's node out, or set https_proxy"
        yield Verdict("wandb", "warn", f"offline: {found['error']}", mend)
    else:
        yield Verdict("wandb", "ok", f"{found['url']} answers")


def _off(seconds: float) -> str:
    return f"{abs(seconds):.3g} s {'ahead of' if seconds > 0 else 'behind'}"
