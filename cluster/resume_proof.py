"""Proof on one's own recipe that resuming changes nothing: two short trainings, one of them killed in the middle.

Three lives in a scratch folder, each started as the local launcher starts any run:

    straight     N + M updates, never interrupted
    killed       saves after update N and goes on until a rank is killed (SIGKILL), one recorded update later at least
    resumed      adopts the checkpoint at N, does the lost updates again, and ends at N + M

The schedule is the recipe's: a life ends early because its ranks are told so (`--until`), never because the run was
made shorter. The killed life has no end of its own and saves nothing after N (`--save-at`), so that the kill always
finds it running and always costs updates, however fast a step is. What is compared is in `trainer.verify.compare`, and
what must be equal in `trainer.promise`. Three lives of a tiny model take 28 s on two idle cores, nearly all of it
the start of processes.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.hold import hold
from cluster.job import DONE, STOPPED, Job, training_job
from cluster.on_local import LocalRanks
from cluster.supervisor import Supervisor
from data import settings
from data.errors import UserError
from data.progress import Progress, for_this_stream
from data.publish import published
from trainer import checkpoint, jsonl, record
from trainer.promise import Promise, Ruling, Topology, other_checks, promised, rulings
from trainer.recipe import Recipe
from trainer.run import FILE, find, folder, open_run, read_recipe
from trainer.units import duration, size
from trainer.verify import Check, compare

STEPS = 8  # updates before the kill, and after, where nobody says
ENDLESS = 1_000_000  # updates that the killed life would do if nobody killed it
ROWS, PROMPTS, SAMPLE_TOKENS = 64, 1, 16  # most of each in an evaluation: it is to happen, not to measure
BYTES_PER_WEIGHT = 12  # of a checkpoint
CHECKPOINTS = 3  # the straight run's last, and the other's at N and N + M


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    run: Path
    recipe: Recipe
    before: int
    """Updates before the kill."""
    after: int
    """Updates after the resume that are compared."""
    begun: Topology
    """Of the straight run, and of the other until it is killed."""
    resumed: Topology
    promise: Promise

    @property
    def last(self) -> int:
        """The update at which everything is compared."""
        return self.before + self.after

    def __str__(self) -> str:
        return (
            f"{self.run.name}: {self.last} updates straight on {self.begun}; beside them {self.before}, a rank killed, "
            f"and {self.after} resumed on {self.resumed}; the learning rate is the recipe's, of "
            f"{self.recipe.train.steps:,} updates\npromised: {self.promise}"
        )


def prove_resume(
    name: str, steps: str | None, ranks: str | None, zero: int | None, keep: bool, say: Callable[[str], Any]
) -> bool:
    """Train twice, once with a kill, and compare. Prints what it will do, each check, and what came of it.

    Args:
        name: a run, whose recipe is taken; its folder isn't touched.
        steps: "N,M", or one number for both.
        ranks: "A,B": begin on A ranks, as the straight run does, and go on with B; None: on the recipe's.
        zero: the ZeRO stage at which it goes on; None: the recipe's.
        keep: leave the scratch folder.

    Returns:
        Whether the promise was kept.

    Raises:
        UserError: there is no such run, it can't be scaled down so, or there is no room on the disk.
    """
    began = time.monotonic()
    proposed = plan(name, steps, ranks, zero)
    say(str(proposed))
    with _scratch(proposed, keep, say) as place:
        say(f"in {place.folder} ({'kept' if keep else 'removed afterwards, unless the promise is broken'})")
        found = list(_prove(proposed, place.folder))
        for line in table(found):
            say(line)
        broken = [ruling.check for ruling in found if ruling.broken]
        place.failed = bool(broken)
    took = f"{len(found)} checks in {duration(time.monotonic() - began)}"
    if not broken:
        say(f"{proposed.run.name}: resuming changes nothing that was promised, {took}")
        return True
    largest = max(broken, key=lambda check: check.largest_difference)
    more = f"; the largest difference is {largest.largest_difference:.3g}, of {largest.name}"
    say(
        f"{proposed.run.name}: the promise is BROKEN, {took}; first by {broken[0].name}: {broken[0].detail}"
        + (more if largest.largest_difference else "")
        + f"; both runs lie in {place.folder}"
    )
    return False


def plan(name: str, steps: str | None, ranks: str | None, zero: int | None) -> Plan:
    """Read what was asked for. Raises UserError naming what is wrong with it."""
    run = next((path for path in (folder(name), Path(name)) if path.is_dir() and not (path / FILE).is_file()), None)
    if run is not None:
        raise UserError(f"{run} holds no {FILE}: a proof trains by a run's recipe; restore it, or name another run")
    run = find(name)
    recipe = read_recipe(run)
    half = max(1, recipe.train.steps // 2)
    before, after = _numbers("--steps", steps, "8,4, or 8 for both") if steps else (min(STEPS, half),) * 2
    if before + after > recipe.train.steps:
        raise UserError(
            f"--steps {before},{after} are {before + after} updates, and {run.name} has {recipe.train.steps} "
            f"(train.steps): take fewer"
        )
    bf16 = _bf16(recipe)
    counts = (recipe.launch.ranks,) * 2 if ranks is None else _numbers("--ranks", ranks, "2,1", both=True)
    begun, resumed = (Topology(count, recipe.engine.stage(count, bf16)) for count in counts)
    if zero is not None:
        if zero not in (0, 1, 2, 3):
            raise UserError(f"--zero {zero}: DeepSpeed ZeRO has the stages 0 to 3")
        resumed = replace(resumed, zero_stage=zero)
    if zero == 0 and bf16:
        raise UserError("--zero 0 takes a wrong first step in bf16: take stage 1, 2 or 3")
    if zero == 0 and recipe.engine.exact == "any":
        raise UserError("--zero 0 is for comparison, and engine.exact any needs stage 1, 2 or 3: take one of them")
    return Plan(run, recipe, before, after, begun, resumed, promised(recipe, begun, resumed, before, bf16))


def table(found: list[Ruling]) -> Iterator[str]:
    """The rulings as aligned lines: what, how it came out, the largest difference, how much was compared."""
    rows = [("check", "result", "largest difference", "compared")]
    for ruling in found:
        check = ruling.check
        difference = f"{check.largest_difference:.3g}" if check.largest_difference else "-"
        compared = f"{check.compared}: {check.detail}" if check.detail and ruling.broken else check.compared
        rows.append((check.name, ruling.words, difference, compared))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield "  ".join([*(text.ljust(width) for text, width in zip(row[:3], widths, strict=True)), row[3]])


def _prove(plan: Plan, scratch: Path) -> Iterator[Ruling]:
    straight, killed = scratch / "straight", scratch / "killed"
    recipe = plan.begun.applied(scaled(plan))
    progress = for_this_stream()
    open_run(recipe, straight)
    life = Life("straight", straight, 1, plan.last, progress)
    code = life.live(recipe, "--until", str(plan.last))
    if code not in (DONE, STOPPED):
        yield _fell(life)
        return
    reached = record.load(straight).attempts[-1]
    if reached.last_step != plan.last:
        raise UserError(f"{plan.run.name} ends at step {reached.last_step} ({reached.message}): take fewer --steps")
    open_run(recipe, killed)
    life = Life("killed", killed, 1, plan.before + 1, progress, kill_after=plan.before)
    life.live(recipe, "--save-at", str(plan.before), "--until", str(ENDLESS))
    if life.victim is None:
        yield _fell(life)
        return
    resumed = plan.resumed.applied(recipe)
    with published(killed / FILE) as draft:
        draft.write_text(settings.dump(resumed))
    life = Life("resumed", killed, 2, plan.after, progress)
    try:
        code = life.live(resumed, "--restart", "--until", str(plan.last))
    except UserError as error:  # whatever it says, the straight run had the same recipe
        code = life.fault = str(error)
    if code not in (DONE, STOPPED):
        yield _fell(life)
        return
    histories = record.load(straight), record.load(killed)
    checks = list(other_checks(plan.recipe, *histories, checkpoint.folder_name(plan.before, 1)))
    checks[1:1] = compare(killed, straight)
    yield from rulings(plan.promise, checks, *(history.lineage() for history in histories))


def scaled(plan: Plan) -> Recipe:
    """The recipe of the scratch runs: saves at the proof's own moments alone, and evaluates little, within reach."""
    recipe = plan.recipe
    every = recipe.evaluate.every_steps
    evaluate = {
        "every_steps": min(every, plan.before),
        "rows": min(recipe.evaluate.rows or ROWS, ROWS),
        "prompts": recipe.evaluate.prompts[:PROMPTS],
        "sample_tokens": min(recipe.evaluate.sample_tokens, SAMPLE_TOKENS),
    }
    save = {"every_steps": 0, "every_minutes": 0.0, "keep_best": False, "keep_last": 2, "keep_every": 0, "store": None}
    launch = {"max_restarts": 0, "stop_after_minutes": 0.0}
    return recipe.model_copy(
        update={
            "evaluate": recipe.evaluate.model_copy(update=evaluate),
            "checkpoint": recipe.checkpoint.model_copy(update=save),
            "launch": recipe.launch.model_copy(update=launch),
            "train": recipe.train.model_copy(update={"patience": 0}),  # so many updates, and no fewer
            "guard": recipe.guard.model_copy(update={"enabled": False}),  # a save must come when it is due
            "log": recipe.log.model_copy(update={"wandb": "off", "profile": None, "norms_every": 0}),
        }
    )


class Life:
    """One attempt of a scratch run. Stands where a supervisor's follower does, shows progress, and may kill a rank."""

    def __init__(
        self, stage: str, run: Path, attempt: int, steps: int, progress: Progress, kill_after: int | None = None
    ):
        """
        Args:
            attempt: its number.
            steps: updates it is to do, for progress.
            kill_after: kill the last rank when the checkpoint at this step and an update beyond it are recorded.
        """
        self.stage, self.run, self.steps = stage, run, steps
        self.victim: int | None = None
        self.fault = ""
        self._path = run / "attempts" / f"{attempt:04d}.jsonl"
        self._progress, self._kill_after = progress, kill_after
        self._offset = self._done = 0
        self._rank = self._saved = self._beyond = 0

    def live(self, recipe: Recipe, *words: str) -> int:
        """Start the ranks with `words` added to their arguments, and see them end; returns the launcher's code.

        Raises:
            KeyboardInterrupt: somebody asked for an end.
        """
        job: Job = training_job(self.run, recipe)
        job = replace(job, argv=(*job.argv, *words))
        self._progress.say(f"{self.stage}: {recipe.launch.ranks} rank{'s' * (recipe.launch.ranks > 1)} starting")
        with hold(self.run) as held:
            supervisor = Supervisor(job, held, LocalRanks(job), self)
            try:
                code = supervisor.run()
            finally:
                if self._rank:
                    self._progress.end(f"{self._done} updates" if self.victim is None else self._killed())
        if supervisor.asked is not None:
            raise KeyboardInterrupt
        return code

    def poll(self) -> None:
        """See what is new in the record; kill where it is time."""
        events, self._offset = jsonl.read(self._path, self._offset)
        for event in events:
            if event["event"] == "start":
                self._rank = event["ranks"][-1]["pid"]
                self._progress.begin(self.stage, self.steps, "updates")  # the time left is of updates, not of imports
            elif event["event"] == "step":
                self._beyond = event["step"]
                if self._done < self.steps:
                    self._progress.advance(1)
                self._done += 1
            elif event["event"] == "checkpoint":
                self._saved = event["step"]
        if self._kill_after is None or self.victim is not None:
            return
        if self._saved == self._kill_after < self._beyond:
            os.kill(self._rank, signal.SIGKILL)
            self.victim = self._rank

    def say(self, text: str, style: str = "") -> None:
        """What a supervisor says, kept for the verdict; its warnings are shown, but for a death it was to cause."""
        self.fault = text
        if style and self.victim is None:
            self._progress.say(f"{self.stage}: {text}")

    def close(self) -> None:
        """Nothing to give back."""

    def _killed(self) -> str:
        return f"saved after {self._kill_after}, killed by SIGKILL after update {self._beyond}"


def _fell(life: Life) -> Ruling:
    check = Check(f"{life.stage} life", f"{life.steps} updates", False, 0.0, life.fault or "its ranks ended too early")
    return Ruling(check, True, "FAILED")


@dataclass
class _Place:
    folder: Path
    failed: bool = False


@contextmanager
def _scratch(plan: Plan, keep: bool, say: Callable[[str], Any]) -> Iterator[_Place]:
    """A folder beside the runs, whose disk is meant for checkpoints; gone at the end unless something failed."""
    where = folder("")
    needed = CHECKPOINTS * BYTES_PER_WEIGHT * _weights(plan.recipe)
    try:
        where.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(where).free
        if free < needed:
            raise UserError(f"the proof needs {size(needed)} for its checkpoints, and {where} has {size(free)} free")
        place = _Place(Path(tempfile.mkdtemp(prefix=f".resume-of-{plan.run.name}-", dir=where)))
    except OSError as error:
        raise UserError(f"cannot write to {where}: {error.strerror or error}") from None
    try:
        yield place
    finally:
        if not (keep or place.failed):
            shutil.rmtree(place.folder, ignore_errors=True)


def _weights(recipe: Recipe) -> int:
    """Parameters of the model; opens the dataset, which must be there for any of this."""
    import torch

    from trainer.inputs import open_inputs
    from trainer.models.build import build
    from trainer.objectives.choose import objective_of

    inputs = open_inputs(recipe)
    with torch.device("meta"):
        model = build(recipe.model, inputs.vocab_size, objective_of(recipe, inputs.dataset).head)
    return sum(parameter.numel() for parameter in model.parameters())


def _bf16(recipe: Recipe) -> bool:
    import torch

    return recipe.engine.bf16(torch.cuda.is_available())


def _numbers(option: str, text: str, example: str, both: bool = False) -> tuple[int, int]:
    """ "8,4" as (8, 4), and "8" as (8, 8) unless `both` are needed."""
    parts = [part.strip() for part in text.split(",")]
    good = all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts)
    if not good or len(parts) not in ((2,) if both else (1, 2)):
        raise UserError(f"{option} {text}: positive whole numbers are needed, such as {option} {example}")
    return int(parts[0]), int(parts[-1])
