"""Text from a model: greedy, sampled or by beam search, with a key-value cache.

Prompts of different lengths share their forward passes without touching each other (`trainer/models/cache.py`); what a
token is chosen by lies in `trainer/generation/`. With the cache, 64 tokens after a prompt of 192 cost 0.25 s for a 3 M
parameter model on one thread, 64 such texts at once 3.8 s; reading everything anew at each token costs 1.9 s for one.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from data.errors import UserError
from trainer.generation.beams import beam_search
from trainer.generation.passes import Passes, prefix, writer
from trainer.generation.sampling import sample
from trainer.generation.settings import Decoding

TOGETHER = 64  # texts, or beams, in one forward pass; bounds the cache's memory

Ends = int | Sequence[int] | None


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    eos_id: Ends,
    start_id: int | None = None,
    lockstep: bool = False,
) -> list[list[list[int]]]:
    """`num_return_sequences` continuations of each prompt: new tokens only, without the one that ended them.

    A continuation ends at `eos_id` or after `max_new_tokens`. Every rank that holds a shard of `model` must call this
    alike. The model's training mode is restored and the global random state left alone.

    Args:
        model: a decoder, or an encoder-decoder, whose encoder reads the prompt.
        prompts: tokens. Equal prompts get equal samples.
        eos_id: ends a text; several may, or none.
        start_id: an encoder-decoder's first decoder token; None: the model's `decoder_start_id`.
        lockstep: run on after all texts have ended, so that the number of forward passes depends on the prompts'
            lengths alone; ranks of unlike processors then can't part ways over a rounding.

    Raises:
        UserError: a prompt is empty, has ids beyond the vocabulary, or leaves no room in the context for
            `max_new_tokens`.
    """
    model = writer(model)
    start, ends, limits = _checked(model, prompts, decoding, eos_id, start_id)
    together = max(1, TOGETHER // max(decoding.num_beams, decoding.num_return_sequences))
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # of like lengths: little padding
    texts: list[list[list[int]]] = [[]] * len(prompts)
    with _still(model):
        for first in range(0, len(order), together):
            chosen = order[first : first + together]
            batch, most = [prompts[index] for index in chosen], [limits[index] for index in chosen]
            passes = Passes(model, batch, most, start)
            if decoding.num_beams > 1:
                made = beam_search(passes, decoding, most, ends, lockstep)
            else:
                made = _drained(sample(passes, batch, decoding, most, ends, lockstep), len(batch), decoding)
            for index, alternatives in zip(chosen, made, strict=True):
                texts[index] = alternatives
    return texts


def stream(
    model: nn.Module, prompt: Sequence[int], decoding: Decoding, *, eos_id: Ends, start_id: int | None = None
) -> Generator[int]:
    """The tokens of one continuation as they are made; whoever takes no more of them ends it.

    Raises:
        UserError: as `generate`; also where there is no one text that grows: beam search, or several samples.
    """
    if decoding.num_beams > 1:
        raise UserError("beam search knows its text only at the end: it can't be streamed; set num_beams to 1")
    if decoding.num_return_sequences > 1:
        raise UserError(f"one text can be streamed, not num_return_sequences {decoding.num_return_sequences}")
    model = writer(model)
    start, ends, limits = _checked(model, [prompt], decoding, eos_id, start_id)
    with _still(model):
        for said in sample(Passes(model, [prompt], limits, start), [prompt], decoding, limits, ends, lockstep=False):
            yield from (token for _, token in said)


def refuse_prompts(model: nn.Module, prompts: Sequence[Sequence[int]], decoding: Decoding) -> None:
    """Raise UserError, naming each by its number from 1, where `generate` would refuse a prompt."""
    _checked(writer(model), prompts, decoding, None, 0)


def _drained(said: Iterator[list[tuple[int, int]]], prompts: int, decoding: Decoding) -> list[list[list[int]]]:
    """Each prompt's texts."""
    copies = decoding.num_return_sequences
    texts: list[list[int]] = [[] for _ in range(prompts * copies)]
    for tokens in said:
        for text, token in tokens:
            texts[text].append(token)
    return [texts[first : first + copies] for first in range(0, len(texts), copies)]


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _context(model: Any) -> int:
    """Tokens of prompt and text together."""
    return model.config.context - len(prefix(model))


def _checked(
    model: Any, prompts: Sequence[Sequence[int]], decoding: Decoding, eos_id: Ends, start_id: int | None
) -> tuple[int | None, tuple[int, ...], list[int]]:
    """The decoder's first token, None where that is the prompt's; the ids that end a text; and each one's longest.

    Raises:
        UserError: the model makes no text; else naming each prompt that it can't take.
    """
    config, known = model.config, model.vocab_size
    if model.head.kind != "lm" or not (config.is_decoder or config.is_encoder_decoder):
        raise UserError(f"a {config.family} model with a head for {model.head.kind} makes no text")
    problems = []
    for index, prompt in enumerate(prompts):
        longest = _context(model) if config.is_encoder_decoder else _context(model) - 1
        if not prompt:
            problems.append(f"prompt {index + 1} is empty: it needs at least one token to continue")
        elif len(prompt) > longest:
            problems.append(
                f"prompt {index + 1} has {len(prompt)} tokens; a context of {_context(model)} fits {longest} at most"
            )
        elif not 0 <= min(prompt) <= max(prompt) < known:
            problems.append(
                f"prompt {index + 1} holds token {max(prompt)}; the model knows {known}: is the tokenizer its own?"
            )
    start = None
    if config.is_encoder_decoder:
        start = config.decoder_start_id if start_id is None else start_id
        if start is None:
            problems.append("an encoder-decoder needs the token that its decoder begins with: set start_id")
    if problems:
        raise UserError("\n".join(problems))
    ends = () if eos_id is None else (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
    return start, ends, decoding.limits([len(prompt) if start is None else 1 for prompt in prompts], _context(model))
