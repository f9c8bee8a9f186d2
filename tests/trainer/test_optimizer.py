"""What decays, and what is frozen."""

import pytest
from torch import nn

from data.errors import UserError
from trainer.models.decoder import Decoder
from trainer.optimizer import freeze, parameter_groups
from trainer.recipe import Model


def decoder(tied: bool = True) -> Decoder:
    config = Model(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=tied)
    return Decoder(config, 32)


def names(model: nn.Module, group: dict) -> list[str]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [known[id(parameter)] for parameter in group["params"]]


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_decay_but_norms_and_embeddings_do_not(tied):
    model = decoder(tied)
    decayed, kept = parameter_groups(model.named_parameters(), 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    everything = [name for name, _ in model.named_parameters()]
    assert names(model, kept) == [name for name in everything if "norm" in name or "embed" in name]
    assert names(model, decayed) == [name for name in everything if "proj" in name or "lm_head" in name]
    assert ("lm_head.weight" in names(model, decayed)) == (not tied)


def test_groups_hold_what_learns_and_are_never_empty():
    model = decoder()
    freeze(model, ["*norm*"])
    groups = parameter_groups(model.named_parameters(), 0.1)
    assert [group["weight_decay"] for group in groups] == [0.0]
    assert all("norm" in name for name in names(model, groups[0]))
    assert len(groups[0]["params"]) == 5


def test_only_matching_parameters_learn():
    model = decoder()
    freeze(model, ["model.layers.1.*", "model.norm.weight"])
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learning) == 10
    assert all(name.startswith(("model.layers.1.", "model.norm")) for name in learning)
    freeze(model, ["*"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_pattern_after_an_exclamation_mark_freezes_and_head_means_the_models_head():
    model = decoder(tied=True)
    freeze(model, ["*", "!model.embed_tokens.*", "!*norm*"])
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == [name for name, _ in model.named_parameters() if "embed" in name or "norm" in name]
    model = decoder(tied=False)
    freeze(model, ["head"])
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["lm_head.weight"]
    with pytest.raises(UserError, match="lets nothing learn"):
        freeze(model, ["head", "!*"])


def test_a_tied_head_answers_to_both_names():
    model = decoder(tied=True)
    freeze(model, ["lm_head.weight"])
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "model.embed_tokens.weight"
    ]


def test_a_pattern_that_matches_nothing_names_those_near_it():
    model = decoder()
    with pytest.raises(UserError, match=r"'model\.nrom\.weight' matches no parameter.* model\.norm\.weight"):
        freeze(model, ["model.layers.0.*", "model.nrom.weight"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nothing_to_train_is_refused():
    with pytest.raises(UserError, match="lets nothing learn"):
        freeze(decoder(), [])
