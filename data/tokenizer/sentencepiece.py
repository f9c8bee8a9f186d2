"""SentencePiece models: Luban's own, which lose nothing, and any other, whose losses are named.

No learned piece of a lossless model holds a newline, so a long text is cut at newlines and encoded in parts with the
same result: 6 MB/s per core, and one string of many megabytes doesn't slow to a crawl. The one character that
SentencePiece itself would lose, a literal U+2581 (its sign for a space), is written as its three bytes, so no
document has to be dropped for it. A model that changes text is asked for whole texts and answers as it always did.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data.errors import UserError
from data.tokenizer.tokenizer import CONFIG_FILE, JSON_FILE, LOSSY_FILE, MODEL_FILE, SPACE, Tokenizer, for_templates

_PART_CHARACTERS = 4096


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer in a `tokenizer.model`."""

    make = "sentencepiece"

    def __init__(self, content: bytes, special: Mapping[str, str] | None = None, origin: str = "the tokenizer"):
        """Take a serialized model; `special` says role -> piece, `origin` names it in messages.

        Raises:
            UserError: not a SentencePiece model, or none of its pieces ends a document.
        """
        from sentencepiece import SentencePieceProcessor

        try:
            proto = model_proto(content)
            if not proto.pieces:
                raise ValueError("it has no pieces")
            self._take((piece.piece for piece in proto.pieces), {**_own_roles(proto), **(special or {})}, origin)
            _protect(proto, set(self.special.values()))
            self._processor = SentencePieceProcessor(model_proto=proto.SerializeToString())
        except UserError:
            raise
        except Exception as error:  # protobuf and sentencepiece each raise several types of their own
            raise UserError(f"{origin} is not a SentencePiece model: {error}") from None
        self.content, self._origin = content, origin
        self.losses = tuple(_losses(proto))
        self.is_control = np.array([piece.type == piece.CONTROL for piece in proto.pieces])
        unknown = np.array([piece.type == piece.UNKNOWN for piece in proto.pieces])
        if proto.trainer_spec.byte_fallback:
            self.is_control |= unknown
        self.spellings = [_stands_for(piece.piece, piece.type == piece.BYTE) for piece in proto.pieces]
        for number in np.flatnonzero(self.is_control | unknown):
            self.spellings[number] = b""
        self._exact = _parts_are_safe(proto)
        if not self.losses:
            self._space_ids = [self._ids[f"<0x{byte:02X}>"] for byte in SPACE.encode()]
        self._seal(_rules(proto))

    def files(self) -> dict[str, bytes]:
        """`tokenizer.model` and its equal, `tokenizer.json`; of any other model than a lossless BPE, itself alone."""
        from data.tokenizer.to_json import to_json

        if self.losses or not self._exact:
            return {LOSSY_FILE: self.content, CONFIG_FILE: self._configuration({})}
        equal = to_json(self.content).encode()
        return {MODEL_FILE: self.content, JSON_FILE: equal, CONFIG_FILE: self._configuration({})}

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The bytes that `ids` stand for: without `losses`, exactly the UTF-8 of the text they were encoded from."""
        if self.losses:
            return super().decode_bytes(ids)
        numbers = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return b"".join(self.spellings[number] for number in numbers if number < len(self.spellings))

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        empty = np.zeros(0, np.int32)
        if self.losses:
            made = self._processor.encode(list(texts), num_threads=1, return_type="numpy") if texts else []
            return [np.concatenate([empty, ids]) for ids in made]
        parts: list[str] = []
        places: list[list[int]] = []
        for text in texts:
            place = []
            for number, clean in enumerate(text.split(SPACE)):
                if number:
                    place.append(-1)
                for part in _cut(clean) if self._exact else _whole(clean):
                    place.append(len(parts))
                    parts.append(part)
            places.append(place)
        encoded = self._processor.encode(parts, num_threads=1, return_type="numpy") if parts else []
        space = np.array(self._space_ids, np.int32)
        return [np.concatenate([empty, *(space if at < 0 else encoded[at] for at in place)]) for place in places]

    def _text(self, ids: list[int]) -> str:
        if self.losses:
            return self._processor.decode(ids)
        return b"".join(self.spellings[number] for number in ids).decode("utf-8", "replace")

    def __reduce__(self) -> tuple[type["SentencePieceTokenizer"], tuple[bytes, dict[str, str], str]]:
        return SentencePieceTokenizer, (self.content, self.special, self._origin)


def model_proto(model: bytes) -> Any:
    """A serialized SentencePiece model as its protocol buffer, with `.pieces`, `.trainer_spec`, `.normalizer_spec`."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(model)
    return proto


def _own_roles(proto: Any) -> dict[str, str]:
    """Role -> piece as the model itself says it; its trainer spec holds names of pieces that were switched off, too."""
    spec = proto.trainer_spec
    numbers = {"eos": spec.eos_id, "bos": spec.bos_id, "pad": spec.pad_id, "unk": spec.unk_id}
    held = {role: proto.pieces[number] for role, number in numbers.items() if 0 <= number < len(proto.pieces)}
    return {role: piece.piece for role, piece in held.items() if piece.type in (piece.CONTROL, piece.UNKNOWN)}


def _protect(proto: Any, roles: set[str]) -> None:
    """Make control pieces of those that templates insert: a user-defined symbol is found in any text otherwise."""
    for piece in proto.pieces:
        named = piece.piece in roles or for_templates(piece.piece)
        if named and piece.type not in (piece.CONTROL, piece.UNKNOWN):
            piece.type = piece.CONTROL


def _losses(proto: Any) -> Iterable[str]:
    rules, trained = proto.normalizer_spec, proto.trainer_spec
    if rules.precompiled_charsmap:
        yield f"normalizes characters ({rules.name or 'by its own map'})"
    if rules.remove_extra_whitespaces:
        yield "removes spaces at both ends and doubled ones"
    if rules.add_dummy_prefix:
        yield "puts a space in front"
    if not rules.escape_whitespaces:
        yield "leaves spaces unescaped"
    if not trained.byte_fallback or sum(piece.type == piece.BYTE for piece in proto.pieces) < 256:
        yield "writes characters it doesn't know as one unknown piece"


def _parts_are_safe(proto: Any) -> bool:
    """Whether a text cut after its newlines has the ids of the whole."""
    whole = any(piece.type == piece.USER_DEFINED or "\n" in piece.piece for piece in proto.pieces)
    return proto.trainer_spec.model_type == proto.trainer_spec.BPE and not whole


def _cut(text: str) -> Iterable[str]:
    """`text` in parts of about 4,096 characters, cut after newlines only."""
    start = 0
    while len(text) - start > _PART_CHARACTERS:
        stop = text.rfind("\n", start, start + _PART_CHARACTERS) + 1
        stop = stop or text.find("\n", start + _PART_CHARACTERS) + 1 or len(text)
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def _whole(text: str) -> Iterable[str]:
    if text:
        yield text


def _stands_for(piece: str, is_byte: bool) -> bytes:
    return bytes([int(piece[3:5], 16)]) if is_byte else piece.replace(SPACE, " ").encode()


def _rules(proto: Any) -> Any:
    """What decides the ids: not the options that the trainer left in the file."""
    normalizer = proto.normalizer_spec
    return [
        [[piece.piece, int(piece.type), round(piece.score, 4)] for piece in proto.pieces],
        proto.trainer_spec.model_type,
        hashlib.sha256(normalizer.precompiled_charsmap).hexdigest(),
        [normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces],
    ]
