"""A Hugging Face config.json <-> the recipe's `model`, for the five families.

Reading refuses every value under which transformers would compute something else than Luban, by field, value and what
is supported; what it doesn't know at all it names. A field that is absent means what transformers' class takes then.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data import settings
from data.errors import UserError
from trainer.hf.families import ANY_IDLE, FAMILIES, Family, of_family
from trainer.models.head import LM, Head
from trainer.recipe import Model

FILE = "config.json"
_NEVER = {"quantization_config": None, "pruned_heads": {}, "tie_encoder_decoder": False, "sliding_window": None}
"""Fields of any family that change the computation, and the value that doesn't."""
_ROPE = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Kind of rotary scaling -> the settings that it reads."""
_MARIAN_EPS = 1e-5  # transformers' Marian has it in its code


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a directory's config.json.

    Raises:
        UserError: there is none, or it isn't a JSON object.
    """
    try:
        held = json.loads((folder / FILE).read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {folder / FILE}: {error.strerror or error}. A directory that Hugging Face's save_pretrained "
            "has written holds one"
        ) from None
    except ValueError as error:
        raise UserError(f"{folder / FILE} is not JSON: {error}") from None
    if not isinstance(held, dict):
        raise UserError(f"{folder / FILE} should hold one JSON object")
    return held


def family_of(config: Mapping[str, Any], origin: str) -> Family:
    """The family of a config.json. Raises UserError where Luban has none of its architecture."""
    found = next((family for family in FAMILIES if family.model_type == config.get("model_type")), None)
    if found is None:
        known = ", ".join(f"{family.model_type}" for family in FAMILIES)
        classes = ", ".join(config.get("architectures") or ()) or "no architecture"
        raise UserError(
            f"{origin} is a model of type {config.get('model_type')!r} ({classes}); Luban has {known} (t5 in its "
            "version 1.1)"
        )
    return found


def model_of(config: Mapping[str, Any], origin: str) -> tuple[Model, list[str]]:
    """The `model` section under which Luban computes what the directory's class in transformers does.

    Args:
        origin: names the directory in messages.

    Returns:
        The section, and what a person should hear, a sentence each.

    Raises:
        UserError: another architecture, a value that Luban doesn't compute with, or a field that must be there.
    """
    family = family_of(config, origin)
    _refuse(family, config, origin)
    fields = {}
    for setting, theirs in family.names.items():
        if theirs not in config and theirs not in family.absent:
            raise UserError(f"{origin}/{FILE} lacks {theirs}")
        value = config.get(theirs, family.absent.get(theirs))
        if value is not None:
            fields[setting] = value
    notes = list(_only_training(family, config))
    match family.name:
        case "llama":
            fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
            fields |= _rope(config, origin)
        case "t5":
            fields["attention_dropout"] = fields["residual_dropout"]
            # transformers 5 writes tie_word_embeddings=true for every T5, and what v1.1 differs in apart from it
            fields["tie_word_embeddings"] = config.get("scale_decoder_outputs", fields["tie_word_embeddings"])
            if "n_positions" not in config:
                notes.append("a T5 sets no longest sequence: model.context is 512 unless you set it")
        case "transformer":
            fields["layer_norm_eps"] = _MARIAN_EPS
    unknown = sorted(
        name
        for name in config.keys()
        - set(family.names.values())
        - family.only.keys()
        - family.idle
        - ANY_IDLE
        - set(_NEVER)
        if config[name] is not None
    )
    if unknown:
        said = ", ".join(f"{name}={json.dumps(config[name])[:60]}" for name in unknown)
        notes.append(f"{FILE} says what Luban doesn't know and leaves out: {said}")
    return settings.validate(Model, {"family": family.name, **fields}, f"{origin}/{FILE}"), notes


def refuse_prefixes(point: str, model: Model) -> None:
    """Raise UserError where transformers would read the prompts of the model of `point` as it never learned to."""
    if model.attention == "prefix":
        raise UserError(
            f"{point} reads a prompt in both directions (model.attention prefix), which no {model.family} of "
            "transformers can be told to: generate with it here, or go on training it with model.attention=full"
        )


def hugging_face_config(
    model: Model,
    vocab_size: int,
    head: Head = LM,
    *,
    eos_id: int | None = None,
    bos_id: int | None = None,
    pad_id: int | None = None,
    labels: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The config.json under which the family's class in transformers computes the same.

    Args:
        vocab_size: rows of the embedding, in tokens.
        labels: names of a classifier's outputs; none: LABEL_0 and so on, as transformers has it.

    Raises:
        UserError: a setting that the class has no field for.
    """
    family = of_family(model.family)
    if head.kind not in family.classes:
        raise UserError(f"transformers has no class of {family.model_type} that ends in the head {head.kind}")
    found: dict[str, Any] = {"architectures": [family.classes[head.kind]], "model_type": family.model_type}
    values = {setting: getattr(model, setting) for setting in family.names}
    values |= {"vocab_size": vocab_size, "intermediate_size": model.mlp_size}
    found |= {theirs: values[setting] for setting, theirs in family.names.items()}
    found |= {name: supported[0] for name, supported in family.only.items()}
    found |= {"eos_token_id": eos_id, "bos_token_id": bos_id, "pad_token_id": pad_id, "use_cache": True}
    match family.name:
        case "llama":
            found |= {"head_dim": model.head_size, "rope_parameters": rope_parameters(model)}
        case "gpt2":
            found["embd_pdrop"] = model.residual_dropout
        case "t5":
            found |= {"d_kv": model.head_size, "num_decoder_layers": model.decoder_layers}
        case "transformer":
            if model.layer_norm_eps != _MARIAN_EPS:
                raise UserError(
                    f"transformers' Marian normalises with an epsilon of {_MARIAN_EPS}, and no field of its config "
                    f"says otherwise: a model with model.layer_norm_eps={model.layer_norm_eps} can't be exported"
                )
            found |= {
                "decoder_layers": model.decoder_layers,
                "decoder_ffn_dim": model.mlp_size,
                "decoder_attention_heads": model.num_attention_heads,
                "forced_eos_token_id": eos_id,
            }
    if model.is_encoder_decoder:
        start = model.decoder_start_id if model.decoder_start_id is not None else pad_id
        found |= {"is_encoder_decoder": True, "decoder_start_token_id": start}
    if head.kind == "classes":
        names = labels or tuple(f"LABEL_{number}" for number in range(head.outputs))
        found |= {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
        found["problem_type"] = "regression" if head.outputs == 1 else "single_label_classification"
    return found


def _refuse(family: Family, config: Mapping[str, Any], origin: str) -> None:
    problems = []
    for name, supported in family.only.items():
        value = config.get(name, family.absent.get(name, supported[0]))
        if value not in supported:
            said = " or ".join(json.dumps(each) for each in supported)
            problems.append(f"{name} is {json.dumps(value)}, and Luban computes a {family.model_type} with {said}")
    for name, harmless in _NEVER.items():
        if config.get(name, harmless) not in (harmless, None):
            problems.append(f"{name} is {json.dumps(config[name])[:80]}, and Luban computes without it")
    if family.name == "transformer":
        for name, other in (
            ("decoder_attention_heads", "encoder_attention_heads"),
            ("decoder_ffn_dim", "encoder_ffn_dim"),
        ):
            both = [config.get(each, family.absent.get(other)) for each in (name, other)]
            if both[0] != both[1]:
                problems.append(f"{name} is {both[0]} and {other} {both[1]}, and Luban has one for both")
        if config.get("decoder_vocab_size") not in (None, config.get("vocab_size")):
            problems.append(f"decoder_vocab_size is {config['decoder_vocab_size']}, and Luban has one vocabulary")
    if problems:
        raise UserError(f"{origin}/{FILE}: " + "; ".join(problems))


def _only_training(family: Family, config: Mapping[str, Any]) -> Any:
    """What a directory was trained with that the recipe has no setting for."""
    pairs = {"gpt2": (("embd_pdrop", "resid_pdrop"),), "bert": (("classifier_dropout", "hidden_dropout_prob"),)}
    for name, ours in pairs.get(family.name, ()):
        value, taken = config.get(name), config.get(ours, family.absent[ours])
        if value is not None and value != taken:
            yield f"{name} {value} has no setting of its own: model.residual_dropout, {taken} from {ours}, is for both"
    for name in ("activation_dropout", "encoder_layerdrop", "decoder_layerdrop"):
        if config.get(name):
            yield f"{name} {config[name]} has no setting in Luban: training goes without it"


def _rope(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` from transformers' rope_parameters (5) or rope_theta and rope_scaling (4)."""
    said = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = said.pop("rope_type", None) or said.pop("type", None) or "default"
    said.pop("type", None)
    theta = said.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    found: dict[str, Any] = {"rope_theta": float(theta)}
    if kind not in _ROPE:
        known = " or ".join(f'"{each}"' for each in _ROPE)
        raise UserError(f'{origin}/{FILE}: rope_type is "{kind}", and Luban computes a llama with {known}')
    if kind != "default":
        found["rope_scaling"] = {"rope_type": kind} | {name: said[name] for name in _ROPE[kind] if name in said}
    return found


def rope_parameters(model: Model) -> dict[str, Any]:
    """transformers' `rope_parameters`: the kind of scaling with the settings that it reads, and the base."""
    scaling = model.rope_scaling
    read = {"rope_type", *_ROPE[scaling.rope_type]}
    return scaling.model_dump(include=read) | {"rope_theta": model.rope_theta}
