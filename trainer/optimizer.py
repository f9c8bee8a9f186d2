"""Which parameters learn, and which of them decay. The optimizer itself is torch's, made by the engine.

Decay shrinks matrices only. A norm's weight pulled towards 0 would fight the normalisation (no decay of vectors:
Megatron-LM, nanoGPT), and an embedding row is pulled at every step but pushed back only where its token occurs, so
that rare tokens would fade (no decay of embeddings: OLMo 2, arXiv:2501.00656). A tied embedding is an embedding.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from data.errors import UserError
from trainer.adapters.shapes import learned, matching
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

    A tied parameter answers to each of its names. `head` stands for the parameters of the model's head, and a pattern
    after a `!` freezes what it matches.

    Raises:
        UserError: a pattern matches no parameter, or nothing is left to learn.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    heads: tuple[str, ...] = getattr(model, "head_names", ())
    found = {pattern: matching(pattern, names, heads) for pattern in patterns}
    lost = [pattern for pattern, matched in found.items() if not matched]
    if lost:
        raise UserError("\n".join(_unmatched(pattern, list(names)) for pattern in lost))
    for parameter in names.values():
        parameter.requires_grad_(False)
    for name in learned(names, patterns, heads):
        names[name].requires_grad_(True)
    for name in (name for pattern in patterns if pattern.startswith("!") for name in found[pattern]):
        names[name].requires_grad_(False)  # under its other name a tied one may have been let learn
    if not any(parameter.requires_grad for parameter in names.values()):
        raise UserError(f'train.trainable {list(patterns)} lets nothing learn; ["*"] trains every parameter')


def _unmatched(pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern, names, 3, 0.4) or names[:3]
    return f"train.trainable: {pattern!r} matches no parameter; names near it: {', '.join(near)}"
