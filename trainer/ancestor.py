"""A run that starts from another's weights: what it takes over from its ancestor, and to which point it is pinned."""

import re
from pathlib import Path

from data.errors import UserError
from trainer.origin import is_pinned
from trainer.recipe import Model, Recipe
from trainer.recipe_adapter import Adapter, refuse_other
from trainer.run import Source, has_begun, open_run, origin_of, read_recipe

FREE_OF_ANCESTOR = ("attention", "residual_dropout", "attention_dropout")
"""Settings of the model that a run may set anew."""


def with_ancestor(
    recipe: Recipe,
    run: Path,
    source: str | None,
    given: set[str],
    shipped: frozenset[str] = frozenset(),
    later: bool = False,
) -> Recipe:
    """`recipe` starting from the weights of `source` (RUN[@STEP], a Hugging Face directory), whose model it takes over.

    A run that has begun keeps the ancestor and the step it began from: neither needs to be there any more.

    Args:
        run: the folder of the run that is to start.
        source: None: the ancestor that the run has already, if it has begun from one.
        given: dotted names of the settings that were stated.
        shipped: those of them that stand in a recipe of Luban's own: a model there gives way to the ancestor's.
        later: the checkpoint need not be there yet; `pin_ancestor` finds it when the run begins.

    Raises:
        UserError: there is no such checkpoint, or the caller asks for another model.
    """
    begun = read_recipe(run) if has_begun(run) else None
    if begun is not None and begun.ancestor is not None:
        origin, _, step = begun.ancestor.rpartition("@")
        if source in (None, begun.ancestor) or _names(source or "", Path(origin), step):
            return _of_ancestor(recipe, begun.ancestor, Path(origin).name, begun.model, begun.adapter, given, shipped)
    if source is None:
        return recipe
    origin = origin_of(source)
    if later and isinstance(origin, Source):
        pinned = f"{origin.run.absolute()}{f'@{origin.point}' if origin.point else ''}"
    else:
        pinned = origin.pinned()
    adapter = origin.adapter().model_copy(update={"source": None})
    made = _of_ancestor(recipe, pinned, origin.name, origin.model()[0], adapter, given, shipped)
    refuse_other(origin.adapter(), made.adapter, origin.name)
    return made


def pin_ancestor(run: Path) -> None:
    """Settle the checkpoint that a run starts from, where it was left open until the run it comes from had one.

    Raises:
        UserError: that run has no such checkpoint, or it doesn't fit.
    """
    recipe = read_recipe(run)
    if recipe.ancestor is None or is_pinned(recipe.ancestor):
        return
    open_run(recipe.model_copy(update={"ancestor": origin_of(recipe.ancestor).pinned()}), run)


def _names(source: str, run: Path, step: str) -> bool:
    """Whether `source` means a run's ancestor: the same run, at the same step, or at none or the best then."""
    name, _, point = source.rpartition("@") if re.search(r"@(\d+|best)$", source) else (source, "", "")
    return Path(name).name == run.name and point in ("", "best", step)


def _of_ancestor(
    recipe: Recipe, origin: str, name: str, model: Model, adapter: Adapter, given: set[str], shipped: frozenset[str]
) -> Recipe:
    """`recipe` with an ancestor's model, and unless it asks for another one by hand, its adapter."""
    if any(setting.startswith("adapter.") for setting in given):
        adapter = recipe.adapter
        if adapter.source:  # a rank may start elsewhere
            adapter = adapter.model_copy(update={"source": str(Path(adapter.source).absolute())})
    shorter = recipe.model.context < model.context or model.family == "t5"
    other = sorted(
        name
        for name in Model.model_fields
        if name not in FREE_OF_ANCESTOR
        and any(each == f"model.{name}" or each.startswith(f"model.{name}.") for each in given - shipped)
        and getattr(recipe.model, name) != getattr(model, name)
        and not (name == "context" and shorter)
    )
    if other == ["context"]:
        raise UserError(
            f"model.context is {model.context} in {name} and can only become shorter, not {recipe.model.context}: it "
            "has learned no later position"
        )
    if other:
        raise UserError(
            f"model.{other[0]} is {getattr(model, other[0])!r} in {name} and can't become "
            f"{getattr(recipe.model, other[0])!r}: leave the model's settings out, --from brings them"
        )
    free = {
        each: getattr(recipe.model, each)
        for each in (*FREE_OF_ANCESTOR, "context")
        if f"model.{each}" in given and (each != "context" or shorter)
    }
    return recipe.model_copy(update={"ancestor": origin, "model": model.model_copy(update=free), "adapter": adapter})
