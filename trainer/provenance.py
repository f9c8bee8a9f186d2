"""Which steps of a run saw a document, and which documents a step saw: by the inverse of the order, not by a log.

The answer is about the lineage: the updates that made the newest weights. A position that the guard set aside or whose
update was not applied is said to be skipped; what lost updates read besides is counted, and in no weights.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.trace import Sightings, documents_at, find, sightings
from trainer import record
from trainer.inputs import open_inputs
from trainer.run import read_recipe

SHOWN = 12  # positions of an epoch on one line


def trace_document(run: Path, name: str) -> Iterator[str]:
    """Positions, steps and epochs in which the lineage of a run saw a document, a line each.

    Args:
        name: the document's id, or the end of it, as a path.

    Raises:
        UserError: the training split has no such document, or the datasets are gone.
    """
    history, inputs = record.load(run), open_inputs(read_recipe(run))
    lineage = history.lineage()
    consumed = lineage[-1]["positions"][1] if lineage else 0
    began = time.perf_counter()
    found = find(inputs.sources, "train", name)
    looked_up = time.perf_counter()
    seen = [sightings(document, inputs.sources, "train", inputs.order, consumed) for document in found]
    inverted = time.perf_counter()
    names = list(inputs.datasets)
    for document, epochs in zip(found, seen, strict=True):
        shard = inputs.sources[document.dataset].index("train").shards[document.shard].url
        yield (
            f"{document.id}: {document.tokens:,} tokens from {document.start:,} of {shard}, source "
            f"{names[document.dataset]} ({document.source})"
        )
        for sighting in epochs:
            yield from _sighted(sighting, lineage)
        if not epochs:
            yield f"  not seen in positions [0, {consumed:,})"
        lost = _lost(history, epochs, lineage)
        if lost:
            yield f"  and in lost updates, whose weights are gone: {'; '.join(lost)}"
    yield (
        f"{1000 * (looked_up - began):.1f} ms to find it by its id, {1000 * (inverted - looked_up):.1f} ms for the "
        "inverse of the order"
    )


def trace_step(run: Path, step: int) -> Iterator[str]:
    """The documents of which an update of a run's lineage saw a token, a line each.

    Raises:
        UserError: the lineage has no such update, or the datasets are gone.
    """
    lineage = record.load(run).lineage()
    applied = {event["step"]: event for event in lineage if event["verdict"] == "applied"}
    if step not in applied:
        last = max(applied, default=0)
        raise UserError(f"the weights of {run.name} were made by steps 1 to {last}: there is no step {step} among them")
    inputs = open_inputs(read_recipe(run))
    began = time.perf_counter()
    first, last = applied[step]["positions"]
    documents = list(documents_at(inputs.sources, "train", inputs.order, np.arange(first, last)))
    took = time.perf_counter() - began
    yield f"step {step}, positions [{first:,}, {last:,}): {len(documents)} documents"
    for each in documents:
        where = f"{each.dataset}, {each.source}"
        yield f"  {each.id} ({where}), {each.tokens:,} tokens, positions {_listed(each.positions)}"
    yield f"{1000 * took:.1f} ms"


def _sighted(sighting: Sightings, lineage: list[dict[str, Any]]) -> Iterator[str]:
    """The rows of one epoch by what became of them."""
    starts = np.array([event["positions"][0] for event in lineage])
    events = [lineage[at] for at in np.searchsorted(starts, sighting.positions, side="right") - 1]
    together = list(zip(sighting.positions, events, strict=True))
    skipped = [at for at, event in together if event["verdict"] != "applied"]
    read = [(at, event) for at, event in together if event["verdict"] == "applied"]
    if read:
        steps = sorted({event["step"] for _, event in read})
        yield f"  epoch {sighting.epoch}: steps {_listed(steps)}, positions {_listed([at for at, _ in read])}"
    if skipped:
        yield f"  epoch {sighting.epoch}: skipped, in no weights: positions {_listed(skipped)}"


def _lost(history: record.History, epochs: list[Sightings], lineage: list[dict[str, Any]]) -> list[str]:
    kept = {id(event) for event in lineage}
    positions = np.array(sorted(at for sighting in epochs for at in sighting.positions), np.int64)
    said = []
    for attempt in history.attempts:
        steps = [
            event["step"]
            for event in attempt.applied
            if id(event) not in kept and np.diff(np.searchsorted(positions, event["positions"]))[0]
        ]
        if steps:
            said.append(f"steps {_listed(steps)} of attempt {attempt.number}")
    return said


def _listed(numbers: list[int] | tuple[int, ...]) -> str:
    shown = ", ".join(f"{number:,}" for number in numbers[:SHOWN])
    return shown if len(numbers) <= SHOWN else f"{shown} and {len(numbers) - SHOWN} more"
