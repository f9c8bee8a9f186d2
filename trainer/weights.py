"""Where a model's weights come from as an attempt begins: a checkpoint's frozen ones, an ancestor, or the seed.

What trains comes later, from the checkpoint's spans into the engine; what doesn't is stored once a run, in `base/`.
"""

from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from trainer import checkpoint
from trainer.adapters.adapt import begin_adapter
from trainer.adapters.peft import is_own
from trainer.adopt import agree
from trainer.checkpoint import Checkpoint
from trainer.mirror import root_of
from trainer.models.initialize import initialize
from trainer.origin import take_over
from trainer.recipe import Recipe
from trainer.run import origin_of
from trainer.world import World


def give_weights(
    run: Path, recipe: Recipe, model: Any, found: Checkpoint | None, world: World, notes: list[str]
) -> str | None:
    """Give the model its weights; returns the file in `base/` of those that don't train. `notes` are added to."""
    parameters = dict(model.named_parameters())
    still = {name: parameter.data for name, parameter in parameters.items() if not parameter.requires_grad}
    if found:
        frozen = found.frozen()
        _refuse_other_weights(str(found.place), frozen, still)
        with torch.no_grad():
            for name, tensor in frozen.items():
                parameters[name].copy_(tensor)
        if found.base is None:
            return None
    elif recipe.ancestor:
        origin = origin_of(recipe.ancestor)
        agree(world, lambda: origin.check() if world.rank == 0 else None)
        shapes, weight = origin.weights(recipe)
        notes += [*origin.model()[1], *take_over(model, origin.name, shapes, weight, recipe.seed)]
        if not any(map(is_own, shapes)):
            begin_adapter(model, recipe, notes)
    else:
        initialize(model, recipe.seed)
        begin_adapter(model, recipe, notes)
    root = root_of(recipe, run)
    name = agree(world, lambda: checkpoint.save_frozen(root, still) if world.rank == 0 else None)
    return world.told(name)


def _refuse_other_weights(origin: str, weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Raise UserError unless `weights` are just those `wanted`: what is missing would stay uninitialized memory."""
    for name in sorted({*weights, *wanted}):
        held, shape = (tuple(each[name].shape) if name in each else None for each in (weights, wanted))
        if held is None or shape is None:
            raise UserError(f"{origin} is of another model: it and this one don't share {name}")
        if held != shape:
            raise UserError(f"{origin} holds {name} as {held}, the model wants {shape}: it is of another model")
