"""Training the tokenizer: documents -> a SentencePiece model whose bytes are the same on every machine.

Text is fed line by line, and lines longer than SentencePiece's limit are cut at spaces first: by default it drops
them without a word (488 of 600 documents, when fed one document a line). The model file embeds its options, the
number of threads among them, so those are set to fixed values after training; the vocabulary itself doesn't
depend on them. 30 MB of source code take 7 CPU seconds.
"""

import io
import re
from collections.abc import Iterable, Iterator

from data.errors import UserError
from data.tokenizer import BOS, CONTROL_PIECES, EOS, PAD, SPACE, UNK, Tokenizer, model_proto

_LINE_CHARACTERS = 4096
_LINE_LIMIT = 4 * _LINE_CHARACTERS  # bytes: SentencePiece's own limit, never reached
_TOO_SMALL = re.compile(r"required_chars\. (\d+) vs (\d+)")


def train(texts: Iterable[str], vocab_size: int, character_coverage: float = 0.9995, threads: int = 1) -> Tokenizer:
    """A tokenizer of at most `vocab_size` pieces (fewer if the text has no more to merge).

    Args:
        texts: whole documents; their order doesn't matter to the vocabulary.
        vocab_size: pieces, control and byte pieces included.
        character_coverage: share of the characters seen that get a piece of their own; the others become bytes.
        threads: changes nothing in the result.

    Raises:
        UserError: no text, or a `vocab_size` too small for the control pieces and characters.
    """
    from sentencepiece import SentencePieceTrainer

    lines = _lines(texts)
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
    return Tokenizer(proto.SerializeToString(deterministic=True), "the tokenizer just trained")


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.replace(SPACE, "\n").split("\n"):
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
