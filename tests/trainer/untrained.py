"""A run's model before any training, as `load_model` would give it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from data import settings
from trainer.adapters.adapt import model_of
from trainer.inputs import open_inputs
from trainer.objectives.choose import objective_of
from trainer.recipe import Recipe
from trainer.scores import Loaded


def untrained(dataset: Path, given: Sequence[str], draw: Callable[[nn.Module], None], step: int = 0) -> Loaded:
    """The model of the settings `given` on a dataset, with the weights that `draw` gives it."""
    recipe = settings.load(Recipe, None, [*given, f"data.dataset={dataset}"])
    inputs = open_inputs(recipe)
    objective = objective_of(recipe, inputs.dataset)
    model = model_of(recipe, inputs.vocab_size, objective.head)
    model.requires_grad_(True)  # so that an adapter's base is drawn, too
    draw(model)
    return Loaded(model.eval(), recipe, inputs, objective, step, torch.device("cpu"))
