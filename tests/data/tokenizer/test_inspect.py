import json

import numpy as np
import pytest
from typer.testing import CliRunner

from data.build.build import build
from data.errors import UserError
from data.recipe import TokenizerTraining
from data.tokenizer.inspect import inspect, report
from data.tokenizer.tokenizer import SPACE, roles
from luban import app


@pytest.fixture(scope="module")
def said(small_dataset):
    return inspect(small_dataset.tokenizer(), [small_dataset.folder])


def test_totals_of_a_dataset_are_its_own(said, small_dataset):
    (cost,) = said["sources"].values()
    assert (cost["documents"], cost["tokens"]) == (small_dataset.info["documents"], small_dataset.info["tokens"])
    assert cost["bytes_per_token"] == pytest.approx(small_dataset.bytes_per_token, abs=1e-4)
    assert 0 < cost["sampled_bytes"] <= cost["bytes"]
    assert 1 < cost["tokens_per_word"] < 10


def test_counts_are_those_of_the_shards(said, small_dataset):
    tokenizer, index = small_dataset.tokenizer(), small_dataset.index("train")
    counts = np.zeros(tokenizer.vocab_size, int)
    for _, tokens in small_dataset.documents("train"):
        for token in tokens.tolist():
            counts[token] += 1
    assert said["counted_tokens"] == said["all_tokens"] == index.tokens == counts.sum()
    for held in said["rarest"]:
        assert counts[held["id"]] == held["count"] > 0
        assert tokenizer.decode([held["id"]]) == held["text"]
    least = sorted(
        counts[number] for number, piece in enumerate(tokenizer.pieces) if counts[number] and "<" not in piece
    )
    assert [held["count"] for held in said["rarest"]] == least[: len(said["rarest"])]
    ordinary = [number for number, piece in enumerate(tokenizer.pieces) if not piece.startswith("<0x")]
    assert said["unused"] == sum(counts[number] == 0 and not tokenizer.is_control[number] for number in ordinary)


def test_what_a_vocabulary_lacks_is_seen(small_dataset, tmp_path):
    (tmp_path / "zh.txt").write_text("你好，世界" * 100 + "ab")
    said = inspect(small_dataset.tokenizer(), [tmp_path / "zh.txt"])
    assert said["coverage"]["characters"] == pytest.approx(2 / 502)
    assert said["coverage"]["partial_tokens"] > 0.99
    assert said["round_trip"] == {"documents": 1, "changed": 0}
    assert said["sources"]["zh.txt"]["bytes_per_token"] == pytest.approx(1502 / 1502, abs=0.02)
    (tmp_path / "bad.txt").write_bytes(b"ok \xff")
    with pytest.raises(UserError, match=r"bad\.txt is not UTF-8 text: byte 3 is 0xFF"):
        inspect(small_dataset.tokenizer(), [tmp_path / "bad.txt"])


def test_the_longest_pieces_and_the_control_pieces_are_named(said, small_dataset):
    tokenizer = small_dataset.tokenizer()
    longest = max(len(piece.replace(SPACE, " ")) for piece in tokenizer.pieces if not piece.startswith("<"))
    assert said["longest"][0]["bytes"] == longest
    assert [held["piece"] for held in said["tokenizer"]["control"][:3]] == ["<|pad|>", "<|unk|>", "<|bos|>"]
    assert said["tokenizer"]["control_pieces"] == 132
    page = report(said)
    for part in ("every text comes back byte for byte", "small/code", "<|pad|> 0", "unused: ", "coverage: "):
        assert part in page


def test_a_dataset_of_another_tokenizer_is_read_back_and_encoded_anew(small_recipe, small_dataset, tmp_path):
    settings = TokenizerTraining(vocab_size=600)
    other = build(small_recipe.model_copy(update={"tokenizer": settings}), tmp_path / "other")
    said = inspect(other.tokenizer(), [small_dataset.folder])
    (cost,) = said["sources"].values()
    assert cost["bytes"] == cost["sampled_bytes"]
    assert cost["bytes_per_token"] < small_dataset.bytes_per_token
    assert said["counted_tokens"] == cost["tokens"]
    assert said["round_trip"]["changed"] == 0


def test_the_command_prints_a_page_or_json(small_dataset, tmp_path):
    run = CliRunner().invoke(app, ["tokenizer", "inspect", str(small_dataset.folder), "--json"])
    assert run.exit_code == 0
    assert json.loads(run.output)["tokenizer"]["fingerprint"] == small_dataset.tokenizer().fingerprint
    model = small_dataset.folder / "tokenizer.json"
    run = CliRunner().invoke(app, ["tokenizer", "inspect", str(model), "--special", "pad=<|spare_1|>"])
    assert run.exit_code == 0 and run.output.startswith("huggingface ")
    with pytest.raises(UserError, match="write a role as ROLE=PIECE"):
        roles(["eos"])
