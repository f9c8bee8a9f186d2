"""Low-rank adaptation, LoRA (Hu et al. 2021, arXiv:2106.09685): W x becomes W x + (alpha / rank) B A x; A and B learn.

A layer is given its A and B in place: it keeps its own name and its weight's, so a checkpoint of the model and one of
the adapted model call the same thing the same, and frozen weights are read from either. A and B are modules, for
ZeRO-3 fetches a module's weights only around its own forward. Their names are those of the `peft` library without its
prefix, and B begins at zero: the first forward is the model's own, bit for bit.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import UserError
from trainer.adapters.shapes import A, B, matches, meant
from trainer.models.gpt2 import Conv1D
from trainer.models.initialize import generator
from trainer.models.layers import Linear
from trainer.recipe_adapter import Adapter


class LoRA(nn.Module):
    """What a projection becomes, together with its own class."""

    lora_A: nn.Linear
    lora_B: nn.Linear
    scale: float
    lora_dropout: float

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., inputs) to (..., outputs)."""
        dropped = F.dropout(x, self.lora_dropout, self.training) if self.lora_dropout else x
        return super().forward(x) + self.lora_B(self.lora_A(dropped)) * self.scale


def transposed(layer: nn.Module) -> bool:
    """Whether a projection stores its weight as (inputs, outputs), as GPT-2's do."""
    return isinstance(layer, Conv1D)


def features(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a projection."""
    rows, columns = cast(Tensor, layer.weight).shape
    return (rows, columns) if transposed(layer) else (columns, rows)


def projections(model: nn.Module) -> dict[str, nn.Module]:
    """The model's projections by name: torch's Linear, and GPT-2's Conv1D."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def chosen(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The projections that `targets` (`adapter.targets`) mean.

    Raises:
        UserError: one of them matches no projection.
    """
    known = projections(model)
    for pattern in targets:
        if not any(matches(name, pattern) for name in known):
            leaves = sorted({name.rpartition(".")[2] for name in known})
            near = difflib.get_close_matches(pattern, [*leaves, *known], 3, 0.4) or leaves
            raise UserError(f"adapter.targets: {pattern!r} matches no projection; there are {', '.join(near)}")
    return {name: layer for name, layer in known.items() if meant(name, targets)}


def add(model: nn.Module, adapter: Adapter) -> None:
    """Give the chosen projections of `model` their A and B, zero until `draw` or a load; in place.

    Raises:
        UserError: a target matches nothing, or the rank exceeds a projection's width.
    """
    for name, layer in chosen(model, adapter.targets).items():
        inputs, outputs = features(layer)
        if adapter.rank > min(inputs, outputs):
            raise UserError(f"adapter.rank {adapter.rank} exceeds the width of {name}, {inputs} -> {outputs}")
        kind = type(layer)
        layer.__class__ = type(f"LoRA{kind.__name__}", (LoRA, kind), {})
        layer.lora_A, layer.lora_B = Linear(inputs, adapter.rank), Linear(adapter.rank, outputs)
        vars(layer).update(scale=adapter.scale, lora_dropout=adapter.dropout)


def layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers of `model` that have an update, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRA))


def draw(model: nn.Module, seed: int) -> None:
    """Set each A as `peft` does, uniform within 1/sqrt(inputs), by (seed, name); each B to zero."""
    with torch.no_grad():
        for name, layer in layers(model):
            bound = 1 / math.sqrt(layer.lora_A.in_features)
            shape = layer.lora_A.weight.shape
            fresh = torch.empty(shape).uniform_(-bound, bound, generator=generator(f"{name}.{A}.weight", seed))
            layer.lora_A.weight.copy_(fresh)
            layer.lora_B.weight.zero_()


def update(a: Tensor, b: Tensor, scale: float, flipped: bool) -> Tensor:
    """What an update adds to its layer's weight: (outputs, inputs), or `flipped`."""
    whole = (b @ a) * scale
    return whole.T if flipped else whole


def merge(model: nn.Module) -> None:
    """Add each update to its layer's weight and take A and B away: the plain model again, of nearly equal logits."""
    with torch.no_grad():
        for _, layer in list(layers(model)):
            layer.weight += update(layer.lora_A.weight, layer.lora_B.weight, layer.scale, transposed(layer))
            del layer.lora_A, layer.lora_B
            layer.__class__ = type(layer).__mro__[2]


def merged(weights: Mapping[str, Tensor], scale: float, flipped: Callable[[str], bool]) -> dict[str, Tensor]:
    """`merge` for weights that lie outside their model, all of an adapted one's by name.

    Args:
        flipped: whether the layer of that name stores its weight as (inputs, outputs).
    """
    found = {name: tensor for name, tensor in weights.items() if f".{A}." not in name and f".{B}." not in name}
    for name in weights:
        layer, mark, _ = name.partition(f".{A}.weight")
        if mark:
            a, b = weights[name], weights[f"{layer}.{B}.weight"]
            found[f"{layer}.weight"] = found[f"{layer}.weight"] + update(a, b, scale, flipped(layer))
    return found
