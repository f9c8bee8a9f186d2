"""config.json <-> the recipe's model, by value; that both compute the same is shown in test_hf_families_hf.py."""

import pytest

from data.errors import UserError
from trainer.hf.config import hugging_face_config, model_of
from trainer.hf.families import FAMILIES, of_family
from trainer.models.head import Head
from trainer.recipe import Model

COMMON = {"context": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
MODELS = {
    "llama": Model(**COMMON, num_key_value_heads=2, head_dim=16, rope_theta=5e5, rms_norm_eps=1e-6),
    "gpt2": Model(**COMMON, family="gpt2", residual_dropout=0.1, layer_norm_eps=1e-6, tie_word_embeddings=False),
    "bert": Model(**COMMON, family="bert", attention_dropout=0.2, type_vocab_size=3, layer_norm_eps=1e-12),
    "t5": Model(**COMMON, family="t5", num_decoder_layers=2, head_dim=16, relative_attention_num_buckets=16),
    "transformer": Model(**COMMON, family="transformer", num_decoder_layers=2, decoder_start_id=5),
}


@pytest.mark.parametrize("family", MODELS)
def test_a_config_that_is_written_and_read_is_the_same_model(family):
    model = MODELS[family]
    config = hugging_face_config(model, 384, eos_id=3, pad_id=0)
    assert config["model_type"] == of_family(family).model_type
    assert config["vocab_size"] == 384
    found, notes = model_of(config, "there")
    start = {"decoder_start_id": model.decoder_start_id if model.decoder_start_id is not None else 0}
    wanted = model.model_copy(update={"vocab_size": 384, **(start if model.is_encoder_decoder else {})})
    if family == "llama":
        wanted = wanted.model_copy(update={"residual_dropout": 0.0})
    assert found == wanted
    assert notes == []


def test_what_a_real_bert_says_is_read():
    config = {
        "_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 384, "initializer_range": 0.02, "intermediate_size": 1536,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
        "num_hidden_layers": 6, "pad_token_id": 0, "position_embedding_type": "absolute",
        "transformers_version": "4.8.2", "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
    }  # fmt: skip
    model, notes = model_of(config, "minilm")
    assert (model.family, model.hidden_size, model.context, model.layer_norm_eps) == ("bert", 384, 512, 1e-12)
    assert (model.residual_dropout, model.attention_dropout, model.vocab_size) == (0.1, 0.1, 30522)
    assert notes == []


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def test_scaled_positions_are_read_as_both_versions_of_transformers_write_them():
    new = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}
    old = {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    models = [model_of(changed("llama", **fields), "there")[0] for fields in (new, old)]
    assert models[0] == models[1]
    assert models[0].rope_scaling.factor == 8 and models[0].rope_theta == 5e5
    assert hugging_face_config(models[0], 384)["rope_parameters"] == new["rope_parameters"]
    oldest = {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}
    model, _ = model_of(changed("llama", **oldest), "there")
    assert (model.rope_scaling.rope_type, model.rope_scaling.factor) == ("linear", 2.0)
    yarn = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}
    with pytest.raises(UserError, match=r'rope_type is "yarn", and .* "default" or "linear" or "llama3"'):
        model_of(changed("llama", **yarn), "there")


def changed(family, **changes):
    return hugging_face_config(MODELS[family], 384, eos_id=3, pad_id=0) | changes


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, r'hidden_act is "gelu", and Luban computes a llama with "silu"'),
        ("llama", {"attention_bias": True}, r"attention_bias is true, and Luban computes a llama with false"),
        ("llama", {"mlp_bias": True}, r"mlp_bias is true"),
        ("llama", {"quantization_config": {"bits": 4}}, r"quantization_config is .*, and Luban computes without it"),
        ("gpt2", {"activation_function": "relu"}, r'activation_function is "relu".*"gelu_new" or "gelu_pytorch_tanh"'),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx is true"),
        ("bert", {"position_embedding_type": "relative_key"}, r'position_embedding_type is "relative_key".*"absolute"'),
        ("bert", {"hidden_act": "relu"}, r'hidden_act is "relu", and Luban computes a bert with "gelu"'),
        ("bert", {"is_decoder": True}, r"is_decoder is true"),
        ("t5", {"feed_forward_proj": "relu"}, r'feed_forward_proj is "relu", and Luban .* t5 with "gated-gelu"'),
        ("transformer", {"activation_function": "swish"}, r'activation_function is "swish"'),
        ("transformer", {"decoder_ffn_dim": 96}, r"decoder_ffn_dim is 96 and encoder_ffn_dim 48, and Luban has one"),
        ("transformer", {"decoder_vocab_size": 500}, r"decoder_vocab_size is 500, and Luban has one vocabulary"),
        ("transformer", {"normalize_before": True}, r"normalize_before is true"),
        ("bert", {"model_type": "roberta"}, r"a model of type 'roberta' \(BertForMaskedLM\); Luban has llama"),
    ],
)  # fmt: skip
def test_a_value_that_changes_the_computation_is_refused_by_name(family, changes, said):
    with pytest.raises(UserError, match=said):
        model_of(changed(family, **changes), "there")


def test_every_value_that_is_not_computed_with_is_named_at_once():
    with pytest.raises(UserError, match=r"there/config\.json: hidden_act .*; is_decoder"):
        model_of(changed("bert", hidden_act="relu", is_decoder=True), "there")


def test_what_is_absent_means_what_transformers_takes():
    model, _ = model_of({"model_type": "gpt2"}, "gpt2")
    assert (model.hidden_size, model.num_hidden_layers, model.context, model.vocab_size) == (768, 12, 1024, 50257)
    assert model.tie_word_embeddings
    llama = changed("llama")
    del llama["num_key_value_heads"], llama["head_dim"], llama["tie_word_embeddings"], llama["rms_norm_eps"]
    model, _ = model_of(llama, "llama")
    assert (model.num_key_value_heads, model.tie_word_embeddings, model.rms_norm_eps) == (4, False, 1e-6)
    with pytest.raises(UserError, match=r"there/config\.json lacks intermediate_size"):
        model_of({key: value for key, value in llama.items() if key != "intermediate_size"}, "there")
    with pytest.raises(UserError, match=r'feed_forward_proj is "relu"'):  # the first T5, whose config never said it
        model_of({"model_type": "t5"}, "t5-small")


def test_what_transformers_5_writes_of_a_t5_is_read_as_it_computes():
    saved = changed("t5", tie_word_embeddings=True, scale_decoder_outputs=False)
    assert not model_of(saved, "v1.1")[0].tie_word_embeddings
    assert model_of(changed("t5", tie_word_embeddings=True), "first")[0].tie_word_embeddings


def test_what_is_unknown_is_named_and_what_only_trains_is_said():
    _, notes = model_of(changed("llama", clever_new_thing=3, something=None), "there")
    assert notes == ["config.json says what Luban doesn't know and leaves out: clever_new_thing=3"]
    _, notes = model_of(changed("gpt2", embd_pdrop=0.3), "there")
    assert notes == [
        "embd_pdrop 0.3 has no setting of its own: model.residual_dropout, 0.1 from resid_pdrop, is for both"
    ]
    _, notes = model_of(changed("transformer", activation_dropout=0.1), "there")
    assert notes == ["activation_dropout 0.1 has no setting in Luban: training goes without it"]


def test_a_size_that_no_model_can_have_is_named_with_its_file():
    with pytest.raises(UserError, match=r"there/config\.json has 1 mistake"):
        model_of(changed("bert", hidden_size=30), "there")


def test_classes_are_named_and_a_head_without_a_class_is_refused():
    config = hugging_face_config(MODELS["bert"], 384, Head("classes", 3), pad_id=0, labels=("no", "maybe", "yes"))
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {0: "no", 1: "maybe", 2: "yes"}
    assert hugging_face_config(MODELS["bert"], 384, Head("classes", 1))["problem_type"] == "regression"
    with pytest.raises(UserError, match="transformers has no class of llama that ends in the head span"):
        hugging_face_config(MODELS["llama"], 384, Head("span"))
    with pytest.raises(UserError, match=r"epsilon of 1e-05.*layer_norm_eps=1e-06 can't be exported"):
        hugging_face_config(MODELS["transformer"].model_copy(update={"layer_norm_eps": 1e-6}), 384)


def test_no_field_stands_in_two_lists():
    for family in FAMILIES:
        assert not set(family.names.values()) & (set(family.only) | family.idle), family.name
        assert set(family.only) - set(family.absent) == set(), family.name
