"""What is done to the scores of the next token before one is chosen: functions of (scores, history) -> scores.

`scores` (rows, vocabulary) fp32 are logits when sampling and log-probabilities in beam search; `history` (rows, tokens)
int64 is what each row holds so far, aligned at its end, where a shorter row is filled in front with the vocabulary's
size, which is no token. Results are those of transformers' processors of the same names, in their order.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.generation.settings import Decoding

Processor = Callable[[Tensor, Tensor], Tensor]


def processors(decoding: Decoding, ends: Sequence[int], begun: int) -> list[Processor]:
    """Those that the settings ask for, in their order.

    Args:
        ends: ids that end a text.
        begun: tokens of `history` before the first new one.
    """
    chosen: list[Processor] = []
    if decoding.repetition_penalty != 1:
        chosen.append(lambda scores, history: penalised(scores, history, decoding.repetition_penalty))
    if decoding.no_repeat_ngram_size:
        chosen.append(lambda scores, history: without_repeats(scores, history, decoding.no_repeat_ngram_size))
    if decoding.min_new_tokens and ends:
        least = begun + decoding.min_new_tokens
        chosen.append(lambda scores, history: without(scores, ends) if history.size(1) < least else scores)
    return chosen


def penalised(scores: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Scores of tokens in `history` divided by `penalty` where positive, else multiplied by it (arXiv:1909.05858)."""
    wider = F.pad(scores, (0, 1))
    held = wider.gather(1, history)
    return wider.scatter(1, history, torch.where(held < 0, held * penalty, held / penalty))[:, :-1]


def without_repeats(scores: Tensor, history: Tensor, size: int) -> Tensor:
    """Minus infinity for each token that would complete `size` tokens which `history` holds already."""
    width = history.size(1)
    if width < size:
        return scores
    begun = history[:, width + 1 - size :]
    windows = history.unfold(1, size, 1)
    repeated = (windows[..., :-1] == begun[:, None]).all(-1)
    completing = torch.where(repeated, windows[..., -1], scores.size(1))
    banned = torch.zeros(len(scores), scores.size(1) + 1, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(banned.scatter_(1, completing, True)[:, :-1], -torch.inf)


def without(scores: Tensor, tokens: Sequence[int]) -> Tensor:
    """Minus infinity for `tokens`."""
    return scores.index_fill(1, torch.tensor(tokens, device=scores.device), -torch.inf)
