"""Beam search: the likeliest texts, not the likeliest tokens; scores, ends and stopping as in transformers 5.

Each pass takes twice as many candidates as there are beams, so that as many stay if all of the best end. A text that
ends among the best `num_beams` candidates enters the list of ended ones by its log-probability / its new tokens ^
length_penalty; the rest go on. Sums of -1e9 instead of minus infinity stand for "not a beam", as there, so that equal
weights give equal texts also where a processor forbids almost everything. Prompts are read once, not once a beam, and
a prompt whose search has ended leaves the batch when it and others like it are half of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer import watchdog
from trainer.generation.passes import Passes
from trainer.generation.processors import processors
from trainer.generation.settings import Decoding

FAR = -1.0e9


class _Ended:
    """The best ended texts of each prompt."""

    def __init__(self, prompts: int, beams: int, width: int, device: torch.device) -> None:
        self.scores = torch.full((prompts, beams), FAR, device=device)
        self.full = torch.zeros((prompts, beams), dtype=torch.bool, device=device)
        """Whether a place holds a text."""
        self.lengths = torch.zeros((prompts, beams), dtype=torch.int64, device=device)
        """New tokens of each, the end's own included."""
        self.texts = torch.zeros((prompts, beams, width), dtype=torch.int64, device=device)

    def add(self, scores: Tensor, fresh: Tensor, length: int, texts: Tensor) -> None:
        """Keeps the best of what is held and of candidates.

        Args:
            scores: (prompts, candidates), far below any text's where one may not enter.
            fresh: (prompts, candidates), True where one has ended.
            length: new tokens of each.
            texts: (prompts, candidates, tokens).
        """
        beams = self.scores.size(1)
        self.scores, best = torch.cat((self.scores, scores), 1).topk(beams)
        self.full = torch.cat((self.full, fresh), 1).gather(1, best)
        self.lengths = torch.cat((self.lengths, torch.full_like(fresh, length, dtype=torch.int64)), 1).gather(1, best)
        merged = torch.cat((self.texts[..., : texts.size(2)], texts), 1)
        held = best[..., None].expand(-1, -1, texts.size(2))
        self.texts[..., : texts.size(2)] = merged.gather(1, held)

    def select(self, prompts: Tensor) -> None:
        self.scores, self.full = self.scores[prompts], self.full[prompts]
        self.lengths, self.texts = self.lengths[prompts], self.texts[prompts]


@torch.no_grad()
def beam_search(
    passes: Passes, decoding: Decoding, limits: Sequence[int], ends: Sequence[int], lockstep: bool
) -> list[list[list[int]]]:
    """The `num_return_sequences` best texts of each prompt, best first, without the ends' own tokens.

    Args:
        limits: the most new tokens of each prompt's texts.
        ends: ids that end a text.
        lockstep: run on after all searches have ended.
    """
    beams, device, most = decoding.num_beams, passes.device, max(limits)
    prompts = list(range(len(limits)))
    limit = torch.tensor(limits, device=device)[:, None]
    end_ids = torch.tensor(list(ends), dtype=torch.int64, device=device)
    apply = processors(decoding, ends, passes.begun)
    found: dict[int, list[list[int]]] = {}
    ended = _Ended(len(prompts), beams, most, device)
    improvable = torch.ones((len(prompts), 1), dtype=torch.bool, device=device)
    scores = torch.full((len(prompts), beams), FAR, device=device)
    scores[:, 0] = 0
    logits = passes.begin()
    passes.repeat(beams)
    logits = logits.repeat_interleave(beams, 0)
    for count in range(1, most + 1):
        watchdog.enter("sampling")
        chances = logits.log_softmax(-1)
        for process in apply:
            chances = process(chances, passes.history)
        summed = (chances.view(len(prompts), beams, -1) + scores[..., None]).flatten(1)
        candidates, places = summed.topk(min(max(2, 1 + len(ends)) * beams, summed.size(1)))
        parents, tokens = places // logits.size(1), places % logits.size(1)
        hits = torch.isin(tokens, end_ids) | (limit == count)

        texts = passes.history[:, passes.begun :].unflatten(0, (len(prompts), beams))
        texts = texts.gather(1, parents[..., None].expand(-1, -1, count - 1))
        texts = torch.cat((texts, tokens[..., None]), 2)
        fresh = hits.clone()
        fresh[:, beams:] = False
        final = candidates / count**decoding.length_penalty
        if decoding.early_stopping is True:
            final = final + ended.full.all(1, keepdim=True) * FAR
        final = final + ~improvable * FAR
        ended.add(final + ~fresh * FAR, fresh, count, texts)

        scores, going = (candidates + hits * FAR).topk(beams)
        parents, tokens = parents.gather(1, going), tokens.gather(1, going)
        longest = limit if decoding.early_stopping == "never" and decoding.length_penalty > 0 else count
        possible = scores[:, :1] / longest**decoding.length_penalty
        worst = ended.scores.amin(1, keepdim=True).where(ended.full, FAR)
        improvable = improvable & (possible > worst).any(1, keepdim=True)
        closed = ~improvable[:, 0] | (limit[:, 0] == count)
        if decoding.early_stopping is True:
            closed = closed | ended.full.all(1)
        over = closed.tolist()
        if count == most or (not lockstep and all(over)):
            break
        passes.reorder((parents + torch.arange(len(prompts), device=device)[:, None] * beams).flatten())
        logits = passes.advance(tokens.flatten())
        stay = [place for place, done in enumerate(over) if not done]
        if not lockstep and 2 * len(stay) <= len(prompts):
            found |= _texts(ended, prompts, [place for place, done in enumerate(over) if done], decoding, ends)
            prompts = [prompts[place] for place in stay]
            passes.select([place * beams + beam for place in stay for beam in range(beams)])
            kept = torch.tensor(stay, device=device)
            logits = logits.unflatten(0, (-1, beams))[kept].flatten(0, 1)
            limit, improvable, scores = limit[kept], improvable[kept], scores[kept]
            ended.select(kept)
    found |= _texts(ended, prompts, range(len(prompts)), decoding, ends)
    return [found[prompt] for prompt in range(len(limits))]


def _texts(
    ended: _Ended, prompts: Sequence[int], places: Sequence[int], decoding: Decoding, ends: Sequence[int]
) -> dict[int, list[list[int]]]:
    """The texts at `places` of `ended`, by prompt."""
    lengths, texts = ended.lengths.tolist(), ended.texts.tolist()
    found = {}
    for place in places:
        held = zip(texts[place], lengths[place], strict=True)
        tokens = [text[:length] for text, length in held][: decoding.num_return_sequences]
        found[prompts[place]] = [text[:-1] if text and text[-1] in ends else text for text in tokens]
    return found
