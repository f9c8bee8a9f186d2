"""Adapters alone, in the file format of the `peft` library: adapter_model.safetensors and adapter_config.json.

Names of layers are Hugging Face's already, so a file's names are ours behind a prefix, and `peft` puts the adapter onto
transformers' model of the same weights (logits equal to 1e-5, `tests/trainer/test_adapters_hf.py`). The file's header
also holds a digest of the weights that the adapter sits on; with it, one for another base is told from one for this
base even where all shapes agree. An adapter that another program wrote has none, and is judged by names and shapes.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from data.errors import UserError
from trainer.adapters import lora, prompt
from trainer.adapters.shapes import PROMPT, A, B
from trainer.recipe_adapter import Adapter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
PROMPT_KEY = "prompt_embeddings"
BASE_KEY = "luban_base"
TYPES = {"lora": "LORA", "prompt": "PROMPT_TUNING"}
PROMPTED_HEADS = ("classifier", "score", "qa_outputs")
"""What `peft` takes beside a prompt: a head, by one of these names."""
TASKS = {"classes": "SEQ_CLS", "span": "QUESTION_ANS", "sentence": "FEATURE_EXTRACTION"}


def write(
    folder: Path, model: Any, adapter: Adapter, learned: Mapping[str, Tensor], base: Mapping[str, Tensor], name: str
) -> None:
    """Write an adapter's two files into `folder`.

    Args:
        model: built and adapted as the weights were; its own are not read.
        learned: every weight that learned, by its name in `model`.
        base: the frozen ones.
        name: of the base model, for `peft` to find it.

    Raises:
        UserError: something learned that the format has no place for.
    """
    from safetensors.torch import save_file

    own = {key: _file_name(key, adapter) for key in learned}
    modules = sorted({key.rpartition(".")[0] for key in learned if not is_own(key)})
    if adapter.kind == "prompt":
        odd = [module for module in modules if module not in PROMPTED_HEADS]
    else:
        odd = [module for module in modules if module in dict(lora.layers(model))]
    if odd:
        raise UserError(
            f"the weights of {odd[0]} learned beside its adapter, for which PEFT's format has no place: freeze them in "
            f"another run, by train.trainable=['!{odd[0]}.*']"
        )
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", BASE_KEY: base_digest(model, base.__getitem__)}
    save_file({own[key]: tensor.contiguous().cpu() for key, tensor in learned.items()}, folder / WEIGHTS, metadata)
    text = json.dumps(config(model, adapter, name, modules), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", "utf-8")


def config(model: Any, adapter: Adapter, name: str, modules: Iterable[str]) -> dict[str, Any]:
    """`adapter_config.json`.

    Args:
        modules: those that learned whole, such as a new head.
    """
    sizes = model.config
    common = {
        "peft_type": TYPES[adapter.kind], "task_type": _task(model), "base_model_name_or_path": name or None,
        "inference_mode": True,
    }  # fmt: skip
    if adapter.kind == "prompt":
        return common | {
            "num_virtual_tokens": adapter.tokens, "token_dim": sizes.hidden_size, "num_transformer_submodules": 1,
            "num_attention_heads": sizes.num_attention_heads, "num_layers": sizes.num_hidden_layers,
            "prompt_tuning_init": "RANDOM",
        }  # fmt: skip
    adapted = dict(lora.layers(model))
    return common | {
        "r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": adapter.dropout, "bias": "none",
        "target_modules": _short(adapted, lora.projections(model)), "modules_to_save": list(modules) or None,
        "fan_in_fan_out": any(lora.transposed(layer) for layer in adapted.values()),
    }  # fmt: skip


def _task(model: Any) -> str | None:
    """What `peft` calls the model's task; None: it wraps any model."""
    if model.head.kind in TASKS:
        return TASKS[model.head.kind]
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if model.config.is_decoder else None


def _short(adapted: Iterable[str], known: Iterable[str]) -> list[str]:
    """The adapted layers' last names, where those mean no other projection; else whole names."""
    adapted = list(adapted)
    leaves = {name.rpartition(".")[2] for name in adapted}
    others = {name.rpartition(".")[2] for name in known if name not in adapted}
    return sorted(leaves if leaves.isdisjoint(others) else adapted)


def is_own(name: str) -> bool:
    """Whether a parameter is an adapter's, by its name."""
    return f".{A}." in name or f".{B}." in name or name.endswith(f".{PROMPT}.weight")


def _file_name(name: str, adapter: Adapter) -> str:
    """Around a model with LoRA `peft` has a module more than around one with a prompt."""
    if name.endswith(f".{PROMPT}.weight"):
        return PROMPT_KEY
    return (PREFIX if adapter.kind == "lora" else "base_model.") + name


def base_digest(model: Any, weight: Callable[[str], Tensor]) -> str:
    """XXH3-128 of the weights, in fp32, that an adapter of `model` sits on: its layers', or the embedding.

    Args:
        weight: gives each by its name.
    """
    names = [name for name, _ in lora.layers(model)] or [prompt.embedding(model)[0]]
    digest = xxhash.xxh3_128()
    for name in sorted(names):
        digest.update(name.encode())
        digest.update(weight(f"{name}.weight").detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def load_adapter(folder: Path, model: Any, adapter: Adapter) -> None:
    """Copy the adapter in `folder` into `model`, which was adapted as `adapter` says and holds its own weights.

    Raises:
        UserError: there is none, it is of another kind or shape, or it is for another base.
    """
    held, made_on = read(folder, model, adapter)
    parameters = dict(model.named_parameters())
    refuse_other_base(folder, made_on, model, parameters.__getitem__)
    with torch.no_grad():
        for name, tensor in held.items():
            parameters[name].copy_(tensor)


def refuse_other_base(folder: Path, made_on: str | None, model: Any, weight: Callable[[str], Tensor]) -> None:
    """Raise UserError where the adapter in `folder` was made on other weights.

    Args:
        made_on: the digest of its base; None: the file, another program's, has none.
        model: adapted as it was; its own weights are not read.
        weight: gives each of this model's weights by its name.
    """
    if made_on is not None and made_on != (mine := base_digest(model, weight)):
        raise UserError(
            f"{folder} is an adapter for another base: it was trained on weights {made_on[:12]}, and this model's are "
            f"{mine[:12]}: start --from the weights that it was trained on"
        )


def read(folder: Path, model: Any, adapter: Adapter) -> tuple[dict[str, Tensor], str | None]:
    """The adapter's weights by their names in `model`, and the digest of its base, if the file has it.

    Args:
        model: adapted as `adapter` says; its weights are not read.

    Raises:
        UserError: there is none, it is of another kind or shape, or its names or shapes are of another base.
    """
    from safetensors import SafetensorError, safe_open

    _refuse_unlike(folder, _read_config(folder), adapter)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    places = {_file_name(name, adapter): name for name in shapes}
    wanted = {_file_name(name, adapter) for name in shapes if is_own(name)}
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            keys: list[str] = file.keys()
            held, made_on = {key: file.get_tensor(key) for key in keys}, (file.metadata() or {}).get(BASE_KEY)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {folder / WEIGHTS}: {error}") from None
    other = f"{folder} is an adapter for another base"
    odd = sorted((held.keys() - places.keys()) | (wanted - held.keys()))
    if odd:
        raise UserError(f"{other}: it and this model don't share {odd[0]}")
    for key, tensor in held.items():
        if tuple(tensor.shape) != shapes[places[key]]:
            raise UserError(f"{other}: it holds {key} as {tuple(tensor.shape)}, this model wants {shapes[places[key]]}")
    return {places[key]: tensor for key, tensor in held.items()}, made_on


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no adapter in PEFT's format: {CONFIG} cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{folder / CONFIG} holds no settings")
    return found


def _refuse_unlike(folder: Path, told: Mapping[str, Any], adapter: Adapter) -> None:
    """Raise UserError where the settings of `folder` aren't `adapter`'s, or our layers don't compute what they mean."""
    names = {"lora": {"r": "rank", "lora_alpha": "alpha"}, "prompt": {"num_virtual_tokens": "tokens"}}[adapter.kind]
    if told.get("peft_type") != TYPES[adapter.kind]:
        raise UserError(
            f"{folder} is an adapter of type {told.get('peft_type')}, adapter.kind {adapter.kind} wants "
            f"{TYPES[adapter.kind]}"
        )
    for theirs, ours in names.items():
        if told.get(theirs) != getattr(adapter, ours):
            raise UserError(
                f"{folder} has {theirs} {told.get(theirs)}, the recipe adapter.{ours} {getattr(adapter, ours)}: set it "
                "to that"
            )
    for setting, plain in {"use_rslora": False, "use_dora": False, "bias": "none", "rank_pattern": {}}.items():
        if told.get(setting, plain) not in (plain, None):
            raise UserError(f"{folder} has {setting} {told[setting]!r}, which Luban's LoRA doesn't compute")
