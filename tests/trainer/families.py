"""Tiny models of the encoder families, with weights that are far from special, for several files of tests."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.build import build
from trainer.models.head import LM, Head
from trainer.models.padding import Padding
from trainer.recipe import Model

VOCABULARY = 96
ENCODER_DECODERS = ("t5", "transformer")


def config(family: str, **changes: Any) -> Model:
    """2 layers of 32 features in a context of 48 tokens; of T5 few buckets, so that far tokens share some."""
    sizes: dict[str, Any] = {
        "family": family, "context": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    if family == "t5":
        sizes |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
    return Model.model_validate(sizes | changes)


def built(family: str, head: Head = LM, activation_checkpointing: bool = False, seed: int = 0, **changes: Any) -> Any:
    """A model whose every parameter, norms and biases too, is drawn at random."""
    model = build(config(family, **changes), VOCABULARY, head, activation_checkpointing)
    scatter(model, seed)
    return model


def scatter(model: nn.Module, seed: int = 0) -> None:
    """Random values for all parameters that learn, those of norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = parameter.dim() == 1 and name.endswith("weight")
                parameter.copy_(scale + 0.2 * torch.randn(parameter.shape, generator=generator))


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    """(rows, length) ids, none of them 0 or 1."""
    return torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def real(lengths: list[int], width: int) -> Tensor:
    """(rows, width) bool: the first `lengths` of each row."""
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def padded(inside: Tensor) -> Padding:
    """The padding of a batch whose real tokens are `inside` (rows, width) bool."""
    return Padding.of(inside.numpy(), inside.device)


def in_rows(padding: Padding) -> Padding:
    """The same, but everything is computed."""
    return replace(padding, places=None, slots=None)


def with_some_of(padding: Padding, count: int) -> Padding:
    """The same, but `count` tokens of padding are computed, too, as a GPU's round numbers have it."""
    if padding.places is None:
        return padding
    others = torch.arange(padding.real.numel())
    others = others[~torch.isin(others, padding.places)][:count]
    places = torch.cat([padding.places, others])
    slots = torch.full((padding.real.numel(),), len(places))
    slots[places] = torch.arange(len(places))
    return replace(padding, places=places, slots=slots)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of every parameter that has one."""
    model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
