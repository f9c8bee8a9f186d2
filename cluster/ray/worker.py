"""One worker of Ray Train: starts its rank as a child, one life after another, and passes on what it is told.

The child is the same program that every launcher starts, with the same five variables; nothing of Ray is in it. While
all workers are alive a further life begins in the same workers, with fresh processes and a fresh port. A worker leaves
its group only when the group is to be another one, because a node goes or comes: then it raises, which has Ray Train
start the next group, and the next life begins there.
"""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.job import USER_ERROR
from cluster.ports import free_port
from cluster.ray.desk import End, LifeOrder

LOOK_S = 0.2
SHARED_S = 10.0  # what a file system gets to show a file that another node has just written
SIOCGIFADDR = 0x8915
SECRETS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")
"""Variables of the cluster's that are none of a rank's business."""


class Moved(Exception):
    """This group of workers makes room for another."""


@dataclass(frozen=True)
class Work:
    """What all workers are given."""

    desk: Any
    """Handle of the `Desk`."""
    argv: tuple[str, ...]
    """Of one rank, from the word after the interpreter on."""
    environment: tuple[tuple[str, str], ...]
    """Added to a rank's environment."""


def work(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in each worker. Returns when the run is over; raises Moved to be replaced."""
    import ray
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    given: Work = config["work"]
    context = get_context()
    first, size = context.get_world_rank() == 0, context.get_world_size()
    group = ray.get_runtime_context().get_actor_id()  # of rank 0, who alone asks for lives
    while True:
        message: Any = None
        if first:
            life: Any = ray.get(given.desk.take.remote(group, size))
            address = ray.util.get_node_ip_address()
            message = (group, life, address, free_port(address))
        told: Any = broadcast_from_rank_zero(message)
        group, life, address, port = told
        if life == "over":
            return
        if life == "leave":
            raise Moved("the workers make room for another group")
        variables = {
            "RANK": str(context.get_world_rank()),
            "LOCAL_RANK": str(context.get_local_rank()),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            **_by_interface(ray.util.get_node_ip_address()),
        }
        end = _live(given, life, group, variables)
        ray.get(given.desk.ended.remote(life.name, context.get_world_rank(), end))


def _live(given: Work, life: LifeOrder, group: str, variables: dict[str, str]) -> End:
    """Start the rank and see it end."""
    if unshared := _unshared(life):
        return End(USER_ERROR, unshared)
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    argv = [sys.executable, *given.argv, *life.words]
    with (Path(life.logs) / f"rank-{variables['RANK']}.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.leash", str(os.getpid()), *argv],
            env=environment | variables | dict(given.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        return End(_watch(child, given.desk, life, group, int(variables["RANK"])))
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _watch(child: subprocess.Popen[bytes], desk: Any, life: LifeOrder, group: str, rank: int) -> int:
    """Pass orders on to a rank until it ends; returns its exit code."""
    import ray

    seen, told = 0, False
    here = ray.util.get_node_ip_address()
    pending = desk.orders.remote(life.name, here, seen)
    while child.poll() is None:
        if ray.wait([pending], timeout=LOOK_S)[0]:
            orders = ray.get(pending)
            for what, number in orders:
                with suppress(ProcessLookupError):
                    child.kill() if what == "end" else child.send_signal(number)
            seen += len(orders)
            pending = desk.orders.remote(life.name, here, seen)
        if not told and (why := _notice(rank)):
            told = True
            desk.move.remote(group, why, int(signal.SIGUSR1), 0.0)
    return child.returncode


def _notice(rank: int) -> str | None:
    """Why the group has to go, where Ray has given notice of it; told by rank 0 and by one that is concerned.

    Ray Train's own question, `get_preemption_info`, waits for all workers, so that one whose rank has ended would hold
    up the others: this looks at the answer that lies in the worker already.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    if info is None or rank not in (0, *info.preempted_ranks[:1]):
        return None
    left = "" if info.deadline_ms is None else f" in {max(0.0, info.deadline_ms / 1000 - time.time()):.0f} s"
    ranks = ", ".join(map(str, info.preempted_ranks))
    return f"Ray takes the node of rank {ranks} away{left}"


def _unshared(life: LifeOrder) -> str | None:
    """What is wrong with the run's folder as this node sees it."""
    mark, deadline = Path(life.logs) / "life", time.monotonic() + SHARED_S
    while True:
        with suppress(OSError):
            if mark.read_text() == life.name:
                return None
        if time.monotonic() > deadline:
            import ray

            where = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
            run = Path(life.logs).parent.parent
            return (
                f"node {where} doesn't see what the driver writes to {run}: put runs (LUBAN_HOME) on a file system "
                "that all nodes share under one path"
            )
        time.sleep(LOOK_S)


def _by_interface(address: str) -> dict[str, str]:
    """Variables that have gloo and NCCL use the network by which Ray knows the node; those that are set stay.

    Gloo would take the address of the host's name by itself, which on many systems is one of loopback.
    """
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            if socket.inet_ntoa(found[20:24]) == address and not address.startswith("127."):
                wanted = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
                return {variable: os.environ.get(variable, value) for variable, value in wanted.items()}
    return {}
