"""Run folders: where they are, which recipe they hold, and whether another recipe may go on with one."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import settings
from data.errors import UserError
from data.order.departure import departure
from data.order.order import Order
from data.publish import published
from data.remote.credentials import refuse_secrets
from data.remote.origin import is_remote
from data.tokenizer.tokenizer import Tokenizer
from trainer import checkpoint, claim, record
from trainer.checkpoint import Checkpoint, CorruptCheckpoint
from trainer.hf.read import Directory
from trainer.inputs import Inputs, classes_of, open_inputs
from trainer.mirror import check_store, places, refuse_older, refuse_vanished, restore
from trainer.origin import CLASSES, Origin, generator_of, is_pinned
from trainer.place import Place
from trainer.recipe import Model, Recipe
from trainer.recipe_adapter import Adapter

if TYPE_CHECKING:  # a command that starts a run leaves torch to its ranks
    from torch import Tensor

FILE = "recipe.yaml"
ORDER = ("data.sources", "data.stages", "data.window", "data.packing", "data.lanes")  # what fixes the order of rows


def home() -> Path:
    """Where `datasets/` and `runs/` lie: LUBAN_HOME, or the working directory."""
    return Path(os.environ.get("LUBAN_HOME") or ".")


@dataclass(frozen=True)
class Source:
    """A point in a run's life: RUN, RUN@STEP or RUN@best."""

    run: Path
    point: str | None

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Raises UserError where there is no such run or the point is neither a step nor "best"."""
        name, at, point = text.rpartition("@")
        if at and re.fullmatch(r"\d+|best", point):
            return cls(find(name), point)
        if at and "/" not in point:
            raise UserError(f"{text}: after the @ comes a step such as 400, or best")
        return cls(find(text), None)

    def checkpoint(self) -> Checkpoint:
        """The newest whole checkpoint, or that of the point; a corrupt one is an error here, never a substitute.

        Raises:
            UserError: there is none.
        """
        history, there = record.load(self.run), held_by(self.run)
        held = known = list(there)
        if self.point == "best":
            best = [event for attempt in history.attempts for event in attempt.of("checkpoint") if event.get("best")]
            held = [event["name"] for event in best if event["name"] in held][-1:]
        elif self.point is not None:
            held = [name for name in held if checkpoint.step_of(name) == int(self.point)]
        if not held:
            steps = ", ".join(str(checkpoint.step_of(name)) for name in known) or "none"
            raise UserError(f"{self.run} has no checkpoint {self.point or 'yet'}; steps with one: {steps}")
        try:
            found = Checkpoint(there[held[-1]], history.manifests.get(held[-1]))
        except CorruptCheckpoint as error:
            raise UserError(f"{error}: name an older one as {self.run.name}@STEP") from None
        problems = found.problems()
        if problems:
            raise UserError(f"{'; '.join(problems)}: name an older one as {self.run.name}@STEP")
        return found

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.run.name}{f'@{self.point}' if self.point else ''}"

    def pinned(self) -> str:
        """Its folder and step."""
        return f"{self.run.absolute()}@{self.checkpoint().step}"

    def model(self) -> tuple[Model, list[str]]:
        """Its recipe's."""
        return read_recipe(self.run).model, []

    def check(self) -> None:
        """Raise UserError where there is no such checkpoint, or not every byte is as its manifest says."""
        self.checkpoint()

    def adapter(self) -> Adapter:
        """Its recipe's."""
        return read_recipe(self.run).adapter

    def weights(self, recipe: Recipe) -> tuple[Mapping[str, tuple[int, ...]], Callable[[str], "Tensor"]]:
        """Every parameter's shape, and what reads one; with an adapter that doesn't go on, merged into the others.

        A head for other classes is left out.
        """
        before = read_recipe(self.run)
        held, weight = self._weights(recipe, before)
        if classes_of(before) != classes_of(recipe):
            held = {name: shape for name, shape in held.items() if not name.startswith(CLASSES)}
        return held, weight

    def _weights(
        self, recipe: Recipe, before: Recipe
    ) -> tuple[Mapping[str, tuple[int, ...]], Callable[[str], "Tensor"]]:
        if before.objective.kind == "adversarial" != recipe.objective.kind:
            return generator_of(self._held.shapes, self._held.weight)
        if before.adapter.kind == "none" or before.adapter.described() == recipe.adapter.described():
            return self._held.shapes, self._held.weight
        from trainer.adapters.adapt import inherited

        whole = inherited(recipe, before, self._held.weights(), self.pinned())
        return {name: tuple(tensor.shape) for name, tensor in whole.items()}, whole.__getitem__

    def refuse_other_tokenizer(self, tokenizer: Tokenizer, dataset: str) -> None:
        """Raise UserError unless it was trained with `tokenizer`."""
        made_with = self._held.state["tokenizer"]
        if made_with != tokenizer.fingerprint:
            raise UserError(
                f"the weights of {self.pinned()} were trained with the tokenizer {made_with[:12]}, and {dataset} was "
                f"made with {tokenizer.fingerprint[:12]}: build the dataset with the tokenizer of that run's dataset "
                "(tokenizer.reuse)"
            )

    def ancestry(self) -> dict[str, Any]:
        """Which checkpoint, and what it has read."""
        held, order = self._held, self._held.state["order"]
        return {
            "checkpoint": self.pinned(),
            "manifest": checkpoint.digest_of(held.manifest),
            "step": held.step,
            "tokens": held.state["progress"]["tokens"],
            "dataset": order["fingerprint"],
            "seed": order["seed"],
            "consumed": held.state["progress"]["consumed"],
        }

    @cached_property
    def _held(self) -> Checkpoint:
        return self.checkpoint()


def origin_of(text: str) -> Origin:
    """What `--from` or a recipe's `ancestor` names: a Hugging Face directory, or a point in a run's life.

    Raises:
        UserError: there is neither.
    """
    if (folder(text) / FILE).is_file():
        return Source.parse(text)
    if directory := Directory.parse(text):
        return directory
    if Path(text).is_dir() and not (Path(text) / FILE).is_file():
        raise UserError(f"{text} holds neither {FILE}, as a run does, nor config.json, as a Hugging Face model does")
    return Source.parse(text)


def held_by(run: Path) -> dict[str, Place]:
    """The checkpoints that a run's record vouches for, oldest first, and where each lies: near, if it is near."""
    found = dict(places(read_recipe(run), run))  # of two places the later, near one stays
    return {name: found[name] for name in record.load(run).checkpoints(found)}


def folder(name: str) -> Path:
    """The folder of the run called `name`."""
    return home() / "runs" / name


def place(recipe: Recipe, file: Path | None) -> Path:
    """The folder of the run that `recipe` is for: that of `file` where it is a run's own recipe, moved or not."""
    if file is not None and file.name == FILE and any((file.parent / part).exists() for part in ("attempts", "logs")):
        return file.parent
    return folder(recipe.name)


def finished(run: Path) -> str | None:
    """Why a run is done, where it is and its last checkpoint is there; None where there is something left to do."""
    history = record.load(run)
    last = history.newest_saved()
    whole = last is not None and last in held_by(run)
    return history.attempts[-1].message if whole and history.attempts[-1].outcome == "done" else None


def find(name: str) -> Path:
    """An existing run, by its name under `runs/` or by its path.

    Raises:
        UserError: there is none; near names are offered.
    """
    for candidate in (folder(name), Path(name)):
        if (candidate / FILE).is_file():
            return candidate
    known = sorted(path.parent.name for path in folder("").glob(f"*/{FILE}"))
    raise UserError(f"there is no run {name}; known under {folder('')}: {', '.join(known) or 'none'}")


def read_recipe(run: Path) -> Recipe:
    """The recipe that a run was made with."""
    return settings.load(Recipe, run / FILE)


def dataset_path(recipe: Recipe) -> Recipe:
    """`recipe` with its datasets resolved: as given, or under LUBAN_HOME; absolute, so that ranks find it anywhere.

    Raises:
        UserError: a password stands in a URL; the recipe would be written with it.
    """

    def place(given: str) -> str:
        if is_remote(given):
            refuse_secrets(given)
            return given
        path = Path(given)
        return str(next((each for each in (path, home() / path) if each.exists()), home() / path).absolute())

    places = {name: place(given) for name, given in recipe.data.places.items()}
    return recipe.model_copy(update={"data": recipe.data.moved(places)})


def open_run(recipe: Recipe, run: Path, kind: str | None = None, takeover: bool = False) -> None:
    """Check everything that can be checked beforehand, and write or accept the run's folder.

    Called again for a run that has begun, settings marked free may differ and are written anew, unless it is done.

    Args:
        run: its folder.
        kind: which kind of dataset it must be, "text" or "examples"; None: either.
        takeover: another start that is alive is going to be fenced, not respected.

    Raises:
        UserError: the dataset doesn't fit, the run is of another recipe, or another start of it is alive.
    """
    recipe = dataset_path(recipe)
    restore(recipe, run)
    refuse_older(recipe, run)
    _refuse_cut_short(run)
    if has_begun(run):
        changed = [entry for entry in departures(read_recipe(run), recipe) if entry[1] != "free"]
        if changed:
            lines = [f"  {name} ({kind}): {old!r} there, {new!r} here" for name, kind, old, new in changed]
            raise UserError(
                f"{run} was begun with another recipe:\n" + "\n".join(lines) + "\nfixed settings make another run: "
                "take another name=...; branch settings start one from this one: --from " + recipe.name
            )
        if finished(run):
            return
        if not takeover:
            claim.refuse_if_held(run)
        refuse_vanished(recipe, run, record.load(run), list(held_by(run)))
    else:
        if not takeover and record.numbers(run):  # one that has not come to its first update
            claim.refuse_if_held(run)
        check_store(recipe, run)
    inputs = open_inputs(recipe)
    _refuse_other_order(run, inputs.order)
    if kind is not None and inputs.dataset.kind != kind:
        raise UserError(
            f"{recipe.data.label} is a dataset of {inputs.dataset.kind}, and fine-tuning needs one of {kind}: build "
            "one with kind=examples, or go on with text by luban pretrain --from"
        )
    if recipe.train.patience and not inputs.fixed:
        raise UserError("train.patience counts evaluations, and the dataset has no validation row: set it to 0")
    origin = None
    if recipe.ancestor and is_pinned(recipe.ancestor) and not places(recipe, run):
        origin = origin_of(recipe.ancestor)
        origin.refuse_other_tokenizer(inputs.tokenizer, recipe.data.label)
        if isinstance(origin, Directory):
            origin.refuse_other_model(recipe.model, inputs.vocab_size)
    if recipe.adapter.kind != "none" and recipe.ancestor is None:
        raise UserError(
            f"adapter.kind={recipe.adapter.kind} leaves the model's weights as they are, and this run starts from "
            "random ones: start it --from a run that has learned"
        )
    if recipe.train.trainable != ("*",) or recipe.adapter.kind != "none":
        _check_trainable(recipe, inputs, origin)
    try:
        run.mkdir(parents=True, exist_ok=True)
        with published(run / FILE) as draft:
            draft.write_text(settings.dump(recipe))
    except OSError as error:
        raise UserError(f"cannot write {run / FILE}: {error.strerror or error}") from None


def departures(old: Recipe, new: Recipe) -> list[tuple[str, str, Any, Any]]:
    """As `settings.differences`; but where sources or stages differ, what fixes the order of rows is left out.

    The order itself then tells whether a run may go on: it may with stages that it has not come to.
    """
    found = settings.differences(old, new)
    if {"data.sources", "data.stages"}.isdisjoint(name for name, *_ in found):
        return found
    return [each for each in found if each[0] not in ORDER]


def _refuse_other_order(run: Path, order: Order) -> None:
    """Raise UserError where the run's newest checkpoint was reached in an order that isn't a beginning of this one."""
    for place in reversed(held_by(run).values()) if (run / FILE).exists() else ():
        try:
            state = Checkpoint(place).state
        except CorruptCheckpoint:
            continue  # an attempt says so, and takes the one before
        if why := departure(state["order"], order.describe(), state["progress"]["consumed"]):
            raise UserError(
                f"{run} read its rows in another order: {why}. Stages that it has come to, in "
                f"{state['progress']['consumed']:,} rows, are fixed; append a stage that starts later, or take another "
                "name=..."
            )
        return


def _refuse_cut_short(run: Path) -> None:
    """Raise UserError where the newest attempt's file lacks its end: what it had saved would silently not count."""
    found = checkpoint.names(run)  # before the record is read: an attempt that is alive may publish another
    history = record.load(run)
    unled = history.unled(found)
    if unled:
        raise UserError(
            f"{unled[-1]} is there, and no line of {run}/attempts/{history.claimed:04d}.jsonl leads to it: that file "
            f"was cut short. Restore it from a copy; or move {unled[0]} and what is newer out of {run}/checkpoints, to "
            "go on from what the record still knows"
        )


def _check_trainable(recipe: Recipe, inputs: Inputs, origin: Origin | None) -> None:
    """Raise UserError where a pattern of `train.trainable` matches nothing, or an adapter doesn't fit its model; torch
    is loaded for these runs alone.

    Args:
        origin: whose weights the run takes over; None: there are none, or it has them already.
    """
    import torch

    from trainer.adapters import peft
    from trainer.adapters.adapt import model_of
    from trainer.objectives.choose import objective_of

    with torch.device("meta"):
        model = model_of(recipe, inputs.vocab_size, objective_of(recipe, inputs.dataset).head)
    if recipe.adapter.source:
        folder = Path(recipe.adapter.source)
        _, made_on = peft.read(folder, model, recipe.adapter)
        if origin is not None:  # only the adapted layers are read
            peft.refuse_other_base(folder, made_on, model, origin.weights(recipe)[1])


def has_begun(run: Path) -> bool:
    """Whether a run has anything that its recipe protects: an update. Raises UserError where the recipe is gone."""
    begun = any(attempt.of("step") or attempt.start["adopts"] for attempt in record.load(run).attempts)
    if begun and not (run / FILE).exists():
        raise UserError(f"{run} has attempts and no {FILE}: restore it from a copy, or take another name=...")
    return begun


def changes(recipe: Recipe, run: Path) -> list[str]:
    """In words, the free settings in which `recipe` differs from what its run was last started with."""
    if not has_begun(run):
        return []
    old, new = read_recipe(run), dataset_path(recipe)
    said = [f"{name} {a!r} -> {b!r}" for name, kind, a, b in settings.differences(old, new) if kind == "free"]
    if old.data.plan != new.data.plan:
        said.append("other stages ahead: " + "; ".join(str(stage) for stage in new.data.plan))
    return said
