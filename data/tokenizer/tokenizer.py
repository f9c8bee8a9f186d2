"""The tokenizer: text -> ids -> text, one interface over two makes, with control pieces that text can't produce.

What Luban trains is SentencePiece BPE with byte fallback, identity normalization and untouched white space: lossless,
0 of 2,300 documents changed in a round trip, against 2,300 of 2,300 with SentencePiece's defaults. BPE rather than
unigram: its vocabulary is the same for any number of threads. What others trained is taken as it is: any SentencePiece
model (`sentencepiece.py`), any Hugging Face tokenizer.json (`huggingface.py`); `losses`
then says what it does to text.

Templates insert control pieces, by `piece_id`. A template asks for `<|mask|>`; where the vocabulary has another name
for it, `special` maps the role `mask` to that name, as `tokenizer_config.json` does in a Hugging Face folder. Training
lives in `training.py`, the tokenizer.json of a model of ours in `to_json.py`.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.tokenizer.vocabulary_files import (
    NUMBERS,
    SOURCE,
    WORDS,
    from_vocabulary,
    has_vocabulary,
    in_order_of_vocabulary,
    with_sentinels,
)

FORMAT = "luban-tokenizer"
VERSION = 1
MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
"""Which piece ends a document and so on, under the names that transformers reads; what Luban adds is in `luban`."""
_SPECIAL_FILE = "special_tokens_map.json"
LOSSY_FILE = "sentencepiece.model"
"""A SentencePiece model without an equal tokenizer.json: under the name `tokenizer.model` transformers would load it
without a word, and give other ids."""
_MODEL_FILES = (JSON_FILE, MODEL_FILE, LOSSY_FILE, "spiece.model", "sentencepiece.bpe.model", SOURCE)
_MAKES = {"sentencepiece": (MODEL_FILE, LOSSY_FILE), "huggingface": (JSON_FILE,)}

PAD, UNK, BOS, EOS = "<|pad|>", "<|unk|>", "<|bos|>", "<|eos|>"
SPANS = tuple(f"<|span_{number}|>" for number in range(100))
SPARES = tuple(f"<|spare_{number}|>" for number in range(16))
CONTROL_PIECES = (
    *("<|mask|>", "<|cls|>", "<|sep|>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|prompt|>", "<|completion|>"),
    *SPANS,
    *SPARES,
)
"""After pad, unk, bos and eos (ids 0 to 3), in the order of their ids."""
HUGGING_FACE_ROLES = ("eos", "bos", "pad", "unk", "mask", "cls", "sep")
SPACE = "\u2581"
_PADDING = 128
_SHOWN = 12


class Tokenizer(ABC):
    """Text -> ids by `encode`, ids -> text by `decode`; immutable, picklable, thread-safe."""

    make: str
    """ "sentencepiece" or "huggingface"."""
    content: bytes
    """The file it was read from, as it was."""
    pieces: tuple[str, ...]
    """Every piece in the order of the ids, as its vocabulary writes it; "" for an id that stands for nothing."""
    spellings: list[bytes]
    """The bytes that each id stands for, maybe a part of a character; none for a control piece. With `losses` nominal:
    what the piece spells, whatever the text was before it was normalized."""
    piece_bytes: np.ndarray
    """How many bytes that is (int64, [vocab_size])."""
    losses: tuple[str, ...]
    """What it does to text that decoding can't undo, a phrase each; none: every text comes back byte for byte."""
    special: dict[str, str]
    """Role -> piece, where the piece isn't called `<|role|>`."""
    is_control: np.ndarray
    """Whether no text yields the id, only a template (bool, [vocab_size])."""
    fingerprint: str
    """sha256 of vocabulary, rules and roles: two that agree give the same ids and ends, whatever wrote the file."""

    @staticmethod
    def load(path: Path | str, special: Mapping[str, str] | None = None) -> "Tokenizer":
        """The tokenizer in a file, or in a folder: a dataset, a trained tokenizer, a Hugging Face model.

        Args:
            special: role -> piece, such as eos -> "</s>"; comes before what the files say.

        Raises:
            UserError: there is none, it is damaged, or nothing says which piece ends a document.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        config = _config(folder)
        told = _roles(folder, config)
        name = path.name if not path.is_dir() else _model_file(folder, config)
        if name is None or name in (WORDS, NUMBERS):
            from data.tokenizer.huggingface import HuggingFaceTokenizer

            content, told, file = from_vocabulary(folder, config, told)
            return HuggingFaceTokenizer(content, {**told, **(special or {})}, config, str(file))
        file = folder / name
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(
                f"cannot read the tokenizer {file}: {error.strerror or error}. Name a dataset that is built, a model's "
                "folder, or a tokenizer's file."
            ) from None
        said = {**told, **(special or {})}
        if file.suffix == ".json":
            from data.tokenizer.huggingface import HuggingFaceTokenizer

            return HuggingFaceTokenizer(content, said, config, str(file))
        from data.tokenizer.sentencepiece import SentencePieceTokenizer

        try:
            complete = in_order_of_vocabulary if name == SOURCE else with_sentinels
            content = complete(content, folder, config)
        except UserError:
            raise
        except Exception as error:  # protobuf's own
            raise UserError(f"{file} is not a SentencePiece model: {error}") from None
        return SentencePieceTokenizer(content, said, str(file))

    def save(self, folder: Path) -> None:
        """Write its files into `folder`, `tokenizer_config.json` last."""
        from data.publish import published

        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            with published(folder / name) as temporary:
                temporary.write_bytes(content)

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """The files it is kept in, by name; the first is the one that `load` reads it from."""

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text` (int32), nothing added. No text yields a control piece."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text (int32): what `encode` gives, one call into the library for all.

        Raises:
            UserError: a text holds half of a surrogate pair, which no UTF-8 can say.
        """
        try:
            return self._encode(texts)
        except TypeError:
            for text in texts:
                _refuse_half_characters(text)
            raise

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_many` of whole characters."""

    def decode(self, ids: Iterable[int] | np.ndarray, control: bool = False) -> str:
        """The text of `ids`; bytes that aren't UTF-8 (a character cut in two) show as U+FFFD.

        Args:
            control: show control pieces by name instead of leaving them out.
        """
        # a model's vocabulary is padded, so it may utter an id beyond the pieces: it stands for nothing
        known = [number for number in _listed(ids) if number < len(self.pieces)]
        if not control:
            return self._text([number for number in known if not self._controls[number]])
        shown: list[str] = []
        run: list[int] = []
        for number in known:
            if self._controls[number]:
                shown += [self._text(run), self.pieces[number]]
                run = []
            else:
                run.append(number)
        return "".join([*shown, self._text(run)])

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The bytes that `ids` stand for: without `losses`, exactly the UTF-8 of the text they were encoded from."""
        return self.decode(ids).encode()

    @abstractmethod
    def _text(self, ids: list[int]) -> str:
        """The text of ids that are neither control pieces nor beyond the vocabulary."""

    def piece_id(self, piece: str) -> int:
        """The id of a piece, such as `<|mask|>`, or of the one that stands in for it here.

        Raises:
            UserError: the vocabulary has no such piece, nor `special` one for its role.
        """
        role = piece[2:-2] if for_templates(piece) else None
        found = self._ids.get(self.special.get(role, piece) if role else piece)
        if found is None:
            hint = (
                f". Choose one of its own for it: tokenizer.special.{role}=PIECE; {self._candidates()}" if role else ""
            )
            raise UserError(f"the tokenizer has no piece {piece!r}{hint}")
        return found

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return len(self.pieces)

    @property
    def padded_vocab_size(self) -> int:
        """The next multiple of 128: the rows of a model's embedding."""
        return -(-self.vocab_size // _PADDING) * _PADDING

    @property
    def pad_id(self) -> int:
        """Id of the piece that fills up rows. Raises UserError where there is none."""
        return self.piece_id(PAD)

    @property
    def bos_id(self) -> int:
        """Id of the piece that begins a text. Raises UserError where there is none."""
        return self.piece_id(BOS)

    @property
    def eos_id(self) -> int:
        """Id of the end of every document."""
        return self.piece_id(EOS)

    def _take(self, pieces: Iterable[str], roles: Mapping[str, str], origin: str) -> None:
        """Keep vocabulary and roles.

        Raises:
            UserError: a role's piece is not in the vocabulary, or no piece ends a document.
        """
        self.pieces = tuple(pieces)
        self._ids = {piece: number for number, piece in enumerate(self.pieces) if piece}
        given = {**_sentinels(self._ids), **roles}
        if EOS not in self._ids and "eos" not in given and "sep" in given:
            given["eos"] = given["sep"]  # BERT's; transformers too ends what a BERT decodes with it
        self.special = {role: piece for role, piece in sorted(given.items()) if piece != f"<|{role}|>"}
        for role, piece in self.special.items():
            if piece not in self._ids:
                raise UserError(f"{origin} has no piece {piece!r} to be its {role}; {self._candidates()}")
        if EOS not in self._ids and "eos" not in self.special:
            raise UserError(
                f"nothing says which piece of {origin} ends a document. Choose one: tokenizer.special.eos=PIECE in a "
                f"recipe, --special eos=PIECE on the command line; "
                f"{self._candidates()}"
            )

    def _candidates(self) -> str:
        names = [piece for piece in self._ids if _looks_special(piece)]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"it has {', '.join(names[:_SHOWN])}{more}" if names else "it has none that looks like one"

    def _seal(self, rules: Any) -> None:
        """Fix the fingerprint; `rules` is all that decides the ids beside the pieces, as JSON."""
        said = json.dumps([rules, self.special], ensure_ascii=True, separators=(",", ":"), sort_keys=True)
        self.fingerprint = hashlib.sha256(said.encode()).hexdigest()
        self._controls: list[bool] = self.is_control.tolist()
        self.piece_bytes = np.array([len(held) for held in self.spellings], np.int64)

    def _configuration(self, theirs: Mapping[str, Any]) -> bytes:
        """`tokenizer_config.json`: what transformers needs beside tokenizer.json, and what `load` needs."""
        said: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        said |= {key: held for key, held in theirs.items() if key != "luban"}
        for role in HUGGING_FACE_ROLES:
            piece = self.special.get(role, f"<|{role}|>")
            if piece in self._ids:
                said[f"{role}_token"] = piece
        said["luban"] = {"format": FORMAT, "version": VERSION, "make": self.make, "special": self.special}
        return (json.dumps(said, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def roles(said: Iterable[str]) -> dict[str, str]:
    """`["eos=[SEP]", ...]` as role -> piece."""
    found = {}
    for item in said:
        role, equals, piece = item.partition("=")
        if not (role and equals and piece):
            raise UserError(f"{item}: write a role as ROLE=PIECE, such as eos=[SEP]")
        found[role] = piece
    return found


def _sentinels(pieces: Mapping[str, int]) -> dict[str, str]:
    """T5's `<extra_id_N>` as what a template asks for as `<|span_N|>`."""
    found = ((piece, re.fullmatch(r"<extra_id_(\d+)>", piece)) for piece in pieces if piece.startswith("<extra_id_"))
    return {f"span_{match[1]}": piece for piece, match in found if match}


def for_templates(piece: str) -> bool:
    """Whether a piece is called `<|role|>`, as templates ask for it, whatever its vocabulary makes of it."""
    return len(piece) > 4 and piece.startswith("<|") and piece.endswith("|>")


def _listed(ids: Iterable[int] | np.ndarray) -> Iterable[int]:
    return ids.tolist() if isinstance(ids, np.ndarray) else ids


def _looks_special(piece: str) -> bool:
    pairs = (("<", ">"), ("[", "]"))
    byte = len(piece) == 6 and piece.startswith("<0x")
    return (
        len(piece) > 2 and not byte and any(piece.startswith(first) and piece.endswith(last) for first, last in pairs)
    )


def _refuse_half_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"a text holds half of a surrogate pair (U+{ord(text[error.start]):04X}) at character {error.start}, which "
            "is no text: read the file it came from with its right encoding"
        ) from None


def _config(folder: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` says, or nothing."""
    path = folder / CONFIG_FILE
    held = _read(path)
    ours = held.get("luban", {})
    if ours and (ours.get("format") != FORMAT or ours.get("version") != VERSION or ours.get("make") not in _MAKES):
        raise UserError(
            f"{path} has version {ours.get('version')} of {ours.get('format')}; this Luban reads version {VERSION} of "
            f"{FORMAT}. Use the Luban that wrote it."
        )
    return held


def _model_file(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The file of a folder's tokenizer; None where a tokenizer.json can be made of its vocabulary."""
    names = _MAKES[config["luban"]["make"]] if "luban" in config else _MODEL_FILES
    found = next((name for name in names if (folder / name).is_file()), None)
    if found is None and not has_vocabulary(folder):
        raise UserError(
            f"cannot read the tokenizer {folder / MODEL_FILE}: there is none, no {JSON_FILE}, and no vocab.txt or "
            "vocab.json with merges.txt either. transformers' save_pretrained writes a tokenizer.json."
        )
    return found


def _roles(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Role -> piece as the folder's files say it; Luban's own word comes last, and wins."""
    found: dict[str, str] = {}
    for held in (_read(folder / _SPECIAL_FILE), config):
        for role in HUGGING_FACE_ROLES:
            piece = held.get(f"{role}_token")
            piece = piece.get("content") if isinstance(piece, dict) else piece
            if isinstance(piece, str):
                found[role] = piece
    return {**found, **config.get("luban", {}).get("special", {})}


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(held, dict):
        raise UserError(f"{path} should hold one JSON object")
    return held
