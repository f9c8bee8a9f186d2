"""What 100 to 100,000 ranks cost: index, order, manifest, adoption, retention; the real functions on synthetic shapes.

The model is a 7 G parameter decoder, ZeRO 3 (every parameter is cut over all ranks, the worst case for a manifest) and
2. Each figure is the work of one rank or one process; nothing is distributed, so what crosses the network is counted
in bytes and not timed.
"""

import json
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cluster.plan.memory import Setup
from cluster.plan.scale import held_by, opened, own, scale
from data import settings
from data.order.deal import deal
from data.order.layout import Layout
from data.order.order import Order
from trainer.checkpoint import digest_of, folder_name, superfluous
from trainer.manifest import STATE, compose, contradiction, file_of
from trainer.models.shapes import parameter_shapes
from trainer.place import DIGEST
from trainer.recipe import Recipe

MODEL = (
    "model.vocab_size=32000", "model.hidden_size=4096", "model.num_hidden_layers=32", "model.num_attention_heads=32",
    "model.num_key_value_heads=8", "model.intermediate_size=14336", "model.context=4096",
)  # fmt: skip
RANKS = (100, 1_000, 10_000, 100_000)
ROWS_A_RANK, SHARDS_A_RANK, SHARD_TOKENS = 4, 2, 100_000_000
CHECKPOINTS = 10_000


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time, and what came out."""
    began = time.process_time()
    result = action()
    return time.process_time() - began, result


def setup_of(ranks: int, stage: int) -> Setup:
    """The model on so many ranks."""
    recipe = settings.load(
        Recipe, None,
        [*MODEL, f"launch.ranks={ranks}", f"train.batch_rows={ROWS_A_RANK * ranks}", "engine.micro_batch=1",
         f"engine.zero_stage={stage}"],
    )  # fmt: skip
    return Setup.of(recipe, 32000, ranks, gpu=True)


def order(ranks: int) -> dict[str, float]:
    """Seconds of one rank: to make the index's order, its first epoch, and to deal and place one update's rows."""
    tokens = [SHARD_TOKENS + number for number in range(SHARDS_A_RANK * ranks)]
    layout, made = timed(lambda: Order(Layout.chopped("x", tokens, 4096), 1, 16))
    epoch, _ = timed(lambda: made.places(np.arange(1)))
    rows = ROWS_A_RANK * ranks
    deals, mine = timed(lambda: [deal(step * rows, (step + 1) * rows, 1, ranks - 1, ranks) for step in range(100)])
    places, _ = timed(lambda: [made.places(each.ravel()) for each in mine])
    return {"index": layout, "epoch": epoch, "deal": deals / 100, "places": places / 100}


def manifest_of(setup: Setup) -> dict[str, Any]:
    """The manifest that the ranks would write, without their pieces one by one: as `joined` makes them into runs."""
    runs = held_by(setup, setup.ranks)
    shapes = parameter_shapes(setup.recipe.model, setup.vocab_size)
    entry = {"bytes": 12 * setup.owned(), DIGEST: "0123456789abcdef" * 2}
    files = {file_of(rank): dict(entry) for rank in range(setup.ranks)} | {STATE: dict(entry)}
    state = {"step": 100, "attempt": 1, "zero_stage": setup.stage}
    empty = compose(folder_name(100, 1), state, setup.ranks, None, [{"files": files, "spans": []}])
    return empty | {"parameters": {name: list(shapes[name]) for name in runs}, "spans": runs}


def checkpoints(setup: Setup) -> dict[str, float]:
    """Of one checkpoint: seconds to write and read its manifest, bytes, and which files a rank opens."""
    build, manifest = timed(lambda: manifest_of(setup))
    write, text = timed(lambda: json.dumps(manifest | {"digest": digest_of(manifest)}).encode())
    read, again = timed(lambda: json.loads(text))
    del again["digest"]
    check, problem = timed(lambda: (digest_of(again), contradiction(again))[1])
    assert problem is None, problem
    half = held_by(setup, setup.ranks // 2)
    other = held_by(setup, setup.ranks, stage=2 if setup.stage == 3 else 3)
    look, same = timed(lambda: opened(again["spans"], again["spans"], 1))
    spans = [
        (name, list(manifest["parameters"][name]), start, count, 1)
        for name, found in manifest["spans"].items()
        for start, count in own(found, 1)
    ]
    sent = len(pickle.dumps({"files": {file_of(1): manifest["files"][file_of(1)]}, "spans": spans, "error": None}))
    return {
        "build": build, "write": write, "read": read, "check": check, "look": look, "bytes": len(text),
        "said": scale(setup).manifest_bytes, "same": same, "half": opened(again["spans"], half, 1),
        "other": opened(again["spans"], other, 1), "sent": sent, "sent_all": sent * setup.ranks,
    }  # fmt: skip


def retention(count: int) -> float:
    """Seconds to say which of so many checkpoints go."""
    names = [folder_name(100 * number, 1 + number // 100) for number in range(count)]
    return timed(lambda: superfluous(names, 2, 1000, names[5]))[0]


def main() -> None:
    """Print the tables."""
    chosen = [ranks for ranks in RANKS if len(sys.argv) < 2 or ranks <= int(sys.argv[1])]
    print("| ranks | shards | order, ms | first epoch, ms | an update's deal, us | its places, us |")
    for ranks in chosen:
        f = order(ranks)
        print(
            f"| {ranks:,} | {SHARDS_A_RANK * ranks:,} | {1e3 * f['index']:.1f} | {1e3 * f['epoch']:.1f} | "
            f"{1e6 * f['deal']:.0f} | {1e6 * f['places']:.0f} |",
            flush=True,
        )
    print("| ranks | ZeRO | manifest, MB | said | write, s | read, s | check, s | files opened: same ranks | half | "
          "other stage | to rank 0, MB |")  # fmt: skip
    for ranks in chosen:
        for stage in (2, 3):
            f = checkpoints(setup_of(ranks, stage))
            print(
                f"| {ranks:,} | {stage} | {f['bytes'] / 1e6:.3g} | {f['said'] / f['bytes'] - 1:+.1%} | "
                f"{f['write']:.3f} | {f['read']:.3f} | {f['check']:.3f} | {f['same']:.0f} | {f['half']:.0f} | "
                f"{f['other']:.0f} | {f['sent_all'] / 1e6:.3g} |",
                flush=True,
            )
    for ranks in chosen:
        grown = scale(setup_of(ranks, 3))
        line = f"{grown.start_bytes / 1e6:.3g} MB"
        print(f"{ranks:,} ranks: first line of an attempt {line}, {grown.sockets:,} sockets a rank")
    print(f"retention of {CHECKPOINTS:,} checkpoints: {1e3 * retention(CHECKPOINTS):.1f} ms")


if __name__ == "__main__":
    main()
