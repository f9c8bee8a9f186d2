"""The decoder's parameters by name and shape, without building it: what a plan and a simulation count."""

from collections.abc import Callable

from trainer.recipe import Model

Shapes = dict[str, tuple[int, ...]]


LOOKED_UP = ("embed", ".wte.", ".wpe.", "shared.", "relative_attention_bias")
"""What the names of embeddings have in them: tokens', positions', and T5's of distances."""


def decays(name: str, dimensions: int) -> bool:
    """Whether weight decay applies to a parameter: to matrices, except embeddings (`trainer/optimizer.py` says why)."""
    return dimensions >= 2 and not name.endswith("bias") and not any(part in name for part in LOOKED_UP)


def group_keys(learning: Shapes, scale: Callable[[str], float] = lambda _: 1.0) -> dict[tuple[bool, float], list[str]]:
    """The optimizer's groups of the parameters that learn: those that decay, then the others; none that is empty.

    Args:
        scale: by what a parameter's learning rate is multiplied; each such factor has groups of its own.

    Returns:
        The names of each group, by (whether it decays, its factor).
    """
    found: dict[tuple[bool, float], list[str]] = {}
    for name, shape in learning.items():
        found.setdefault((decays(name, len(shape)), scale(name)), []).append(name)
    return dict(sorted(found.items(), key=lambda entry: not entry[0][0]))


def grouped(learning: Shapes, scale: Callable[[str], float] = lambda _: 1.0) -> list[Shapes]:
    """The parameters of each group of `group_keys`."""
    return [{name: learning[name] for name in names} for names in group_keys(learning, scale).values()]


def parameter_shapes(model: Model, vocab_size: int) -> Shapes:
    """Shape of each parameter, in the order of `Decoder(model, vocab_size).named_parameters()`."""
    hidden, inner = model.hidden_size, model.mlp_size
    wide, narrow = (heads * model.head_size for heads in (model.num_attention_heads, model.num_key_value_heads))
    block = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (wide, hidden),
        "self_attn.k_proj.weight": (narrow, hidden),
        "self_attn.v_proj.weight": (narrow, hidden),
        "self_attn.o_proj.weight": (hidden, wide),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    found: Shapes = {"model.embed_tokens.weight": (vocab_size, hidden)}
    for layer in range(model.num_hidden_layers):
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    found["model.norm.weight"] = (hidden,)
    if not model.tie_word_embeddings:
        found["lm_head.weight"] = (vocab_size, hidden)
    return found
