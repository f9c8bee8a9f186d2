"""Rotary positions (Su et al. 2021, arXiv:2104.09864), and the ways to stretch them beyond the length first trained on.

Each kind of scaling changes the frequencies once, from settings alone, as transformers' `rope_parameters` do:

    linear   every frequency divided by `factor` (Chen et al. 2023, arXiv:2306.15595)
    llama3   wavelengths above original / low_freq_factor divided by `factor`, those below original / high_freq_factor
             left alone, in between a blend (Llama 3.1, arXiv:2407.21783, and its reference code)

There is no `dynamic`: it would change the key of a token as its text grows, and up to the trained length, which is a
recipe's context, it changes nothing.
"""

import math

import torch
from torch import Tensor

from trainer.recipe_model import RopeScaling


def rotary_table(positions: int, head_size: int, theta: float, scaling: RopeScaling) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * frequency, each (positions, head_size / 2), in fp32."""
    angle = torch.outer(torch.arange(positions).float(), frequencies(head_size, theta, scaling))
    return angle.cos(), angle.sin()


def frequencies(head_size: int, theta: float, scaling: RopeScaling) -> Tensor:
    """(head_size / 2,) radians from one position to the next: theta^(-2i / head_size), then scaled."""
    frequency = 1.0 / theta ** (torch.arange(0, head_size, 2).float() / head_size)
    if scaling.rope_type == "default":
        return frequency
    divided = frequency / scaling.factor
    if scaling.rope_type == "linear":
        return divided
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * divided + kept * frequency


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + head_size / 2) of `x` (B, T, heads, head_size) by its position's angle.

    Pairs lie half a head apart, as in Hugging Face's Llama. `cos`, `sin`: broadcast to (B, T, 1, head_size / 2).
    """
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
