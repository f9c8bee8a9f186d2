"""Generation: the cache changes nothing, samples are seeded, limits hold."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from trainer.generate import generate, stream
from trainer.generation.sampling import draw, probabilities
from trainer.generation.settings import Decoding
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.recipe import Model

CONFIG = Model(context=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3)
VOCABULARY = 64
PROMPTS = [[5, 9, 33, 2, 7, 7, 1], [8], [60, 12, 3], [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 11]]


@pytest.fixture(scope="module")
def model() -> Decoder:
    built = Decoder(CONFIG, VOCABULARY)
    initialize(built, 7)
    return built


def greedy_without_cache(model: Decoder, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_text_is_the_same_as_without_a_cache_for_prompts_of_any_lengths(model):
    """Memory that nobody wrote is filled with NaN here, so that a look at it shows."""
    torch.use_deterministic_algorithms(True)
    try:
        texts = generate(model, PROMPTS, Decoding(25), eos_id=None)
    finally:
        torch.use_deterministic_algorithms(False)
    assert texts == [[greedy_without_cache(model, prompt, 25)] for prompt in PROMPTS]
    assert len({tuple(text) for [text] in texts}) == len(PROMPTS)


def test_a_seed_gives_each_prompt_the_same_text_in_any_batch(model):
    three = Decoding(12, temperature=1.0, seed=3, num_return_sequences=3)
    texts = generate(model, PROMPTS, three, eos_id=None)
    assert texts == generate(model, PROMPTS, three, eos_id=None)
    assert texts[::-1] == generate(model, PROMPTS[::-1], three, eos_id=None)
    assert [texts[2]] == generate(model, PROMPTS[2:3], three, eos_id=None)
    assert [text[:1] for text in texts] == generate(model, PROMPTS, replace(three, num_return_sequences=1), eos_id=None)
    shorter = generate(model, PROMPTS, replace(three, max_new_tokens=5), eos_id=None)
    assert [[text[:5] for text in row] for row in texts] == shorter
    assert all(len({tuple(text) for text in row}) == 3 for row in texts)
    assert texts != generate(model, PROMPTS, replace(three, seed=4), eos_id=None)


def test_each_prompt_has_draws_of_its_own():
    even = Decoder(CONFIG, VOCABULARY)  # all weights zero: every token is as likely as any other
    [first], [second] = generate(even, [[1], [2]], Decoding(20, temperature=1.0), eos_id=None)
    assert first != second


def test_more_sequences_than_run_together(model):
    prompts = [[index % VOCABULARY, index // VOCABULARY] for index in range(70)]
    texts = generate(model, prompts, Decoding(2), eos_id=None)
    assert len(texts) == 70
    assert texts[66:] == generate(model, prompts[66:], Decoding(2), eos_id=None)


def test_text_ends_before_eos_and_its_neighbours_go_on(model):
    free = generate(model, PROMPTS, Decoding(20), eos_id=None)
    eos = free[0][0][6]
    stopped = generate(model, PROMPTS, Decoding(20), eos_id=eos)
    for [text], [ended] in zip(free, stopped, strict=True):
        assert ended == (text[: text.index(eos)] if eos in text else text)
    assert len(stopped[0][0]) <= 6


def test_text_ends_where_the_context_is_full(model):
    long = Decoding(1000, at_context="stop")
    texts = generate(model, PROMPTS, long, eos_id=None)
    assert [len(prompt) + len(text) for prompt, [text] in zip(PROMPTS, texts, strict=True)] == [40] * 4
    assert texts == [[greedy_without_cache(model, prompt, 40 - len(prompt))] for prompt in PROMPTS]
    assert len(generate(model, [[1] * 39], replace(long, max_new_tokens=9), eos_id=None)[0][0]) == 1


def test_lockstep_runs_the_same_number_of_forwards_whatever_is_said(model):
    counts = []
    hook = model.register_forward_hook(lambda *_: counts.append(1))
    try:
        first = generate(model, PROMPTS[1:2], Decoding(9), eos_id=None)[0][0]
        for lockstep in (False, True):
            counts.clear()
            assert generate(model, PROMPTS[1:2], Decoding(9), eos_id=first[0], lockstep=lockstep) == [[[]]]
            assert len(counts) == (9 if lockstep else 1)
        counts.clear()
        generate(model, PROMPTS, Decoding(1000, at_context="stop"), eos_id=None, lockstep=True)
        assert len(counts) == 39
    finally:
        hook.remove()


def test_mode_and_global_random_state_stay(model):
    state = torch.random.get_rng_state()
    for training in (True, False):
        model.train(training)
        generate(model, PROMPTS, Decoding(3, temperature=1.0), eos_id=None)
        assert model.training is training
        assert model.model.norm.training is training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_dropout_is_off(model):
    dropping = Decoder(CONFIG.model_copy(update={"residual_dropout": 0.5}), VOCABULARY)
    initialize(dropping, 7)
    assert dropping.training
    assert generate(dropping, PROMPTS, Decoding(9), eos_id=None) == generate(model, PROMPTS, Decoding(9), eos_id=None)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], []], "prompt 2 is empty"),
        ([[1] * 40], "prompt 1 has 40 tokens; a context of 40 fits 39"),
        ([[1, 64]], "prompt 1 holds token 64; the model knows 64"),
        ([[1], [1] * 37], "prompt 2 has 37 tokens, and 4 new ones make 41: the model's context holds 40. Ask for 3"),
    ],
)
def test_mistakes_are_named(model, prompts, message):
    for ask in (generate, lambda model, prompts, *rest, **more: list(stream(model, prompts[-1], *rest, **more))):
        with pytest.raises(UserError, match=message.replace("prompt 2", "prompt [12]")):
            ask(model, prompts, Decoding(4), eos_id=None)


def test_a_text_is_streamed_as_it_is_made(model):
    for decoding in (Decoding(12), Decoding(12, temperature=1.0, seed=3)):
        [[text]] = generate(model, PROMPTS[:1], decoding, eos_id=None)
        counts = []
        hook = model.register_forward_hook(lambda *_, counts=counts: counts.append(torch.is_grad_enabled()))
        said = stream(model, PROMPTS[0], decoding, eos_id=None)
        for number, token in enumerate(said):
            assert token == text[number]
            assert len(counts) == number + 1
            assert torch.is_grad_enabled()
        assert number == 11
        assert not any(counts)
        hook.remove()
    model.train()
    said = stream(model, PROMPTS[0], Decoding(12), eos_id=None)
    next(said)
    said.close()
    assert model.training
    for wrong in (Decoding(4, num_beams=2), Decoding(4, temperature=1.0, num_return_sequences=2)):
        with pytest.raises(UserError, match="stream"):
            next(stream(model, PROMPTS[0], wrong, eos_id=None))


def test_rows_whose_text_has_ended_leave_the_batch(model):
    free = generate(model, PROMPTS, Decoding(20), eos_id=None)
    ends = (free[0][0][2], free[1][0][4], free[2][0][1])
    rows = []
    hook = model.register_forward_hook(lambda _, inputs, *__: rows.append(len(inputs[0])))
    try:
        stopped = generate(model, PROMPTS, Decoding(20), eos_id=ends)
    finally:
        hook.remove()
    assert rows[0] == 4
    assert rows[-1] < 4
    for [text], [ended] in zip(free, stopped, strict=True):
        assert ended == text[: next((number for number, token in enumerate(text) if token in ends), 20)]


LOGITS = torch.tensor([[1.0, 3.0, 2.0, 3.0, -5.0], [0.0, 0.0, 0.0, 0.0, 0.0]])


def test_top_k_keeps_the_k_likeliest():
    kept = probabilities(LOGITS, 1.0, 2, 1.0)
    assert torch.allclose(kept, torch.tensor([[0, 0.5, 0, 0.5, 0], [0.5, 0.5, 0, 0, 0]]))
    assert torch.allclose(probabilities(LOGITS, 0.5, 0, 1.0), (LOGITS * 2).softmax(-1))
    assert torch.allclose(probabilities(LOGITS, 1.0, 99, 1.0), LOGITS.softmax(-1))


def test_top_p_keeps_the_fewest_that_reach_p():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    for top_p, expected in (
        (0.3, [0.0, 1, 0, 0]),
        (0.41, [0, 4 / 7, 0, 3 / 7]),
        (0.85, [0, 4 / 9, 2 / 9, 3 / 9]),
        (0.99, [0.1, 0.4, 0.2, 0.3]),
    ):
        assert torch.allclose(probabilities(logits, 1.0, 0, top_p), torch.tensor([expected]), atol=1e-6)
    both = probabilities(logits, 1.0, 2, 0.5)
    assert torch.allclose(both, torch.tensor([[0.0, 1, 0, 0]]))


def test_min_p_keeps_what_is_likely_beside_the_likeliest():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    assert torch.allclose(probabilities(logits, 1.0, min_p=0.6), torch.tensor([[0.0, 4 / 7, 0, 3 / 7]]))
    assert torch.allclose(probabilities(logits, 1.0, min_p=0.0), logits.exp())
    assert torch.allclose(probabilities(logits, 1.0, min_p=1.0), torch.tensor([[0.0, 1, 0, 0]]))


@settings(max_examples=60, deadline=None)
@example(logits=[-2e-10, 0.0], top_k=0, top_p=0.5, min_p=0.0, temperature=1.0, uniform=0.0)
@given(
    st.lists(st.floats(-30, 30, width=32, allow_subnormal=False), min_size=2, max_size=20),
    st.integers(0, 25),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0.1, 5),
    st.floats(0, 1, exclude_max=True),
)
def test_a_drawn_token_is_always_a_possible_one(logits, top_k, top_p, min_p, temperature, uniform):
    chances = probabilities(torch.tensor([logits]), temperature, top_k, top_p, min_p)
    assert chances.sum().item() == pytest.approx(1, abs=1e-5)
    assert not top_k or (chances > 0).sum() <= top_k
    assert chances[0, torch.tensor(logits).argmax()] > 0
    token = draw(chances, torch.tensor([uniform], dtype=torch.float64))
    assert chances[0, token] > 0


def test_draws_follow_the_chances():
    chances = torch.tensor([[0.5, 0.0, 0.2, 0.3]])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    counts = draw(chances.expand(20_000, 4), uniform).bincount(minlength=4) / 20_000
    assert torch.allclose(counts, chances[0], atol=0.012)
