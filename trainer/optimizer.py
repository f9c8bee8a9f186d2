"""Which parameters learn, and which of them decay. The optimizer itself is torch's, made by the engine.

Decay shrinks matrices only. A norm's weight pulled towards 0 would fight the normalisation (no decay of vectors:
Megatron-LM, nanoGPT), and an embedding row is pulled at every step but pushed back only where its token occurs, so
that rare tokens would fade (no decay of embeddings: OLMo 2, arXiv:2501.00656). A tied embedding is an embedding.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from data.errors import UserError
from trainer.models.shapes import group_keys


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    scale: Callable[[str], float] = lambda _: 1.0,
) -> list[dict[str, Any]]:
    """The optimizer's groups of the parameters that learn: those that decay, then those that don't.

    Args:
        scale: by what a parameter's learning rate is multiplied (`trainer.models.depth`); a group says it, and the
            engine obeys.
    """
    learning = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
    keys = group_keys({name: tuple(parameter.shape) for name, parameter in learning.items()}, scale)
    return [
        {"params": [learning[name] for name in names], "weight_decay": weight_decay * decayed, "scale": factor}
        for (decayed, factor), names in keys.items()
    ]


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Lets only the parameters learn whose name matches one of the shell `patterns` (`train.trainable`).

    A tied parameter answers to each of its names.

    Raises:
        UserError: a pattern matches no parameter, or nothing is left to learn.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    lost = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if lost:
        raise UserError("\n".join(_unmatched(pattern, list(names)) for pattern in lost))
    if not patterns:
        raise UserError('train.trainable is empty, so nothing would learn; ["*"] trains every parameter')
    for parameter in names.values():
        parameter.requires_grad_(False)
    for name, parameter in names.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(True)


def _unmatched(pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern, names, 3, 0.4) or names[:3]
    return f"train.trainable: {pattern!r} matches no parameter; names near it: {', '.join(near)}"
