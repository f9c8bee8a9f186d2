"""`luban pretrain` and `luban finetune`: from what was asked to runs that are held, opened and handed to a launcher.

Everything that can be refused is refused before anything of a run is written, and a run is held before that, so that of
two starts the loser leaves the winner's recipe alone.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data import settings
from data.errors import UserError
from trainer.ancestor import with_ancestor
from trainer.recipe import Recipe
from trainer.run import place


@dataclass(frozen=True)
class Asked:
    """What a person asked for."""

    tree: dict[str, Any]
    """The recipe's settings, not checked yet."""
    label: str
    """What to call it."""
    file: Path | None = None
    """Where it was read from."""
    shipped: frozenset[str] = frozenset()
    """Settings that nobody stated: they stand in a recipe that comes with Luban; `--from` may bring others."""
    kind: str | None = None
    """Which kind of dataset it must be, "text" or "examples"; None: either."""
    source: str | None = None
    """`--from`."""
    on: str = "local"
    """`--on`."""
    after: str | None = None
    """`--after`."""
    array: str | None = None
    """`--array`."""
    show: bool = False
    dry_run: bool = False
    takeover: bool = False


def train(asked: Asked, say: Callable[[str], None]) -> int:
    """Show, render or start what was asked for; returns the command's exit code.

    Args:
        say: takes each line for the person.

    Raises:
        UserError: a mistake in what was asked, or the launcher can't have room for it.
    """
    if asked.array is not None and asked.on.partition("=")[0] != "slurm":
        raise UserError(f"--array {asked.array}: only --on slurm makes a job array")
    plains, given = _recipes(asked)
    runs = {index: place(one, asked.file if asked.array is None else None) for index, one in plains.items()}
    recipes = {
        index: with_ancestor(one, runs[index], asked.source, given, asked.shipped, asked.after is not None)
        for index, one in plains.items()
    }
    if asked.show:
        for recipe in recipes.values():
            say(settings.manual(recipe).rstrip("\n"))
        return 0
    from cluster.hold import hold
    from cluster.launchers import launcher, slurm

    sweep = slurm(asked.on, asked.after) if asked.array is not None else None
    chosen = sweep or launcher(asked.on, asked.after)
    jobs = {index: _job(asked, chosen, runs[index], recipe) for index, recipe in recipes.items()}
    if asked.dry_run:
        say((sweep.render_array(jobs) if sweep else chosen.render(jobs[0])).rstrip("\n"))
        return 0
    if asked.kind == "examples" and any(recipe.ancestor is None for recipe in recipes.values()):
        raise UserError("finetune needs --from RUN, or a Hugging Face directory: whose weights to start from")
    chosen.check(jobs[0])
    if recipes[0].launch.preflight:
        from cluster.doctor.checkup import preflight

        preflight(recipes[0], chosen, asked.on, say)
    with ExitStack() as stack:
        held = {index: stack.enter_context(hold(run, asked.takeover)) for index, run in runs.items()}
        opened = {
            index: recipe
            for index, one in plains.items()
            if (recipe := _open(asked, one, recipes[index], runs[index], given, say))
        }
        jobs = {index: _job(asked, chosen, runs[index], recipe) for index, recipe in opened.items()}
        if not jobs:
            return 0
        return sweep.submit_array(jobs) if sweep else chosen.submit(jobs[0], held[0])


def _recipes(asked: Asked) -> tuple[dict[int, Recipe], set[str]]:
    """The recipes by their place in the array, or the one; and which settings were given by hand."""
    given = set(settings.given(asked.tree))
    plain = settings.validate(Recipe, asked.tree, asked.label)
    if asked.array is None:
        return {0: plain}, given
    from cluster.slurm.sweep import elements

    trees = enumerate(elements(asked.tree, asked.array, plain.name))
    varied = {
        index: settings.validate(Recipe, tree, f"element {index} of --array {asked.array}") for index, tree in trees
    }
    return varied, given | {asked.array.partition("=")[0]}


def _job(asked: Asked, chosen: Any, run: Path, recipe: Recipe) -> Any:
    """The job of a run; where the recipe sets no time limit, and the run's own speed tells what is left of it, that."""
    from cluster.job import training_job

    job = training_job(run, recipe, asked.takeover)
    if job.time_limit_minutes or asked.on.partition("=")[0] != "slurm":
        return job
    from cluster.plan import pace

    left = pace.hours(recipe, run)
    return job if left is None else replace(job, time_limit_minutes=chosen.within_limits(pace.minutes(left)))


def _open(
    asked: Asked, plain: Recipe, recipe: Recipe, run: Path, given: set[str], say: Callable[[str], None]
) -> Recipe | None:
    """Write or accept the folder of a run that is held; returns its recipe, or None where it is done."""
    from cluster.standing import refuse_if_submitted
    from trainer.mirror import restore
    from trainer.run import changes, finished, open_run

    if over := refuse_if_submitted(run, asked.takeover):
        say(over)
    if restore(recipe, run):
        say(f"{run} was not here; its record is brought back from {recipe.checkpoint.store}")
        recipe = with_ancestor(plain, run, asked.source, given, asked.shipped, asked.after is not None)
    changed = changes(recipe, run)
    open_run(recipe, run, asked.kind, asked.takeover)
    if done := finished(run):
        say(f"{run} is done: {done}. Nothing to do; to go on from it, start a run with --from")
        return None
    if changed:
        say(f"goes on with {', '.join(changed)}")
    return recipe
