"""Initial weights: each parameter from its own generator, so they depend on nothing but (seed, name).

Not on the order of modules, the number of ranks, or what was drawn before: a model with one more layer keeps the
draws of the others, and a shard can be drawn without its neighbours. It costs one generator a parameter,
0.014 s for 3 M parameters on one thread.
"""

import hashlib
import math

import torch
from torch import Tensor, nn

from trainer.recipe import Model

INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")


def initialize(model: nn.Module, seed: int, config: Model) -> None:
    """Sets every parameter of `model` in place.

    Raises:
        RuntimeError: a parameter is empty, as one that ZeRO-3 has already partitioned is.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.numel():
                raise RuntimeError(f"{name} holds no values: initialize the model before it is partitioned")
            parameter.copy_(draw(name, tuple(parameter.shape), seed, config))


def draw(name: str, shape: tuple[int, ...], seed: int, config: Model) -> Tensor:
    """The initial values of the parameter called `name`, in fp32 on the CPU.

    Norms are 1. Matrices are normal with `initializer_range`; those that write into the residual stream are divided
    by sqrt(2 * layers), so that its variance doesn't grow with depth (GPT-2, Radford et al. 2019, section 2.3;
    Megatron-LM's scaled_init_method_normal).
    """
    if len(shape) == 1:
        return torch.ones(shape)
    std = config.initializer_range
    if name.endswith(INTO_RESIDUAL):
        std /= math.sqrt(2 * config.num_hidden_layers)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape).normal_(0.0, std, generator=generator)
