"""What the config.json of each family says: which field is which setting, and which values Luban computes with.

Written out by hand, one entry a family, against transformers 5.23: a field that is in none of the lists is named to the
person who imports, never passed over in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One family's config.json."""

    name: str
    """As Luban calls it."""
    model_type: str
    """As transformers calls it."""
    names: Mapping[str, str]
    """Setting of the recipe's model -> field."""
    absent: Mapping[str, Any]
    """Field -> what transformers takes where it is absent; other absent fields are refused."""
    only: Mapping[str, tuple[Any, ...]]
    """Field -> the values that Luban computes with; the first is the one it writes."""
    idle: frozenset[str]
    """Fields that change nothing, or only training, and have no setting."""
    classes: Mapping[str, str]
    """Head -> the class in transformers that ends in it."""
    heads: tuple[str, ...]
    """Beginnings of the names of all heads' parameters in any of transformers' classes."""
    prefix: str = ""
    """Of the body's parameters, which a directory of the bare model lacks."""
    positions: str = ""
    """The parameter of learned positions."""
    tied: tuple[str, str] = ("", "")
    """With tied embeddings: the output projection, and the embedding that it is a copy of."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> the one that it is always a copy of."""
    zeros: tuple[str, ...] = ()
    """Parameters that are zero where a directory lacks them."""
    dropped: tuple[str, ...] = ()
    """Patterns of names that hold nothing learned."""


LLAMA = Family(
    name="llama",
    model_type="llama",
    names={
        "vocab_size": "vocab_size",
        "context": "max_position_embeddings",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "num_key_value_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "rms_norm_eps": "rms_norm_eps",
        "tie_word_embeddings": "tie_word_embeddings",
        "attention_dropout": "attention_dropout",
        "initializer_range": "initializer_range",
    },
    absent={
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "head_dim": None,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
    },
    only={"hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,)},
    idle=frozenset({"pretraining_tp", "rope_parameters", "rope_theta", "rope_scaling"}),
    classes={"lm": "LlamaForCausalLM", "classes": "LlamaForSequenceClassification", "sentence": "LlamaModel"},
    heads=("lm_head.", "score."),
    prefix="model.",
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    dropped=("*.rotary_emb.inv_freq",),
)

GPT2 = Family(
    name="gpt2",
    model_type="gpt2",
    names={
        "vocab_size": "vocab_size",
        "context": "n_positions",
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "layer_norm_eps": "layer_norm_epsilon",
        "tie_word_embeddings": "tie_word_embeddings",
        "residual_dropout": "resid_pdrop",
        "attention_dropout": "attn_pdrop",
        "initializer_range": "initializer_range",
    },
    absent={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_inner": None,
        "n_layer": 12,
        "n_head": 12,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "initializer_range": 0.02,
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    only={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    idle=frozenset({"embd_pdrop", "n_ctx", "reorder_and_upcast_attn", "summary_activation", "summary_first_dropout"}
                   | {"summary_proj_to_labels", "summary_type", "summary_use_proj"}),
    classes={"lm": "GPT2LMHeadModel", "classes": "GPT2ForSequenceClassification", "sentence": "GPT2Model"},
    heads=("lm_head.", "score.", "multiple_choice_head."),
    prefix="transformer.",
    positions="transformer.wpe.weight",
    tied=("lm_head.weight", "transformer.wte.weight"),
    dropped=("*.attn.bias", "*.attn.masked_bias"),
)  # fmt: skip

BERT = Family(
    name="bert",
    model_type="bert",
    names={
        "vocab_size": "vocab_size",
        "context": "max_position_embeddings",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "layer_norm_eps": "layer_norm_eps",
        "tie_word_embeddings": "tie_word_embeddings",
        "type_vocab_size": "type_vocab_size",
        "residual_dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "initializer_range": "initializer_range",
    },
    absent={
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "layer_norm_eps": 1e-12,
        "tie_word_embeddings": True,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
    only={
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    idle=frozenset({"classifier_dropout", "directionality", "pooler_fc_size", "pooler_num_attention_heads"}
                   | {"pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"}),
    classes={
        "lm": "BertForMaskedLM",
        "pretraining": "BertForPreTraining",
        "classes": "BertForSequenceClassification",
        "span": "BertForQuestionAnswering",
        "sentence": "BertModel",
    },
    heads=("cls.", "classifier.", "qa_outputs.", "bert.pooler."),
    prefix="bert.",
    positions="bert.embeddings.position_embeddings.weight",
    tied=("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    dropped=("*embeddings.position_ids",),
)  # fmt: skip

T5 = Family(
    name="t5",
    model_type="t5",
    names={
        "vocab_size": "vocab_size",
        "context": "n_positions",
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "num_layers",
        "num_decoder_layers": "num_decoder_layers",
        "num_attention_heads": "num_heads",
        "head_dim": "d_kv",
        "rms_norm_eps": "layer_norm_epsilon",
        "tie_word_embeddings": "tie_word_embeddings",
        "relative_attention_num_buckets": "relative_attention_num_buckets",
        "relative_attention_max_distance": "relative_attention_max_distance",
        "residual_dropout": "dropout_rate",
        "decoder_start_id": "decoder_start_token_id",
    },
    absent={
        "vocab_size": 32128,
        "n_positions": 512,
        "d_model": 512,
        "d_ff": 2048,
        "num_layers": 6,
        "num_decoder_layers": None,
        "num_heads": 8,
        "d_kv": 64,
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": True,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1,
        "decoder_start_token_id": None,
        "feed_forward_proj": "relu",
        "is_decoder": False,
    },
    only={"feed_forward_proj": ("gated-gelu",), "is_decoder": (False,)},
    idle=frozenset(
        {"initializer_factor", "classifier_dropout", "dense_act_fn", "is_gated_act", "scale_decoder_outputs"}
    ),
    classes={"lm": "T5ForConditionalGeneration"},
    heads=("lm_head.", "classification_head.", "qa_outputs."),
    tied=("lm_head.weight", "shared.weight"),
    copies={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
    dropped=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
)  # fmt: skip

MARIAN = Family(
    name="transformer",
    model_type="marian",
    names={
        "vocab_size": "vocab_size",
        "context": "max_position_embeddings",
        "hidden_size": "d_model",
        "intermediate_size": "encoder_ffn_dim",
        "num_hidden_layers": "encoder_layers",
        "num_decoder_layers": "decoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "tie_word_embeddings": "tie_word_embeddings",
        "residual_dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "decoder_start_id": "decoder_start_token_id",
    },
    absent={
        "vocab_size": 58101,
        "max_position_embeddings": 1024,
        "d_model": 1024,
        "encoder_ffn_dim": 4096,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "encoder_attention_heads": 16,
        "tie_word_embeddings": True,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "decoder_start_token_id": 58100,
        "activation_function": "gelu",
        "scale_embedding": False,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
        "normalize_before": False,
        "normalize_embedding": False,
        "add_final_layer_norm": False,
        "is_decoder": False,
    },
    only={
        "activation_function": ("relu",),
        "scale_embedding": (True,),
        "share_encoder_decoder_embeddings": (True,),
        "static_position_embeddings": (True,),
        "normalize_before": (False,),
        "normalize_embedding": (False,),
        "add_final_layer_norm": (False,),
        "is_decoder": (False,),
    },
    idle=frozenset({"activation_dropout", "add_bias_logits", "classif_dropout", "classifier_dropout"}
                   | {"decoder_attention_heads", "decoder_ffn_dim", "decoder_layerdrop", "decoder_vocab_size"}
                   | {"encoder_layerdrop", "extra_pos_embeddings", "forced_eos_token_id", "init_std"}
                   | {"num_hidden_layers"}),
    classes={"lm": "MarianMTModel"},
    heads=("lm_head.",),
    zeros=("final_logits_bias",),
    tied=("lm_head.weight", "model.shared.weight"),
    copies={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
    },
    dropped=("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"),
)  # fmt: skip

FAMILIES: tuple[Family, ...] = (LLAMA, GPT2, BERT, T5, MARIAN)
ANY_IDLE = frozenset({
    "_name_or_path", "architectures", "auto_map", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
    "chunk_size_feed_forward", "cls_token_id", "cross_attention_hidden_size", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "gradient_checkpointing",
    "id2label", "ignore_keys_at_rope_validation", "is_encoder_decoder", "label2id", "length_penalty",
    "mask_token_id", "max_length", "min_length", "model_type", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_labels", "num_return_sequences", "output_attentions", "output_hidden_states", "output_past",
    "output_scores", "pad_token_id", "prefix", "problem_type", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params",
    "temperature", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache",
})  # fmt: skip
"""Fields of every family that change nothing of what a model computes."""


def of_family(name: str) -> Family:
    """By Luban's name."""
    return next(family for family in FAMILIES if family.name == name)
