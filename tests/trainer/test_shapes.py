"""What a plan counts without building a model, against every family and head as it is built."""

import pytest
import torch

from trainer.models.build import CLASSES, build
from trainer.models.head import Head
from trainer.models.presets import PRESETS
from trainer.models.shapes import TABLES, block_of, decays, grouped, parameter_shapes
from trainer.optimizer import parameter_groups
from trainer.recipe import Model

VOCABULARY = 200
SIZES = {"context": 24, "hidden_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
VARIANTS = {
    "llama": ({"num_key_value_heads": 2}, {"tie_word_embeddings": False, "head_dim": 10}),
    "gpt2": ({}, {"tie_word_embeddings": False}),
    "bert": ({}, {"tie_word_embeddings": False, "type_vocab_size": 3}),
    "t5": ({"tie_word_embeddings": False}, {"head_dim": 10, "num_decoder_layers": 3}),
    "transformer": ({}, {"num_decoder_layers": 1}),
}
CASES = [
    (family, variant, kind)
    for family, variants in VARIANTS.items()
    for variant in range(len(variants))
    for kind in CLASSES[family].heads
]


@pytest.mark.parametrize(("family", "variant", "kind"), CASES)
def test_every_family_has_the_parameters_that_are_counted(family, variant, kind):
    model = Model.model_validate({"family": family} | SIZES | VARIANTS[family][variant])
    head = Head(kind, 5 if kind == "classes" else 0)
    with torch.device("meta"):
        real = build(model, VOCABULARY, head)
    shapes = parameter_shapes(model, VOCABULARY, head)
    assert list(shapes.items()) == [(name, tuple(each.shape)) for name, each in real.named_parameters()]
    real_groups = parameter_groups(real.named_parameters(), 0.1)
    assert [list(group.values()) for group in grouped(shapes)] == [
        [tuple(each.shape) for each in group["params"]] for group in real_groups
    ]
    assert shapes[TABLES[family]] == (VOCABULARY, 72)


def test_of_two_nets_both_are_counted():
    judge = Model.model_validate({"family": "bert"} | SIZES)
    model, head = Model.model_validate(SIZES), Head("adversarial", discriminator=judge)
    with torch.device("meta"):
        real = build(model, VOCABULARY, head)
    expected = [(name, tuple(each.shape)) for name, each in real.named_parameters()]
    assert list(parameter_shapes(model, VOCABULARY, head).items()) == expected


@pytest.mark.parametrize("family", VARIANTS)
def test_matrices_decay_and_embeddings_and_vectors_do_not(family):
    model = Model.model_validate({"family": family} | SIZES | VARIANTS[family][0])
    shapes = parameter_shapes(model, VOCABULARY)
    kept = {name for name, shape in shapes.items() if not decays(name, len(shape))}
    learned_rows = {"gpt2": 2, "bert": 3, "t5": 3}.get(family, 1)  # tables of tokens, positions, types, distances
    assert sum(len(shapes[name]) == 2 and "bias" not in name.rpartition(".")[2] for name in kept) == learned_rows
    assert all(len(shapes[name]) == 1 for name in kept if block_of(name) and "relative" not in name)
    blocks = [name for name in map(block_of, shapes) if name]
    assert len(set(blocks)) == 2 * (1 + model.is_encoder_decoder)


@pytest.mark.parametrize(
    ("family", "preset", "vocab_size", "millions"),
    [
        ("llama", "1b", 128256, 1235.8), ("llama", "7b", 32000, 6738.4), ("llama", "8b", 128256, 8030.3),
        ("llama", "13b", 32000, 13015.9), ("llama", "70b", 32000, 68976.6), ("llama", "small", 49152, 134.5),
        ("llama", "3b", 128256, 3212.7), ("llama", "base", 49152, 361.8),
        ("gpt2", "small", 50257, 124.4), ("gpt2", "medium", 50257, 354.8), ("gpt2", "large", 50257, 774.0),
        ("gpt2", "xl", 50257, 1557.6), ("bert", "base", 30522, 109.5), ("bert", "large", 30522, 335.1),
        ("t5", "small", 32128, 77.0), ("t5", "base", 32128, 247.6), ("t5", "large", 32128, 783.2),
        ("t5", "3b", 32128, 2849.8), ("t5", "11b", 32128, 11135.3), ("transformer", "base", 37000, 63.1),
    ],
)  # fmt: skip
def test_a_preset_has_the_published_number_of_parameters(family, preset, vocab_size, millions):
    model = Model.model_validate({"family": family, "preset": preset})
    shapes = parameter_shapes(model, vocab_size, Head("classes", 2) if family == "bert" else Head())
    counted = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert counted / 1e6 == pytest.approx(millions, abs=0.06)


def test_every_preset_is_a_model_of_its_family():
    for family, presets in PRESETS.items():
        assert "tiny" in presets
        sizes = []
        for preset in presets:
            model = Model.model_validate({"family": family, "preset": preset})
            sizes.append(sum(torch.Size(shape).numel() for shape in parameter_shapes(model, 32000).values()))
        assert sizes == sorted(sizes)
