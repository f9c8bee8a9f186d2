"""Where a build's tokenizer comes from: trained on a sample of its documents, or taken from elsewhere.

Trained, the same text gives the same bytes on every machine. Text is fed line by line, and lines longer than
SentencePiece's limit are cut at spaces first: by default it drops them without a word (488 of 600 documents, when fed
one document a line), as it drops a line with U+2585 in it, its sign for an unknown character. The model file embeds
its options, the number of threads among them, so those are set to fixed values after training; the vocabulary itself
doesn't depend on them. 30 MB of source code take 7 CPU seconds.

Taken, it is used as it is. If it changes text, a sample of the documents goes there and back, and the count of those
that come back changed is said and recorded.
"""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from data.errors import UserError
from data.recipe import TokenizerTraining
from data.tokenizer.sentencepiece import SentencePieceTokenizer, model_proto
from data.tokenizer.tokenizer import BOS, CONTROL_PIECES, EOS, PAD, SPACE, UNK, Tokenizer

_LINE_CHARACTERS = 4096
_LINE_LIMIT = 4 * _LINE_CHARACTERS  # bytes: SentencePiece's own limit, never reached
_RESERVED = "\u2585"  # SentencePiece passes over a line that holds it
_ROUND_TRIPS = 256
_BYTES_A_PIECE = 500  # of text: at 210, 62 % of the pieces are seen fewer than ten times; at 420, 11 %; at 850, 3 %
_TOO_SMALL = re.compile(r"required_chars\. (\d+) vs (\d+)")


@dataclass
class Fed:
    """What a tokenizer was trained on."""

    documents: int = 0
    bytes: int = 0
    lines: int = 0
    """Without the empty ones; a part of a cut line counts as one."""
    cut_lines: int = 0
    """Lines longer than 4,096 characters, learned from in parts."""


@dataclass(frozen=True)
class Obtained:
    """A build's tokenizer."""

    tokenizer: Tokenizer
    account: dict[str, Any]
    """What `dataset.json` says of where it comes from."""
    said: str
    """The same for a person, in one line."""


def obtain(wanted: TokenizerTraining, sample: Iterable[str], threads: int) -> Obtained:
    """The tokenizer that a recipe asks for; `sample` is text to train it on, or to see what it changes.

    Raises:
        UserError: as `train` and `Tokenizer.load`.
    """
    if wanted.reuse is None:
        fed = Fed()
        trained = train(sample, wanted.vocab_size, wanted.character_coverage, threads, fed)
        cut = f", {fed.cut_lines:,} long lines in parts" if fed.cut_lines else ""
        said = f"{trained.vocab_size:,} pieces, trained on {fed.documents:,} documents, {fed.bytes:,} bytes{cut}"
        if fed.bytes < _BYTES_A_PIECE * trained.vocab_size:
            fitting = max(512, 1 << max(0, (fed.bytes // _BYTES_A_PIECE).bit_length() - 1))
            said += f": few for so many pieces, many will be rare (tokenizer.vocab_size={fitting} would suit)"
        return Obtained(trained, {"trained_on": asdict(fed)}, said)
    taken = Tokenizer.load(wanted.reuse.expanduser(), wanted.special)
    account: dict[str, Any] = {}
    said = f"{taken.vocab_size:,} pieces, taken from {wanted.reuse}"
    if taken.losses:
        documents, changed = round_trips(taken, islice(sample, _ROUND_TRIPS))
        account["round_trip"] = {"documents": documents, "changed": changed}
        said += f"; it {', '.join(taken.losses)}: {changed} of {documents} sampled documents don't come back whole"
    return Obtained(taken, account, said)


def round_trips(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, int]:
    """How many texts there are, and how many of them encoding and decoding changes."""
    held = list(texts)
    back = zip(held, tokenizer.encode_many(held), strict=True)
    return len(held), sum(tokenizer.decode(ids) != text for text, ids in back)


def train(
    texts: Iterable[str],
    vocab_size: int,
    character_coverage: float = 0.9995,
    threads: int = 1,
    fed: Fed | None = None,
) -> SentencePieceTokenizer:
    """A tokenizer of at most `vocab_size` pieces (fewer if the text has no more to merge).

    Args:
        texts: whole documents; their order doesn't matter to the vocabulary.
        vocab_size: pieces, control and byte pieces included.
        character_coverage: share of the characters seen that get a piece of their own; the others become bytes.
        threads: changes nothing in the result.
        fed: is told what went in.

    Raises:
        UserError: no text, or a `vocab_size` too small for the control pieces and characters.
    """
    from sentencepiece import SentencePieceTrainer

    lines = _lines(texts, fed or Fed())
    first = next(lines, None)
    if first is None:
        raise UserError("there is no text to train a tokenizer on")
    written = io.BytesIO()
    try:
        SentencePieceTrainer.Train(
            sentence_iterator=_before(first, lines),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=_LINE_LIMIT,
            control_symbols=list(CONTROL_PIECES),
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=PAD,
            unk_piece=UNK,
            bos_piece=BOS,
            eos_piece=EOS,
            num_threads=threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        if small := _TOO_SMALL.search(str(error)):
            raise UserError(
                f"tokenizer.vocab_size is {vocab_size}, but the control pieces, the 256 byte pieces and this text's "
                f"characters take {small[2]} by themselves. Raise it, or lower tokenizer.character_coverage "
                f"(now {character_coverage}) so that rare characters become bytes."
            ) from None
        raise
    proto = model_proto(written.getvalue())
    proto.trainer_spec.num_threads = 1
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return SentencePieceTokenizer(proto.SerializeToString(deterministic=True), origin="the tokenizer just trained")


def _lines(texts: Iterable[str], fed: Fed) -> Iterator[str]:
    for text in texts:
        fed.documents += 1
        fed.bytes += len(text.encode())
        for line in text.replace(SPACE, "\n").replace(_RESERVED, "\n").split("\n"):
            fed.cut_lines += len(line) > _LINE_CHARACTERS
            for part in _parts(line):
                fed.lines += 1
                yield part


def _parts(line: str) -> Iterator[str]:
    start = 0
    while len(line) - start > _LINE_CHARACTERS:
        stop = line.rfind(" ", start + 1, start + _LINE_CHARACTERS)
        stop = stop if stop > 0 else start + _LINE_CHARACTERS
        yield line[start:stop]
        start = stop
    if start < len(line):
        yield line[start:]


def _before(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
