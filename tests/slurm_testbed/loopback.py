"""All nodes on 127.0.0.1, a port each: what anybody may bring up, and most tests need.

The nodes share the machine's host name, processes and files. Bound to loopback means bound: the daemons listen on no
other address.
"""

import random
import socket
from contextlib import ExitStack
from pathlib import Path

from tests.slurm_testbed.cluster import Cluster, user_name
from tests.slurm_testbed.configuration import Shape, slurm_conf
from tests.slurm_testbed.daemons import end_all, of_jobs

PORTS = range(15_000, 31_000)  # below those that the kernel gives to outgoing connections
LOOPBACK = "127.0.0.1"


class Loopback(Cluster):
    """A cluster whose nodes are told apart by port."""

    def __init__(self, folder: Path, shape: Shape | None = None, port: int | None = None):
        """
        Args:
            port: slurmctld's; the nodes have the next ones. Free ones are looked for where none is given.
        """
        super().__init__(folder, shape)
        self._port = port

    def words(self, *command: str) -> list[str]:
        return list(command)

    def _configure(self) -> None:
        host = socket.gethostname().partition(".")[0]
        port = self._port or _free_ports(self.shape.nodes + 1)
        where = f"NodeHostname={host} NodeAddr={LOOPBACK} Port=[{port + 1}-{port + self.shape.nodes}]"
        lines = f"CommunicationParameters=NoInAddrAny,NoCtldInAddrAny\n{self.shape.line(where)}"
        self._write_conf(slurm_conf(self.folder, user_name(), f"{host}({LOOPBACK})", port, lines))

    def _start(self, bound: bool) -> None:
        self._start_munged(bound)
        self.daemons.start("slurmctld", ["slurmctld", "-D", "-c", "-f", str(self.conf)], bound)
        for name in self.shape.names:
            self.daemons.start(name, ["slurmd", "-D", "-f", str(self.conf), "-N", name], bound)

    def _stop(self) -> None:
        # Those who start jobs first, so that a task that is found is the last of its job.
        self.daemons.end(["slurmctld", *self.shape.names])
        end_all(of_jobs(self.conf))
        self.daemons.end(list(self.daemons.all))


def _free_ports(number: int) -> int:
    """The first of so many free ports in a row."""
    while True:
        first = random.randrange(PORTS.start, PORTS.stop - number)
        with ExitStack() as stack:
            try:
                for port in range(first, first + number):
                    stack.enter_context(socket.socket()).bind((LOOPBACK, port))
                return first
            except OSError:
                continue
