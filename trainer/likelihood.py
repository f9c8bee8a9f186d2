"""How likely a decoder finds given tokens: what perplexity, minimal pairs and comparisons of groups are made of.

Passages are read alone, each as one document, in batches of like lengths; what a passage's sums are doesn't depend on
its neighbours but for the last bits of a float.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from trainer.evaluate import forward_rows
from trainer.models.loss import IGNORED
from trainer.scores import Loaded
from trainer.sizes import MOST_ROWS

SUMS = ("loss", "labels", "correct", "bytes")


@dataclass(frozen=True)
class Passage:
    """Tokens that a model reads from left to right, and from which one on it is asked."""

    tokens: np.ndarray
    """(n,) integers, n at least 2 and at most context + 1."""
    asked: int = 1
    """The first token that counts, at least 1: before it, tokens are only read, by a model with prefix attention in
    both directions."""


def refuse_others(loaded: Loaded, what: str) -> None:
    """Raise UserError unless the model gives each next token of a text a probability."""
    if loaded.objective.head.kind != "lm" or not loaded.recipe.model.is_decoder:
        raise UserError(
            f"{what} asks how likely a model finds a text, token after token, and this one is of family "
            f"{loaded.recipe.model.family} with objective {loaded.objective.name}: take a decoder that learned causal"
        )


def sums_of(loaded: Loaded, passages: Sequence[Passage]) -> np.ndarray:
    """(passages, 4) fp64: of each passage the loss in nats, tokens asked, those that were likeliest, bytes."""
    context, found = loaded.recipe.model.context, np.zeros((len(passages), len(SUMS)))
    rows = forward_rows(MOST_ROWS, context, loaded.inputs.vocab_size)
    order = sorted(range(len(passages)), key=lambda index: len(passages[index].tokens))
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        found[chosen] = _read(loaded, [passages[index] for index in chosen])
    return found


def _read(loaded: Loaded, passages: Sequence[Passage]) -> np.ndarray:
    """`sums_of` for one forward."""
    width = max(len(each.tokens) for each in passages) - 1
    inputs = np.zeros((len(passages), width), np.int64)
    labels = np.full((len(passages), width), IGNORED, np.int64)
    for row, each in enumerate(passages):
        inputs[row, : len(each.tokens) - 1] = each.tokens[:-1]
        labels[row, each.asked - 1 : len(each.tokens) - 1] = each.tokens[each.asked :]
    asked = labels != IGNORED
    text_bytes = np.where(asked, loaded.inputs.tokenizer.piece_bytes[np.where(asked, labels, 0)], 0).sum(1)
    with torch.no_grad():
        targets: Tensor = torch.from_numpy(labels).to(loaded.device)
        begun = torch.tensor([each.asked for each in passages], device=loaded.device)
        prefixes = begun if loaded.recipe.model.attention == "prefix" else None
        logits = loaded.model(torch.from_numpy(inputs).to(loaded.device), None, None, prefixes=prefixes).float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
        )
        loss = losses.view_as(targets).double().sum(1)
        correct = ((logits.argmax(-1) == targets) & (targets != IGNORED)).sum(1)
    return np.stack([loss.cpu().numpy(), asked.sum(1), correct.cpu().numpy(), text_bytes], 1)
