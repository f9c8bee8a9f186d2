"""A recipe's model with its adapter, and what of it learns: the one place that builds what is trained or loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data.errors import UserError
from trainer.adapters import lora, peft, prompt
from trainer.adapters.shapes import flipped, learning
from trainer.models.build import build
from trainer.models.head import LM, Head
from trainer.objectives.base import Objective
from trainer.optimizer import freeze
from trainer.recipe import Recipe
from trainer.recipe_adapter import refuse_other

NO_NEW_HEAD = ("lm", "pretraining", "sentence")


def model_of(recipe: Recipe, vocab_size: int, head: Head = LM, activation_checkpointing: bool = False) -> Any:
    """The model that a recipe trains, with its adapter; what doesn't learn is frozen. Its weights are zero.

    Raises:
        UserError: the family lacks the head, or a target or pattern matches nothing.
    """
    model = build(recipe.model, vocab_size, head, activation_checkpointing)
    if recipe.adapter.kind == "lora":
        lora.add(model, recipe.adapter)
    elif recipe.adapter.kind == "prompt":
        prompt.add(model, recipe.adapter)
    freeze(model, learning(recipe, head.kind not in NO_NEW_HEAD))
    return model


def begin_adapter(model: Any, recipe: Recipe, notes: list[str]) -> None:
    """Give the adapter of `model`, if it has one, its first weights; the model's own must be there.

    Args:
        notes: gets a line where they come from a folder.

    Raises:
        UserError: the folder's adapter is another one, or one for another base.
    """
    if recipe.adapter.kind == "lora":
        lora.draw(model, recipe.seed)
    elif recipe.adapter.kind == "prompt":
        prompt.draw(model, recipe.seed)
    if recipe.adapter.source:
        peft.load_adapter(Path(recipe.adapter.source), model, recipe.adapter)
        notes.append(f"the adapter begins with the weights in {recipe.adapter.source}")


def prompted(objective: Objective, recipe: Recipe, vocab_size: int) -> Objective:
    """`objective`, whose inputs begin with the adapter's virtual tokens, if it has any.

    Raises:
        UserError: they can't.
    """
    count = recipe.adapter.virtual_tokens
    if not count:
        return objective
    if objective.name not in prompt.KINDS:
        raise UserError(
            f"adapter.kind prompt goes with {', '.join(prompt.KINDS)}, not with objective {objective.name}: take lora"
        )
    return prompt.PromptedObjective(objective, tuple(range(vocab_size, vocab_size + count)))


def inherited(recipe: Recipe, ancestor: Recipe, weights: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """An ancestor's weights for this recipe's model: its adapter goes on, or is merged.

    Args:
        ancestor: its recipe.
        weights: all of its weights, its adapter's among them.

    Raises:
        UserError: the adapter can be neither.
    """
    before, now = ancestor.adapter, recipe.adapter
    if before.kind == "none" or before.described() == now.described():
        return dict(weights)
    refuse_other(before, now, origin)
    return merged(ancestor, weights)


def merged(recipe: Recipe, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain model's weights, from those of a run with a LoRA adapter; weights without one are left as they are."""
    if recipe.adapter.kind != "lora":
        return dict(weights)
    return lora.merged(weights, recipe.adapter.scale, lambda layer: flipped(recipe.model.family, layer))
