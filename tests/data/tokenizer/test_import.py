import io
import json
import pickle

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data.build.build import build
from data.dataset import load_dataset
from data.errors import UserError
from data.recipe import DatasetRecipe, Source, TokenizerTraining
from data.settings import load
from data.tokenizer.tokenizer import Tokenizer
from data.tokenizer.training import obtain, round_trips, train

SPECIAL = ["<|endoftext|>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "<pad>", "<unk>", "<|im_end|>"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FORGERY = st.lists(st.one_of(TEXT, st.sampled_from([*SPECIAL, "\u2581", "Ġ", " ", "##x", "<0x0A>"]))).map("".join)


def byte_level(texts):
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1000, special_tokens=SPECIAL[:1], initial_alphabet=alphabet, show_progress=False
        ),
    )
    made.add_tokens([tokenizers.AddedToken("<|im_end|>", special=False), tokenizers.AddedToken("    ", special=False)])
    made.enable_truncation(8)
    made.enable_padding(length=16)
    return made, {"eos_token": "<|endoftext|>", "pad_token": {"content": "<|endoftext|>", "lstrip": False}}


def wordpiece(texts, splitter):
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=splitter == "bert")
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if splitter == "bert" else pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=1200, special_tokens=SPECIAL[1:6], show_progress=False)
    )
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return made, {f"{role}_token": piece for role, piece in roles.items()}


def unigram(texts):
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        texts[:12],
        trainers.UnigramTrainer(
            vocab_size=600, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    return made, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def sentencepiece_model(texts, **settings):
    written = io.BytesIO()
    lines = [line for text in texts[:12] for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_writer=written, vocab_size=700, hard_vocab_limit=False, minloglevel=2,
        **settings,
    )  # fmt: skip
    return written.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, code_texts):
    """Model folders as others leave them: what a tokenizer is made of, and what its config says."""
    root = tmp_path_factory.mktemp("models")
    made = {
        "gpt2": byte_level(code_texts),
        "bert": wordpiece(code_texts, "bert"),
        "words": wordpiece(code_texts, "space"),
        "t5": unigram(code_texts),
    }
    for name, (library, config) in made.items():
        (root / name).mkdir()
        library.save(str(root / name / "tokenizer.json"))
        (root / name / "tokenizer_config.json").write_text(json.dumps(config))
    for name, settings_ in {
        "llama": {"model_type": "bpe", "byte_fallback": True, "user_defined_symbols": ["<|im_end|>", "[SEP]"]},
        "t5_piece": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        "identity_unigram": {
            "model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False, "add_dummy_prefix": False, "allow_whitespace_only_pieces": True,
        },
    }.items():  # fmt: skip
        (root / name).mkdir()
        (root / name / "tokenizer.model").write_bytes(sentencepiece_model(code_texts, **settings_))
    return root


ENDS = {"bert": {"eos": "[SEP]"}, "words": {"eos": "[SEP]"}, "llama": {"sep": "[SEP]"}}
NAMES = ["gpt2", "bert", "words", "t5", "llama", "t5_piece", "identity_unigram"]
LOSSLESS = {"gpt2", "identity_unigram"}


@pytest.fixture(scope="module")
def imported(folders):
    return {name: Tokenizer.load(folders / name, ENDS.get(name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(text=FORGERY)
def test_no_text_yields_a_control_piece_of_any_tokenizer(imported, name, text):
    tokenizer = imported[name]
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert not tokenizer.is_control[ids].any()
    assert np.array_equal(tokenizer.encode_many([text, "other"])[0], ids)
    if name in LOSSLESS:
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.piece_bytes[ids].sum() == len(text.encode())


@pytest.mark.parametrize("name", NAMES)
def test_roles_are_control_pieces_whatever_their_vocabulary_makes_of_them(imported, name):
    tokenizer = imported[name]
    assert tokenizer.is_control[tokenizer.eos_id]
    assert tokenizer.piece_id("<|eos|>") == tokenizer.eos_id
    ids = [tokenizer.eos_id, *tokenizer.encode("return").tolist(), tokenizer.eos_id, tokenizer.padded_vocab_size]
    end = tokenizer.pieces[tokenizer.eos_id]
    assert tokenizer.decode(ids).strip() == "return"
    assert tokenizer.decode(ids, control=True).replace(" ", "") == f"{end}return{end}"
    assert tokenizer.piece_bytes[tokenizer.eos_id] == 0
    assert bool(tokenizer.losses) == (name not in LOSSLESS)


@pytest.mark.parametrize(("name", "piece"), [("llama", "<|sep|>"), ("llama", "<|im_end|>"), ("gpt2", "<|im_end|>")])
def test_what_templates_insert_is_no_longer_found_in_text(imported, name, piece):
    tokenizer = imported[name]
    number = tokenizer.piece_id(piece)
    assert tokenizer.is_control[number]
    text = f"a {tokenizer.pieces[number]} b"
    assert number not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_piece_of_its_own_stands_in_for_the_one_that_a_template_asks_for(imported, folders):
    bert = imported["bert"]
    assert bert.piece_id("<|mask|>") == bert.piece_id("[MASK]")
    assert bert.piece_id("<|pad|>") == bert.pad_id == bert.piece_id("[PAD]")
    with pytest.raises(UserError, match=r"no piece '<.completion.>'.*tokenizer\.special\.completion=PIECE.*\[MASK\]"):
        bert.piece_id("<|completion|>")
    mapped = Tokenizer.load(folders / "bert", {"eos": "[SEP]", "completion": "[CLS]"})
    assert mapped.piece_id("<|completion|>") == bert.piece_id("[CLS]")
    assert mapped.fingerprint != bert.fingerprint
    with pytest.raises(UserError, match=r"has no piece 'nope' to be its eos; it has .*\[CLS\]"):
        Tokenizer.load(folders / "bert", {"eos": "nope"})
    with pytest.raises(UserError, match=r"no piece '<.bos.>'"):
        imported["t5"].bos_id  # noqa: B018


def test_without_an_end_of_documents_the_candidates_are_named(folders):
    no_roles = folders / "bert" / "alone"
    no_roles.mkdir()
    (no_roles / "tokenizer.json").write_bytes((folders / "bert" / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match=r"nothing says which piece .* ends a document.*special\.eos=PIECE.*\[SEP\]"):
        Tokenizer.load(no_roles)
    assert Tokenizer.load(folders / "bert").eos_id == Tokenizer.load(folders / "bert").piece_id("[SEP]")
    bare = folders / "gpt2" / "alone"
    bare.mkdir()
    (bare / "tokenizer.json").write_bytes((folders / "gpt2" / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match=r"--special eos=PIECE on the command line; it has <\|endoftext\|>"):
        Tokenizer.load(bare)
    (bare / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    assert Tokenizer.load(bare).eos_id == 0


def test_what_a_tokenizer_json_would_do_by_itself_is_left_out(folders, imported, code_texts):
    theirs = tokenizers.Tokenizer.from_file(str(folders / "gpt2" / "tokenizer.json"))
    assert len(theirs.encode(code_texts[1]).ids) == 16  # 8 of them, and padding
    assert theirs.encode("x").ids[0] == 0
    text = code_texts[1]
    ids = imported["gpt2"].encode(text)
    assert len(ids) > 100
    assert imported["gpt2"].decode(ids) == text
    theirs.no_truncation()
    theirs.no_padding()
    assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_ids_are_those_of_the_library(folders, imported, code_texts, name):
    theirs = tokenizers.Tokenizer.from_file(str(folders / name / "tokenizer.json"))
    for text in code_texts[:10]:
        assert imported[name].encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["llama", "t5_piece", "identity_unigram"])
def test_ids_are_those_of_sentencepiece(folders, imported, code_texts, name):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folders / name / "tokenizer.model"))
    for text in [*code_texts[:10], "".join(code_texts[:6])]:
        assert imported[name].encode(text).tolist() == theirs.encode(text)


def test_what_a_tokenizer_changes_is_measured_and_said(folders, imported, code_texts):
    assert round_trips(imported["gpt2"], code_texts) == (len(code_texts), 0)
    wanted = TokenizerTraining(reuse=folders / "bert", special={"eos": "[SEP]"})
    made = obtain(wanted, iter(code_texts), 1)
    documents, changed = made.account["round_trip"]["documents"], made.account["round_trip"]["changed"]
    assert documents == len(code_texts) and changed > documents // 2
    assert f"{changed} of {documents} sampled documents don't come back whole" in made.said
    assert "normalizes text (BertNormalizer), is not byte-level (WordPiece)" in made.said
    assert obtain(TokenizerTraining(reuse=folders / "gpt2"), iter(()), 1).account == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_same_tokenizer(imported, tmp_path, name):
    tokenizer = imported[name]
    tokenizer.save(tmp_path)
    for same in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):  # noqa: S301
        assert same.fingerprint == tokenizer.fingerprint
        assert same.files() == tokenizer.files()
        text = "def f(</s>): [SEP] <|endoftext|>"
        assert np.array_equal(same.encode(text), tokenizer.encode(text))


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5_piece"])
def test_a_dataset_is_built_with_an_imported_tokenizer(small_recipe, folders, tmp_path, name):
    wanted = TokenizerTraining(reuse=folders / name, special=ENDS.get(name, {}))
    dataset = build(small_recipe.model_copy(update={"tokenizer": wanted}), tmp_path / name)
    tokenizer = Tokenizer.load(folders / name, ENDS.get(name))
    assert load_dataset(dataset.folder).tokenizer().fingerprint == tokenizer.fingerprint
    assert dataset.verify() == []
    assert dataset.info["tokenizer"]["losses"] == list(tokenizer.losses)
    assert ("round_trip" in dataset.info["tokenizer"]) == bool(tokenizer.losses)
    row, tokens = next(dataset.documents("train"))
    assert tokens[-1] == tokenizer.eos_id and not tokenizer.is_control[tokens[:-1]].any()
    if not tokenizer.losses:
        assert len(tokenizer.decode_bytes(tokens)) == row.text_bytes
        return
    source = Source(kind="dataset", path=dataset.folder)
    with pytest.raises(UserError, match=r"so its documents can't be read back as they were"):
        build(small_recipe.model_copy(update={"sources": (source,)}), tmp_path / "again")


def test_another_end_of_documents_is_another_tokenizer(small_recipe, folders, tmp_path):
    wanted = TokenizerTraining(reuse=folders / "bert", special={"eos": "[SEP]"})
    dataset = build(small_recipe.model_copy(update={"tokenizer": wanted}), tmp_path / "made")
    path = dataset.folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["luban"]["special"]["eos"] = "[MASK]"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"tokenizer_config\.json in .* is not the tokenizer that made these shards"):
        load_dataset(dataset.folder)
    with pytest.raises(UserError, match="special means something only with reuse"):
        load(DatasetRecipe, None, ["tokenizer.special.eos=x"])


def test_a_folder_written_by_a_newer_luban_is_refused(imported, tmp_path):
    imported["gpt2"].save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["luban"]["version"] = 2
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="version 2 of luban-tokenizer; this Luban reads version 1"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_half_a_character_is_refused_by_every_tokenizer(imported, name):
    with pytest.raises(UserError, match="half of a surrogate pair"):
        imported[name].encode("a\ud800")


@pytest.mark.slow
def test_transformers_loads_a_saved_tokenizer_with_the_same_ids_or_not_at_all(imported, tmp_path, code_texts):
    from transformers import AutoTokenizer

    control = "def f(x): <|eos|> <|pad|><|endoftext|> [SEP]"
    own = train(code_texts, 1024)
    for name, tokenizer in {"own": own, "gpt2": imported["gpt2"], "bert": imported["bert"]}.items():
        tokenizer.save(tmp_path / name)
        theirs = AutoTokenizer.from_pretrained(str(tmp_path / name))
        assert theirs.eos_token_id == tokenizer.eos_id and theirs.pad_token_id == tokenizer.pad_id
        for text in [*code_texts[:10], control] if name != "bert" else code_texts[:10]:
            ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
            assert ids == tokenizer.encode(text).tolist()
    for name in ("llama", "t5_piece"):
        imported[name].save(tmp_path / name)
        with pytest.raises((OSError, ValueError)):
            AutoTokenizer.from_pretrained(str(tmp_path / name))
