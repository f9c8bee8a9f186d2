"""Initial weights: each parameter from its own generator, so they depend on nothing but (seed, name).

Not on the order of modules, the number of ranks, or what was drawn before: a model with one more layer keeps the
draws of the others, and a shard can be drawn without its neighbours. It costs one generator a parameter,
0.014 s for 3 M parameters on one thread.
"""

import hashlib
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor


def initialize(model: Any, seed: int, only: Container[str] | None = None) -> None:
    """Sets the parameters of `model` (of any family), or those called `only`, in place.

    Raises:
        RuntimeError: a parameter is empty, as one that ZeRO-3 has already partitioned is.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only is not None and name not in only:
                continue
            if not parameter.numel():
                raise RuntimeError(f"{name} holds no values: initialize the model before it is partitioned")
            shape = tuple(parameter.shape)
            std = model.initial_std(name, shape) if len(shape) > 1 else 0.0
            parameter.copy_(draw(name, shape, seed, std))


def draw(name: str, shape: tuple[int, ...], seed: int, std: float) -> Tensor:
    """The initial values of the parameter called `name`, in fp32 on the CPU.

    Norms are 1, biases 0, matrices normal with `std`.
    """
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return torch.empty(shape).normal_(0.0, std, generator=generator(name, seed))


def generator(name: str, seed: int) -> torch.Generator:
    """That of the parameter called `name`."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
