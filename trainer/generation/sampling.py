"""Greedy decoding and sampling: one token a row and pass.

Each text draws from a generator of its own, keyed by (seed, its prompt, the number of the sample), one number a token:
it stays the same in any batch, and a longer text begins with the shorter one. Its numbers are drawn before the first
pass, so that a token costs one exchange with the device: the tokens, read to learn which texts have ended. Rows whose
texts have ended leave the batch when they are half of it.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from trainer import watchdog
from trainer.generation.passes import Passes
from trainer.generation.processors import processors
from trainer.generation.settings import Decoding


@torch.no_grad()
def sample(
    passes: Passes, prompts: Sequence[Sequence[int]], decoding: Decoding, limits: Sequence[int], ends: Sequence[int],
    lockstep: bool,
) -> Iterator[list[tuple[int, int]]]:  # fmt: skip
    """The next tokens of all texts, pass by pass: (text, token) of each that hasn't ended, without the ends' own.

    Args:
        limits: the most tokens of a text of each prompt.
        ends: ids that end a text.
        lockstep: run on with all rows after all texts have ended.
    Returns:
        Texts are numbered through: prompt * num_return_sequences + sample.
    """
    copies = decoding.num_return_sequences
    rows = list(range(len(prompts) * copies))
    most = [limits[row // copies] for row in rows]
    uniform = _uniform(prompts, decoding, max(limits)).to(passes.device) if decoding.sampled else None
    apply = processors(decoding, ends, passes.begun)
    logits = passes.begin()
    passes.repeat(copies)
    logits = logits.repeat_interleave(copies, 0)
    ended: set[int] = set()
    for count in range(1, max(limits) + 1):
        watchdog.enter("sampling")
        for process in apply:
            logits = process(logits, passes.history)
        if uniform is None:
            tokens = logits.argmax(-1)
        else:
            chances = probabilities(logits, decoding.temperature, decoding.top_k, decoding.top_p, decoding.min_p)
            tokens = draw(chances, uniform[:, count - 1])
        said = list(zip(rows, tokens.tolist(), strict=True))
        ended |= {row for row, token in said if token in ends}
        yield [(row, token) for row, token in said if row not in ended]
        ended |= {row for row in rows if most[row] == count}
        if count == max(limits) or (not lockstep and ended.issuperset(rows)):
            return
        logits = passes.advance(tokens)
        going = [place for place, row in enumerate(rows) if row not in ended]
        if not lockstep and 2 * len(going) <= len(rows):
            rows = [rows[place] for place in going]
            passes.select(going)
            kept = torch.tensor(going, device=passes.device)
            logits = logits[kept]
            uniform = None if uniform is None else uniform[kept]


def _uniform(prompts: Sequence[Sequence[int]], decoding: Decoding, count: int) -> Tensor:
    """(texts, count) fp64 in [0, 1): what each text's tokens are drawn by."""
    drawn = []
    for prompt in prompts:
        for number in range(decoding.num_return_sequences):
            key = hashlib.sha256(f"{decoding.seed}/{number}/{','.join(map(str, prompt))}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
            drawn.append(torch.rand(count, generator=generator, dtype=torch.float64))
    return torch.stack(drawn)


def probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """What a token is drawn from: `logits` (rows, vocabulary) fp32 to (rows, vocabulary), rows adding up to 1.

    In this order, as in transformers: temperature, the `top_k` likeliest (exactly k: of equals, lower ids), of those
    the fewest whose probabilities reach `top_p` together, of those the ones at least `min_p` times as likely as the
    likeliest.
    """
    logits = logits / temperature
    if 0 < top_k < logits.size(1):
        logits = logits.masked_fill(~_likeliest(logits, top_k), -torch.inf)
    chances = logits.softmax(-1)
    if top_p < 1:
        order = torch.arange(logits.size(1), device=logits.device).expand_as(logits)
        if 0 < top_k < logits.size(1):
            order = logits.topk(top_k).indices.sort(-1).values
        places = logits.gather(1, order).sort(dim=-1, descending=True, stable=True).indices
        order = order.gather(1, places)
        ranked = chances.gather(1, order)
        enough = ranked.cumsum(-1) - ranked >= top_p
        chances = chances.scatter(1, order, ranked.masked_fill(enough, 0.0))
    if min_p:
        chances = chances.where(chances >= min_p * chances.amax(-1, keepdim=True), 0.0)
    return chances / chances.sum(-1, keepdim=True)


def _likeliest(logits: Tensor, count: int) -> Tensor:
    """True for the `count` highest of each row, without sorting the rest; of equals the first."""
    least = logits.topk(count).values[:, -1:]
    above, equal = logits > least, logits == least
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


def draw(chances: Tensor, uniform: Tensor) -> Tensor:
    """The token at which each row's cumulated `chances` (rows, vocabulary) pass `uniform` (rows,) in [0, 1).

    Added in fp64, so that a token of chance 0 is never drawn.
    """
    edges = chances.double().cumsum(-1)
    found = torch.searchsorted(edges, uniform[:, None] * edges[:, -1:], right=True)[:, 0]
    return found.clamp(max=chances.size(-1) - 1)


@torch.no_grad()
def continuations(model: nn.Module, prompts: Tensor, uniform: Tensor) -> Tensor:
    """Samples of the model's own distribution, all of one length; every rank that holds a shard must call this alike.

    Args:
        model: a decoder.
        prompts: (B, P) int64.
        uniform: (B, k, N) fp64 in [0, 1): what the N tokens of each prompt's k samples are drawn by.
    Returns:
        (B * k, P + N) int64, each prompt with its samples, one after the other.
    """
    rows, copies, count = uniform.shape
    passes = Passes(model, prompts.tolist(), [count] * rows, None)
    logits = passes.begin().repeat_interleave(copies, 0)
    passes.repeat(copies)
    by_text = uniform.flatten(0, 1)
    for place in range(count):
        watchdog.enter("sampling")
        tokens = draw(probabilities(logits, 1.0), by_text[:, place])
        if place + 1 < count:
            logits = passes.advance(tokens)
        else:
            passes.take(tokens)
    return passes.history
