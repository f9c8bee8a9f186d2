"""What a run claims, checked: checkpoints against their manifests, the record's chain, the dataset, another run.

The claim: the steps that made the weights read each position of [0, consumed) exactly once, minus the intervals that
the record names as skipped. Each step's event holds a digest of the tokens that its ranks really read; here the order
is computed anew, the rows are read again, and the digests must agree.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import settings
from data.errors import UserError
from data.order.departure import departure
from data.order.permutation import WORD
from data.publish import write_json
from data.reader import LocalReader
from data.remote.patience import Unreachable
from trainer import record
from trainer.checkpoint import MOMENTS, WEIGHT, Checkpoint, CorruptCheckpoint
from trainer.feed import row_digest
from trainer.inputs import Inputs, open_inputs
from trainer.mirror import places
from trainer.place import Place, Store
from trainer.recipe import Recipe
from trainer.run import departures, find, held_by, read_recipe
from trainer.schedule import learning_rate

PROOF = "proof.json"
CHUNK = 4096  # rows read at once


@dataclass(frozen=True)
class Check:
    """One thing compared."""

    name: str
    compared: str
    """How much of it, in words."""
    equal: bool
    largest_difference: float = 0.0
    detail: str = ""
    """The first thing that isn't as it should be."""

    def __str__(self) -> str:
        mark = "ok  " if self.equal else "FAIL"
        more = f": {self.detail}" if self.detail else ""
        return f"{mark} {self.name} ({self.compared}){more}"


def verify_run(name: str, against: str | None, say: Callable[[str], Any]) -> bool:
    """Check a run, and compare it with another where one is named; writes `proof.json` for the latter.

    Returns:
        Whether everything is as it was promised.
    """
    run = find(name)
    other = None if against is None else find(against)
    if other is not None and other.samefile(run):
        raise UserError(f"{name} is {against}: compare it with another run of the same recipe")
    checks = []
    for check in check_run(run):
        say(str(check))
        checks.append(check)
    if other is not None:
        compared = []
        for check in compare(run, other):
            say(str(check))
            compared.append(check)
        passed = all(check.equal for check in compared)
        proof = {
            "format": "luban-proof", "version": 1, "run": run.name, "against": other.name, "passed": passed,
            "attempts": len(record.load(run).attempts), "attempts_against": len(record.load(other).attempts),
            "checks": [asdict(check) for check in compared], "time": time.time(),
        }  # fmt: skip
        try:
            write_json(run / PROOF, proof)
        except OSError as error:  # what was found holds without it, but a report will not have it
            say(f"note: {run / PROOF} can't be written ({error.strerror or error}): the comparison is not kept")
        checks += compared
    passed = all(check.equal for check in checks)
    say(f"{run.name}: {'everything holds' if passed else 'NOT as promised'}, {len(checks)} checks")
    return passed


def check_run(run: Path) -> Iterator[Check]:
    """Checkpoints, lineage, what was read, and the dataset, one check after the other."""
    recipe = read_recipe(run)
    copies = places(recipe, run)
    history = record.load(run)  # after them: a run that is alive may save another
    names = history.checkpoints(dict(copies))
    checked = {place: _checkpoint_problems(place, history) for name, place in copies if name in names}
    problems = [problem for found in checked.values() for problem in found]
    last = history.newest_saved()
    if last is not None and last not in names:
        problems.insert(0, f"{last}, the last that the record names, is missing")
    problems += [
        f"{name} is there, and no line of the record leads to it: attempts/ was cut short"
        for name in history.unled(dict(copies))
    ]
    if not names and not problems:
        problems.append("there is none yet, so there is nothing to verify")
    count = f"{len(names)} re-read" + (f" in {len(checked)} copies" if len(checked) > len(names) else "")
    gone = [name for name in history.manifests if name not in {*names, last, *history.retired, *history.damaged}]
    count += f", {len(gone)} kept by the record and not there: {', '.join(gone[:3])}" if gone else ""
    yield Check("checkpoints", count, not problems, detail="; ".join(problems[:3]))
    if recipe.checkpoint.store and recipe.checkpoint.store_role == "mirror" and names:
        far = [name for name, place in copies if name in names and isinstance(place, Store)]
        missing = [name for name in names if name not in far]
        yield Check("store", f"{len(far)} of {len(names)} checkpoints copied to {recipe.checkpoint.store}",
                    names[-1] in far, detail=f"{', '.join(missing)} not there" if missing else "")  # fmt: skip
    whole = [Checkpoint(place) for place, found in checked.items() if not found]
    if not whole:
        return
    state = whole[-1].state["progress"]
    lineage = history.lineage(state["consumed"])
    yield _lineage(lineage, state)
    yield check_seals(history, whole[-1].state.get("record"))
    yield _recipe(recipe, whole[-1])
    yield _metrics(run, lineage, recipe)
    try:
        inputs = open_inputs(recipe)
    except (UserError, Unreachable) as error:
        yield Check("dataset", recipe.data.label, False, detail=str(error))
        return
    why = departure(whole[-1].state["order"], inputs.order.describe(), state["consumed"])
    stages = f"{len(inputs.order.stages)} stage(s) of {len(inputs.order.sources)} source(s)"
    yield Check("order", f"{stages}, as {whole[-1].name} was trained with", why is None, detail=why or "")
    if why:
        return
    yield _once(inputs, state["consumed"])
    yield _rows(inputs, lineage)
    damaged = [problem for dataset in inputs.sources for problem in dataset.verify()]
    held = ", ".join(dataset.folder.name for dataset in inputs.sources)
    yield Check("dataset", f"{held}: every shard re-read", not damaged, detail="; ".join(damaged[:3]))
    lost = sum(last - first + 1 for _, first, last in history.lost)
    attempts = len(history.attempts)
    said = f"{attempts} attempt{'' if attempts == 1 else 's'}"
    yield Check("record", f"{said}, {len(lineage)} updates kept, {lost} lost and redone", True)


def compare(run: Path, other: Path) -> Iterator[Check]:
    """Everything that two runs of one recipe must share, at the newest step of which both have a checkpoint."""
    recipes = settings.differences(read_recipe(other), read_recipe(run))
    odd = [f"{name} {old!r} and {new!r}" for name, kind, old, new in recipes if kind != "free"]
    yield Check("recipes", "every setting but the free ones", not odd, detail="; ".join(odd))
    mine, theirs = (_by_step(path) for path in (run, other))
    steps = sorted(set(mine) & set(theirs))
    if not steps:
        yield Check("checkpoints", "steps of which both have one", False, detail="none")
        return
    a, b = mine[steps[-1]], theirs[steps[-1]]
    events = [record.load(path).lineage(held.state["progress"]["consumed"]) for path, held in ((run, a), (other, b))]
    yield from _events(*events)
    yield from _tensors(a, b)
    if a.manifest["base"] or b.manifest["base"]:
        same = a.manifest["base"] == b.manifest["base"]
        yield Check("frozen weights", "by digest", same, detail="" if same else "they differ")
    for name in ("adam_step", "groups", "schedule", "order", "random", "tokenizer"):
        same = a.state[name] == b.state[name]
        yield Check(name, f"at step {steps[-1]}", same, detail="" if same else f"{a.state[name]} and {b.state[name]}")
    counters = ("step", "consumed", "tokens", "skipped")
    odd = [name for name in counters if a.state["progress"][name] != b.state["progress"][name]]
    yield Check("counters", ", ".join(counters), not odd, detail=", ".join(odd))


def _checkpoint_problems(place: Place, history: record.History) -> list[str]:
    try:
        return Checkpoint(place, history.manifests.get(place.name)).problems(past_cache=True)
    except CorruptCheckpoint as error:
        return [str(error)]


def _lineage(lineage: list[dict[str, Any]], state: dict[str, Any]) -> Check:
    """The record covers [0, consumed) without gap or overlap, and its skipped intervals are the checkpoint's."""
    reached = step = 0
    problem = ""
    skipped = []
    for event in lineage:
        first, last = event["positions"]
        step += event["verdict"] == "applied"
        if event["verdict"] == "skipped":
            skipped.append([first, last])
        if first != reached:
            problem = problem or f"positions {min(first, reached)} to {max(first, reached)} before step {event['step']}"
        if event["step"] != step:
            problem = problem or f"step {event['step']} where {step} was expected"
        reached = last
    if not problem and (reached, step) != (state["consumed"], state["step"]):
        problem = f"it ends at position {reached}, step {step}; the checkpoint at {state['consumed']}, {state['step']}"
    if not problem and skipped != state["skipped"]:
        problem = f"skipped intervals {skipped}, in the checkpoint {state['skipped']}"
    return Check(
        "lineage", f"positions [0, {reached:,}) in {len(lineage)} updates, once each", not problem, detail=problem
    )


def check_seals(history: record.History, seal: dict[str, Any] | None) -> Check:
    """The record's bytes are those that the newest checkpoint sealed, and what its attempt adopted, and so on back.

    A checkpoint holds the SHA-256 of its attempt's lines up to itself, and an attempt's first line the seal of the
    checkpoint it adopts: so a line edited later is found even where metrics.jsonl was edited to agree with it.
    """
    problem, sealed = "", 0
    while seal is not None and not problem:
        if record.digest(history.run, seal["attempt"], seal["bytes"]) != seal["sha256"]:
            problem = f"attempts/{seal['attempt']:04d}.jsonl is not as it was written: restore it from a copy"
        else:
            sealed += seal["bytes"]
            seal = history.attempt(seal["attempt"]).start.get("record")
    return Check("seals", f"{sealed:,} bytes of the record by their SHA-256", not problem, detail=problem)


def _recipe(recipe: Recipe, newest: Checkpoint) -> Check:
    """recipe.yaml is the one that the newest checkpoint was trained with, free settings aside."""
    then = settings.validate(Recipe, newest.state["recipe"], newest.name)
    odd = [f"{name} {old!r} then, {new!r} now" for name, kind, old, new in departures(then, recipe) if kind != "free"]
    return Check("recipe", f"as {newest.name} was trained with", not odd, detail="; ".join(odd[:3]))


def _metrics(run: Path, lineage: list[dict[str, Any]], recipe: Recipe) -> Check:
    """Each update's learning rate is the schedule's, and metrics.jsonl says of a step what the record says."""
    problem = ""
    for event in lineage:
        if event["verdict"] == "applied":
            due = learning_rate(event["step"] - 1, recipe.schedule, recipe.optimizer.lr, recipe.train.steps)
            if event["lr"] != due:
                problem = problem or f"step {event['step']} has learning rate {event['lr']}, the schedule {due}"
    known = {event["step"]: event for event in lineage if event["verdict"] == "applied"}
    lines = record.load(run).metrics()
    for number, line in enumerate(lines):
        if line.get("line") != number:
            problem = problem or f"metrics.jsonl lacks line {number}"
    written = {(line["attempt"], line["train/step"]): line for line in lines if line.get("kind") == "train"}
    lost = {(attempt, step) for attempt, first, last in record.load(run).lost for step in range(first, last + 1)}
    for (attempt, step), line in written.items():
        event = known.get(step)
        if (
            event
            and (attempt, step) not in lost
            and (line["train/loss"], line["train/lr"]) != (event["loss"], event["lr"])
        ):
            problem = problem or f"metrics.jsonl says another loss or learning rate of step {step} than the record"
    if known and not written:
        problem = problem or "metrics.jsonl has no line of any update"
    return Check("metrics", f"{len(written)} lines against the record and the schedule", not problem, detail=problem)


def _once(inputs: Inputs, consumed: int) -> Check:
    """No row of a source twice in an epoch, and no shard in two row lengths, whose rows would overlap."""
    order = inputs.order
    seen: dict[tuple[int, int, int], list[np.ndarray]] = {}
    for start in range(0, consumed, CHUNK):
        places = order.places(np.arange(start, min(start + CHUNK, consumed)))
        for walk, epoch in set(zip(places.walk.tolist(), places.epoch.tolist(), strict=True)):
            mine = (places.walk == walk) & (places.epoch == epoch)
            rows = places.shard[mine] << 40 | places.row[mine]
            seen.setdefault((order.walks[walk].source, epoch, walk), []).append(rows)
    held = {name: np.concatenate(parts) for name, parts in seen.items()}
    repeated = sum(len(rows) - len(np.unique(rows)) for rows in held.values())
    for source, epoch in {name[:2] for name in held}:
        shards = [np.unique(rows >> 40) for name, rows in held.items() if name[:2] == (source, epoch)]
        together = np.concatenate(shards)
        repeated += len(together) - len(np.unique(together))
    epochs = ", ".join(f"{count:.2f} epochs of {name}" for name, count in order.read(consumed).items())
    return Check(
        "exactly once", f"{consumed:,} rows, {epochs}, no row twice in one", not repeated,
        detail=f"{repeated} repetitions" if repeated else "",
    )  # fmt: skip


def _rows(inputs: Inputs, lineage: list[dict[str, Any]]) -> Check:
    """The tokens each update read, read again."""
    with closing(inputs.reader()) as reader:
        return _read_again(reader, lineage)


def _read_again(reader: LocalReader, lineage: list[dict[str, Any]]) -> Check:
    for event in lineage:
        if event["rows"] is None:
            continue  # passed over by the guard, never read
        first, last = event["positions"]
        total = 0
        for start in range(first, last, CHUNK):
            total += row_digest(reader.rows(np.arange(start, min(start + CHUNK, last))))
        if f"{total & WORD:016x}" != event["rows"]:
            return Check("rows", "digest of each update's tokens", False, detail=f"step {event['step']} read others")
    read = sum(event["rows"] is not None for event in lineage)
    return Check("rows", f"tokens of {read} updates read again, digests equal", True)


def _by_step(run: Path) -> dict[int, Checkpoint]:
    """The whole checkpoints of a run."""
    history = record.load(run)
    held = [Checkpoint(place) for place in held_by(run).values() if not _checkpoint_problems(place, history)]
    return {found.step: found for found in held}


def _events(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> Iterator[Check]:
    for name in ("positions", "rows", "labels", "verdict", "lr", "loss", "grad_norm"):
        odd = next((x["step"] for x, y in zip(a, b, strict=False) if x[name] != y[name]), None)
        if odd is None and len(a) != len(b):
            odd = min(len(a), len(b)) + 1
        difference = 0.0
        if name in ("lr", "loss", "grad_norm"):
            difference = max((abs((x[name] or 0) - (y[name] or 0)) for x, y in zip(a, b, strict=False)), default=0.0)
        yield Check(
            f"{name} of each step", f"{len(a)} updates", odd is None, difference,
            "" if odd is None else f"first differs at step {odd}, largest difference {difference:.3g}",
        )  # fmt: skip


def _tensors(a: Checkpoint, b: Checkpoint) -> Iterator[Check]:
    shapes = {name: tuple(shape) for name, shape in a.manifest["parameters"].items()}
    if shapes != {name: tuple(shape) for name, shape in b.manifest["parameters"].items()}:
        yield Check("parameters", "names and shapes", False, detail="of different models")
        return
    largest = dict.fromkeys((WEIGHT, *MOMENTS), 0.0)
    first: dict[str, str] = {}
    values = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        values += count
        x, y = a.read(name, shape, 0, count), b.read(name, shape, 0, count)
        for part in largest:
            if not torch.equal(x[part].view(torch.int32), y[part].view(torch.int32)):
                first.setdefault(part, name)
                largest[part] = max(largest[part], float((x[part] - y[part]).abs().max()))
    for part, difference in largest.items():
        label = "weights" if part == WEIGHT else f"moments {part}"
        detail = (
            f"{first[part]} is the first that differs, largest difference {difference:.3g}" if part in first else ""
        )
        yield Check(
            label, f"{len(shapes)} tensors, {values:,} values, bit by bit", part not in first, difference, detail
        )


def read_proof(run: Path) -> dict[str, Any] | None:
    """The last comparison of a run with another, if there was one."""
    path = run / PROOF
    return json.loads(path.read_text()) if path.exists() else None
