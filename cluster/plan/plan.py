"""`luban plan`: what a recipe will need and cost, before anything is spent.

Memory is arithmetic from the recipe and the sizes that the engine itself reads; time comes from a measurement or a
stated efficiency, never from a guess: what can't be known is "n/a". Nothing heavier than the recipe is loaded, so it
answers in half a second, dataset or not.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.plan import memory, pace
from cluster.plan.devices import Device, device
from cluster.plan.memory import Setup
from cluster.plan.pace import Pace
from cluster.plan.scale import Scale, scale
from data.errors import UserError
from data.recipe import TokenizerTraining
from trainer.objectives.rows import text_figures, text_row
from trainer.recipe import Recipe
from trainer.run import dataset_path
from trainer.units import duration, short, size

GB = 1e9
FULL = 0.9
"""Of a device's memory that a plan fills: the rest is for its context, the communication library and fragments."""
PROCESS = {"cpu": 350e6}
"""Resident bytes of Python, torch and DeepSpeed before a model; measured on a CPU. On a GPU they lie in the host."""
MOST_RANKS = 131072


@dataclass(frozen=True)
class Question:
    """What a person may state beside the recipe."""

    device: str | None = None
    memory_gb: float | None = None
    efficiency: float | None = None
    like: Path | None = None
    measure: bool = False
    price: float | None = None
    """Of one GPU for an hour, in any currency."""
    watts: float | None = None
    disk_gb_s: float | None = None
    """To storage, from all ranks together."""
    copy_gb_s: float | None = None
    """From a rank's device to its host."""
    ranks_per_node: int | None = None


@dataclass(frozen=True)
class Choice:
    """Settings that would fit."""

    ranks: int
    zero_stage: int
    micro_batch: int
    checkpointing: bool
    peak_bytes: int
    nodes: int | None = None

    def words(self) -> str:
        """As settings to type."""
        said = [
            f"engine.zero_stage={self.zero_stage}", f"engine.micro_batch={self.micro_batch}",
            f"engine.activation_checkpointing={str(self.checkpointing).lower()}", f"launch.ranks={self.ranks}",
        ]  # fmt: skip
        return " ".join([*said, *([f"launch.nodes={self.nodes}"] if self.nodes else [])])


@dataclass
class Plan:
    """All that is known; None is not known."""

    recipe: str
    parameters: int
    trainable: int
    vocab_size: int
    vocab_source: str
    device: str
    ranks: int
    zero_stage: int
    precision: str
    micro_batch: int
    accumulation: int
    filler: int
    context: int
    checkpointing: bool
    tokens_per_update: int
    rest: dict[str, int]
    peak: dict[str, int]
    peak_at: str
    process_bytes: int
    host_buffer: int
    limit_bytes: int | None
    by_stage: list[dict[str, int | None]]
    checkpoint_bytes: int
    kept_bytes: int
    """Of all that are kept, at least."""
    update_flops: float
    scale: Scale
    step_s: float | None = None
    step_source: str = "give --measure, --like RUN, or --efficiency with a device whose peak is known"
    tokens_per_day: float | None = None
    total_s: float | None = None
    epochs: float | None = None
    stall_s: float | None = None
    write_s: float | None = None
    cost: float | None = None
    energy_kwh: float | None = None
    measured: dict[str, Any] | None = None
    suggestion: Choice | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def peak_bytes(self) -> int:
        """Of one rank's device, at the worst moment."""
        return sum(self.peak.values()) + self.process_bytes

    @property
    def fits(self) -> bool | None:
        """Whether it does; None where nobody said what there is."""
        return None if self.limit_bytes is None else self.peak_bytes <= self.limit_bytes


def plan(recipe: Recipe, asked: Question) -> Plan:
    """Everything about `recipe`.

    Raises:
        UserError: an unknown device, an efficiency without a peak, a dataset of another vocabulary, an objective whose
            work isn't that of reading each row once.
    """
    if recipe.objective.kind == "adversarial":
        raise UserError(
            "a plan counts one network that reads each row once, and objective.kind adversarial trains two and samples "
            "from one: start it for a few updates, and look at speed and memory"
        )
    vocab_size, source, tokens = vocabulary(recipe)
    where = device(asked.device, recipe.launch.gpus_per_rank > 0)
    setup = Setup.of(recipe, vocab_size, recipe.launch.ranks, where.gpu)
    worst = memory.peak(setup)
    total = asked.memory_gb or where.memory_gb or (recipe.launch.memory_gb if not where.gpu else 0) or None
    found = Plan(
        recipe=recipe.name, parameters=setup.parameters, trainable=sum(setup.trained.values()), vocab_size=vocab_size,
        vocab_source=source, device=where.name, ranks=setup.ranks, zero_stage=setup.stage,
        precision="bf16 with fp32 master weights" if setup.bf16 else "fp32", micro_batch=setup.shape.micro_batch,
        accumulation=setup.shape.accumulation, filler=setup.shape.filler, context=recipe.model.context,
        checkpointing=recipe.engine.activation_checkpointing,
        tokens_per_update=recipe.train.batch_rows * text_figures(recipe)[0], rest=memory.at_rest(setup),
        peak=worst.held, peak_at=worst.name,
        process_bytes=0 if where.gpu else round(PROCESS["cpu"]) + memory.host_buffer(setup),
        host_buffer=memory.host_buffer(setup), limit_bytes=None if total is None else round(FULL * total * GB),
        by_stage=list(_by_stage(recipe, vocab_size, where.gpu)), checkpoint_bytes=memory.checkpoint_bytes(setup),
        kept_bytes=memory.checkpoint_bytes(setup) * (recipe.checkpoint.keep_last + recipe.checkpoint.keep_best),
        update_flops=pace.update_flops(setup), scale=scale(setup),
    )  # fmt: skip
    known = _pace(found, setup, where, asked)
    if known is not None:
        _time(found, recipe, known, tokens, where, asked)
    copy, disk = asked.copy_gb_s, asked.disk_gb_s
    if found.measured:
        copy, disk = copy or found.measured["copied_gb_s"], disk or found.measured["written_gb_s"]
    if copy:
        found.stall_s = found.host_buffer / (copy * GB)
    if disk:
        found.write_s = found.checkpoint_bytes / (disk * GB)
    if setup.shape.filler:
        found.notes.append(
            f"{setup.shape.filler} filler rows in every update: the ranks' forwards don't divide the batch"
        )
    if where.gpu:
        found.notes.append("GPU memory is arithmetic over CPU kernels, not yet held against a GPU")
    if found.limit_bytes is not None:
        found.suggestion = suggest(recipe, vocab_size, where, found.limit_bytes, asked.ranks_per_node)
    return found


def vocabulary(recipe: Recipe) -> tuple[int, str, int | None]:
    """(rows of the embedding, how that is known, tokens of the training splits or None); a dataset needn't be there."""
    from data.dataset import known

    found = [known(place, recipe.data.access.cache) for place in dataset_path(recipe).data.places.values()]
    built: list[dict[str, Any]] = [info for info in found if info] if all(found) else []
    tokens = sum(info["splits"]["train"]["tokens"] for info in built) if built else None
    if recipe.model.vocab_size:
        return recipe.model.vocab_size, "model.vocab_size", tokens
    if built:
        return built[0]["tokenizer"]["padded_vocab_size"], f"the tokenizer of {recipe.data.label}", tokens
    assumed = TokenizerTraining().vocab_size
    return assumed, f"assumed: {recipe.data.label} isn't built; state model.vocab_size", None


def _by_stage(recipe: Recipe, vocab_size: int, gpu: bool) -> Iterator[dict[str, int | None]]:
    """Peak bytes of a rank at each stage, without and with activation checkpointing; None where it is refused."""
    for stage in (0, 1, 2, 3):
        line: dict[str, int | None] = {"zero_stage": stage}
        refused = stage == 0 and (recipe.engine.bf16(gpu) or recipe.engine.exact == "any")
        for name, checkpointing in (("peak", False), ("peak_checkpointing", True)):
            setup = _varied(recipe, vocab_size, gpu, zero_stage=stage, activation_checkpointing=checkpointing)
            line[name] = None if refused else memory.peak(setup).total
        yield line


def _varied(recipe: Recipe, vocab_size: int, gpu: bool, ranks: int | None = None, **engine: Any) -> Setup:
    changed = recipe.model_copy(update={"engine": recipe.engine.model_copy(update=engine)})
    return Setup.of(changed, vocab_size, ranks or recipe.launch.ranks, gpu)


def suggest(recipe: Recipe, vocab_size: int, where: Device, limit: int, per_node: int | None = None) -> Choice | None:
    """Settings that fit into `limit` bytes a rank, on as few ranks as the recipe's doubled; None where none do.

    Of those that fit on equally many ranks: without recomputing before with, more rows of a forward before fewer, a
    lower stage (less is sent) before a higher one.
    """
    per_node = per_node or (recipe.launch.ranks // recipe.launch.nodes if recipe.launch.nodes > 1 else None)
    ranks = recipe.launch.ranks
    while ranks <= MOST_RANKS:
        rows = Setup.of(recipe, vocab_size, ranks, where.gpu).shape.micro_batch
        sizes = sorted({rows, *(2**power for power in range(rows.bit_length()) if 2**power < rows)}, reverse=True)
        for checkpointing in (False, True):
            for micro_batch in sizes:
                for stage in (1, 2, 3):
                    setup = _varied(
                        recipe, vocab_size, where.gpu, ranks, zero_stage=stage, micro_batch=micro_batch,
                        activation_checkpointing=checkpointing,
                    )  # fmt: skip
                    process = 0 if where.gpu else PROCESS["cpu"] + memory.host_buffer(setup)
                    held = memory.peak(setup).total + round(process)
                    if held <= limit:
                        nodes = -(-ranks // per_node) if per_node else None
                        return Choice(ranks, stage, micro_batch, checkpointing, held, nodes)
        ranks *= 2
    return None


def _pace(found: Plan, setup: Setup, where: Device, asked: Question) -> Pace | None:
    if asked.measure:
        from cluster.plan.measure import measure
        from trainer.run import home

        seen = measure(setup, home())
        found.measured = asdict(seen)
        if seen.device != where.name and where.gpu:
            found.notes.append(f"measured on {seen.device}, which isn't {where.name}: its speed says nothing about it")
            return None
        if seen.ranks < setup.ranks:
            found.notes.append(
                f"measured on {seen.ranks} of {setup.ranks} ranks: what a network between them costs isn't in it"
            )
        return Pace(seen.step_s, f"measured here, median of a few updates on {seen.ranks} rank(s) of {seen.device}")
    if asked.like is not None:
        from trainer.run import read_recipe

        theirs = read_recipe(asked.like)
        return pace.like(setup, asked.like, theirs, vocabulary(theirs)[0], where.name)
    if asked.efficiency is not None:
        return pace.stated(setup, where.peak("bf16" if setup.bf16 else "fp32"), asked.efficiency, where.name)
    return None


def _time(found: Plan, recipe: Recipe, known: Pace, tokens: int | None, where: Device, asked: Question) -> None:
    """What follows from the seconds of an update."""
    found.step_s, found.step_source = known.step_s, known.source
    found.total_s = known.step_s * recipe.train.steps
    found.tokens_per_day = found.tokens_per_update / known.step_s * 86400
    device_hours = found.total_s / 3600 * found.ranks
    if tokens:
        _, stride = text_row(recipe, recipe.model.context)
        found.epochs = stride * recipe.train.batch_rows * recipe.train.steps / tokens
    if asked.price is not None:
        found.cost = asked.price * device_hours
    watts = asked.watts or where.watts
    if watts is not None:
        found.energy_kwh = watts * device_hours / 1000


def refusal(found: Plan) -> str | None:
    """Why a recipe can't be run on what there is, by how much, and what would fit; None where it fits."""
    if found.fits is not False:
        return None
    assert found.limit_bytes is not None
    over = found.peak_bytes - found.limit_bytes
    chosen = found.suggestion
    would = f"this would fit: {chosen.words()}" if chosen else "no stage, micro-batch or number of ranks would"
    return (
        f"{found.recipe} doesn't fit: a rank takes {_gb(found.peak_bytes)} at its peak ({found.peak_at}), "
        f"{_gb(over)} more than the {_gb(found.limit_bytes)} that are to be filled; {would}"
    )


def as_json(found: Plan) -> dict[str, Any]:
    """Every figure under its name, in bytes and seconds; what isn't known is null."""
    return asdict(found) | {"peak_bytes": found.peak_bytes, "fits": found.fits, "full": FULL}


def text(found: Plan) -> str:
    """The plan as a person reads it."""
    lines = [
        f"{found.recipe}: {short(found.parameters)} parameters ({short(found.trainable)} train), vocabulary "
        f"{found.vocab_size:,} ({found.vocab_source})",
        f"{found.ranks} rank(s) of {found.device}, {found.precision}, ZeRO {found.zero_stage}, "
        f"{found.accumulation} x {found.micro_batch} rows of {found.context} tokens a rank, activation checkpointing "
        f"{'on' if found.checkpointing else 'off'}",
        "",
        f"{'memory of a rank':<18}{'at rest':>12}{'at its peak':>14}",
    ]
    for name, meaning in memory.CATEGORIES.items():
        if found.rest.get(name) or found.peak.get(name):
            shown = f"{size(found.rest.get(name, 0)):>12}{size(found.peak.get(name, 0)):>14}"
            lines.append(f"  {name:<16}{shown}  {meaning}")
    if found.process_bytes:
        shown = f"{size(found.process_bytes):>12}{size(found.process_bytes):>14}"
        lines.append(f"  {'process':<16}{shown}  Python and libraries (about), the saver's buffer")
    total = f"{size(sum(found.rest.values()) + found.process_bytes):>12}{size(found.peak_bytes):>14}"
    lines.append(f"  {'total':<16}{total}  the peak is the {found.peak_at}")
    if found.limit_bytes is not None:
        share = found.peak_bytes / found.limit_bytes
        lines.append(
            f"  {'fits' if found.fits else 'DOES NOT FIT':<16}{share:.0%} of {_gb(found.limit_bytes)} to be filled"
        )
    if not found.process_bytes:
        lines.append(f"  {'host buffer':<16}{size(found.host_buffer):>12}{'':>14}  what is being saved, pinned")
    lines += ["", f"{'peak by stage':<18}{'plain':>12}{'checkpointing':>14}"]
    for line in found.by_stage:
        lines.append(
            f"  ZeRO {line['zero_stage']}          {_size(line['peak']):>12}{_size(line['peak_checkpointing']):>14}"
        )
    lines += ["", *_times(found), "", *_growth(found)]
    if found.suggestion:
        lines += ["", f"suggested: {found.suggestion.words()}  ({_gb(found.suggestion.peak_bytes)} a rank)"]
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _times(found: Plan) -> list[str]:
    unknown = "n/a"
    step = unknown if found.step_s is None else f"{found.step_s:.4g} s"
    rate = unknown if found.tokens_per_day is None else f"{short(found.tokens_per_day)} tokens a day"
    whole = unknown if found.total_s is None else duration(found.total_s)
    epochs = f"; {found.epochs:.3g} epochs" if found.epochs else ""
    limit = None if found.total_s is None else pace.minutes(found.total_s / 3600)
    energy = unknown if found.energy_kwh is None else f"{found.energy_kwh:,.4g} kWh, estimated: rated power throughout"
    lines = [
        f"update      {step} ({found.step_source})",
        f"speed       {rate}; {found.tokens_per_update:,} tokens an update",
        f"whole run   {whole}, evaluations and saves not in it{epochs}",
        f"on Slurm    {unknown if limit is None else f'launch.time_limit_minutes={limit} would do it in one turn'}",
        f"checkpoint  {size(found.checkpoint_bytes)} each, {size(found.kept_bytes)} kept; an update waits "
        f"{_seconds(found.stall_s)}, the disk takes {_seconds(found.write_s)}",
        f"energy      {energy}",
        f"cost        {unknown if found.cost is None else f'{found.cost:,.2f}'}",
    ]
    if found.measured:
        held = found.measured["peak_bytes"]
        lines.append(f"measured    {size(held)} more in a rank at its peak than before the model")
    return lines


def _growth(found: Plan) -> list[str]:
    grown = found.scale
    return [
        f"at {grown.ranks:,} ranks: a checkpoint is {grown.files:,} files, its manifest {size(grown.manifest_bytes)}; "
        f"a rank opens {grown.opened:,} of them to go on, {grown.opened_half:,} on half as many ranks",
        f"an attempt's first line has {size(grown.start_bytes)}; {grown.logs:,} logs; {grown.sockets:,} sockets a rank",
    ]


def _seconds(value: float | None) -> str:
    return "n/a" if value is None or math.isnan(value) else f"{value:.3g} s"


def _size(value: int | None) -> str:
    return "refused" if value is None else size(value)


def _gb(count: float) -> str:
    return f"{count / GB:.3g} GB"


def parsed_run(name: str | None) -> Path | None:
    """The run that `--like` names. Raises UserError where there is none."""
    from trainer.run import find

    return find(name) if name else None


def check(asked: Question) -> None:
    """Raises UserError where what was stated can't be."""
    if sum((asked.measure, asked.like is not None, asked.efficiency is not None)) > 1:
        raise UserError("--measure, --like and --efficiency each say how fast it is: give one of them")
