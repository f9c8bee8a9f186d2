"""An adapter alone, out of the checkpoint of the run that trained it."""

from math import prod
from pathlib import Path

import torch

from data.errors import UserError
from trainer.adapters import peft
from trainer.adapters.adapt import model_of
from trainer.checkpoint import WEIGHT
from trainer.hf.config import refuse_prefixes
from trainer.inputs import open_inputs
from trainer.objectives.choose import objective_of
from trainer.run import Source, read_recipe


def save_adapter(point: str, folder: Path, base: str = "") -> list[Path]:
    """Write the adapter of RUN[@STEP] into `folder` as the `peft` library reads it: a few megabytes, without the model.

    Args:
        base: what its configuration calls the model it is for, such as a directory that `peft` finds it in; by default
            the checkpoint that the run started from.

    Returns:
        The files.

    Raises:
        UserError: the run has no adapter or no such checkpoint, or learned what the format has no place for.
    """
    source = Source.parse(point)
    recipe = read_recipe(source.run)
    if recipe.adapter.kind == "none":
        raise UserError(f"{source.run} has no adapter (adapter.kind is none): export it as a model, without --adapter")
    refuse_prefixes(point, recipe.model)
    found = source.checkpoint()
    head = objective_of(recipe, open_inputs(recipe).dataset).head
    with torch.device("meta"):
        model = model_of(recipe, found.state["vocab_size"], head)
    shapes = {name: tuple(shape) for name, shape in found.manifest["parameters"].items()}
    learned = {name: found.read(name, shape, 0, prod(shape))[WEIGHT].view(shape) for name, shape in shapes.items()}
    peft.write(folder, model, recipe.adapter, learned, found.frozen(), base or recipe.ancestor or "")
    return [folder / peft.CONFIG, folder / peft.WEIGHTS]
