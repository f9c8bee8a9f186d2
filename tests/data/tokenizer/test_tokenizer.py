import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.recipe import TokenizerTraining
from data.tokenizer.tokenizer import BOS, CONTROL_PIECES, EOS, PAD, SPACE, Tokenizer
from data.tokenizer.training import Fed, obtain, train


@pytest.fixture(scope="module")
def texts(code_texts, english_texts, chinese_texts):
    return [*code_texts, *english_texts, *chinese_texts]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train(texts, 8192)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_a_round_trip_changes_nothing(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.piece_bytes[ids].sum() == len(text.encode())


@pytest.mark.parametrize(
    "text", ["", SPACE, f"a{SPACE}b{SPACE}", f" {SPACE} ", "  \n\n \t x \r\n", "\x0c\0\ufeff", "\U0001f9d1"]
)
def test_hard_cases_survive_a_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_real_documents_survive_a_round_trip(tokenizer, texts):
    for text, ids in zip(texts, tokenizer.encode_many(texts), strict=True):
        assert tokenizer.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(TEXT, st.sampled_from([PAD, BOS, EOS, *CONTROL_PIECES, "<|unk|>", "<s>", "</s>"]))))
def test_text_never_yields_a_control_piece(tokenizer, parts):
    control = {tokenizer.piece_id(piece) for piece in (PAD, BOS, EOS, "<|unk|>", *CONTROL_PIECES)}
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert not control.intersection(ids.tolist())
    assert tokenizer.decode(ids) == text


def test_control_pieces_have_fixed_ids_and_show_only_when_asked(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3)
    assert [tokenizer.piece_id(piece) for piece in CONTROL_PIECES] == list(range(4, 4 + len(CONTROL_PIECES)))
    assert len(CONTROL_PIECES) == 12 + 100 + 16
    ids = [2, *tokenizer.encode("one two").tolist(), tokenizer.piece_id("<|span_7|>"), 3, tokenizer.vocab_size + 5]
    assert tokenizer.decode(ids) == "one two"
    assert tokenizer.decode(ids, control=True) == "<|bos|>one two<|span_7|><|eos|>"
    assert tokenizer.piece_bytes[[0, 2, 3, 4]].tolist() == [0, 0, 0, 0]
    with pytest.raises(UserError, match=r"no piece '<.nope.>'"):
        tokenizer.piece_id("<|nope|>")


def test_a_character_cut_in_two_does_not_break_decoding(tokenizer):
    ids = tokenizer.encode("\U0001f9d1")
    assert len(ids) == 4
    assert tokenizer.decode(ids[:2]) == "\ufffd"


def test_long_texts_are_encoded_as_if_they_were_not_cut(tokenizer, code_texts):
    whole = "".join(code_texts[:8])
    for text in (whole, whole.replace("\n", " ")[:50_000], "x" * 20_000, "\n" * 20_000):
        uncut = tokenizer._processor.encode(text)
        assert tokenizer.encode(text).tolist() == uncut


def test_encoding_many_is_encoding_each(tokenizer, texts):
    some = [*texts[:30], "", SPACE]
    for text, ids in zip(some, tokenizer.encode_many(some), strict=True):
        assert np.array_equal(ids, tokenizer.encode(text))
    assert tokenizer.encode_many([]) == []


def test_hugging_face_file_gives_the_same_ids(tokenizer, texts, tmp_path):
    import tokenizers

    tokenizer.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    hard = [
        "",
        " ",
        "  two  spaces ",
        "\n\n\t",
        "def f(x):\n    return x\n",
        "<|eos|> in text",
        "12345 678",
        "你好，世界\n",
        "é\u0301🙂",
    ]
    for text in [*hard, *texts]:
        ids = tokenizer.encode(text).tolist()
        assert theirs.encode(text, add_special_tokens=False).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == text
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    assert theirs.token_to_id("<|completion|>") == tokenizer.piece_id("<|completion|>")


def test_training_gives_the_same_file_whatever_the_order_and_threads(code_texts):
    first = train(code_texts, 1024, threads=1)
    again = train(code_texts[::-1], 1024, threads=3)
    assert first.content == again.content
    assert first.fingerprint == again.fingerprint
    assert train(code_texts, 1025).fingerprint != first.fingerprint


def test_one_very_long_line_is_learned_from(code_texts):
    line = " ".join(code_texts).replace("\n", " ")
    assert "▁return" in train([line], 2048).pieces
    assert train(["ab" * 40_000], 4096).encode("ab" * 8).size < 8


def test_the_vocabulary_is_smaller_when_the_text_has_no_more_to_merge():
    made = train(["hello world"], 4096)
    assert made.vocab_size < 4096
    assert made.padded_vocab_size % 128 == 0
    assert made.padded_vocab_size >= made.vocab_size
    assert made.decode(made.encode("Grüße")) == "Grüße"


def test_a_vocabulary_too_small_for_the_characters_says_how_many_it_needs(chinese_texts):
    with pytest.raises(UserError, match=r"vocab_size is 512, but .* take \d+ by themselves. Raise it, or lower"):
        train(chinese_texts, 512)
    with pytest.raises(UserError, match="no text to train"):
        train(["", "\n"], 1024)


def test_saved_and_pickled_tokenizers_are_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for same in (
        Tokenizer.load(tmp_path),
        Tokenizer.load(tmp_path / "tokenizer.model"),
        pickle.loads(pickle.dumps(tokenizer)),  # noqa: S301
    ):
        assert same.fingerprint == tokenizer.fingerprint
        assert np.array_equal(same.encode("the same ids"), tokenizer.encode("the same ids"))
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "BPE"


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*tokenizer\.model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("half", ["\ud83d", "text \udfff", "\ud83d\udd25"])
def test_half_a_character_is_refused_and_named(tokenizer, half):
    with pytest.raises(UserError, match=r"half of a surrogate pair \(U\+D[8F]..\) at character \d"):
        tokenizer.encode_many(["good", half])


def test_a_line_that_sentencepiece_would_pass_over_is_learned_from(code_texts):
    lines = "".join(f"zyzzyva \u2585 quixotic {number}\n" for number in range(400))
    assert {"▁quixotic", "zyzzyva"} <= set(train([*code_texts[:3], lines], 1024).pieces)


def test_training_counts_what_it_was_fed(code_texts):
    line = "word " * 200_000  # 1 MB
    fed = Fed()
    train([*code_texts[:3], line + "\nshort\n", "", "x" * 10_000], 1024, fed=fed)
    assert (fed.documents, fed.cut_lines) == (6, 2)
    assert fed.bytes == sum(len(text.encode()) for text in code_texts[:3]) + len(line) + 7 + 10_000
    short = sum(1 for text in code_texts[:3] for line in text.split("\n") if line)
    assert fed.lines == short + -(-len(line) // 4095) + 1 + 3  # a part ends before a space


def test_a_vocabulary_that_is_large_for_its_text_is_said_to_be(code_texts):
    few = "word salad of seven different words again " * 10
    said = obtain(TokenizerTraining(vocab_size=1024), [*code_texts[:1], few], 1).said
    assert "few for so many pieces, many will be rare (tokenizer.vocab_size=512 would suit)" in said
    assert "few" not in obtain(TokenizerTraining(vocab_size=512), ["a bc def " * 60_000], 1).said
