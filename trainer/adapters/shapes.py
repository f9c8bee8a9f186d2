"""An adapted model's parameters by name and shape, and which of them learn, without building it: what a plan counts."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from trainer.models.depth import BLOCK
from trainer.models.shapes import TABLES, Shapes, looked_up
from trainer.recipe import Recipe

A, B, PROMPT = "lora_A", "lora_B", "prompt"
"""What its parameters are called, in a layer."""
PATTERNS = {"none": (), "lora": (f"*.{A}.weight", f"*.{B}.weight"), "prompt": (f"*.{PROMPT}.weight",)}
"""Shell patterns over the names of an adapter's own parameters."""


def adapted_shapes(shapes: Shapes, recipe: Recipe) -> Shapes:
    """`shapes` of the plain model with those of the recipe's adapter, in the order of the model's parameters."""
    if recipe.adapter.kind == "prompt":
        return _prompted(shapes, recipe)
    if recipe.adapter.kind == "none":
        return shapes
    found: Shapes = {}
    names, rank = list(shapes), recipe.adapter.rank
    for place, name in enumerate(names):
        found[name] = shapes[name]
        layer = name.rpartition(".")[0]
        if place + 1 < len(names) and names[place + 1].rpartition(".")[0] == layer:
            continue  # its bias comes first
        weight = shapes.get(f"{layer}.weight", ())
        if len(weight) == 2 and not looked_up(f"{layer}.") and meant(layer, recipe.adapter.targets):
            inputs, outputs = weight if flipped(recipe.model.family, layer) else weight[::-1]
            found |= {f"{layer}.{A}.weight": (rank, inputs), f"{layer}.{B}.weight": (outputs, rank)}
    return found


def _prompted(shapes: Shapes, recipe: Recipe) -> Shapes:
    table, found = TABLES[recipe.model.family], {}
    for name, shape in shapes.items():
        found[name] = shape
        if name == table:
            layer = name.removesuffix(".weight")
            found[f"{layer}.{PROMPT}.weight"] = (recipe.adapter.tokens, recipe.model.hidden_size)
    return found


def meant(layer: str, targets: Sequence[str]) -> bool:
    """Whether `adapter.targets` mean the projection of that name; none: those of the blocks."""
    if not targets:
        return BLOCK.search(f"{layer}.") is not None
    return any(matches(layer, pattern) for pattern in targets)


def matches(layer: str, pattern: str) -> bool:
    """Whether a pattern is one over the projection's name, or over its last part."""
    return fnmatchcase(layer, pattern) or fnmatchcase(layer.rpartition(".")[2], pattern)


def flipped(family: str, layer: str) -> bool:
    """Whether a projection stores its weight as (inputs, outputs): those of GPT-2's blocks do."""
    return family == "gpt2" and re.search(r"(?:^|\.)h\.\d+\.", f"{layer}.") is not None


def learning(recipe: Recipe, new_head: bool) -> tuple[str, ...]:
    """Patterns of what learns: `train.trainable`, or with an adapter its weights, a new head, and what that names."""
    if recipe.adapter.kind == "none":
        return recipe.train.trainable
    beside = () if recipe.train.trainable == ("*",) else recipe.train.trainable
    return (*PATTERNS[recipe.adapter.kind], *(("head",) if new_head else ()), *beside)


def learned(names: Iterable[str], patterns: Sequence[str], heads: tuple[str, ...]) -> set[str]:
    """The parameters that learn.

    Args:
        heads: what the names of a head's parameters begin with.
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        if not pattern.startswith("!"):
            found.update(matching(pattern, names, heads))
    return found.difference(*(matching(pattern, names, heads) for pattern in patterns if pattern.startswith("!")))


def matching(pattern: str, names: Iterable[str], heads: tuple[str, ...]) -> list[str]:
    """The parameters that an entry of `train.trainable` means, or freezes."""
    plain = pattern.removeprefix("!")
    if plain == "head":
        return [name for name in names if name.startswith(heads)]
    return [name for name in names if fnmatchcase(name, plain)]
