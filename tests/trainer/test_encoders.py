"""BERT, T5 and the Transformer: what reaches a token, the cache, dropout, recomputation, initial weights, heads."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.errors import UserError
from tests.trainer.families import (
    ENCODER_DECODERS,
    VOCABULARY,
    built,
    config,
    gradients,
    in_rows,
    padded,
    real,
    tokens,
    with_some_of,
)
from trainer.models.build import build
from trainer.models.cache import Cache
from trainer.models.head import Head
from trainer.models.initialize import initialize
from trainer.models.padding import Padding
from trainer.models.shapes import decays
from trainer.models.t5 import bucket
from trainer.models.transformer import sinusoids
from trainer.recipe import Model

FAMILIES = ("bert", *ENCODER_DECODERS)
SOURCE, TARGET = tokens(3, 24), tokens(3, 16, seed=1)
REAL = real([24, 9, 16], 24)
PADDING = padded(REAL)
LABELS = TARGET.roll(-1, 1).masked_fill(~real([16, 8, 11], 16), -100)


def encoded(model: Any, source: Tensor, padding: Padding | None = None) -> Tensor:
    """Hidden states of an encoder, or logits of a decoder beside the source."""
    return model.encode(source, padding) if hasattr(model, "encode") else model(source, None, padding)


def loss_of(model: Any, source: Tensor = SOURCE, padding: Padding | None = PADDING) -> Tensor:
    if model.config.family == "bert":
        return model(source, source.masked_fill(source % 3 > 0, -100).masked_fill(~REAL, -100), padding)
    return model(source, TARGET, LABELS, padding, 0.1)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(FAMILIES), st.lists(st.integers(1, 24), min_size=1, max_size=3), st.integers(0, 99))
def test_what_stands_in_padding_changes_no_bit_of_a_real_token(family, lengths, seed):
    model, inside = built(family).eval(), real(lengths, 24)
    padding = [padded, lambda each: in_rows(padded(each)), lambda each: with_some_of(padded(each), 3)][seed % 3](inside)
    source = tokens(len(lengths), 24, seed)
    other = torch.where(inside, source, tokens(len(lengths), 24, seed + 1))
    with torch.no_grad():
        first, second = encoded(model, source, padding), encoded(model, other, padding)
        assert torch.equal(first[inside], second[inside])
        for row, length in enumerate(lengths):  # nor does its width
            alone = encoded(model, source[row : row + 1, :length])[0]
            assert torch.allclose(first[row, :length], alone, atol=2e-5)
        if family != "bert":
            target = tokens(len(lengths), 9, seed)
            decoded = [model.decode(target, memory, padding) for memory in (first, second)]
            assert torch.equal(*decoded)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_padding_gets_no_gradient(family):
    model = built(family, tie_word_embeddings=False)
    found = gradients(model, loss_of(model, SOURCE.masked_fill(~REAL, 1), in_rows(PADDING)))
    embedding = found["shared.weight" if family == "t5" else "bert.embeddings.word_embeddings.weight"]
    assert embedding.any()
    assert not embedding[1].any()


def test_a_row_of_padding_alone_has_keys_to_look_at():
    assert padded(real([2, 0], 3)).keys[:, 0, 0].tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_padding_alone_spoils_nothing(family):
    model, inside = built(family), REAL.clone()
    inside[1] = False
    padding = padded(inside)
    if family == "bert":
        loss = model(SOURCE, SOURCE.masked_fill(~inside, -100), padding)
        wanted = SOURCE.masked_fill(~REAL, -100)
        apart = [model(SOURCE[[row]], wanted[[row]], padded(REAL[[row]])) for row in (0, 2)]
    else:
        labels = LABELS.clone()
        labels[1] = -100
        loss = model(SOURCE, TARGET, labels, padding)
        apart = [model(SOURCE[[row]], TARGET[[row]], LABELS[[row]], padded(REAL[[row]])) for row in (0, 2)]
    found, expected = gradients(model, loss), gradients(model, apart[0] + apart[1])
    assert all((found[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-6 for name, grad in expected.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_labels_has_no_loss_and_no_gradient(family):
    model, nothing = built(family), torch.full_like(SOURCE, -100)
    if family == "bert":
        losses = [model(SOURCE, nothing, padded(torch.zeros_like(REAL)), labelled=known) for known in (None, 0)]
    else:
        losses = [model(SOURCE, SOURCE, nothing, padded(torch.zeros_like(REAL)), 0.1)]
    for loss in losses:
        found = gradients(model, loss)
        assert loss.item() == 0
        assert found.keys() == dict(model.named_parameters()).keys()
        assert not any(grad.any() for grad in found.values())


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_decoder_sees_no_later_token_and_all_of_the_source(family):
    model = built(family).eval()
    other = TARGET.clone()
    other[:, 9:] = tokens(3, 7, seed=5)
    with torch.no_grad():
        first, second = model(SOURCE, TARGET, padding=PADDING), model(SOURCE, other, padding=PADDING)
        assert torch.equal(first[:, :9], second[:, :9])
        assert not torch.allclose(first[:, 9:], second[:, 9:])
        for place in (0, 23):
            changed = SOURCE.clone()
            changed[0, place] += 1
            assert not torch.allclose(model(changed, TARGET)[0, 0], model(SOURCE, TARGET)[0, 0])


@pytest.mark.parametrize("lengths", [[2, 1, 4], [1, 1, 1]])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_decoding_token_by_token_gives_the_logits_of_the_whole(family, lengths):
    model = built(family, num_decoder_layers=3).eval()
    with torch.no_grad():
        memory = model.encode(SOURCE, PADDING)
        whole = model.decode(TARGET, memory, PADDING)
        cache = Cache(lengths, 16, torch.device("cpu"))
        width = max(lengths)
        fed = TARGET[:, :width].masked_fill(~real(lengths, width), 7)
        logits = model.decode(fed, memory, PADDING, cache)
        for step in range(10):
            at = [length + step for length in lengths]
            expected = torch.stack([whole[row, place - 1] for row, place in enumerate(at)])
            assert torch.allclose(logits[:, 0], expected, atol=1e-5)
            following = torch.stack([TARGET[row, place] for row, place in enumerate(at)])
            logits = model.decode(following[:, None], memory, PADDING, cache)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_follows_fp32_and_its_loss_is_fp32(family):
    model = built(family)
    exact = loss_of(model)
    loss = loss_of(model.bfloat16())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)
    assert loss.item() != exact.item()
    assert all(grad.isfinite().all() and grad.dtype == torch.bfloat16 for grad in gradients(model, loss).values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_nothing(family, dropout):
    results = []
    for option in (False, True):
        model = built(family, activation_checkpointing=option, residual_dropout=dropout, attention_dropout=dropout)
        torch.manual_seed(5)
        results.append(gradients(model, loss_of(model)))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["residual_dropout", "attention_dropout"])
def test_each_dropout_acts_in_training_only(family, kind):
    changes: dict[str, Any] = {kind: 0.5}
    model = built(family, **changes)
    assert loss_of(model).item() != loss_of(model).item()
    model.eval()
    assert loss_of(model).item() == loss_of(model).item() == loss_of(built(family)).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_learns(family):
    heads = ("lm", "pretraining", "classes", "span") if family == "bert" else ("lm",)
    for kind in heads:
        model = built(family, Head(kind, 2 if kind == "classes" else 0))
        if kind == "pretraining":
            loss = model(SOURCE, SOURCE, PADDING, None, torch.tensor([0, 1, 1]), 1.0)
        elif kind == "lm":
            loss = loss_of(model)
        else:
            loss = model(SOURCE, None, PADDING).square().sum()
        found = gradients(model, loss)
        assert found.keys() == dict(model.named_parameters()).keys()
        keys = ("key.bias", "k_proj.bias")  # a softmax doesn't see what all keys have in common
        assert all(grad.any() for name, grad in found.items() if not name.endswith(keys))


def test_masked_tokens_are_told_apart_from_the_others_before_the_head():
    model = built("bert")
    labels = SOURCE.masked_fill(SOURCE % 5 > 0, -100)
    plain = F.cross_entropy(model(SOURCE).flatten(0, 1), labels.flatten(), reduction="sum")
    expected = gradients(model, plain)
    for known in (None, int((labels != -100).sum())):
        loss = model(SOURCE, labels, labelled=known)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
        found = gradients(model, loss)
        assert all((found[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-6 for name, grad in expected.items())


def test_next_sentence_loss_is_weighed_and_may_be_left_out():
    model = built("bert", Head("pretraining")).eval()
    labels, follows = SOURCE.masked_fill(SOURCE % 5 > 0, -100), torch.tensor([1, -100, 0])
    words, sentences = model(SOURCE)
    expected = F.cross_entropy(sentences[[0, 2]], torch.tensor([1, 0]), reduction="sum")
    alone = model(SOURCE, labels)
    assert model(SOURCE, labels, next_sentence=follows, next_weight=3.0).item() == pytest.approx(
        (alone + 3 * expected).item(), rel=1e-6
    )
    assert model(SOURCE, labels, next_sentence=torch.full((3,), -100), next_weight=3.0).item() == alone.item()
    assert words.shape == (3, 24, VOCABULARY)


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_weights_give_logits_of_no_great_spread(family):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "context": 48}
    ways: tuple[dict[str, Any], ...] = ({}, {"tie_word_embeddings": False}) if family != "transformer" else ({},)
    for way in ways:
        model: Any = build(Model.model_validate({"family": family} | sizes | way), 512)
        initialize(model, 1)
        state = dict(model.named_parameters())
        assert all((each == 0).all() for name, each in state.items() if name.endswith("bias") and each.dim() == 1)
        assert all(
            (each == 1).all() for name, each in state.items() if "norm" in name.lower() and name.endswith("weight")
        )
        ids = tokens(4, 32)
        with torch.no_grad():
            logits = model(ids) if family == "bert" else model(ids, ids)
        assert logits.std().item() < 2.5
        loss = F.cross_entropy(logits.flatten(0, 1), tokens(4, 32, seed=2).flatten())
        assert loss.item() < math.log(512) + 2.5


def test_initial_spread_of_each_family_is_the_documented_one():
    t5, transformer = (
        build(config(family, hidden_size=64, tie_word_embeddings=family != "t5"), 512) for family in ENCODER_DECODERS
    )
    for model, name, expected in (
        (t5, "shared.weight", 1.0),
        (t5, "lm_head.weight", 64**-0.5),
        (t5, "encoder.block.1.layer.0.SelfAttention.q.weight", (64 * 16) ** -0.5),
        (t5, "encoder.block.1.layer.0.SelfAttention.k.weight", 64**-0.5),
        (t5, "decoder.block.0.layer.2.DenseReluDense.wo.weight", 64**-0.5),
        (transformer, "model.shared.weight", 64**-0.5),
        (transformer, "model.decoder.layers.0.encoder_attn.q_proj.weight", (2 / 128) ** 0.5),
    ):
        initialize(model, 1, [name])
        assert model.get_parameter(name).std().item() == pytest.approx(expected, rel=0.05), name
    assert not t5.get_parameter("encoder.block.0.layer.0.SelfAttention.q.weight").any()


def test_embeddings_and_biases_do_not_decay():
    embeddings = (f"bert.embeddings.{part}_embeddings.weight" for part in ("word", "position", "token_type"))
    distances = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    kept = {
        "bert": set(embeddings),
        "t5": {"shared.weight", f"encoder.{distances}", f"decoder.{distances}"},
        "transformer": {"model.shared.weight", "final_logits_bias"},
    }
    for family, names in kept.items():
        shapes = {name: each.dim() for name, each in built(family).named_parameters()}
        assert {name for name, size in shapes.items() if size > 1 and not decays(name, size)} == names


@given(st.integers(1, 60))
@settings(max_examples=15, deadline=None)
def test_t5_lays_its_biases_out_by_distance(length):
    model = built("t5", context=64)
    for stack, bidirectional in ((model.encoder, True), (model.decoder, False)):
        table = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        places = torch.arange(length)
        relative = places[None] - places[:, None]
        expected = table[bucket(relative, bidirectional, 8, 20)].permute(2, 0, 1)[None]
        if not bidirectional:
            expected = expected.masked_fill(relative > 0, -math.inf)
        assert torch.equal(stack._bias(length), expected)


def test_sinusoids_are_those_of_the_paper_up_to_the_order_of_features():
    table = sinusoids(50, 16)
    for position in (0, 1, 49):
        for i in range(8):
            angle = position / 10000 ** (2 * i / 16)
            assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 8 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_a_head_or_a_setting_that_a_family_lacks_is_an_error():
    with pytest.raises(UserError, match="t5 has no head for classes"):
        build(config("t5"), VOCABULARY, Head("classes", 2))
    with pytest.raises(ValueError, match="one matrix for all"):
        config("transformer", tie_word_embeddings=False)
    with pytest.raises(ValueError, match="must be above half of relative_attention_num_buckets"):
        config("t5", relative_attention_num_buckets=64, relative_attention_max_distance=32)
    with pytest.raises(ValueError, match="initializer_range means something only with family llama or gpt2 or bert"):
        config("t5", initializer_range=0.1)
