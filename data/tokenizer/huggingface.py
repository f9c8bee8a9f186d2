"""Any Hugging Face tokenizer.json: byte-level BPE, WordPiece, Unigram, as the model it belongs to was trained with.

Left to itself that library finds special tokens in text, cuts texts to a length, pads them and puts tokens around
them; here it does none of it. `encode_special_tokens` alone doesn't keep special tokens out: a Unigram or WordPiece
model still finds `</s>` or `[SEP]` in its vocabulary (seen with tokenizers 0.23). So each id is looked at, and one
that only templates may write is spelled out in characters instead.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data.errors import UserError
from data.tokenizer.tokenizer import CONFIG_FILE, JSON_FILE, SPACE, Tokenizer, for_templates


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer in a `tokenizer.json`."""

    make = "huggingface"

    def __init__(
        self,
        content: bytes,
        special: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        origin: str = "the tokenizer",
    ):
        """Take the content of a tokenizer.json.

        Args:
            special: role -> piece.
            config: what its `tokenizer_config.json` says; kept for transformers.
            origin: names it in messages.

        Raises:
            UserError: not a tokenizer.json, or none of its pieces ends a document.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a build has a process a core, and each would fan out
        import tokenizers

        try:
            said = json.loads(content)
            for setting in ("truncation", "padding", "post_processor"):
                said[setting] = None
            self._library = tokenizers.Tokenizer.from_str(json.dumps(said))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"{origin} is not a tokenizer.json: {error}") from None
        numbers = self._library.get_vocab(with_added_tokens=True)
        pieces = [""] * (max(numbers.values(), default=-1) + 1)
        for piece, number in numbers.items():
            pieces[number] = piece
        self._take(pieces, special or {}, origin)
        self.content, self._config, self._origin = content, dict(config or {}), origin
        self._protect(said)
        self._library = tokenizers.Tokenizer.from_str(json.dumps(said))
        self._library.encode_special_tokens = True
        added = {token["id"]: token["content"] for token in said["added_tokens"]}
        self._byte_level = _named(said.get("decoder"), "ByteLevel") is not None
        self.losses = tuple(_losses(said, self.pieces, self._byte_level))
        spell = _by_bytes if self._byte_level else _by_characters
        self.spellings = [
            b"" if self.is_control[number] else piece.encode() if number in added else spell(piece)
            for number, piece in enumerate(self.pieces)
        ]
        self._prefix = said["model"].get("continuing_subword_prefix") or ""
        self._seal(said)

    def files(self) -> dict[str, bytes]:
        """`tokenizer.json` as it was, and its `tokenizer_config.json`."""
        return {JSON_FILE: self.content, CONFIG_FILE: self._configuration(self._config)}

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The bytes that `ids` stand for: without `losses`, exactly the UTF-8 of the text they were encoded from."""
        if not self._byte_level:
            return super().decode_bytes(ids)
        numbers = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return b"".join(self.spellings[number] for number in numbers if number < len(self.spellings))

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._without_control(np.array(encoding.ids, np.int32)) for encoding in encodings]

    def _without_control(self, ids: np.ndarray) -> np.ndarray:
        """`ids` with each control piece that the model found in the text spelled in characters."""
        forged = np.flatnonzero(self.is_control[ids])
        if not len(forged):
            return ids
        parts = np.split(ids, np.sort(np.concatenate([forged, forged + 1])))
        spelled = [
            self._spelled(int(part[0])) if len(part) == 1 and self.is_control[part[0]] else part for part in parts
        ]
        return np.concatenate(spelled, dtype=np.int32)

    def _spelled(self, control: int) -> np.ndarray:
        ids: list[int] = []
        for number, character in enumerate(self.pieces[control]):
            inside = self._ids.get(self._prefix + character) if number else None
            if inside is not None:
                ids.append(inside)
            else:
                ids += [token.id for token in self._library.model.tokenize(character)]
        return np.array([number for number in ids if not self.is_control[number]], np.int32)

    def _text(self, ids: list[int]) -> str:
        if self._byte_level:
            return b"".join(self.spellings[number] for number in ids).decode("utf-8", "replace")
        return self._library.decode(ids, skip_special_tokens=False)

    def _protect(self, said: dict[str, Any]) -> None:
        """Decide which ids are control pieces, and make special of them in `said`, so that text doesn't match them."""
        unknown = said["model"].get("unk_token")
        roles = {piece for role, piece in self.special.items() if role != "unk"}
        control = set(roles)
        for token in said["added_tokens"]:
            token["special"] = token["special"] or token["content"] in roles or for_templates(token["content"])
            if token["special"]:
                control.add(token["content"])
        unknowns = {unknown, self.special.get("unk")} - roles  # text may hold what the vocabulary doesn't
        control -= unknowns
        self.is_control = np.array([piece in control for piece in self.pieces])

    def __reduce__(self) -> tuple[type["HuggingFaceTokenizer"], tuple[bytes, dict[str, str], dict[str, Any], str]]:
        return HuggingFaceTokenizer, (self.content, self.special, self._config, self._origin)


def _named(part: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    """The normalizer, pre-tokenizer or decoder of that type, also inside a sequence."""
    if part is None:
        return None
    if part.get("type") == name:
        return part
    inner = next((held for held in part.values() if isinstance(held, list)), []) if part["type"] == "Sequence" else []
    return next((found for each in inner if (found := _named(each, name)) is not None), None)


def _alphabet() -> dict[str, int]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _alphabet()
"""Character -> byte of GPT-2's byte-level alphabet (Radford et al. 2019): printable Latin-1 stands for itself."""


def _by_bytes(piece: str) -> bytes:
    if any(character not in _ALPHABET for character in piece):
        return piece.encode()
    return bytes(_ALPHABET[character] for character in piece)


def _by_characters(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    return piece.removeprefix("##").replace(SPACE, " ").encode()


def _losses(said: Mapping[str, Any], pieces: Sequence[str], byte_level: bool) -> Iterable[str]:
    normalizer, splitter = said.get("normalizer"), said.get("pre_tokenizer")
    if normalizer is not None:
        yield f"normalizes text ({', '.join(_types(normalizer))})"
    level = _named(splitter, "ByteLevel") or _named(splitter, "Metaspace") or {}
    if level.get("add_prefix_space") or level.get("prepend_scheme", "never") != "never":
        yield "puts a space in front"
    if not byte_level:
        yield f"is not byte-level ({said['model']['type']})"
    elif not set(_ALPHABET) <= set(pieces):
        yield "lacks some of the 256 bytes"
    if any(token["lstrip"] or token["rstrip"] for token in said["added_tokens"] if not token["special"]):
        yield "has added tokens that swallow the white space beside them"


def _types(part: Mapping[str, Any]) -> list[str]:
    if part["type"] != "Sequence":
        return [part["type"]]
    return [name for held in part.values() if isinstance(held, list) for each in held for name in _types(each)]
