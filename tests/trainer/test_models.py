"""The decoders: documents, dropout, loss, initial weights; parity with Hugging Face is in `test_decoder_hf.py`."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.models import loss as loss_module
from trainer.models.build import build
from trainer.models.decoder import Decoder
from trainer.models.head import Head
from trainer.models.initialize import draw, initialize
from trainer.models.layers import Cache, Documents, attend
from trainer.models.loss import summed_cross_entropy
from trainer.recipe import Model

VOCABULARY = 96
FAMILIES = ("llama", "gpt2")


def small(**changes) -> Model:
    sizes = {"context": 48, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
    return Model.model_validate(sizes | {"num_key_value_heads": 2, "initializer_range": 0.2} | changes)


def built(config: Model, seed: int = 1, **options) -> Any:
    model: Any = build(config, VOCABULARY, **options)
    initialize(model, seed)
    return model


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def gradients(model: Any, *inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(*inputs).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_parameter_names_are_hugging_face_names_and_a_tied_head_is_named_once():
    names = [name for name, _ in built(small(num_hidden_layers=1)).named_parameters()]
    block = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    block += ["input_layernorm", "post_attention_layernorm"]
    expected = {"model.embed_tokens.weight", "model.norm.weight", *(f"model.layers.0.{part}.weight" for part in block)}
    assert set(names) == expected
    untied = built(small(num_hidden_layers=1, tie_word_embeddings=False))
    assert {name for name, _ in untied.named_parameters()} == expected | {"lm_head.weight"}


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(FAMILIES), st.lists(st.sets(st.integers(1, 31), max_size=6), min_size=1, max_size=4))
def test_a_document_in_a_row_is_as_it_would_be_alone(family, inner):
    model, ids = built(small(family=family)), tokens(len(inner), 32)
    starts = [np.array([0, *sorted(row)]) for row in inner]
    documents = Documents.of(starts, 32)
    assert (documents is None) == (not any(inner))
    with torch.no_grad():
        together = model(ids, None, documents)
        for row, begins in enumerate(starts):
            for begin, end in pairwise([*begins.tolist(), 32]):
                alone = model(ids[row : row + 1, begin:end])[0]
                assert torch.allclose(together[row, begin:end], alone, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_within_documents_are_those_of_a_mask(family):
    ids, starts = tokens(3, 32), [np.array([0, 5, 20]), np.array([0]), np.array([0, 31])]
    documents = Documents.of(starts, 32)
    model = built(small(family=family))
    ours = gradients(model, ids, ids.roll(-1, 1), documents)
    apart: dict[str, torch.Tensor] = {}
    for row, begins in enumerate(starts):
        for begin, end in pairwise([*begins.tolist(), 32]):
            piece = slice(row, row + 1), slice(begin, end)
            for name, grad in gradients(model, ids[piece], ids.roll(-1, 1)[piece]).items():
                apart[name] = apart.get(name, torch.zeros_like(grad)) + grad
    for name, grad in ours.items():
        assert torch.allclose(grad, apart[name], atol=1e-4, rtol=1e-4), name


def test_boundaries_of_documents():
    documents = Documents.of([np.array([0, 3, 8]), np.array([0]), np.array([]), np.array([0, 4])], 8)
    assert documents is not None
    assert documents.cumulative.tolist() == [0, 3, 8, 16, 24, 28, 32]
    assert documents.cumulative.dtype == np.int32
    assert documents.runs == ((1, 3), (1, 5), (2, 8), (2, 4))
    assert documents.longest == 8
    counted = documents.positions(torch.device("cpu")).view(4, 8).tolist()
    assert counted == [[0, 1, 2, 0, 1, 2, 3, 4], [*range(8)], [*range(8)], [0, 1, 2, 3, 0, 1, 2, 3]]
    assert Documents.of([np.array([0, 8]), np.array([])], 8) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_sees_a_later_one(family):
    model, ids = built(small(family=family)), tokens(2, 32)
    other = ids.clone()
    other[:, 20:] = (other[:, 20:] + 1) % VOCABULARY
    for documents in (None, Documents.of([np.array([0, 10]), np.array([0, 25])], 32)):
        with torch.no_grad():
            ours, theirs = model(ids, None, documents), model(other, None, documents)
        assert torch.equal(ours[:, :20], theirs[:, :20])
        assert not torch.allclose(ours[:, 20:], theirs[:, 20:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_gives_the_logits_of_reading_everything_anew(family):
    model, ids, lengths = built(small(family=family)), tokens(3, 20), torch.tensor([3, 9, 1])
    cache = Cache(lengths.tolist(), 40, ids.device)
    with torch.no_grad():
        found = [model(ids[:, : lengths.max()], cache=cache)]
        rows = torch.arange(3)
        found += [model(ids[rows, lengths + step, None], cache=cache) for step in range(10)]
        for row, length in enumerate(lengths.tolist()):
            anew = model(ids[row : row + 1, : length + 10])[0, length - 1 :]
            assert torch.allclose(torch.cat([each[row] for each in found]), anew, atol=2e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_logits", [2**22, 16 * VOCABULARY])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(tied, chunk_logits, monkeypatch):
    monkeypatch.setitem(loss_module.CHUNK_LOGITS, "cpu", chunk_logits)
    model, ids = built(small(tie_word_embeddings=tied)), tokens(3, 31)
    labels = ids.roll(-1, 1)
    labels[:, ::4] = -100
    labels[1] = -100
    plain = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), reduction="sum")
    ours = model(ids, labels)
    assert ours.dtype == torch.float32
    assert abs(ours.item() / plain.item() - 1) <= 1e-6
    with torch.no_grad():
        assert model(ids, labels).item() == ours.item()
    fused = gradients(model, ids, labels)
    model.zero_grad()
    plain.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert (fused[name] - parameter.grad).norm() <= 2e-6 * parameter.grad.norm(), name


def test_labels_left_out_in_place_as_on_a_gpu_give_the_same_loss():
    hidden, weight = torch.randn(40, 8), torch.randn(VOCABULARY, 8)
    labels = torch.arange(40)
    labels[::3] = -100
    results = []
    for kernel in (summed_cross_entropy, loss_module._SummedCrossEntropy.apply):
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value: Any = kernel(*inputs, labels)
        results.append((value, *torch.autograd.grad(value, inputs)))
    assert all(torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6) for ours, theirs in zip(*results, strict=True))


def test_large_logits_do_not_overflow():
    hidden, weight = torch.full((2, 4), 100.0, requires_grad=True), torch.eye(4)
    loss = summed_cross_entropy(hidden * torch.tensor([1.0, 2, 3, 4]), weight, torch.tensor([3, 2]))
    loss.backward()
    assert loss.item() == pytest.approx(100)
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_loss_of_bf16_weights_is_summed_in_fp32():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3000, 32, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(VOCABULARY, 32, generator=generator).bfloat16().requires_grad_()
    labels = torch.randint(VOCABULARY, (3000,), generator=generator)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="sum")
    exact_grads = torch.autograd.grad(exact, (hidden, weight))
    ours = summed_cross_entropy(hidden, weight, labels)
    ours.backward()
    assert abs(ours.item() / exact.item() - 1) < 1e-4
    for parameter, expected in zip((hidden, weight), exact_grads, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad.float() - expected.float()).norm() < 0.01 * expected.float().norm()


def test_a_batch_without_labels_has_no_loss_and_no_gradient():
    model, ids = built(small()), tokens(2, 16)
    labels = torch.full_like(ids, -100)
    assert model(ids, labels).item() == 0
    grads = gradients(model, ids, labels)
    assert len(grads) == len(list(model.parameters()))
    assert all(not grad.any() for grad in grads.values())


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_loss_leaves_what_is_frozen_alone(frozen):
    inputs = {"hidden": torch.randn(8, 4, requires_grad=True), "weight": torch.randn(9, 4, requires_grad=True)}
    inputs[frozen].requires_grad_(False)
    loss: Any = summed_cross_entropy(inputs["hidden"], inputs["weight"], torch.arange(8))
    assert [name for name, kept in zip(inputs, loss.grad_fn.saved_tensors[:2], strict=True) if kept is None] == [frozen]
    loss.backward()
    assert all((value.grad is None) == (name == frozen) for name, value in inputs.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_weights_depend_on_seed_and_name_alone(family):
    state = torch.random.get_rng_state()
    shallow, deep = built(small(family=family)), built(small(family=family, num_hidden_layers=3))
    assert torch.equal(torch.random.get_rng_state(), state)
    deeper = dict(deep.named_parameters())
    for name, parameter in shallow.named_parameters():
        into = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight"))
        scale = (3 / 2) ** 0.5 if into else 1
        assert torch.allclose(parameter, deeper[name] * scale, rtol=1e-6), name
    first, again, other = (dict(built(small(), seed).named_parameters()) for seed in (1, 1, 2))
    matrices = [name for name, parameter in first.items() if parameter.dim() == 2]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    assert not torch.equal(
        first["model.layers.0.self_attn.q_proj.weight"], first["model.layers.1.self_attn.q_proj.weight"]
    )


def test_initial_weights_have_the_documented_spread():
    model = Decoder(small(num_hidden_layers=8, initializer_range=0.02), VOCABULARY)
    assert torch.equal(draw("model.norm.weight", (10,), 1, 0.02), torch.ones(10))
    assert torch.equal(draw("transform.bias", (10,), 1, 0.02), torch.zeros(10))
    for name, expected in (("x.q_proj.weight", 0.02), ("x.o_proj.weight", 0.005), ("x.down_proj.weight", 0.005)):
        values = draw(name, (300, 300), 1, model.initial_std(name, (300, 300)))
        assert values.std().item() == pytest.approx(expected, rel=0.02)
        assert abs(values.mean().item()) < expected / 50


def test_a_partitioned_parameter_is_not_passed_over():
    model = Decoder(small(), VOCABULARY)
    model.model.norm.weight.data = torch.empty(0)
    with pytest.raises(RuntimeError, match=r"model\.norm\.weight holds no values"):
        initialize(model, 1)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_nothing(family, dropout):
    config, ids = small(family=family, residual_dropout=dropout, attention_dropout=dropout), tokens(2, 32)
    documents = Documents.of([np.array([0, 9]), np.array([0])], 32)
    results = []
    for option in (False, True):
        torch.manual_seed(5)
        results.append(gradients(built(config, activation_checkpointing=option), ids, ids, documents))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_two_runs_are_bitwise_equal(family):
    def run() -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = built(small(family=family, residual_dropout=0.1, attention_dropout=0.1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        for step in range(3):
            ids = tokens(4, 32, step)
            model(ids, ids, Documents.of([np.array([0, 7, 19])] * 4, 32)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return list(model.parameters())

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["residual_dropout", "attention_dropout"])
def test_dropout_acts_in_training_only(family, kind):
    model, ids = built(small(family=family, **{kind: 0.5})), tokens(2, 8)
    documents = Documents.of([np.array([0, 3]), np.array([0])], 8)
    for each in (None, documents):
        model.train()
        assert not torch.equal(model(ids, None, each), model(ids, None, each))
        model.eval()
        assert torch.equal(model(ids, None, each), model(ids, None, each))


def test_dropped_attention_is_right_on_average():
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 6, 2, 4).repeat(2000, 1, 1, 1) for _ in range(3))
    whole, dropped = attend(q, k, v), attend(q, k, v, None, 0.4)
    assert not torch.allclose(whole, dropped, atol=0.1)
    assert (dropped.reshape(2000, -1).mean(0) - whole.reshape(2000, -1)[0]).abs().max() < 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_with_full_attention_numbers_its_positions_through(family):
    model, ids = built(small(family=family)), tokens(1, 32)
    documents = Documents.of([np.array([0, 10])], 32)
    with torch.no_grad():
        assert not torch.allclose(model(ids)[0, 10:], model(ids, None, documents)[0, 10:], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_classes_reads_one_place_and_has_no_vocabulary(family):
    model, ids = built(small(family=family), head=Head("classes", 3)), tokens(2, 16)
    names = {name for name, _ in model.named_parameters()}
    assert "score.weight" in names and "lm_head.weight" not in names
    bare = built(small(family=family), head=Head("sentence"))
    bare.load_state_dict({name: each for name, each in model.state_dict().items() if name != "score.weight"})
    at = torch.tensor([15, 4])
    found = model(ids, at=at)
    assert found.shape == (2, 3)
    assert torch.allclose(found, bare(ids)[[0, 1], at] @ model.score.weight.T, atol=1e-6)
    assert torch.allclose(found[1], model(ids[1:, :5], at=at[1:])[0], atol=1e-6)
