"""Llama and GPT-2 against transformers: logits, gradients of one step, greedy text, classes, prefixes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from trainer.generate import generate
from trainer.generation.settings import Decoding
from trainer.hf.config import rope_parameters
from trainer.models.build import build
from trainer.models.head import LM, Head
from trainer.models.initialize import initialize
from trainer.recipe import Model

VOCABULARY, CLASSES = 96, 3
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama untied": {"tie_word_embeddings": False, "num_key_value_heads": 6, "rope_theta": 500.0},
    "llama wide heads": {"head_dim": 16, "rms_norm_eps": 1e-3},
    "llama linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "llama 3": {"rope_scaling": LLAMA3, "rope_theta": 40.0},
    "gpt2": {"family": "gpt2"},
    "gpt2 untied": {"family": "gpt2", "tie_word_embeddings": False, "intermediate_size": 40, "layer_norm_eps": 1e-3},
}


@pytest.fixture(scope="session")
def hf() -> Any:
    """transformers, which takes seconds to load, and is quiet."""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def config(variant: str, **more: Any) -> Model:
    sizes = {"context": 48, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
    return Model.model_validate(sizes | {"initializer_range": 0.2} | VARIANTS[variant] | more)


def ours(chosen: Model, head: Head = LM) -> Any:
    """Our model with norms and biases that matter."""
    model = build(chosen, VOCABULARY, head)
    initialize(model, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand(parameter.shape, generator=generator) - 0.5)
    return model


def theirs(hf: Any, model: Any) -> Any:
    """The same weights in transformers' class, which must have the same names and shapes."""
    chosen = model.config
    shared = {
        "vocab_size": VOCABULARY, "hidden_size": chosen.hidden_size, "num_hidden_layers": chosen.num_hidden_layers,
        "num_attention_heads": chosen.num_attention_heads, "max_position_embeddings": chosen.context,
        "tie_word_embeddings": chosen.tie_word_embeddings, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if model.head.kind == "classes":
        shared |= {"num_labels": CLASSES}
    if chosen.family == "llama":
        made = hf.LlamaConfig(
            **shared, intermediate_size=chosen.mlp_size, num_key_value_heads=chosen.num_key_value_heads,
            head_dim=chosen.head_size, rms_norm_eps=chosen.rms_norm_eps, rope_parameters=rope_parameters(chosen),
        )  # fmt: skip
        classes = {"lm": hf.LlamaForCausalLM, "classes": hf.LlamaForSequenceClassification}
    else:
        made = hf.GPT2Config(
            **shared, n_inner=chosen.mlp_size, layer_norm_epsilon=chosen.layer_norm_eps, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        classes = {"lm": hf.GPT2LMHeadModel, "classes": hf.GPT2ForSequenceClassification}
    other = classes[model.head.kind](made).eval()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in other.named_parameters()}
    other.load_state_dict(model.state_dict())
    return other


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pairs(hf: Any) -> Iterator[dict[str, tuple[Any, Any]]]:
    made = {variant: ours(config(variant)) for variant in VARIANTS}
    yield {variant: (model, theirs(hf, model)) for variant, model in made.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_of_a_step_are_those_of_transformers(pairs, variant):
    model, other = pairs[variant]
    ids, labels = tokens(3, 48), tokens(3, 48).roll(-1, 1)
    labels[1, 20:] = -100
    logits = other(ids).logits
    assert logits.abs().max() > 1
    assert (model(ids) - logits).abs().max() <= 1e-5
    loss = model(ids, labels)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert abs(loss.item() / expected.item() - 1) <= 1e-6
    names = [name for name, _ in model.named_parameters()]
    grads = [
        torch.autograd.grad(value, [each.get_parameter(name) for name in names])
        for each, value in ((model, loss), (other, expected))
    ]
    for name, one, reference in zip(names, *grads, strict=True):
        assert (one - reference).norm() <= 1e-4 * reference.norm(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_text_with_a_cache_is_that_of_transformers_without_one(pairs, variant):
    model, other = pairs[variant]
    prompts = tokens(3, 9)
    expected = other.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=24, do_sample=False, use_cache=False
    )
    texts = [row[9:] for row in expected.tolist()]
    cut = [[text[: text.index(2)] if 2 in text else text] for text in texts]
    assert generate(model, prompts.tolist(), Decoding(max_new_tokens=24), eos_id=2) == cut


@pytest.mark.parametrize("variant", ["llama", "gpt2"])
def test_classes_are_read_where_transformers_reads_them(hf, variant):
    model = ours(config(variant), Head("classes", CLASSES))
    other, ids, at = theirs(hf, model), tokens(4, 30), torch.tensor([29, 11, 0, 17])
    for row, last in zip(ids, at, strict=True):
        row[last + 1 :] = 0  # padding, which transformers finds by its id
    assert (model(ids, at=at) - other(ids).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("variant", ["llama", "llama wide heads", "gpt2"])
def test_prefixes_give_the_logits_and_gradients_of_transformers_under_the_same_mask(pairs, variant):
    model, other = pairs[variant]
    ids, prefixes, place = tokens(3, 40), torch.tensor([1, 17, 40]), torch.arange(40)
    seen = (place <= place[:, None]) | (place < prefixes[:, None, None])
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    found, expected = model(ids, prefixes=prefixes), other(ids, attention_mask=mask).logits
    assert (found - expected).abs().max() <= 1e-5
    assert (found - model(ids))[1:].abs().max() > 0.1
    names = [name for name, _ in model.named_parameters()]
    grads = [
        torch.autograd.grad(logits.log_softmax(-1)[..., 7].sum(), [each.get_parameter(name) for name in names])
        for each, logits in ((model, found), (other, expected))
    ]
    for name, one, reference in zip(names, *grads, strict=True):
        assert (one - reference).norm() <= 1e-4 * reference.norm(), name
