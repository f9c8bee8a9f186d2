"""This process among the others: who it is, where it computes, and the small agreements between ranks.

Counts and flags travel on a CPU group of their own, so that agreeing on a step never waits for the device.
"""

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data.errors import UserError
from data.order.deal import lanes_read
from data.order.permutation import WORD


@dataclass(frozen=True)
class World:
    """One rank's view of its distributed life."""

    rank: int
    size: int
    device: torch.device
    control: Any = None
    """The CPU process group for counts and flags; a world of one needs none."""
    groups: int = 1
    """Of consecutive ranks, each with lanes of its own to read (`data/order/deal.py`)."""

    def lanes(self, count: int) -> range:
        """Which of `count` lanes this rank's group reads."""
        return lanes_read(self.rank, self.size, count, self.groups)

    def total(self, values: Iterable[int]) -> list[int]:
        """Each of `values` (equally many on every rank) summed over the ranks, modulo 2**64."""
        if self.size == 1:
            return [value & WORD for value in values]
        tensor = torch.from_numpy(np.array([value & WORD for value in values], np.uint64).view(np.int64))
        dist.all_reduce(tensor, group=self.control)
        return tensor.numpy().view(np.uint64).tolist()

    def total_floats(self, values: Iterable[float]) -> list[float]:
        """Each of `values` (equally many on every rank) summed over the ranks in float64."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def gather(self, value: object) -> list[Any]:
        """`value` of every rank, in the order of ranks; for small things outside the step, that all must know."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value, group=self.control)
        return everyone

    def collect(self, value: object) -> list[Any]:
        """On rank 0 `value` of every rank, elsewhere nothing: all together send and hold as much as there is, once."""
        if self.size == 1:
            return [value]
        everyone: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, everyone, dst=0, group=self.control)
        return everyone or []

    def told(self, value: object) -> Any:
        """Rank 0's `value`, on every rank."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self.control)
        return held[0]


def meet(timeout_s: float) -> dist.Store:
    """The store of the ranks, served at MASTER_ADDR and MASTER_PORT; waits for it, and elsewhere than on loopback for
    all ranks.

    Where they meet on loopback, every socket is bound to loopback: torch by itself would listen on all addresses.

    Raises:
        RuntimeError: nobody serves it, or not all ranks came (torch's DistNetworkError, DistStoreError).
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=timeout_s)
    if host == "localhost" or host.startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        return _loopback_store(host, port, int(os.environ["RANK"]), timeout)
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    return store


def join(timeout_s: float, store: dist.Store | None = None) -> World:
    """Meet the other ranks named by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Args:
        timeout_s: of every collective, and of the meeting.
        store: where they have met already.

    Raises:
        UserError: more ranks than GPUs on this machine.
    """
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    timeout = timedelta(seconds=timeout_s)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda and local >= torch.cuda.device_count():
        raise UserError(f"rank {rank} has no GPU: this machine shows {torch.cuda.device_count()}; lower launch.ranks")
    if cuda:
        torch.cuda.set_device(device)
    met = dist.PrefixStore("ranks", store or meet(timeout_s))
    dist.init_process_group("nccl" if cuda else "gloo", store=met, rank=rank, world_size=size, timeout=timeout)
    return World(rank, size, device, dist.new_group(backend="gloo", timeout=timeout))


def _loopback_store(host: str, port: int, rank: int, timeout: timedelta) -> dist.Store:
    """The store at `host`, served by rank 0. Raises OSError there if the port is taken: another life, another port."""
    if rank == 0:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        handle = listener.detach()
        return dist.TCPStore(
            host, port, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=handle
        )
    return dist.TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)


def leave() -> None:
    """Part from the other ranks; only after success, because after an error no collective may be issued."""
    dist.destroy_process_group()
