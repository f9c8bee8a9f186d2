"""Nodes that can fail as machines do: each has an address, a host name, processes and mounts of its own. Needs root.

A node is one `unshare`: its network, UTS, PID and mount namespaces have no name outside and go with its processes, so
that to kill it is to pull its plug, and nothing is left to remove. The controller's node holds the switch: a bridge to
which every node has one cable. A cable that is down cuts its node off, while all that runs on it lives on.

What nodes share is the file system, as on a cluster; /dev/shm is their own. Who uses the cluster does so from the
controller's network: `words` says how.
"""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.slurm_testbed.cluster import PATH, READY_S, Cluster, user_name
from tests.slurm_testbed.configuration import Shape, slurm_conf
from tests.slurm_testbed.daemons import POLL_S, TestbedError

NETWORK = "10.77.0"  # seen by nobody outside
CONTROLLER = f"{NETWORK}.10"
PORT = 6817  # slurmctld's; the nodes' is the next one

# The first process of a node: it makes the namespaces into a machine, starts the daemon, and reaps what it leaves.
BOOT = """\
set -e
hosts=$1 address=$2 card=$3
shift 3
hostname "$0"
mount --bind "$hosts" /etc/hosts
for folder in $OWN; do mount -t tmpfs tmpfs "$folder"; done
ip link set lo up
until ip link show "$card" >/dev/null 2>&1; do sleep 0.02; done
ip address add "$address/24" dev "$card"
ip link set "$card" up
"$@" &
wait $!
"""
LOGIN = 'mount --bind "$0" /etc/hosts; exec "$@"'


class Namespaced(Cluster):
    """A cluster whose nodes are machines of their own in all but hardware and disk."""

    def __init__(self, folder: Path, shape: Shape | None = None, own: Sequence[str] = ("/dev/shm",)):
        """
        Args:
            own: folders of which each node has its own, empty one; they must exist.
        """
        super().__init__(folder, shape)
        self._hosts = self.folder / "etc" / "hosts"
        self._own = own
        self._bound = True

    def words(self, *command: str) -> list[str]:
        login = self._inside("ctl", "--uts", "unshare", "--mount", "sh", "-c", LOGIN, str(self._hosts))
        return [*login, *command]

    def address(self, name: str) -> str:
        """Where a node is reached."""
        return f"{NETWORK}.{11 + self.shape.names.index(name)}"

    def crash(self, name: str) -> None:
        """Pull a node's plug: all its processes are gone, without a word to anybody."""
        self._kill([name])

    def boot(self, name: str) -> None:
        """Start a node that has crashed; it is idle again when slurmctld has heard of it."""
        words = ["slurmd", "-D", "-f", str(self.conf), "-N", name]
        self._start_node(name, self.address(name), "eth0", words)
        cable = ["ip", "link", "add", self._cable(name), "type", "veth", "peer", "name", "eth0"]
        pid = str(self.daemons.all[name].pid)
        # The kernel needs a moment to take up the cable of a node that has crashed.
        self.wait(lambda: self._ip(*cable, "netns", pid), lambda error: not error, f"a cable to {name}", READY_S)
        self._must("ip", "link", "set", self._cable(name), "master", "br0", "up")

    def cut(self, name: str) -> None:
        """Take a node off the network; what runs on it lives on."""
        self._must("ip", "link", "set", self._cable(name), "down")

    def heal(self, name: str) -> None:
        """Put it back."""
        self._must("ip", "link", "set", self._cable(name), "up")

    def _configure(self) -> None:
        if os.geteuid() != 0:
            raise TestbedError("nodes with a network of their own need root; without it, there is Loopback")
        addresses = {"localhost": "127.0.0.1", "ctl": CONTROLLER} | {n: self.address(n) for n in self.shape.names}
        self._hosts.write_text("".join(f"{address} {name}\n" for name, address in addresses.items()))
        where = f"NodeAddr={NETWORK}.[11-{10 + self.shape.nodes}]"
        lines = f"SlurmdPort={PORT + 1}\n{self.shape.line(where)}"
        self._write_conf(slurm_conf(self.folder, user_name(), f"ctl({CONTROLLER})", PORT, lines))

    def _start(self, bound: bool) -> None:
        self._bound = bound
        self._start_munged(bound)
        self._start_node("ctl", CONTROLLER, "br0", ["slurmctld", "-D", "-c", "-f", str(self.conf)])
        self._must("ip", "link", "add", "br0", "type", "bridge")
        for name in self.shape.names:
            self.boot(name)

    def _stop(self) -> None:
        self._kill([*self.shape.names, "ctl"])
        self.daemons.end(list(self.daemons.all))

    def _kill(self, names: Sequence[str]) -> None:
        """Kill the first process of nodes; returns when the kernel has killed all that ran on them."""
        pids = [self.daemons.all[name].pid for name in names if name in self.daemons.all]
        worlds = {_link(Path(f"/proc/{pid}/ns/pid_for_children")) for pid in pids} - {None}
        self.daemons.end(names, signal.SIGKILL, READY_S)
        deadline = time.monotonic() + READY_S
        while worlds & {_link(path) for path in Path("/proc").glob("[0-9]*/ns/pid")}:
            if time.monotonic() > deadline:
                raise TestbedError(f"processes on {', '.join(names)} outlive SIGKILL")
            time.sleep(POLL_S / 5)

    def _start_node(self, name: str, address: str, card: str, daemon: Sequence[str]) -> None:
        """Start the first process of a node; it waits for its network card."""
        words = ["unshare", "--net", "--uts", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]
        own = ["env", f"OWN={' '.join(self._own)}", f"PATH={PATH}"]
        boot = ["sh", "-c", BOOT, name, str(self._hosts), address, card, *daemon]
        process = self.daemons.start(name, [*own, *words, *boot], self._bound)
        here, there = _link(Path("/proc/self/ns/net")), Path(f"/proc/{process.pid}/ns/net")
        self.wait(lambda: _link(there), lambda now: now not in (here, None), f"{name}: a network of its own", READY_S)

    def _cable(self, name: str) -> str:
        return f"v-{name}"

    def _inside(self, name: str, *words: str) -> list[str]:
        """The words that run something in a node's network."""
        return ["nsenter", "--target", str(self.daemons.all[name].pid), "--net", *words]

    def _ip(self, *words: str) -> str:
        """Run `ip` on the switch; returns what it complains of."""
        return self.here(*self._inside("ctl", *words)).stderr

    def _must(self, *words: str) -> None:
        if error := self._ip(*words):
            raise TestbedError(f"{' '.join(words)}: {error}")


def _link(namespace: Path) -> Path | None:
    """The name of a process's namespace; None where the process is gone, or a zombie."""
    with suppress(OSError):
        return namespace.readlink()
    return None
