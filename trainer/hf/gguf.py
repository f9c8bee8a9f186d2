"""A llama as one GGUF file, the format of llama.cpp and what is built on it, by the `gguf` library.

GGUF turns neighbouring features of a head by one angle where Hugging Face turns features half a head apart, so the rows
of the query and key projections are reordered. Its tokenizers are SentencePiece (`llama`) or GPT-2's bytes (`gpt2`).
What was written is read again: every tensor bit by bit by the library's reader, and the logits through transformers.
"""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data.errors import UserError
from data.publish import published
from data.tokenizer.sentencepiece import SentencePieceTokenizer, model_proto
from data.tokenizer.tokenizer import Tokenizer
from trainer.hf import check
from trainer.run import Source, read_recipe

if TYPE_CHECKING:
    from trainer.hf.export import Export

ARCHITECTURE = "llama"
_GPT2_SPLIT = "gpt-2"  # what llama.cpp calls ByteLevel's own regular expression


def refuse_unlike(point: str, file: Path) -> None:
    """Raise UserError where a run's model has no GGUF form, the library is missing, or the file is there."""
    recipe = read_recipe(Source.parse(point).run)
    if recipe.model.family != "llama":
        raise UserError(f"--gguf writes models of family llama, and {point} is a {recipe.model.family}")
    if recipe.model.rope_scaling.rope_type == "llama3":
        raise UserError("--gguf writes rotary positions of type default or linear; this model's are llama3")
    if recipe.objective.kind not in ("auto", "causal", "adversarial"):
        raise UserError(f"--gguf writes models that predict the next token; objective.kind is {recipe.objective.kind}")
    if find_spec("gguf") is None:
        raise UserError("--gguf needs the gguf library: pip install 'luban[gguf]'")
    if file.exists():
        raise UserError(f"{file} is there already: name a file that isn't, or remove it")


def write_gguf(
    asked: "Export", config: Mapping[str, Any], file: Path, folder: Path, checked: bool, say: Callable[[str], None]
) -> None:
    """Write `file`, read it again, and compare it with Luban's model; tensors in fp32, or bf16 for matrices.

    Args:
        config: the config.json of the export.
        folder: of the export, where transformers looks for the file.

    Raises:
        UserError: the tokenizer has no GGUF form, or what is read back isn't what was written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with published(file) as draft:
        _write(asked, config, draft)
        _read_again(asked, draft)
        if checked:
            tensors, where = _question(asked)
            link = folder / "check.gguf"
            link.symlink_to(draft.absolute())
            try:
                found = check.compare(folder, folder / ".question.safetensors", tensors, gguf=link.name)
            finally:
                link.unlink()
            if not found.is_rounding:
                raise UserError(
                    f"the GGUF file is refused: through transformers its logits differ by {found.difference:.2g}, and "
                    f"{found.allowed:.2g} at most are a rounding; nothing was written"
                )
            say(f"{file}: read by transformers, its logits differ by {found.difference:.2g} at most on {where}")
    if not checked:
        say(f"{file}: its tensors are as they were written; its logits were not compared (--no-check)")


def _question(asked: "Export") -> tuple[dict[str, Any], str]:
    from trainer.hf.export import question

    return question(asked, lambda name: _halved(asked, name))


def _write(asked: "Export", config: Mapping[str, Any], path: Path) -> None:
    import gguf

    model = asked.recipe.model
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_name(asked.recipe.name)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.hidden_size)
    writer.add_block_count(model.num_hidden_layers)
    writer.add_feed_forward_length(model.mlp_size)
    writer.add_head_count(model.num_attention_heads)
    writer.add_head_count_kv(model.num_key_value_heads)
    writer.add_key_length(model.head_size)
    writer.add_value_length(model.head_size)
    writer.add_rope_dimension_count(model.head_size)
    writer.add_rope_freq_base(model.rope_theta)
    if model.rope_scaling.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(model.rope_scaling.factor)
    writer.add_layer_norm_rms_eps(model.rms_norm_eps)
    writer.add_vocab_size(asked.vocab_size)
    bf16 = asked.precision == "bf16"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.ALL_F32)
    _write_tokenizer(writer, asked.tokenizer, asked.vocab_size, config)
    for name, theirs in _names(asked).items():
        shape, count = asked.shapes[name], prod(asked.shapes[name])
        if _halved(asked, name):  # given as bytes
            stored = (*shape[:-1], 2 * shape[-1])
            writer.add_tensor_info(theirs, stored, np.dtype(np.uint8), 2 * count, gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor_info(theirs, shape, np.dtype(np.float32), 4 * count)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in asked.shapes:
        writer.write_tensor_data(_stored(asked, name))
    writer.close()


def _names(asked: "Export") -> dict[str, str]:
    """Our name of each parameter -> GGUF's."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, asked.recipe.model.num_hidden_layers)
    return {name: str(names.get_name(name, try_suffixes=(".weight",))) for name in asked.shapes}


def _halved(asked: "Export", name: str) -> bool:
    """llama.cpp wants norms in fp32."""
    return asked.precision == "bf16" and len(asked.shapes[name]) > 1


def _stored(asked: "Export", name: str) -> np.ndarray:
    """A parameter as GGUF has it: fp32, or the bytes of bf16."""
    value = asked.tensor(name)
    heads = {
        "q_proj.weight": asked.recipe.model.num_attention_heads,
        "k_proj.weight": asked.recipe.model.num_key_value_heads,
    }
    for end, count in heads.items():
        if name.endswith(end):  # (head, half, feature) -> (head, feature, half)
            value = value.view(count, 2, -1, value.size(1)).transpose(1, 2).reshape(value.shape)
    if _halved(asked, name):
        return value.bfloat16().contiguous().view(torch.uint8).numpy()
    return value.contiguous().numpy()


def _write_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int, config: Mapping[str, Any]) -> None:
    import gguf

    kind = gguf.TokenType
    if isinstance(tokenizer, SentencePieceTokenizer):
        proto = model_proto(tokenizer.content)
        if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
            raise UserError("GGUF knows SentencePiece models of type BPE, and this tokenizer's is unigram")
        kinds = {proto.pieces[0].UNKNOWN: kind.UNKNOWN, proto.pieces[0].BYTE: kind.BYTE}
        types = [
            kind.CONTROL if control and piece.type != piece.UNKNOWN else kinds.get(piece.type, kind.NORMAL)
            for piece, control in zip(proto.pieces, tokenizer.is_control, strict=True)
        ]
        writer.add_tokenizer_model("llama")
        scores = [piece.score for piece in proto.pieces] + [-1e4] * (vocab_size - len(types))
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(proto.normalizer_spec.add_dummy_prefix)
        writer.add_remove_extra_whitespaces(proto.normalizer_spec.remove_extra_whitespaces)
    else:
        said = json.loads(tokenizer.content)
        splitter = said.get("pre_tokenizer") or {}
        plain = (
            splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True) and not splitter["add_prefix_space"]
        )
        if said["model"]["type"] != "BPE" or not plain:
            raise UserError("GGUF can say SentencePiece BPE and GPT-2's byte-level BPE; this tokenizer is another")
        types = [kind.CONTROL if control else kind.NORMAL for control in tokenizer.is_control]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_GPT2_SPLIT)
        merges = said["model"]["merges"]
        writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    spare = [f"[PAD{number}]" for number in range(len(types), vocab_size)]
    writer.add_token_list([*tokenizer.pieces, *spare])
    writer.add_token_types([*types, *[kind.UNUSED] * len(spare)])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    for role, add in {
        "eos": writer.add_eos_token_id,
        "bos": writer.add_bos_token_id,
        "pad": writer.add_pad_token_id,
    }.items():
        if config.get(f"{role}_token_id") is not None:
            add(config[f"{role}_token_id"])


def _read_again(asked: "Export", path: Path) -> None:
    """Raise UserError unless the library's reader finds each tensor as it was written."""
    import gguf

    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, theirs in _names(asked).items():
        wanted = _stored(asked, name).reshape(-1).view(np.uint8)
        if theirs not in held or not np.array_equal(np.asarray(held[theirs].data).reshape(-1).view(np.uint8), wanted):
            raise UserError(f"the GGUF file is refused: {name} doesn't read back as it was written")
