"""The small agreements between ranks: what all must know goes to all, what rank 0 needs to rank 0 alone."""

from typing import Any

from tests.ranks import alone, launch
from trainer.world import World


def agreed(world: World) -> dict[str, Any]:
    """What each call gives on this rank."""
    mine = {"rank": world.rank, "text": "x" * 1000 * world.rank}
    return {
        "gathered": [held["rank"] for held in world.gather(mine)],
        "collected": [held["rank"] for held in world.collect(mine)],
        "told": world.told(f"from {world.rank}"),
        "nothing": world.told(None if world.rank == 0 else "mine"),
        "total": world.total([world.rank, True, -1]),
    }


def test_rank_0_alone_learns_what_it_alone_needs_and_tells_what_all_must_know(tmp_path):
    first, second = launch(agreed, 2, folder=tmp_path)
    assert first == {
        "gathered": [0, 1],
        "collected": [0, 1],
        "told": "from 0",
        "nothing": None,
        "total": [1, 2, 2**64 - 2],
    }
    assert second == first | {"collected": []}
    assert agreed(alone()) == {
        "gathered": [0], "collected": [0], "told": "from 0", "nothing": None, "total": [0, 1, 2**64 - 1]
    }  # fmt: skip
