"""Going back: the guard at work in a run, and the act that its verdict leads to.

A rollback happens in the same processes and begins a new attempt in the record, so that all that holds of attempts
holds of it: the older one is fenced, its steps behind the adopted checkpoint are lost and counted as lost, and the
first event says why, where to, and which rows are passed over. A kill at any moment leaves either the old attempt or
the new one; the rows set aside are handed on from attempt to attempt, whichever checkpoint is adopted.

The state is read back into the living engine: no process starts, nothing is compiled again (two ranks of a tiny
model on a busy machine: half a second, against ten for a restart). Without a checkpoint before the trouble it is the
initial weights, which are a pure function, drawn anew.
"""

import json
import math
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.errors import UserError
from data.publish import published
from data.trace import Traced, documents_at
from trainer import checkpoint, claim, goodput, record
from trainer.adapters.adapt import model_of
from trainer.adopt import Offer, adopt, agree, candidates, place_of, span_by_span
from trainer.checkpoint import MOMENTS, WEIGHT, Checkpoint, CorruptCheckpoint, SpanReader
from trainer.feed import Feed
from trainer.guard import Avoid, Guard, Trouble, plan
from trainer.models.head import Head
from trainer.recipe import Recipe
from trainer.session import Progress, Session
from trainer.weights import give_weights
from trainer.world import World

FOLDER = "guard"
NAMED = 50  # ids of documents in the record; all of them are in a file
HEAD = ("event", "format", "version", "attempt", "accepts", "metrics", "time", "crc", "rollback", "retires")
"""What a start event doesn't take over from the one before."""


class RollBack(Exception):
    """The ranks have agreed to go back; raised on all of them at the same moment."""


class Watch:
    """The guard as one rank's loop sees it. Every rank computes the same figures, and any rank's trouble is all's."""

    def __init__(self, session: Session):
        self.s = session
        self.trouble: Trouble | None = None
        self.begin()

    def begin(self) -> None:
        """Take up the lineage's last updates: a run that was killed or rolled back is watched as if it were not."""
        chosen, self.trouble = self.s.recipe.guard, None
        self._guard = Guard(chosen) if chosen.enabled else None
        if self._guard is None:
            return
        lineage = agree(self.s.world, lambda: record.load(self.s.run).lineage() if self.s.writer else [])
        for event in self.s.world.told(lineage[-chosen.window - chosen.max_nonfinite :]):
            if event["lr"] is not None:  # an update; rows passed over are none
                self._observe(event, event["loss"], event["grad_norm"])

    def see(self, event: dict[str, Any], loss: float, grad_norm: float) -> None:
        """An update's figures have arrived; `event` is what the record says of it."""
        self.trouble = self._observe(event, loss, grad_norm) or self.trouble

    def agree(self) -> bool:
        """Whether nothing is suspected of the weights as they are. Collective.

        Raises:
            RollBack: on all ranks, where any of them is in trouble.
        """
        suspected = self._guard is not None and self._guard.suspects
        trouble, suspicions = self.s.world.total([int(self.trouble is not None), int(suspected)])
        if trouble:
            raise RollBack
        return not suspicions

    def _observe(self, event: dict[str, Any], loss: float | None, grad_norm: float | None) -> Trouble | None:
        if self._guard is None:
            return None
        first, last = event["positions"]
        known = math.nan if loss is None else loss
        norm = math.nan if grad_norm is None else grad_norm
        applied = event["verdict"] == "applied"
        return self._guard.observe(event["step"], (first, last), event["labels"], known, norm, applied)


def roll_back(s: Session, watch: Watch) -> None:
    """Begin a new attempt from the last verified checkpoint before the trouble, which goes round its rows. Collective.

    An update must not be under way: what is pending is written down, and no save is in flight.

    Raises:
        UserError: trouble came back too often, a newer attempt has begun, or the disk is full.
    """
    trouble = next(seen for seen in s.world.gather(watch.trouble) if seen is not None)
    wanted = plan(trouble, s.progress.avoid, s.recipe.guard, s.recipe.train.batch_rows)
    notes: list[str] = []
    if s.timesheet:
        s.timesheet.write(least_s=0)
    s.clock.restart()
    known = agree(s.world, lambda: _saved_before(s, wanted) if s.writer else ([], []))
    found = adopt(s.recipe, s.run, s.world, known[1], notes, [], again=False)
    progress = Progress(**found.state["progress"]) if found else Progress()
    avoid: Avoid = {**wanted, "positions": [max(wanted["positions"][0], progress.consumed), wanted["positions"][1]]}
    progress.avoid = [*s.progress.avoid, avoid]
    left, reached = s.attempt, s.progress.step
    s.progress = progress
    names = list(dict.fromkeys(name for name, *_ in known[0]))  # a mirrored one is there twice
    s.saved = names[: names.index(found.name) + 1] if found and found.name in names else []
    told = {"attempt": left, "reached": reached, **asdict(trouble), "skip": avoid["positions"]}
    _begin_attempt(s, found, told, [name for name in names if name not in s.saved])
    if found:
        s.engine.load(span_by_span(found), found.state["adam_step"])
    else:
        s.engine.load(initial(s.run, s.recipe, s.inputs.vocab_size, s.objective.head, s.world, s.engine.bf16), 0)
    s.feed.close()
    s.feed = Feed(
        s.inputs.reader(s.world.lanes(s.recipe.data.lanes)), s.objective, s.recipe, s.shape, s.world.rank,
        s.world.size, s.world.device, progress.consumed, progress.avoid, s.world.groups,
    )  # fmt: skip
    watch.begin()
    for note in notes:
        s.say(note)
    if s.writer:
        _tell(s, found, trouble, avoid)


def _saved_before(s: Session, wanted: Avoid) -> tuple[list[Offer], list[Offer]]:
    """All checkpoints, oldest first; and those saved before the offending updates, the one to try first last.

    That is the newest from before the margin; one within the margin only where there is no other: the update before a
    spike may be what caused it.
    """
    known = candidates(s.recipe, s.run, record.load(s.run))
    consumed = [_consumed(s, name, near) for name, near, _ in known]
    clear = [each for each, at in zip(known, consumed, strict=True) if at <= wanted["positions"][0]]
    inside = range(wanted["positions"][0] + 1, wanted["trouble"][0] + 1)
    close = [each for each, at in zip(known, consumed, strict=True) if at in inside]
    return known, [*close, *clear]


def _consumed(s: Session, name: str, near: bool) -> int:
    """Positions behind a checkpoint; 0 where it can't be read, for its damage is then said when it is tried."""
    with suppress(CorruptCheckpoint, OSError, ValueError, KeyError):
        return Checkpoint(place_of(s.recipe, s.run, name, near)).state["progress"]["consumed"]
    return 0


def _begin_attempt(s: Session, found: Checkpoint | None, rollback: dict[str, Any], retires: list[str]) -> None:
    """Open the new attempt on rank 0, which fences the one that is left, and tell every rank its number.

    Args:
        retires: checkpoints that it goes behind; given up by the same line, so that no kill can bring them back.
    """

    def create() -> int:
        left = s.writer
        assert left is not None
        try:
            writer = claim.Writer(s.run, after=left.number)
        except claim.Held:
            raise claim.Held(f"{s.run} was taken over by another start while this one rolled back") from None
        attempts = writer.history.attempts
        begun = next(attempt.start for attempt in attempts if attempt.number == left.number)
        start = {name: value for name, value in begun.items() if name not in HEAD} | {
            "began": s.clock.began,
            "adopts": found.name if found else None,
            "record": found.state.get("record") if found else None,
            "step": s.progress.step,
            "consumed": s.progress.consumed,
            "avoid": s.progress.avoid,
            "ancestor": None if found else attempts[0].start["ancestor"],
            "supervisor": "rollback",
            "rollback": rollback,
            "retires": retires,
        }
        writer.start(**start)
        s.writer = writer  # not before it has its first line: an outcome must not become that
        left.close()
        s.timesheet = goodput.Timesheet(s.clock, writer, goodput.before(writer.history, writer.number, start))
        if s.tracker:
            s.tracker.begin_attempt(writer.number)
        if not writer.fenced():
            checkpoint.remove(s.root, retires)
        return writer.number

    s.attempt = s.world.told(agree(s.world, lambda: create() if s.writer else 0))


def initial(run: Path, recipe: Recipe, vocab_size: int, head: Head, world: World, bf16: bool) -> SpanReader:
    """The state of a run that hasn't begun: its first weights as an engine would hold them, and empty moments.

    Raises:
        UserError: the run has an ancestor, and that is gone.
    """
    model = model_of(recipe, vocab_size, head)
    give_weights(run, recipe, model, None, world, [])
    weights = {name: parameter.detach().view(-1) for name, parameter in model.named_parameters()}

    def read(name: str, shape: tuple[int, ...], start: int, count: int) -> dict[str, torch.Tensor]:
        piece = weights[name][start : start + count]
        if bf16:  # the fp32 masters begin as copies of the bf16 weights
            piece = piece.bfloat16().float()
        return {WEIGHT: piece, **{moment: torch.zeros(count) for moment in MOMENTS}}

    return read


def _tell(s: Session, found: Checkpoint | None, trouble: Trouble, avoid: Avoid) -> None:
    """Name what happened and the documents set aside: in the record, in a file, on the terminal, and as an alert."""
    assert s.writer is not None and s.tracker is not None
    first, last = avoid["positions"]
    documents: list[Traced] = []
    file = f"{FOLDER}/rollback-{s.attempt:04d}.jsonl"
    try:
        documents = list(documents_at(s.inputs.sources, "train", s.inputs.order, np.arange(first, last)))
        _write(s, file, documents)
        named = f"{len(documents)} documents lie in them, named in {file}"
    except (UserError, OSError) as error:
        named = f"their documents can't be named: {error}"
    s.writer.append(
        "rollback", step=trouble.step, reason=trouble.reason, positions=[first, last], times=avoid["times"],
        documents=len(documents), ids=[document.id for document in documents[:NAMED]], file=file,
    )  # fmt: skip
    begin, end = trouble.positions
    text = (
        f"{trouble.reason}, at step {trouble.step}, positions [{begin}, {end}). Back to "
        f"{found.name if found else 'the initial weights'}; positions [{first}, {last}) are passed over; {named}"
    )
    s.say(f"ROLLBACK {avoid['times']}: {text}")
    s.tracker.alert(f"{s.recipe.name}: rolled back to step {s.progress.step}", text)


def _write(s: Session, file: str, documents: list[Traced]) -> None:
    path = s.run / file
    path.parent.mkdir(exist_ok=True)
    with published(path) as draft, draft.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(asdict(document), ensure_ascii=False) + "\n" for document in documents)
