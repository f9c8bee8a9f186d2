"""Prefix language modelling by decoders: who sees whom, what is asked, and that prompts are read as in training."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from tests.trainer.families import VOCABULARY, config, gradients, scatter, tokens
from tests.trainer.lives import begun
from tests.trainer.objectives.rows import rows as example_rows
from tests.trainer.objectives.rows import text as marked
from tests.trainer.test_objective import text
from trainer.adapters.prompt import prefixed
from trainer.adapters.save import save_adapter
from trainer.generate import generate, stream
from trainer.generation.settings import Decoding
from trainer.meters import flops_per_token
from trainer.models.build import build
from trainer.objectives.base import Batch
from trainer.objectives.causal import Causal
from trainer.objectives.prefix import Prefix, PrefixDecoder

FAMILIES = ("llama", "gpt2")
CPU = torch.device("cpu")


def model(family: str, attention: str = "prefix", **more: Any) -> Any:
    """Every parameter drawn at random; llama's queries share keys."""
    shared = {"num_key_value_heads": 2} if family == "llama" else {}
    made = build(config(family, attention=attention, **shared, **more), VOCABULARY)
    scatter(made)
    return made


def first(batch: Batch) -> list[int]:
    """The prefix of each row, in tokens."""
    assert batch.prefixes is not None
    return batch.prefixes.tolist()


def reached(model: Any, prefix: int, changed: int, width: int = 12) -> list[bool]:
    """Whose logits change when the token at one place does."""
    ids = tokens(1, width)
    other = ids.clone()
    other[0, changed] = 1
    with torch.no_grad():
        before, after = (model(each, prefixes=torch.tensor([prefix])) for each in (ids, other))
    return (before != after).any(-1)[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_the_prefix_see_one_another_and_no_token_sees_a_later_one_of_the_rest(family):
    subject = model(family)
    assert reached(subject, 5, changed=4) == [True] * 12
    assert reached(subject, 5, changed=0) == [True] * 12
    assert reached(subject, 5, changed=5) == [False] * 5 + [True] * 7
    assert reached(subject, 5, changed=9) == [False] * 9 + [True] * 3
    assert reached(subject, 12, changed=11) == [True] * 12


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_of_one_token_is_causal_and_each_row_has_its_own(family):
    subject, ids = model(family), tokens(3, 12)
    with torch.no_grad():
        together = subject(ids, prefixes=torch.tensor([1, 6, 12]))
        torch.testing.assert_close(together[:1], subject(ids[:1]))
        for row, prefix in ((1, 6), (2, 12)):
            alone = subject(ids[row : row + 1], prefixes=torch.tensor([prefix]))
            torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_no_gradient(family):
    subject = model(family)
    again = build(subject.config, VOCABULARY, activation_checkpointing=True)
    again.load_state_dict(subject.state_dict())
    batch = PrefixDecoder("prefix", seed=4).batch(text(*tokens(3, 13).tolist(), length=13), CPU)
    objective = PrefixDecoder("prefix")
    expected, found = (gradients(each, objective.loss(each, batch)) for each in (subject, again))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_rest_of_each_row_read_alone(family, smoothing):
    subject, held = model(family), tokens(4, 13).tolist()
    held[2] = held[2][:6]
    rows = text(*held, [], [7], length=13)
    objective = PrefixDecoder("prefix", smoothing=smoothing, seed=4)
    batch = objective.batch(rows, CPU)
    expected, labels, right = 0.0, 0, 0
    with torch.no_grad():
        for row, ids in enumerate(held):
            cut = first(batch)[row]
            logits = subject(torch.tensor([ids]), prefixes=torch.tensor([cut]))[0, cut - 1 : -1]
            wanted = torch.tensor(ids[cut:])
            expected += float(F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing))
            labels, right = labels + len(wanted), right + int((logits.argmax(-1) == wanted).sum())
        assert float(objective.loss(subject, batch)) == pytest.approx(expected, rel=1e-5)
        measured = objective.measure(subject, batch)
    assert batch.label_tokens == labels
    assert (batch.rows, measured[1:3]) == (5, [labels, right])
    if not smoothing:
        assert measured[0] == pytest.approx(expected, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=6, unique=True), st.integers(2, 60), st.integers(0, 2**62))
def test_labels_are_the_rest_of_the_row_and_the_cut_is_the_encoder_decoders(positions, length, seed):
    held = np.random.default_rng(length).integers(2, VOCABULARY, (len(positions), length))
    rows = replace(text(*held.tolist(), [], length=length), positions=np.array([*positions, -1]))
    batch = PrefixDecoder("prefix", seed=seed).batch(rows, CPU)
    other = Prefix(seed, 0, 1).batch(rows, CPU)
    for slot, row in enumerate(held.tolist()):
        cut, labels = first(batch)[slot], batch.labels[slot].tolist()
        assert 1 <= cut < length
        assert batch.input_ids[slot].tolist() == row[:-1]
        assert labels == [-100] * (cut - 1) + row[cut:]
        assert [label for label in other.labels[slot].tolist() if label != -100] == row[cut:]
    assert (batch.labels[-1] == -100).all()  # filler
    assert (batch.rows, batch.label_tokens) == (len(positions), other.label_tokens)
    alone = replace(text(held[-1].tolist(), length=length), positions=np.array(positions[-1:]))
    assert PrefixDecoder("prefix", seed=seed).batch(alone, CPU).labels[0].tolist() == batch.labels[-2].tolist()


def example_batch() -> Batch:
    prompts = [[5, 6, 7, 8], [9, 10]]
    made = [marked(*prompt) + marked(20, 21, 22, marked=True) for prompt in prompts]
    return Causal("prefix").batch(example_rows(*made, []), CPU)


def test_of_an_example_the_prompt_is_the_prefix():
    batch = example_batch()
    assert first(batch) == [4, 2, 1]
    asked = batch.labels != -100
    assert asked.sum(1).tolist() == [3, 3, 0]
    assert asked.int().argmax(1).tolist()[:2] == [3, 1]  # the first one follows the prefix
    assert Causal("full").batch(example_rows(marked(5, 6, 7)), CPU).prefixes is None


def test_a_tuned_prompt_belongs_to_the_prefix():
    longer = prefixed(example_batch(), [VOCABULARY, VOCABULARY + 1])
    assert first(longer) == [6, 4, 3]


PROMPTS = [[5, 9, 33, 2, 7, 7, 3], [8], [60, 12, 3], [4] * 11]


def written(subject: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy text, everything read anew at each token: the prompt as prefix, the rest causal."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(subject(torch.tensor([ids]), prefixes=torch.tensor([len(prompt)]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_read_in_both_directions_and_its_text_is_the_same_without_a_cache(family):
    subject = model(family)
    expected = [written(subject, prompt, 12) for prompt in PROMPTS]
    assert [text for [text] in generate(subject, PROMPTS, Decoding(12), eos_id=None)] == expected
    assert list(stream(subject, PROMPTS[0], Decoding(12), eos_id=None)) == expected[0]
    beams = generate(subject, PROMPTS, Decoding(12, num_beams=3), eos_id=None)
    assert [beams[0]] == generate(subject, PROMPTS[:1], Decoding(12, num_beams=3), eos_id=None)
    causal = model(family, attention="full")
    assert [text for [text] in generate(causal, PROMPTS, Decoding(12), eos_id=None)] != expected


def test_an_adapter_of_such_a_model_is_not_written_for_a_library_that_reads_prompts_otherwise(tmp_path):
    run = begun(tmp_path / "run", ["model.attention=prefix", "adapter.kind=lora", "data.dataset=here"])
    with pytest.raises(UserError, match=r"a prompt in both directions .* no llama of transformers can be told to"):
        save_adapter(str(run), tmp_path / "adapter")


def test_flops_count_what_a_prefix_lets_be_seen():
    width = 48
    pairs = sum(width * (width + 1) / 2 + cut * (cut - 1) / 2 for cut in range(1, width + 1)) / width
    whole, causal = (flops_per_token(config("llama", attention=kind), 10**6, VOCABULARY) for kind in ("prefix", "full"))
    assert whole.full == causal.full
    attention = 2 * (causal.full - causal.causal)
    share = 1 - (whole.full - whole.causal) / attention
    assert share == pytest.approx(pairs / width**2, rel=0.02)
