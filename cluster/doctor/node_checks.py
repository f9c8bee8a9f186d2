"""What is judged of each node by itself: GPUs and their health, CPUs, memory and limits, the disk of the run folder."""

from collections.abc import Iterator, Sequence

from cluster.doctor.verdict import Facts, Needs, Verdict, node_name, nodes_of, ranks_on
from trainer.units import short, size

SLOW_DISK = 50e6  # bytes/s; a checkpoint's part is written while training goes on, but not for ever
LEAST_SHM = 1 << 30  # bytes; ranks of one node, NCCL's and gloo's copies, talk through it
LEAST_FILES = 4096
FOREIGN = 0.05  # of a GPU's memory, that others hold


def check_gpus(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """Whether torch sees as many GPUs as a node's ranks need, and whether the nodes' are alike."""
    nodes = nodes_of(facts)
    for node in nodes:
        if problem := node["gpus"]["problem"]:
            mend = "pip install nvidia-ml-py" if "not installed" in problem else "see nvidia-smi and dmesg on that node"
            yield Verdict("gpus", "warn", f"{node_name(facts, node)}: {problem}", mend)
    for node in nodes:
        seen = len(node["gpus"]["devices"])
        usable = (node.get("torch") or {}).get("gpus", seen)
        each = needs.gpus_per_rank or (1 if usable else 0)  # where there are GPUs, a rank trains on its own
        wanted = each * ranks_on(facts, node)
        if wanted > usable:
            why = f" (the driver shows {seen})" if seen != usable else ""
            yield Verdict(
                "gpus", "fail",
                f"{node_name(facts, node)}: torch sees {usable} GPU(s){why}, and its ranks need {wanted}",
                "lower launch.ranks or launch.gpus_per_rank, or take nodes with more; where the driver shows them and "
                "torch doesn't, install a torch built for this driver",
            )  # fmt: skip
            return
    devices = [device for node in nodes for device in node["gpus"]["devices"]]
    if not devices:
        yield Verdict("gpus", "ok", "none on any node, and the recipe asks for none")
        return
    models = sorted({f"{device['name']} {size(device['memory'] or 0)}" for device in devices})
    drivers = sorted({str(node["gpus"]["driver"]) for node in nodes if node["gpus"]["devices"]})
    counts = sorted({len(node["gpus"]["devices"]) for node in nodes})
    found = f"{' or '.join(map(str, counts))} a node, {', '.join(models)}, driver {', '.join(drivers)}"
    if len(models) > 1 or len(drivers) > 1 or len(counts) > 1:
        yield Verdict("gpus", "warn", found, "the slowest sets the pace: take nodes alike; update the older driver")
    else:
        yield Verdict("gpus", "ok", found)


def check_gpu_health(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """Memory errors, clocks that are held down, and memory that others hold."""
    devices = [(node, device) for node in nodes_of(facts) for device in node["gpus"]["devices"]]
    bad = False
    for node, device in devices:
        at = f"GPU {device['index']} of {node_name(facts, node)}"
        if device["ecc_errors"]:
            bad, found = True, f"{at}: {device['ecc_errors']} uncorrected memory error(s) since its last reset"
            yield Verdict("gpu health", "fail", found, "reset it, and have it replaced if they come again")
        if device["held_down"]:
            bad, found = True, f"{at}: clocks held down by {', '.join(device['held_down'])} ({_clocks(device)})"
            yield Verdict("gpu health", "warn", found, "look at cooling and power; it will hold up all ranks")
        if device["memory"] and device["used"] > FOREIGN * device["memory"]:
            bad, found = True, f"{at}: {size(device['used'])} of {size(device['memory'])} in use before any rank began"
            yield Verdict("gpu health", "warn", found, "another process is on it (nvidia-smi): end it, or go elsewhere")
    if devices and not bad:
        ecc = sum(device["ecc"] is True for _, device in devices)
        clocks = sorted({_clocks(device) for _, device in devices})
        found = f"no memory error, clocks free ({clocks[0]}), ECC on for {ecc} of {len(devices)}"
        yield Verdict("gpu health", "ok", found)


def check_machines(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """CPUs, memory, shared memory and open files of each node, against what its ranks ask for."""
    nodes = nodes_of(facts)
    bad = False
    for node in nodes:
        here, name, ranks = node["machine"], node_name(facts, node), ranks_on(facts, node)
        threads, memory = needs.threads * ranks, needs.memory * ranks
        if here["available"] < memory:
            bad, found = True, f"{name}: {size(here['available'])} of memory are free, its ranks ask for {size(memory)}"
            yield Verdict("machines", "fail", found, "lower launch.memory_gb, or take fewer ranks a node")
        if here["cpus"] < threads:
            bad, found = True, f"{name}: {here['cpus']} CPU(s) for {threads} thread(s)"
            yield Verdict("machines", "warn", found, "ranks wait for each other: lower launch.threads or the ranks")
        if ranks > 1 and here["shm"] < LEAST_SHM:
            bad, found = True, f"{name}: /dev/shm has {size(here['shm'])}"
            yield Verdict("machines", "warn", found, "NCCL may fail for want of it: --shm-size=8g")
        if here["files"] < LEAST_FILES:
            bad, found = True, f"{name}: a process may open {here['files']} files"
            yield Verdict("machines", "warn", found, f"ulimit -n {LEAST_FILES * 16}")
    if nodes and not bad:
        least = min(nodes, key=lambda node: node["machine"]["available"])["machine"]
        cpus = min(node["machine"]["cpus"] for node in nodes)
        found = f"{cpus} CPU(s) and {size(least['available'])} of free memory a node"
        yield Verdict("machines", "ok", found if len(nodes) == 1 else f"at least {found}")


def check_disk(facts: Sequence[Facts], needs: Needs) -> Iterator[Verdict]:
    """Whether the run folder takes writes, has room for the checkpoints to be kept, and is fast enough."""
    nodes = [node for node in nodes_of(facts) if node["folder"]["seen"]]
    bad = False
    for node in nodes:
        folder, name, disk = node["folder"], node_name(facts, node), node.get("disk") or {}
        if problem := folder.get("error") or disk.get("error"):
            bad, found = True, f"{name} can't write {folder['path']}: {problem}"
            yield Verdict("disk", "fail", found, "make room, or make it writable for this user, or set LUBAN_HOME")
        elif folder.get("free", needs.disk) < needs.disk:
            free, want = size(folder["free"]), size(needs.disk)
            bad, found = True, f"{name}: {free} are free, and the checkpoints to be kept take about {want}"
            yield Verdict("disk", "fail", found, "make room, lower checkpoint.keep_last, or set a checkpoint.store")
        elif disk and disk["bytes"] / disk["seconds"] < SLOW_DISK:
            bad, found = True, f"{name} writes {short(disk['bytes'] / disk['seconds'])}B/s"
            yield Verdict("disk", "warn", found, "checkpoints will take long: put runs/ on a faster file system")
    if nodes and not bad:
        free = min(node["folder"]["free"] for node in nodes)
        speeds = [node["disk"]["bytes"] / node["disk"]["seconds"] for node in nodes if node.get("disk")]
        at_once = f", {len(speeds)} nodes at once" if len(speeds) > 1 else ""
        wrote = f", written and synced at {short(min(speeds))}B/s{at_once}" if speeds else ""
        yield Verdict("disk", "ok", f"{size(free)} free{wrote}")


def _clocks(device: Facts) -> str:
    return f"{device['sm_mhz']} of {device['sm_most_mhz']} MHz"
