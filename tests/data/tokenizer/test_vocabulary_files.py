"""Folders without a tokenizer.json: the ids are those of the tokenizer.json, or the model, they were cut out of."""

import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from data.errors import UserError
from data.tokenizer.sentencepiece import model_proto
from data.tokenizer.tokenizer import Tokenizer

from .test_import import byte_level, sentencepiece_model, wordpiece


def test_a_vocabulary_of_words_gives_the_ids_of_its_tokenizer_json(tmp_path, code_texts):
    made, _ = wordpiece(code_texts, "bert")
    numbers = made.get_vocab()
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(numbers, key=numbers.__getitem__)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "strip_accents": None}))
    found = Tokenizer.load(tmp_path)
    for text in [*code_texts[:5], "Ünïcode 中文"]:
        assert found.encode(text).tolist() == made.encode(text, add_special_tokens=False).ids
    assert numbers["[SEP]"] not in found.encode("a [SEP] b")
    for role, piece in {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]", "eos": "[SEP]"}.items():
        assert found.piece_id(f"<|{role}|>") == numbers[piece]
    found.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").fingerprint == found.fingerprint
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert Tokenizer.load(tmp_path).encode("IMPORT").tolist() != found.encode("IMPORT").tolist()


def test_a_byte_level_vocabulary_with_merges_gives_the_ids_of_its_tokenizer_json(tmp_path, code_texts):
    made, _ = byte_level(code_texts)
    made.no_truncation()
    made.no_padding()
    model = json.loads(made.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    numbers = made.get_vocab(with_added_tokens=True)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": numbers["<|im_end|>"]}))
    found = Tokenizer.load(tmp_path)
    assert found.eos_id == found.bos_id == numbers["<|endoftext|>"]
    assert found.is_control[found.piece_id("<|im_end|>")]
    for text in code_texts[:5]:
        theirs = tokenizers.Tokenizer(made.model)  # without the added tokens, which no text yields here
        theirs.pre_tokenizer = made.pre_tokenizer
        assert found.encode(text).tolist() == theirs.encode(text).ids
        assert found.decode(found.encode(text)) == text
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 5000}))
    with pytest.raises(UserError, match=r"numbers '<\|im_end\|>' 5000, and the next free number is"):
        Tokenizer.load(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    (tmp_path / "merges.txt").write_text("qqq www\n")
    with pytest.raises(UserError, match=r"merges\.txt are no byte-level BPE"):
        Tokenizer.load(tmp_path)


def t5_model(texts):
    return sentencepiece_model(texts, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


def test_the_sentinels_of_a_t5_follow_its_pieces_and_fall(tmp_path, code_texts):
    (tmp_path / "spiece.model").write_bytes(t5_model(code_texts))
    bare = Tokenizer.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    found = Tokenizer.load(tmp_path)
    assert found.vocab_size == bare.vocab_size + 100
    assert [found.piece_id(f"<|span_{number}|>") for number in (0, 1, 99)] == [
        found.vocab_size - 1, found.vocab_size - 2, bare.vocab_size,
    ]  # fmt: skip
    text = f"{code_texts[0]} <extra_id_3>"
    assert found.piece_id("<extra_id_3>") not in found.encode(text)
    assert np.array_equal(found.encode(code_texts[0]), bare.encode(code_texts[0]))
    assert (found.pad_id, found.eos_id) == (0, 1)
    found.save(tmp_path / "copy")
    copy = Tokenizer.load(tmp_path / "copy")
    assert copy.fingerprint == found.fingerprint
    assert copy.piece_id("<|span_7|>") == found.piece_id("<|span_7|>")
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 5}')
    assert Tokenizer.load(tmp_path).vocab_size == bare.vocab_size + 5


def test_a_marian_folder_numbers_its_pieces_as_its_vocabulary_does(tmp_path, code_texts):
    content = sentencepiece_model(code_texts, model_type="unigram")
    pieces = [piece.piece for piece in model_proto(content).pieces if piece.piece not in ("<s>", "</s>", "<unk>")]
    numbers = {piece: number for number, piece in enumerate(["</s>", "<unk>", *reversed(pieces), ">>de<<", "<pad>"])}
    (tmp_path / "source.spm").write_bytes(content)
    (tmp_path / "target.spm").write_bytes(content)
    (tmp_path / "vocab.json").write_text(json.dumps(numbers))
    found = Tokenizer.load(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    for text in code_texts[:5]:
        assert found.encode(text).tolist() == [numbers.get(piece, 1) for piece in theirs.encode(text, out_type=str)]
    assert (found.eos_id, found.pad_id) == (0, len(numbers) - 1)
    assert found.piece_id(">>de<<") not in found.encode(">>de<< x")
    (tmp_path / "target.spm").write_bytes(t5_model(code_texts))
    with pytest.raises(UserError, match=r"cuts its source by source\.spm and its target by another model, target\.spm"):
        Tokenizer.load(tmp_path)
    (tmp_path / "target.spm").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps({"</s>": 0, "<unk>": 1, "<pad>": 2}))
    with pytest.raises(UserError, match=r"has no number for the piece .* of source\.spm: it belongs to another model"):
        Tokenizer.load(tmp_path)


def test_files_that_are_no_vocabulary_are_one_clear_error(tmp_path):
    (tmp_path / "vocab.json").write_text("[]")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UserError, match=r"vocab\.json should hold one JSON object"):
        Tokenizer.load(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"no model")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match=r"spiece\.model is not a SentencePiece model"):
        Tokenizer.load(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"no tokenizer\.json, and no vocab\.txt or vocab\.json with merges\.txt"):
        Tokenizer.load(empty)
