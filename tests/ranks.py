"""Real ranks for tests: a function run in N processes that have met over gloo, each with its own World.

The processes are forked from a server that has torch and DeepSpeed loaded already, so a distributed life of 20 tiny
steps costs about a second and a half instead of eight.
"""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.world import World

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "trainer.session",
        "deepspeed.runtime.zero.stage3",  # these three are what `initialize` would import for two seconds a rank
        "deepspeed.runtime.zero.stage_1_and_2",
        "deepspeed.runtime.zero.muon.muon_optimizer",
    ]
)


def launch(function: Callable[..., Any], size: int, *args: Any, folder: Path, timeout_s: float = 180) -> list[Any]:
    """`function(world, *args)` on `size` ranks; what each returned, by rank. An exception in one is raised here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = [folder / f"result-{port}-{rank}" for rank in range(size)]
    ranks = [
        CONTEXT.Process(target=_rank, args=(function, rank, size, port, args, results[rank])) for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout_s)
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
            rank.join()
    found = [pickle.loads(path.read_bytes()) if path.exists() else ("error", "no result") for path in results]  # noqa: S301
    for number, (kind, value) in enumerate(found):
        if kind == "error":
            raise AssertionError(f"rank {number} of {size}: {value}")
    return [value for _, value in found]


def _rank(function: Callable[..., Any], rank: int, size: int, port: int, args: tuple[Any, ...], result: Path) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    import torch

    from trainer.world import join

    torch.set_num_threads(1)
    try:
        outcome: tuple[str, Any] = ("value", function(join(120), *args))
    except BaseException:
        outcome = ("error", traceback.format_exc())
    result.write_bytes(pickle.dumps(outcome))
    os._exit(0)


def alone() -> World:
    """A world of one, without any process group."""
    import torch

    return World(0, 1, torch.device("cpu"))
