"""A small run without an engine: the real record, loop, saver, retention and adoption around a toy's arithmetic.

The "weights" are a function of the positions applied and of their order, so a row lost or repeated shows in them. One
update is skipped for a non-finite gradient, one has no label tokens. The loop waits for the writer before each step,
so that the calls of a play come in the same order each time and a number names one of them.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from data import settings
from data.errors import UserError
from tests.chaos.gate import Fault, Gate
from trainer import checkpoint, claim
from trainer.adopt import adopt, candidates
from trainer.checkpoint import MOMENTS, WEIGHT, Checkpoint, Span, SpanReader
from trainer.claim import Fenced
from trainer.clock import Clock
from trainer.engine import Verdict
from trainer.feed import Step
from trainer.loop import Loop
from trainer.meters import Meter
from trainer.mirror import root_of
from trainer.objectives.base import Batch
from trainer.place import Place
from trainer.recipe import Recipe
from trainer.session import Progress, Session, _open_record
from trainer.shape import Shape
from trainer.world import World

ROWS, STEPS, EVERY, KEEP = 8, 9, 3, 2
SKIPPED, EMPTY = 4, 7  # updates (positions // ROWS) that are not applied
SHAPES = {"embed.weight": (5, 3), "norm.weight": (4,)}
ELEMENTS = 19
STILL = {"frozen.weight": torch.arange(6, dtype=torch.float32)}
DONE, TOLD, FENCED, FAULT = 0, 3, 4, 1  # exit codes of a play


def recipe(steps: int = STEPS, **more: Any) -> Recipe:
    """The run's settings."""
    given = {
        "train.steps": steps, "train.batch_rows": ROWS, "checkpoint.every_steps": EVERY, "checkpoint.keep_last": KEEP,
        "log.every_steps": 1, "log.wandb": "off", "schedule.warmup_steps": 2,
    } | more  # fmt: skip
    return settings.load(Recipe, None, [f"{name}={value}" for name, value in given.items()])


def expected(steps: int) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
    """The state of an uninterrupted run, and (first position, verdict) of each of its updates."""
    toy, story = Toy(alone()), list[tuple[int, str]]()
    while toy.applied < steps:
        number = len(story)
        if number not in (SKIPPED, EMPTY):
            toy.apply(number * ROWS)
        story.append((number * ROWS, "skipped" if number in (SKIPPED, EMPTY) else "applied"))
    return toy.state, story


def alone() -> World:
    """One rank."""
    return World(0, 1, torch.device("cpu"))


class Toy:
    """Stands for the engine; each rank holds a piece of every tensor."""

    model = module = extra = None
    stage = 0

    def __init__(self, world: World):
        self.world, self.applied, self.now = world, 0, 0
        self.wait: Callable[[], None] = lambda: None
        self.state = {part: torch.full((ELEMENTS,), 0.5) for part in (WEIGHT, *MOMENTS)}

    def apply(self, position: int) -> None:
        """An update by the rows from `position` on; it neither commutes with another nor repeats."""
        push = torch.sin(torch.arange(ELEMENTS) * (position + 1.0))
        for number, tensor in enumerate(self.state.values(), 1):
            tensor.mul_(0.75).add_(push, alpha=number)
        self.applied += 1

    def backward(self, loss: Tensor, label_tokens: int, last: bool) -> None:
        self.now = int(loss)

    def step(self, lr: float) -> Verdict:
        self.wait()
        if self.now == SKIPPED * ROWS:
            return Verdict(False, "a non-finite gradient", float("inf"))
        self.apply(self.now)
        return Verdict(True, None, 1.0)

    def spans(self) -> list[Span]:
        found, at = [], 0
        for name, shape in SHAPES.items():
            size = torch.Size(shape).numel()
            share = -(-size // self.world.size)
            start = share * self.world.rank
            stop = min(size, start + share)
            views = {part: tensor[at + start : at + stop] for part, tensor in self.state.items()}
            found.append(Span(name, shape, start, views))
            at += size
        return found

    def load(self, read: SpanReader, adam_step: int) -> None:
        self.applied, at = adam_step, 0
        for name, shape in SHAPES.items():
            size = torch.Size(shape).numel()
            held = read(name, shape, 0, size)
            for part, tensor in self.state.items():
                tensor[at : at + size] = held[part]
            at += size

    def adam_step(self) -> int:
        return self.applied

    def hyperparameters(self) -> list[dict[str, Any]]:
        return []


class Rows:
    """Stands for the feed."""

    def __init__(self, position: int, wait: Callable[[], None]):
        self.position, self.wait = position, wait

    def __next__(self) -> Step:
        self.wait()
        start = self.position
        self.position += ROWS
        count = 0 if start == EMPTY * ROWS else 5
        batch = Batch(torch.tensor([start]), torch.tensor([0]), None, count, ROWS)
        return Step(start, self.position, [batch], [start], count, start)


@dataclass(frozen=True)
class Threads(World):
    """A rank that is a thread; one that fails takes the others along, as a supervisor would."""

    slots: list[Any] = field(default_factory=list)

    def gather(self, value: object) -> list[Any]:
        self.slots[self.rank] = value
        self.control.wait()
        everyone = list(self.slots)
        self.control.wait()
        return everyone

    def collect(self, value: object) -> list[Any]:
        everyone = self.gather(value)
        return [] if self.rank else everyone

    def told(self, value: object) -> Any:
        return self.gather(value)[0]

    def total(self, values: Any) -> list[int]:
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    total_floats = total  # pyright: ignore[reportAssignmentType]


def attempt(run: Path, steps: int = STEPS, world: World | None = None, chosen: Recipe | None = None) -> None:
    """One attempt, from the claim of its number to its end, as `python -m trainer` runs it.

    Raises:
        UserError: what a person has to mend.
        Fenced: a newer one has begun.
    """
    world, chosen, notes = world or alone(), chosen or recipe(steps), list[str]()
    root = root_of(chosen, run)
    writer = claim.Writer(run) if world.rank == 0 else None
    offered = candidates(chosen, run, writer.history) if writer else []
    found, clock = adopt(chosen, run, world, offered, notes, []), Clock()
    toy, progress = Toy(world), Progress()
    if found:
        toy.load(found.read, found.state["adam_step"])
        progress = Progress(**found.state["progress"])
    session = Session(
        run=run, recipe=chosen, world=world, inputs=_inputs(), objective=_objective(), engine=toy,
        shape=Shape(ROWS, 1, 0), feed=None, progress=progress, frozen=_frozen(root, found, world), fixed={},
        writer=None, tracker=None, clock=clock, meter=Meter(clock=clock, steps=steps, ranks=world.size), root=root,
    )  # fmt: skip  # pyright: ignore[reportArgumentType]
    start = {
        "began": clock.began, "adopts": found.name if found else None,
        "step": progress.step, "consumed": progress.consumed,
        "world": world.size, "zero_stage": toy.stage, "micro_batch": ROWS, "accumulation": 1, "precision": "fp32",
        "device": "none", "threads": 1, "exact": "topology", "ancestor": None, "dataset": "toy", "parameters": ELEMENTS,
        "trainable": ELEMENTS, "loss_kernel": "none", "versions": {}, "ranks": [], "supervisor": "restart",
    }  # fmt: skip
    _open_record(session, start, writer, notes)
    loop = Loop(session, SimpleNamespace(asked=False, reason=None))  # pyright: ignore[reportArgumentType]
    written = loop.checkpoints.saver.join
    session.feed = Rows(progress.consumed, written)  # pyright: ignore[reportAttributeAccessIssue]
    toy.wait = written
    outcome, message = "fault", ""
    try:
        outcome, message = loop.train()
    except (UserError, OSError) as error:
        outcome, message = "user_error", str(error)
        raise
    finally:
        if writer and session.tracker:
            writer.append("outcome", outcome=outcome, message=message)
            session.tracker.finish(0)
            writer.close()


def _inputs() -> Any:
    order = SimpleNamespace(describe=lambda: {"fingerprint": "toy"})
    tokenizer = SimpleNamespace(fingerprint="toy")
    return SimpleNamespace(
        order=order, tokenizer=tokenizer, vocab_size=2, read_tokens=lambda rows, labels: labels,
        epochs=lambda stop: {},
    )  # fmt: skip


def _objective() -> Any:
    return SimpleNamespace(loss=lambda model, batch: batch.input_ids[0].double())


def _frozen(root: Place, found: Checkpoint | None, world: World) -> str | None:
    """A file in `base/` where there is one rank, none where there are two: most runs have none."""
    if world.size > 1:
        return None
    name = found.base if found else checkpoint.save_frozen(root, STILL) if world.rank == 0 else None
    return world.gather(name)[0]


def forked(
    home: Path, fault: Callable[[], Fault], ranks: int = 1, steps: int = STEPS, name: str = "out", **more: Any
) -> int:
    """Fork a child that plays one attempt of `home/run` with a fault; its process number. See `ended`.

    Args:
        name: which of its `output`s takes what it says.
        more: settings of the run.
    """
    child = os.fork()
    if child:
        return child
    code = FAULT
    try:
        with home.with_suffix(f".{name}").open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", 1)
        claim.STALE_S = 0.0  # whoever was killed is dead at once; who sleeps is taken for dead
        Gate(home, fault()).install()
        code = _code(lambda: _ranks(home / "run", ranks, steps, more))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _ranks(run: Path, ranks: int, steps: int, more: dict[str, Any]) -> None:
    if ranks == 1:
        attempt(run, steps, chosen=recipe(steps, **more))
        return
    meeting, slots, errors = threading.Barrier(ranks), [None] * ranks, list[BaseException]()

    def rank(number: int) -> None:
        try:
            attempt(run, steps, Threads(number, ranks, torch.device("cpu"), meeting, slots=slots))
        except threading.BrokenBarrierError:
            return
        except BaseException as error:
            errors.append(error)
            meeting.abort()

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _code(play: Callable[[], None]) -> int:
    """How it ended, with the words for the person on the output."""
    try:
        play()
    except UserError as error:
        print(f"error: {error}")
        return TOLD
    except OSError as error:  # a full disk under the metrics: `python -m trainer` says so, and no more
        print(f"error: {error}")
        return TOLD
    except Fenced as error:
        print(f"fenced: {error}")
        return FENCED
    return DONE


def ended(child: int) -> int:
    """Wait for a child; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def output(home: Path, name: str = "out") -> str:
    """What the last child of `home` said."""
    return home.with_suffix(f".{name}").read_text()
