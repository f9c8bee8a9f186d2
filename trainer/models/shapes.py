"""A model's parameters by name and shape, without building it: what a plan and a simulation count; and what decays.

Pure, so that a plan answers without the seconds that torch takes to load; `tests/trainer/test_shapes.py` holds every
family and head against the real model.
"""

from collections.abc import Callable, Mapping

from trainer.models.depth import BLOCK
from trainer.models.head import JUDGEMENT, LM, Head
from trainer.recipe_model import Model

Shapes = dict[str, tuple[int, ...]]

LOOKED_UP = ("embed", ".wte.", ".wpe.", "shared.", "relative_attention_bias")
"""What the names of embeddings have in them: tokens', positions', and T5's of distances."""
TABLES = {
    "llama": "model.embed_tokens.weight",
    "gpt2": "transformer.wte.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
    "t5": "shared.weight",
    "transformer": "model.shared.weight",
}
"""Each family's embedding of tokens, which a tied output projection is, too."""


def decays(name: str, dimensions: int) -> bool:
    """Whether weight decay applies to a parameter: to matrices, except embeddings (`trainer/optimizer.py` says why)."""
    return dimensions >= 2 and not name.endswith("bias") and not looked_up(name)


def looked_up(name: str) -> bool:
    """Whether a parameter is an embedding: rows of it are read, nothing is multiplied by it."""
    return any(part in name for part in LOOKED_UP)


def reads(name: str) -> bool:
    """Whether a parameter of an encoder-decoder works on what the encoder reads; else on what the decoder writes."""
    memory = ("EncDecAttention.k.", "EncDecAttention.v.", "encoder_attn.k_proj.", "encoder_attn.v_proj.")
    return name.startswith(("encoder.", "model.encoder.")) or any(part in name for part in memory)


def block_of(name: str) -> str | None:
    """The block that a parameter belongs to, such as `model.layers.3.`; None outside of all."""
    found = BLOCK.search(name)
    return found and name[: found.end()]


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


def parameter_shapes(model: Model, vocab_size: int, head: Head = LM) -> Shapes:
    """Shape of each parameter, in the order of `build(model, vocab_size, head).named_parameters()`."""
    if head.discriminator is not None:
        nets = {"generator": (model, LM), "discriminator": (head.discriminator, JUDGEMENT)}
        return {
            f"{net}.{name}": shape
            for net, (config, end) in nets.items()
            for name, shape in parameter_shapes(config, vocab_size, end).items()
        }
    return _FAMILIES[model.family](model, vocab_size, head)


def _llama(model: Model, vocab_size: int, head: Head) -> Shapes:
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
    found: Shapes = {TABLES["llama"]: (vocab_size, hidden)}
    found |= _stack("model.layers.", model.num_hidden_layers, block) | {"model.norm.weight": (hidden,)}
    return found | _decoder_head(model, vocab_size, head)


def _gpt2(model: Model, vocab_size: int, head: Head) -> Shapes:
    hidden, inner = model.hidden_size, model.mlp_size
    attention = _conv1d("attn.c_attn", hidden, 3 * hidden) | _conv1d("attn.c_proj", hidden, hidden)
    feed_forward = _conv1d("mlp.c_fc", hidden, inner) | _conv1d("mlp.c_proj", inner, hidden)
    block = _norm("ln_1", hidden) | attention | _norm("ln_2", hidden) | feed_forward
    found: Shapes = {TABLES["gpt2"]: (vocab_size, hidden), "transformer.wpe.weight": (model.context, hidden)}
    found |= _stack("transformer.h.", model.num_hidden_layers, block) | _norm("transformer.ln_f", hidden)
    return found | _decoder_head(model, vocab_size, head)


def _decoder_head(model: Model, vocab_size: int, head: Head) -> Shapes:
    if head.kind == "classes":
        return {"score.weight": (head.outputs, model.hidden_size)}
    untied = head.kind == "lm" and not model.tie_word_embeddings
    return {"lm_head.weight": (vocab_size, model.hidden_size)} if untied else {}


def _bert(model: Model, vocab_size: int, head: Head) -> Shapes:
    hidden, inner, kind = model.hidden_size, model.mlp_size, head.kind
    tables = {"word": vocab_size, "position": model.context, "token_type": model.type_vocab_size}
    found: Shapes = {f"bert.embeddings.{name}_embeddings.weight": (rows, hidden) for name, rows in tables.items()}
    found |= _norm("bert.embeddings.LayerNorm", hidden)
    block: Shapes = {}
    for name in ("query", "key", "value"):
        block |= _linear(f"attention.self.{name}", hidden, hidden)
    block |= _linear("attention.output.dense", hidden, hidden) | _norm("attention.output.LayerNorm", hidden)
    block |= _linear("intermediate.dense", hidden, inner)
    block |= _linear("output.dense", inner, hidden) | _norm("output.LayerNorm", hidden)
    found |= _stack("bert.encoder.layer.", model.num_hidden_layers, block)
    if kind in ("classes", "pretraining"):
        found |= _linear("bert.pooler.dense", hidden, hidden)
    if kind in ("lm", "pretraining"):
        found |= {"cls.predictions.bias": (vocab_size,)}
        found |= _linear("cls.predictions.transform.dense", hidden, hidden)
        found |= _norm("cls.predictions.transform.LayerNorm", hidden)
        if not model.tie_word_embeddings:
            found |= {"cls.predictions.decoder.weight": (vocab_size, hidden)}
    if kind == "pretraining":
        found |= _linear("cls.seq_relationship", hidden, 2)
    if kind == "classes":
        found |= _linear("classifier", hidden, head.outputs)
    return found | _linear("qa_outputs", hidden, 2) if kind == "span" else found


def _t5(model: Model, vocab_size: int, head: Head) -> Shapes:
    hidden, inner = model.hidden_size, model.mlp_size
    wide = model.num_attention_heads * model.head_size
    biases = {"relative_attention_bias.weight": (model.relative_attention_num_buckets, model.num_attention_heads)}
    attention: Shapes = {"q.weight": (wide, hidden), "k.weight": (wide, hidden), "v.weight": (wide, hidden)}
    attention |= {"o.weight": (hidden, wide)}
    gated = {"wi_0.weight": (inner, hidden), "wi_1.weight": (inner, hidden), "wo.weight": (hidden, inner)}
    found: Shapes = {TABLES["t5"]: (vocab_size, hidden)}
    for side, layers in (("encoder", model.num_hidden_layers), ("decoder", model.decoder_layers)):
        parts = {"SelfAttention": attention, "EncDecAttention": attention, "DenseReluDense": gated}
        if side == "encoder":
            del parts["EncDecAttention"]
        for layer in range(layers):
            for number, (name, inside) in enumerate(parts.items()):
                prefix = f"{side}.block.{layer}.layer.{number}."
                inside = inside | biases if not layer and not number else inside
                found |= {f"{prefix}{name}.{each}": shape for each, shape in inside.items()}
                found[f"{prefix}layer_norm.weight"] = (hidden,)
        found[f"{side}.final_layer_norm.weight"] = (hidden,)
    return found if model.tie_word_embeddings else found | {"lm_head.weight": (vocab_size, hidden)}


def _transformer(model: Model, vocab_size: int, head: Head) -> Shapes:
    hidden, inner = model.hidden_size, model.mlp_size
    found: Shapes = {"final_logits_bias": (1, vocab_size), TABLES["transformer"]: (vocab_size, hidden)}
    for side, layers in (("encoder", model.num_hidden_layers), ("decoder", model.decoder_layers)):
        block: Shapes = {}
        for name in ("self_attn",) if side == "encoder" else ("self_attn", "encoder_attn"):
            for part in "kvq":
                block |= _linear(f"{name}.{part}_proj", hidden, hidden)
            block |= _linear(f"{name}.out_proj", hidden, hidden) | _norm(f"{name}_layer_norm", hidden)
        block |= _linear("fc1", hidden, inner) | _linear("fc2", inner, hidden) | _norm("final_layer_norm", hidden)
        found |= _stack(f"model.{side}.layers.", layers, block)
    return found


def _stack(prefix: str, layers: int, block: Mapping[str, tuple[int, ...]]) -> Shapes:
    return {f"{prefix}{layer}.{name}": shape for layer in range(layers) for name, shape in block.items()}


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv1d(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


_FAMILIES = {"llama": _llama, "gpt2": _gpt2, "bert": _bert, "t5": _t5, "transformer": _transformer}
