"""Beam search: it finds what exhaustive search finds, whatever stands beside a prompt."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from trainer.generate import generate
from trainer.generation.settings import Decoding
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.recipe import Model

CONFIG = Model(
    context=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3
)
KNOWN, EOS = 5, 3
PROMPTS = [[1, 4, 2, 0, 0, 1], [2], [4, 4, 0], [0, 1, 2, 4, 4, 2, 1, 1, 0]]


@pytest.fixture(scope="module")
def model() -> Decoder:
    built = Decoder(CONFIG, KNOWN)
    initialize(built, 11)
    return built


def every_text(model: Decoder, prompt: list[int], count: int, length_penalty: float) -> list[tuple[float, list[int]]]:
    """(score, tokens) of all texts of up to `count` tokens, best first."""
    others = [token for token in range(KNOWN) if token != EOS]
    texts = [[*begun, EOS] for size in range(count) for begun in product(others, repeat=size)]
    texts += [list(text) for text in product(others, repeat=count)]
    scored = []
    with torch.no_grad():
        for text in texts:
            chances = model(torch.tensor([prompt + text]))[0].log_softmax(-1)
            summed = sum(float(chances[len(prompt) - 1 + at, token]) for at, token in enumerate(text))
            scored.append((summed / len(text) ** length_penalty, [token for token in text if token != EOS]))
    return sorted(scored, key=lambda each: -each[0])


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -0.5])
def test_enough_beams_find_the_likeliest_texts_of_all(model, length_penalty):
    beams = (KNOWN - 1) ** 2 * KNOWN
    decoding = Decoding(
        3, num_beams=beams, num_return_sequences=4, length_penalty=length_penalty, early_stopping="never"
    )
    for prompt in PROMPTS[:2]:
        [made] = generate(model, [prompt], decoding, eos_id=EOS)
        assert made == [text for _, text in every_text(model, prompt, 3, length_penalty)[:4]]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_a_text_does_not_depend_on_what_is_searched_beside_it(model, early_stopping):
    decoding = Decoding(12, num_beams=3, num_return_sequences=3, early_stopping=early_stopping)
    together = generate(model, PROMPTS, decoding, eos_id=EOS)
    assert together == [generate(model, [prompt], decoding, eos_id=EOS)[0] for prompt in PROMPTS]
    assert together == generate(model, PROMPTS, decoding, eos_id=EOS, lockstep=True)
    assert len({len(text) for texts in together for text in texts}) > 1  # some ended before others


def score(model: Decoder, prompt: list[int], text: list[int], count: int) -> float:
    """Log-probability a token of a text of at most `count`, its end included."""
    whole = text if len(text) == count else [*text, EOS]
    with torch.no_grad():
        chances = model(torch.tensor([prompt + whole]))[0].log_softmax(-1)
    return sum(float(chances[len(prompt) - 1 + at, token]) for at, token in enumerate(whole)) / len(whole)


def test_a_search_that_never_stops_early_finds_as_good_texts_and_somewhere_better_ones(model):
    prompts = torch.randint(0, KNOWN, (24, 5), generator=torch.Generator().manual_seed(1)).tolist()
    found, passes = {}, []
    for early in (True, False, "never"):
        counts = []
        hook = model.register_forward_hook(lambda *_, counts=counts: counts.append(1))
        decoding = Decoding(12, num_beams=2, early_stopping=early)
        made = [generate(model, [prompt], decoding, eos_id=EOS)[0] for prompt in prompts]
        hook.remove()
        passes.append(len(counts))
        found[early] = [score(model, prompt, text, 12) for prompt, [text] in zip(prompts, made, strict=True)]
    for less, more in ((True, False), (False, "never")):
        gains = [better - worse for better, worse in zip(found[more], found[less], strict=True)]
        assert min(gains) > -1e-5
        assert max(gains) > 0.01
    assert passes[0] < passes[1] < passes[2]


def test_lockstep_runs_as_many_passes_as_the_longest_text_may_take(model):
    counts = []
    hook = model.register_forward_hook(lambda *_: counts.append(torch.is_grad_enabled()))
    try:
        for lockstep in (False, True):
            counts.clear()
            decoding = Decoding(12, num_beams=2, early_stopping=True)
            generate(model, PROMPTS[:1], decoding, eos_id=range(KNOWN), lockstep=lockstep)
            assert len(counts) == (12 if lockstep else 1)
            assert not any(counts)
    finally:
        hook.remove()


def test_the_context_ends_each_prompts_texts_by_itself(model):
    decoding = Decoding(100, num_beams=2, at_context="stop")
    made = generate(model, PROMPTS, decoding, eos_id=None)
    assert [len(prompt) + len(text) for prompt, [text] in zip(PROMPTS, made, strict=True)] == [32] * 4
    assert made[2] == generate(model, [PROMPTS[2]], replace(decoding, max_new_tokens=29), eos_id=None)[0]
