"""Tokenizers of folders without a tokenizer.json: what the model families kept in files of their own.

    vocab.txt                   WordPiece, BERT's         -> a tokenizer.json with BERT's rules
    vocab.json, merges.txt      byte-level BPE, GPT-2's   -> a tokenizer.json with GPT-2's rules
    spiece.model                SentencePiece, T5's       -> the model with its sentinels, which no file lists
    source.spm, vocab.json      SentencePiece, Marian's   -> the model with its pieces in the order of vocab.json

The rules are those of transformers' classes of these names; `tests/trainer/test_tokenizer_hf.py` compares ids.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import UserError

WORDS, MERGES, NUMBERS = "vocab.txt", "merges.txt", "vocab.json"
SOURCE, TARGET = "source.spm", "target.spm"
_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_GPT2 = {"eos": "<|endoftext|>", "bos": "<|endoftext|>", "unk": "<|endoftext|>"}
_SENTINELS = 100


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder without a tokenizer.json has a vocabulary that one can be made of."""
    return (folder / WORDS).is_file() or ((folder / NUMBERS).is_file() and (folder / MERGES).is_file())


def from_vocabulary(
    folder: Path, config: Mapping[str, Any], said: Mapping[str, str]
) -> tuple[bytes, dict[str, str], Path]:
    """A tokenizer.json, the roles of its pieces, and the file it is made of.

    Args:
        config: what `tokenizer_config.json` says.
        said: role -> piece as the folder's files say it; comes before the family's own names.

    Raises:
        UserError: a file can't be read, or has another form.
    """
    if (folder / WORDS).is_file():
        content, pieces, file = *_wordpiece(folder, config, said), folder / WORDS
    else:
        content, pieces, file = *_byte_level(folder, config, said), folder / NUMBERS
    usual = _BERT if file.name == WORDS else _GPT2
    return content, {**{role: piece for role, piece in usual.items() if piece in pieces}, **said}, file


def with_sentinels(content: bytes, folder: Path, config: Mapping[str, Any]) -> bytes:
    """A SentencePiece model with T5's `<extra_id_N>` after its pieces, where the folder is a T5's; else as it is.

    Their ids fall: `<extra_id_0>` is the last (Raffel et al. 2020, arXiv:1910.10683; transformers' T5Tokenizer).
    """
    of_t5 = _json(folder / "config.json").get("model_type") == "t5"
    of_t5 |= config.get("tokenizer_class") in ("T5Tokenizer", "T5TokenizerFast")
    if not of_t5 or "luban" in config:  # what Luban wrote holds all its pieces
        return content
    from data.tokenizer.sentencepiece import model_proto

    proto = model_proto(content)
    if any(piece.piece.startswith("<extra_id_") for piece in proto.pieces):
        return content
    for number in reversed(range(config.get("extra_ids", _SENTINELS))):
        proto.pieces.add(piece=f"<extra_id_{number}>", score=0.0, type=proto.pieces[0].CONTROL)
    return proto.SerializeToString(deterministic=True)


def in_order_of_vocabulary(content: bytes, folder: Path, config: Mapping[str, Any]) -> bytes:
    """Marian's source.spm with its pieces in the order of vocab.json, whose other pieces only templates write.

    Raises:
        UserError: source and target have models of their own, or a piece of the model has no number.
    """
    from data.tokenizer.sentencepiece import model_proto

    target = folder / TARGET
    if target.is_file() and target.read_bytes() != content:
        raise UserError(
            f"{folder} cuts its source by {SOURCE} and its target by another model, {TARGET}; a dataset of Luban has "
            "one tokenizer for both: take a model with a joint one"
        )
    proto, numbers = model_proto(content), _json(folder / NUMBERS)
    held = {piece.piece: piece for piece in proto.pieces}
    lost = [name for name, piece in held.items() if name not in numbers and piece.type == piece.NORMAL]
    if not numbers or lost or sorted(numbers.values()) != list(range(len(numbers))):
        what = f"has no number for the piece {lost[0]!r} of {SOURCE}" if lost else "doesn't number pieces from 0 on"
        raise UserError(f"{folder / NUMBERS} {what}: it belongs to another model")
    made = type(proto)()
    made.CopyFrom(proto)
    del made.pieces[:]
    for name in sorted(numbers, key=numbers.__getitem__):
        if name in held:
            made.pieces.add().CopyFrom(held[name])
        else:
            made.pieces.add(piece=name, score=0.0, type=proto.pieces[0].CONTROL)
    for role in ("unk", "bos", "eos", "pad"):  # by number, and those have moved
        setattr(made.trainer_spec, f"{role}_id", numbers.get({"bos": "<s>", "eos": "</s>"}.get(role, f"<{role}>"), -1))
    return made.SerializeToString(deterministic=True)


def _wordpiece(folder: Path, config: Mapping[str, Any], said: Mapping[str, str]) -> tuple[bytes, set[str]]:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    words = _text(folder / WORDS).split("\n")
    numbers = {word.rstrip("\r"): number for number, word in enumerate(words[:-1] if words[-1] == "" else words)}
    unknown = said.get("unk", _BERT["unk"])
    made = Tokenizer(models.WordPiece(numbers, unk_token=unknown, max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = [piece for piece in {**_BERT, **said}.values() if piece in numbers]
    made.add_special_tokens([AddedToken(piece, special=True) for piece in dict.fromkeys(special)])
    return made.to_str().encode(), set(numbers)


def _byte_level(folder: Path, config: Mapping[str, Any], said: Mapping[str, str]) -> tuple[bytes, set[str]]:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    numbers = _json(folder / NUMBERS)
    lines = [line for line in _text(folder / MERGES).split("\n") if line and not line.startswith("#version")]
    merges = [(first, second) for line in lines for first, _, second in [line.partition(" ")]]
    try:
        made = Tokenizer(models.BPE(numbers, merges))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{folder / NUMBERS} and {MERGES} are no byte-level BPE: {error}") from None
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    made.decoder = decoders.ByteLevel()
    added = _json(folder / "added_tokens.json")
    more = {piece: int(number) for piece, number in added.items() if piece not in numbers}
    for piece in sorted(more, key=more.__getitem__):
        made.add_tokens([AddedToken(piece, special=piece in said.values(), normalized=False)])
        if made.token_to_id(piece) != more[piece]:
            raise UserError(
                f"{folder}/added_tokens.json numbers {piece!r} {more[piece]}, and the next free number is "
                f"{made.token_to_id(piece)}: it belongs to another vocabulary"
            )
    special = [piece for piece in {**_GPT2, **said}.values() if piece in numbers]
    made.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in dict.fromkeys(special)])
    return made.to_str().encode(), {*numbers, *more}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(held, dict):
        raise UserError(f"{path} should hold one JSON object")
    return held
