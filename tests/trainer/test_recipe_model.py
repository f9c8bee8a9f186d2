"""The recipe's `model`: presets, rope scaling, settings that don't go together."""

import re

import pytest
import torch

from data import settings
from data.errors import UserError
from trainer.models.presets import PRESETS
from trainer.models.rotary import frequencies
from trainer.recipe import Recipe
from trainer.recipe_model import Model, RopeScaling


def recipe(*overrides: str) -> Recipe:
    return settings.load(Recipe, None, [f"model.{item}" for item in overrides])


def test_a_preset_fills_what_is_left_open_and_nothing_else():
    model = recipe("preset=7b", "num_hidden_layers=2", "context=512").model
    assert (model.hidden_size, model.num_attention_heads, model.mlp_size) == (4096, 32, 11008)
    assert (model.num_hidden_layers, model.context) == (2, 512)
    assert model.vocab_size is None and not model.tie_word_embeddings


@pytest.mark.parametrize(("family", "preset"), [(family, each) for family in PRESETS for each in PRESETS[family]])
def test_a_recipe_with_a_preset_is_read_back_as_it_was(family, preset, tmp_path):
    chosen = recipe(f"family={family}", f"preset={preset}")
    (tmp_path / "recipe.yaml").write_text(settings.dump(chosen))
    assert settings.load(Recipe, tmp_path / "recipe.yaml") == chosen


def test_the_manual_names_every_preset():
    text = " ".join(str(Model.model_fields["preset"].description).split())
    for family, presets in PRESETS.items():
        assert f"{family}: {', '.join(presets)}" in text


def test_an_unknown_preset_is_told_which_there_are():
    with pytest.raises(UserError, match="bert has no preset '7b': tiny, mini, small, medium, base, large"):
        recipe("family=bert", "preset=7b")


def test_low_frequencies_are_stretched_and_high_ones_kept():
    plain = frequencies(128, 5e5, RopeScaling())
    linear = frequencies(128, 5e5, RopeScaling(rope_type="linear", factor=4.0))
    assert torch.equal(linear, plain / 4)
    scaled = frequencies(128, 5e5, RopeScaling(rope_type="llama3", factor=8.0))
    turns = 8192 * plain / (2 * torch.pi)
    assert torch.equal(scaled[turns > 4], plain[turns > 4])
    assert torch.equal(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("rope_scaling.rope_type=dynamic", "rope_scaling.factor=2"), "up to the context it changes nothing"),
        (("rope_scaling.factor=2",), "factor means something only with rope_type linear or llama3"),
        (("rope_scaling.rope_type=linear", "rope_scaling.low_freq_factor=2"), "only with rope_type llama3"),
        (("rope_scaling.rope_type=llama3", "rope_scaling.low_freq_factor=4"), "must be below high_freq_factor 4.0"),
        (("family=gpt2", "rope_scaling.rope_type=linear"), "rope_scaling means something only with family llama"),
        (("family=gpt2", "head_dim=32"), "head_dim means something only with family llama or t5"),
        (("family=gpt2", "rope_theta=3"), "rope_theta means something only with family llama"),
    ],
)
def test_settings_that_mean_nothing_together_are_refused(given, words):
    with pytest.raises(UserError, match=re.escape(words)):
        recipe(*given)
