"""Real probes, each a process with the five variables, some of them on nodes that are not as they should be.

Started without a launcher, as any launcher would: a node is a rank with LOCAL_RANK 0, in namespaces of its own where
its disk or its network is to be another. Which speeds come out is not asked, only that a planted slow rank is named.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from secrets import token_hex

import pytest

from cluster.doctor.checkup import collect
from cluster.doctor.judge import judge
from cluster.doctor.verdict import Facts, Needs, Verdict

CLOCK = """\
import os, time
plain, shift = time.time, float(os.environ["LUBAN_TEST_SHIFT"])
time.time = lambda: plain() + shift
"""


class Probes:
    """The ranks of one job, as one would start them by hand."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.ranks = folder, []

    def start(
        self, rank: int, size: int, *words: str, node: bool = True, within: Sequence[str] = (),
        master: tuple[str, int] | None = None, **environment: str,
    ) -> None:  # fmt: skip
        """Begin a rank; `node`: the first of a node of its own. `within`: words before its command."""
        host, port = master or ("127.0.0.1", self.port)
        variables = {
            "RANK": str(rank), "LOCAL_RANK": "0" if node else str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
        }  # fmt: skip
        argv = [*within, sys.executable, "-P", "-m", "cluster.doctor.probe", str(self.folder), *words]
        log = (self.folder.parent / f"rank-{rank}.log").open("wb")
        with log:
            self.ranks.append(subprocess.Popen(argv, env=os.environ | variables | environment, stdout=log, stderr=log))

    def facts(self) -> list[Facts]:
        """What they have found when all have ended well."""
        for number, rank in enumerate(self.ranks):
            said = (self.folder.parent / f"rank-{number}.log").read_text
            assert rank.wait(150) == 0, said()
        return collect(self.folder)

    def end(self) -> None:
        """Kill those that are left."""
        for rank in self.ranks:
            if rank.poll() is None:
                rank.kill()
            rank.wait()


@pytest.fixture
def probes(tmp_path: Path) -> Iterator[Probes]:
    found = Probes(tmp_path / "runs" / ".doctor")
    yield found
    found.end()


def complaints(facts: list[Facts], needs: Needs) -> list[Verdict]:
    return [verdict for verdict in judge(facts, needs) if verdict.level == "fail"]


def test_a_rank_that_is_stopped_most_of_the_time_is_named_as_slow(probes: Probes) -> None:
    for rank in range(3):
        probes.start(rank, 3, node=False)
    slow = probes.ranks[2]
    while slow.poll() is None and not (probes.folder / "facts" / "rank-2.json").exists():
        time.sleep(0.02)
    while slow.poll() is None and json.loads((probes.folder / "facts" / "rank-2.json").read_text())["stage"] != "wrote":
        time.sleep(0.02)
    while slow.poll() is None:  # it gets a sixth of the time, in bits shorter than what is measured
        slow.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        slow.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    facts = probes.facts()
    needs = Needs(ranks=3)
    assert not complaints(facts, needs)
    named = [verdict.found for verdict in judge(facts, needs) if verdict.check == "slow ranks"]
    assert any(found.startswith(f"rank 2 on {socket.gethostname()} ") for found in named), named
    speed = facts[0]["speed"]
    links = [link for each in facts for link in each["speed"]["links"]]
    assert sorted((low, high) for low, high, _ in links) == [(0, 1), (0, 2), (1, 2)]
    figures = [each["speed"]["compute"] for each in facts] + [speed for _, _, speed in links]
    assert min(*figures, speed["all_reduce"][1], speed["all_gather"][1]) > 0


def test_unshared_folders_and_a_clock_that_is_off_are_found_on_their_nodes(probes: Probes, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOCK)
    late = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])}
    hidden = f'mount -t tmpfs none {probes.folder.parent} && exec "$@"'
    other = f'mount -t tmpfs none {probes.folder} && exec "$@"'
    probes.start(0, 3, "--quick")
    probes.start(1, 3, "--quick", within=("unshare", "-m", "sh", "-c", hidden, "sh"))
    probes.start(
        2, 3, "--quick", within=("unshare", "-m", "sh", "-c", other, "sh"), **late, LUBAN_TEST_SHIFT="100"
    )  # fmt: skip
    facts = probes.facts()
    assert [each["stage"] for each in facts] == ["done"] * 3  # of 1 and 2, too, which can't write here
    said = sorted(verdict.found for verdict in complaints(facts, Needs(ranks=3)))
    host = socket.gethostname()
    assert [line[:80] for line in said] == [line[:80] for line in sorted([
        f"{probes.folder} is not there on {host} (rank 1)",
        f"{host} (rank 0) doesn't read in {probes.folder} what {host} (rank 2) wrote there",
        f"{host} (rank 2) doesn't read in {probes.folder} what {host} (rank 0) wrote there",
        *(line for line in said if "clock" in line),
    ])]  # fmt: skip
    assert any(f"the clock of {host} (rank 2) is 100 s ahead of rank 0's" in line for line in said)
    assert any(f"the file system's clock is 100 s behind that of {host} (rank 2)" in line for line in said)
    assert not any(f"{host} (rank 1) is" in line and "clock" in line for line in said)


def test_a_port_that_is_closed_is_named_by_the_node_that_can_t_reach_it(probes: Probes) -> None:
    probes.start(0, 2, "--quick", "--patience", "4")
    probes.start(1, 2, "--quick", "--patience", "1", within=("unshare", "-n"))
    facts = probes.facts()
    (verdict,) = complaints(facts, Needs(ranks=2))
    at = f"127.0.0.1:{probes.port}"
    said = f"rank 1 on {socket.gethostname()} didn't reach rank 0 at {at} in 1 s: Network is unreachable"
    assert verdict.found == said  # the kernel's own word, not that of a library that gave up
    assert "firewall" in verdict.mend
    assert facts[0]["meeting"]["absent"] == [1]


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Two network namespaces that see each other as 10.98.0.1 and 10.98.0.2, with ports closed from the second on."""
    names = [f"doctor-{token_hex(3)}" for _ in range(2)]
    with ExitStack() as made:
        for name in names:
            run("ip", "netns", "add", name)
            made.callback(run, "ip", "netns", "del", name)
        run("ip", "-n", names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for number, name in enumerate(names, 1):
            run("ip", "-n", name, "addr", "add", f"10.98.0.{number}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        closed = ("ipproto", "tcp", "dport", "32768-60999", "prohibit")
        run("ip", "-n", names[1], "rule", "add", "pref", "1", "to", "10.98.0.1", *closed)
        yield names


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def test_ports_closed_between_nodes_that_meet_are_found_before_a_collective_hangs(
    probes: Probes, nodes: list[str]
) -> None:
    for rank, name in enumerate(nodes):
        probes.start(rank, 2, within=("ip", "netns", "exec", name), master=("10.98.0.1", 29500))
    facts = probes.facts()
    assert [each["stage"] for each in facts] == ["done", "done"] and not any("speed" in each for each in facts)
    said = {verdict.check: verdict.found for verdict in judge(facts, Needs(ranks=2)) if verdict.level != "ok"}
    assert f"{socket.gethostname()} (rank 1) can't connect to" in said["network"] and "10.98.0.1:" in said["network"]
    assert said["bandwidth"].startswith("not measured")


def test_nobody_listens_on_other_addresses_than_the_one_where_the_ranks_meet(probes: Probes) -> None:
    for rank in range(2):
        probes.start(rank, 2, "--quick")
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            for rank in probes.ranks:
                seen.update(listening(rank.pid))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        probes.facts()
    finally:
        done.set()
        watching.join()
    assert seen == {"0100007F"}  # 127.0.0.1


def listening(pid: int) -> set[str]:
    """Addresses, as /proc writes them, on which a process listens."""
    found: set[str] = set()
    with suppress(OSError):
        mine = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in mine:
                    found.add(fields[1].partition(":")[0])
    return found
