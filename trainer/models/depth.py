"""How far from the input a parameter lies, by its name: what layer-wise learning rates are scaled by."""

import re
from collections.abc import Callable

from trainer.recipe import Model, Recipe

BLOCK = re.compile(r"(?:^|\.)(layers|layer|h|block)\.(\d+)\.")
"""A block's number in Hugging Face's names: model.layers.3., encoder.layer.3., transformer.h.3., encoder.block.3."""
INPUT = re.compile(r"(?:^|\.)(embed\w*|shared|wte|wpe|\w+_embeddings)\.")


def depth(name: str, blocks: int, decoder_from: int | None = None) -> int:
    """0 for embeddings, 1 to `blocks` for the blocks' parameters, `blocks` + 1 for what comes after them.

    Args:
        name: of a parameter, as Hugging Face calls it.
        blocks: of the whole model; those of an encoder-decoder come one after the other.
        decoder_from: blocks of the encoder before the decoder's first; None: there is one stack.
    """
    found = BLOCK.search(name)
    if found:
        in_decoder = decoder_from is not None and re.search(r"(?:^|\.)decoder\.", name[: found.start() + 1])
        return 1 + int(found[2]) + (decoder_from if in_decoder and decoder_from else 0)
    if INPUT.search(name):
        return 0
    below = decoder_from is not None and re.search(r"(?:^|\.)encoder\.", name)  # its last norm
    return decoder_from + 1 if below and decoder_from else blocks + 1


def rate_scale(name: str, model: Model, decay: float) -> float:
    """By what the learning rate of a parameter is multiplied: `decay` to the power of the levels above its own.

    The last norm and the head learn at the full rate, the last block at `decay` of it, and so on down to the
    embeddings (discriminative fine-tuning, ULMFiT, arXiv:1801.06146 section 3.2; the levels are those of ELECTRA,
    arXiv:2003.10555, appendix B).
    """
    if decay == 1:
        return 1.0
    blocks, decoder_from = model.num_hidden_layers, None
    if model.is_encoder_decoder:
        decoder_from = blocks
        blocks += model.decoder_layers
    return decay ** (blocks + 1 - depth(name, blocks, decoder_from))


def rate_scales(recipe: Recipe) -> Callable[[str], float]:
    """`rate_scale` by a recipe: parameter name -> factor. A discriminator has a rate of its own, the same all over."""

    def scale(name: str) -> float:
        if name.startswith("discriminator."):
            return recipe.objective.discriminator.lr_ratio
        return rate_scale(name, recipe.model, recipe.optimizer.layer_decay)

    return scale
