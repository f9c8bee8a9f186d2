"""Sizes by name, family by family: what `model.preset` fills in where a recipe leaves a setting open.

Each but the smallest is a published model's: its widths, depth, heads, longest sequence and constants, and the dropout
that its paper trained with. The vocabulary stays the tokenizer's. `tiny` trains in minutes on a CPU.
"""

from typing import Any

Sizes = dict[str, Any]


def _sizes(hidden: int, layers: int, heads: int, inner: int | None = None, **more: Any) -> Sizes:
    found = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, **more}
    return found if inner is None else found | {"intermediate_size": inner}


def _llama(
    hidden: int, layers: int, heads: int, narrow: int, inner: int, context: int, theta: float, tied: bool
) -> Sizes:
    return _sizes(
        hidden, layers, heads, inner, num_key_value_heads=narrow, context=context, rope_theta=theta, rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )  # fmt: skip


def _gpt2(hidden: int, layers: int, heads: int) -> Sizes:
    return _sizes(hidden, layers, heads, context=1024, layer_norm_eps=1e-5, tie_word_embeddings=True)


def _bert(hidden: int, layers: int, heads: int) -> Sizes:
    dropout = {"residual_dropout": 0.1, "attention_dropout": 0.1}
    return _sizes(hidden, layers, heads, 4 * hidden, context=512, layer_norm_eps=1e-12, type_vocab_size=2, **dropout)


def _t5(hidden: int, layers: int, heads: int, inner: int) -> Sizes:
    buckets = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
    return _sizes(
        hidden, layers, heads, inner, num_decoder_layers=layers, head_dim=64, context=512, rms_norm_eps=1e-6,
        tie_word_embeddings=False, **buckets,
    )  # fmt: skip


def _transformer(hidden: int, layers: int, heads: int, inner: int, dropout: float) -> Sizes:
    return _sizes(
        hidden, layers, heads, inner, num_decoder_layers=layers, context=512, residual_dropout=dropout,
        tie_word_embeddings=True,
    )  # fmt: skip


PRESETS: dict[str, dict[str, Sizes]] = {
    # small, base: SmolLM2 135M, 360M (arXiv:2502.02737); 1b, 3b: Llama 3.2; 7b, 13b, 70b: Llama 2 (arXiv:2307.09288);
    # 8b: Llama 3 (arXiv:2407.21783), each at the length of its pretraining.
    "llama": {
        "tiny": _llama(128, 4, 4, 2, 384, 256, 1e4, True),
        "small": _llama(576, 30, 9, 3, 1536, 2048, 1e5, True),
        "base": _llama(960, 32, 15, 5, 2560, 2048, 1e5, True),
        "1b": _llama(2048, 16, 32, 8, 8192, 8192, 5e5, True),
        "3b": _llama(3072, 28, 24, 8, 8192, 8192, 5e5, True),
        "7b": _llama(4096, 32, 32, 32, 11008, 4096, 1e4, False),
        "8b": _llama(4096, 32, 32, 8, 14336, 8192, 5e5, False),
        "13b": _llama(5120, 40, 40, 40, 13824, 4096, 1e4, False),
        "70b": _llama(8192, 80, 64, 8, 28672, 4096, 1e4, False),
    },
    # Radford et al. 2019, table 2; DialoGPT's are small, medium and large (arXiv:1911.00536, table 1).
    "gpt2": {
        "tiny": _gpt2(128, 4, 4) | {"context": 256},
        "small": _gpt2(768, 12, 12),
        "medium": _gpt2(1024, 24, 16),
        "large": _gpt2(1280, 36, 20),
        "xl": _gpt2(1600, 48, 25),
    },
    # base, large: Devlin et al. 2019 (arXiv:1810.04805); the others: Turc et al. 2019 (arXiv:1908.08962).
    "bert": {
        "tiny": _bert(128, 2, 2),
        "mini": _bert(256, 4, 4),
        "small": _bert(512, 4, 8),
        "medium": _bert(512, 8, 8),
        "base": _bert(768, 12, 12),
        "large": _bert(1024, 24, 16),
    },
    # T5 1.1 (arXiv:1910.10683 with the changes of arXiv:2002.05202; no dropout in pretraining).
    "t5": {
        "tiny": _t5(128, 4, 4, 256) | {"head_dim": 32},
        "small": _t5(512, 8, 6, 1024),
        "base": _t5(768, 12, 12, 2048),
        "large": _t5(1024, 24, 16, 2816),
        "3b": _t5(2048, 24, 32, 5120),
        "11b": _t5(4096, 24, 64, 10240),
    },
    # base, big: Vaswani et al. 2017 (arXiv:1706.03762), table 3.
    "transformer": {
        "tiny": _transformer(128, 3, 4, 512, 0.1),
        "small": _transformer(256, 4, 4, 1024, 0.1),
        "base": _transformer(512, 6, 8, 2048, 0.1),
        "big": _transformer(1024, 6, 16, 4096, 0.3),
    },
}
"""Family -> preset -> settings of `model`."""


def filled(given: Sizes, family: str) -> Sizes:
    """The settings `given` for a model of `family`, and what they leave open from their `preset`, if they name one.

    Raises:
        ValueError: the family has no such preset.
    """
    preset = given.get("preset")
    if preset is None:
        return given
    if preset not in PRESETS[family]:
        raise ValueError(f"{family} has no preset {preset!r}: {', '.join(PRESETS[family])}")
    return PRESETS[family][preset] | given
