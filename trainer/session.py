"""The start of an attempt: from a run folder to an engine that stands where the adopted checkpoint left off."""

import os
import platform
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from data.order.deal import reading_groups
from data.order.departure import departure
from data.order.permutation import key
from trainer import checkpoint, claim, goodput, record
from trainer.adapters.adapt import model_of
from trainer.adopt import adopt, agree, offers, span_by_span
from trainer.checkpoint import Checkpoint
from trainer.clock import Clock
from trainer.disk import shortcomings
from trainer.engine import Engine
from trainer.evaluate import FixedSet, forward_rows
from trainer.feed import Feed
from trainer.guard import Avoid
from trainer.inputs import Inputs, open_inputs
from trainer.meters import Meter, flops_per_token
from trainer.mirror import Mirror, root_of, store_of
from trainer.models.depth import rate_scales
from trainer.objectives.base import Objective
from trainer.objectives.choose import for_training, objective_of
from trainer.objectives.rows import text_figures
from trainer.optimizer import parameter_groups
from trainer.place import Place
from trainer.recipe import Recipe
from trainer.run import origin_of, read_recipe
from trainer.shape import Shape
from trainer.tracker import Tracker
from trainer.weights import give_weights
from trainer.world import World

DROPOUT = 11  # what a key is for
ANY = ("micro_batch", "precision", "device", "threads", "versions", "exact")
"""What decides the bits of a sum under `exact: any`, as an attempt's start names it."""
TOPOLOGY = ("world", "zero_stage", *ANY)
"""The same under `exact: topology`."""


@dataclass
class Progress:
    """Where the run stands; with the weights and moments, all its state. The same on every rank."""

    step: int = 0
    """Applied updates."""
    consumed: int = 0
    """Positions behind it: the next row read is this one."""
    tokens: int = 0
    """Label tokens of the applied updates."""
    skipped: list[list[int]] = field(default_factory=list)
    """Intervals [from, to) of positions whose update was not applied."""
    skipped_in_a_row: int = 0
    avoid: list[Avoid] = field(default_factory=list)
    """What the guard has set aside so far, behind `consumed` and ahead of it."""
    best: dict[str, Any] | None = None
    """Step and loss of the best evaluation so far."""
    worse: int = 0
    """Evaluations since."""


@dataclass
class Session:
    """Everything one rank holds while it trains."""

    run: Path
    recipe: Recipe
    world: World
    inputs: Inputs
    objective: Objective
    engine: Engine
    shape: Shape
    feed: Feed
    progress: Progress
    frozen: str | None
    fixed: dict[str, FixedSet]
    """By source; none where there is no validation row."""
    writer: claim.Writer | None
    """Rank 0's alone."""
    tracker: Tracker | None
    """Rank 0's alone."""
    clock: Clock
    meter: Meter
    root: Place
    """Where checkpoints go: the run's folder, or its store."""
    mirror: Mirror | None = None
    """Copies this run's checkpoints to its store."""
    timesheet: goodput.Timesheet | None = None
    """Rank 0's account of its seconds."""
    attempt: int = 0
    saved: list[str] = field(default_factory=list)
    """Names of the verified checkpoints, oldest first."""

    def say(self, text: str) -> None:
        """Put a note in the record, from rank 0: anything degraded is said."""
        if self.writer:
            self.writer.append("note", text=text)
            with suppress(OSError):  # the log's disk may be full; the record has it
                print(text, flush=True)

    def seed(self, position: int) -> None:
        """Make every random draw of the next forward a function of (seed, position of its first row)."""
        torch.manual_seed(key(self.recipe.seed, DROPOUT, max(position, 0)) >> 1)


def begin(run: Path, world: World, how: str, life: str | None = None) -> Session:
    """Assemble a session: adopt the newest whole checkpoint, build the model, open the record.

    Args:
        how: "start", by hand; or "restart" (by a supervisor, after a fault) or "takeover": an older attempt is then
            fenced, not respected.
        life: what its supervisor calls this life.

    Raises:
        UserError: the run is held by another start, or its dataset or checkpoint doesn't fit.
    """
    recipe = read_recipe(run)
    torch.set_num_threads(recipe.launch.threads)
    if recipe.engine.exact != "samples":
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling what is about to be overwritten would cost 7 % of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    if world.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = recipe.engine.exact == "samples"
    notes: list[str] = []
    clock = Clock()
    inputs = open_inputs(recipe)
    objective = objective_of(recipe, inputs.dataset)
    root = root_of(recipe, run)
    writer = agree(world, lambda: claim.Writer(run, by_hand=how == "start") if world.rank == 0 else None)
    history = writer.history if writer else None
    offered = agree(world, lambda: offers(recipe, run, history) if history else [])
    damaged: list[str] = []
    found = adopt(recipe, run, world, offered, notes, damaged)
    bf16 = recipe.engine.bf16(world.device.type == "cuda")
    shape = Shape.of(recipe, world.size)
    hosts = world.collect(socket.gethostname())
    nodes = world.told(_nodes(hosts))
    rows, lanes = recipe.train.batch_rows, recipe.data.lanes
    world = replace(world, groups=reading_groups(rows, shape.micro_batch, world.size, nodes, lanes))
    inputs.refuse_small_cache(world.lanes(lanes))
    model = model_of(recipe, inputs.vocab_size, objective.head, recipe.engine.activation_checkpointing)
    frozen = give_weights(run, recipe, model, found, world, notes)
    if recipe.ancestor and not found:
        unsure = origin_of(recipe.ancestor).refuse_other_tokenizer(inputs.tokenizer, recipe.data.label)
        notes += [unsure] if unsure else []
    counted = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad)
    kernel = model.loss_kernel if objective.token_labels else "torch"
    if recipe.objective.gather and found:
        before = history.attempt(checkpoint.attempt_of(found.name)).start if history else None
        agree(world, lambda: _refuse_other_topology(before, world.size, shape))
    groups = parameter_groups(model.named_parameters(), recipe.optimizer.weight_decay, rate_scales(recipe))
    engine = Engine(model.to(world.device), groups, recipe, world, shape.micro_batch, shape.accumulation, bf16)
    progress = Progress()
    if found:
        if why := departure(found.state["order"], inputs.order.describe(), found.state["progress"]["consumed"]):
            raise UserError(f"{recipe.data.label} doesn't give the rows that {run} was trained on: {why}")
        agree(world, lambda: found.refuse_other_model(engine.shapes()))
        engine.load(span_by_span(found), found.state["adam_step"])
        progress = Progress(**found.state["progress"])
    newest = history.attempts[-1].start if history and history.attempts else {}
    progress.avoid = world.told(newest.get("avoid", []))  # a rollback since the checkpoint added to it
    maker = for_training(recipe, objective, inputs.dataset)
    feed = Feed(
        inputs.reader(world.lanes(lanes)), maker, recipe, shape, world.rank, world.size, world.device,
        progress.consumed, progress.avoid, world.groups,
    )  # fmt: skip
    session = Session(
        run, recipe, world, inputs, objective, engine, shape, feed, progress, frozen,
        _fixed_sets(recipe, inputs, objective, shape), None, None, clock,
        _meter(recipe, inputs, objective, counted, world, bf16, clock), root,
    )  # fmt: skip
    me = {"rank": world.rank, "host": socket.gethostname(), "pid": os.getpid()}
    start = {
        "began": clock.began,
        "adopts": found.name if found else None,
        "record": found.state.get("record") if found else None,
        "step": progress.step,
        "consumed": progress.consumed,
        "avoid": progress.avoid,
        "damaged": damaged,
        "world": world.size,
        "zero_stage": engine.stage,
        "micro_batch": shape.micro_batch,
        "accumulation": shape.accumulation,
        "precision": "bf16 with fp32 master weights" if bf16 else "fp32",
        "device": _device_name(world),
        "threads": recipe.launch.threads,
        "exact": recipe.engine.exact,
        "ancestor": None if recipe.ancestor is None or found else origin_of(recipe.ancestor).ancestry(),
        "dataset": inputs.order.fingerprint,
        "nodes": nodes,
        "reading_groups": world.groups,
        "parameters": counted[0],
        "trainable": counted[1],
        "loss_kernel": kernel,
        "versions": _versions(),
        "ranks": world.collect(me),
        "supervisor": how,
        "life": life,
    }
    notes += _order_notes(session, nodes)
    if recipe.train.patience and not recipe.schedule.endless:
        notes.append(
            f"train.patience may end this run before step {recipe.train.steps:,}, to which the {recipe.schedule.kind} "
            "schedule comes down: schedule.kind=constant or inverse_sqrt know no end"
        )
    if recipe.objective.kind == "adversarial":
        notes.append(
            "EXPERIMENTAL: adversarial text generation. Such training is unstable, and tends to write few texts over "
            "and over. The loss of a step says little: look at discriminator_advantage, the validation loss, and texts"
        )
    if recipe.objective.gather:
        notes.append(
            f"objective.gather: each loss is over the {world.size} x {shape.micro_batch} rows that the ranks read at "
            "once, so this run can go on only with as many ranks and as large a micro-batch"
        )
    if nodes < len(set(hosts)) and lanes > 1:
        notes.append(
            f"{len(set(hosts))} machines don't have as many ranks each, one machine's after the other's: lanes "
            "(data.lanes) are not shared out, and each machine reads all shards"
        )
    _open_record(session, start, writer, notes)
    return session


def _refuse_other_topology(before: dict[str, Any] | None, ranks: int, shape: Shape) -> None:
    """Raise UserError where a loss over what ranks read at once would be over other rows than before; on rank 0."""
    was = (before["world"], before["micro_batch"]) if before else (ranks, shape.micro_batch)
    if was != (ranks, shape.micro_batch):
        raise UserError(
            f"objective.gather fixes the topology: this run's checkpoint was made on {was[0]} rank(s) with a "
            f"micro-batch of {was[1]}, and this start has {ranks} with {shape.micro_batch}; set launch.ranks={was[0]} "
            f"and engine.micro_batch={was[1]}"
        )


def _fixed_sets(recipe: Recipe, inputs: Inputs, objective: Objective, shape: Shape) -> dict[str, FixedSet]:
    forward = forward_rows(shape.micro_batch, recipe.model.context, inputs.vocab_size, recipe.objective.together)
    return {
        name: FixedSet(reader, min(rows, recipe.evaluate.rows or rows), objective, inputs.tokenizer, forward)
        for name, (reader, rows) in inputs.fixed.items()
    }


def _nodes(hosts: list[str]) -> int:
    """Machines, where each has as many ranks, one after the other; else 1, as if all shared one. Rank 0's alone."""
    runs = [len(list(group)) for _, group in groupby(hosts)]
    return len(runs) if len(set(runs)) == 1 and len(runs) == len(set(hosts)) else 1


def _meter(
    recipe: Recipe,
    inputs: Inputs,
    objective: Objective,
    counted: tuple[int, int],
    world: World,
    bf16: bool,
    clock: Clock,
) -> Meter:
    share = text_figures(recipe)[1] if inputs.dataset.kind == "text" else 1.0
    adversarial = objective.head.kind == "adversarial"  # its work isn't that of one reading
    mixed = adversarial or objective.head.kind == "pretraining"
    return Meter(
        clock=clock,
        steps=recipe.train.steps,
        ranks=world.size,
        counts="tokens" if objective.token_labels else "examples",
        mixed=mixed,
        tokens_per_byte=inputs.tokens_per_byte if inputs.causal_text and not mixed else None,
        epoch_tokens=inputs.epoch_tokens,
        flops=None if adversarial else flops_per_token(recipe.model, counted[0], inputs.vocab_size, counted[1], share),
        device=world.device.type,
        device_name=_device_name(world),
        precision="bf16" if bf16 else "fp32",
    )


def _order_notes(s: Session, nodes: int) -> Iterator[str]:
    """How often each source will be read, where one ends or skips, and what it costs that nodes share lanes."""
    order, rows = s.inputs.order, s.recipe.train.batch_rows
    stop = s.recipe.train.steps * rows
    if len(order.sources) > 1:
        epochs = ", ".join(f"{name} {count:.3g}" for name, count in order.read(stop).items())
        yield f"epochs of each source in {stop:,} rows: {epochs}; {len(order.stages)} stage(s)"
    for name, fill in s.inputs.fills.items():
        alone = f"; {stop:,} rows are {stop / fill.rows:.3g} epochs" if len(order.walks) == 1 else ""
        yield f"an epoch of {name} ({s.inputs.packing}): {fill}{alone}"
    yield from order.notes(stop)
    missing = [name for name in s.inputs.datasets if s.fixed and name not in s.fixed]
    if missing:
        yield f"no validation row of this context in {', '.join(missing)}: the validation loss is without it"
    if s.world.groups < nodes:
        yield (
            f"{nodes} nodes form {s.world.groups} group(s) that read lanes of their own, so each node reads 1/"
            f"{s.world.groups} of the shards: of {order.lanes} lanes (data.lanes), batches of {rows} rows and "
            f"micro-batches of {s.shape.micro_batch}, the nodes should divide the lanes, the lanes and the micro-batch "
            "the batch, and the nodes the micro-batches"
        )


def _given_up(s: Session) -> set[str]:
    """Checkpoints whose copies may go; none where a newer attempt has begun, which may be about to adopt them."""
    retired = record.load(s.run).retired
    return set() if s.writer is None or s.writer.fenced() else retired


def _device_name(world: World) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"cpu ({found[1] if found else platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def _versions() -> dict[str, str]:
    names = ("luban", "torch", "deepspeed", "numpy", "safetensors", "sentencepiece")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _open_record(s: Session, start: dict[str, Any], writer: claim.Writer | None, notes: list[str]) -> None:
    """Write the attempt's first line on rank 0, say what is degraded, and tell every rank its number."""
    agree(s.world, lambda: writer.start(**start) if writer else None)
    s.attempt = s.world.told(writer.number if writer else None)
    s.writer = writer
    store = store_of(s.recipe, s.run)
    if store and s.recipe.checkpoint.store_role == "mirror":
        s.mirror = Mirror(s.run, store, s.world.rank, lambda: _given_up(s), s.say)
    if writer is None:
        return
    history = writer.history
    s.timesheet = goodput.Timesheet(s.clock, writer, goodput.before(history, s.attempt, start))
    there = checkpoint.names(s.root)
    s.saved = history.checkpoints(there)
    if start["adopts"] is not None and start["adopts"] in s.saved:
        s.saved = s.saved[: s.saved.index(start["adopts"]) + 1]  # those after it are corrupt, or of lost steps
    checkpoint.remove(s.root, [name for name in there if name in history.retired])
    dead = claim.dead(s.run, before=s.attempt)
    checkpoint.clear_partial(s.root, dead)
    if store and s.mirror:
        with suppress(OSError):  # the mirror says when the store is out of reach
            checkpoint.clear_partial(store, dead)
            if s.saved and s.saved[-1] not in checkpoint.names(store):
                manifest = Checkpoint(s.run / checkpoint.FOLDER / s.saved[-1]).manifest
                s.mirror.offer(s.saved[-1], manifest, whole=True)
    notes = [*notes, *shortcomings(s.run)]
    shown = ("world", "zero_stage", "device", "parameters", "trainable", "dataset", "versions")
    facts = {name: start[name] for name in shown}
    s.tracker = Tracker(s.run, s.attempt, s.recipe, say=s.say, facts=facts)
    for note in notes:
        s.say(note)
    if s.shape.filler:
        rows = s.recipe.train.batch_rows
        share = s.shape.filler / (rows + s.shape.filler)
        s.say(
            f"{s.shape.filler} filler rows in every update: {s.world.size} ranks x {s.shape.micro_batch} rows x "
            f"{s.shape.accumulation} don't divide the batch of {rows} ({share:.0%} of the work)"
        )
    if start["adopts"]:
        before = history.attempt(checkpoint.attempt_of(start["adopts"])).start
        decisive = {"any": ANY, "topology": TOPOLOGY, "samples": ()}[s.recipe.engine.exact]
        changed = [
            f"{name} {before.get(name)} -> {start[name]}" for name in decisive if before.get(name) != start[name]
        ]
        if changed:
            s.say(f"the same rows from here on, but not bitwise the same sums: {'; '.join(changed)}")
    ancestor = start["ancestor"]
    if ancestor and ancestor.get("dataset") == start["dataset"]:
        s.say(
            f"a run of its own on the same shards as its ancestor, whose weights have read {ancestor['consumed']:,} "
            "rows of them: this run counts from position 0, and some rows will be seen by both"
        )
    if s.engine.extra is not None:
        memory, sent = s.engine.extra
        s.say(
            f"exact any costs each rank {memory / 2**20:.1f} MiB of memory beside one micro-batch's gradient, and "
            f"{sent / 2**20:.1f} MiB sent to other ranks in each update ({s.shape.accumulation} x the gradient)"
        )
    if not s.fixed:
        s.say("the validation split holds no row of this context: nothing is evaluated")
    s.say(
        f"attempt {s.attempt}: {s.world.size} rank(s), ZeRO {start['zero_stage']}, {start['precision']} on "
        f"{start['device']}, {start['trainable']:,} of {start['parameters']:,} parameters train, "
        f"{s.shape.accumulation} x {s.shape.micro_batch} rows a rank, loss by {start['loss_kernel']}"
    )
