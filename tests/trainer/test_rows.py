"""Which objective a recipe means, its rows, and the pieces it takes from a tokenizer; each mistake is one error."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data import settings
from data.dataset import load_dataset
from data.errors import UserError
from data.order.pack import pack_dataset
from data.tokenizer.tokenizer import Tokenizer
from tests.conftest import CommandLine
from tests.corpora import texts
from tests.data.fault_server import Server
from tests.data.tokenizer.test_import import byte_level, wordpiece
from trainer.feed import read_batch
from trainer.inputs import Inputs, open_inputs
from trainer.objectives.choose import objective_of
from trainer.objectives.masked import Masked
from trainer.objectives.pieces import ordinary, refuse_missing_pieces, sentinels, word_starts
from trainer.objectives.rows import kind_of, text_figures, text_row
from trainer.objectives.span import Span
from trainer.recipe import Recipe
from trainer.session import _meter

SIZES = ("model.context=64", "model.hidden_size=32", "model.num_attention_heads=2", "train.batch_rows=12")


def recipe(*given: str) -> Recipe:
    return settings.load(Recipe, None, [*SIZES, *given])


def opened(luban: CommandLine, *given: str) -> tuple[Recipe, Inputs]:
    chosen = recipe(f"data.dataset={luban.home}/datasets/tiny", *given)
    return chosen, open_inputs(chosen)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer without control pieces, and BERT's kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {"gpt2": byte_level(texts(60_000)), "bert": wordpiece(texts(60_000), "bert")}
    for name, (library, config) in made.items():
        (root / name).mkdir()
        library.save(str(root / name / "tokenizer.json"))
        (root / name / "tokenizer_config.json").write_text(json.dumps(config))
    return root


@pytest.mark.parametrize(
    ("family", "kind", "row"),
    [
        ("llama", "causal", (65, 64)),
        ("gpt2", "causal", (65, 64)),
        ("gpt2 model.attention=prefix", "prefix", (65, 65)),
        ("bert", "masked", (62, 62)),
        ("t5", "span", (70, 70)),
        ("transformer", "span", (70, 70)),
    ],
)
def test_a_family_suggests_what_it_learns_of_text(luban: CommandLine, family, kind, row):
    chosen, inputs = opened(luban, *f"model.family={family}".split())
    assert kind_of(chosen, inputs.dataset) == kind == objective_of(chosen, inputs.dataset).name
    assert text_row(chosen, 64) == row
    rows = inputs.reader().rows(np.arange(4))
    assert rows.tokens.shape == (4, row[0])
    batch = objective_of(chosen, inputs.dataset).batch(rows, _cpu())
    assert batch.input_ids.shape == (4, 64)  # the context is used up


def _cpu():
    import torch

    return torch.device("cpu")


@pytest.mark.parametrize(
    "given", ["model.family=t5", "model.family=t5 objective.kind=prefix", "model.attention=prefix"]
)
def test_label_smoothing_reaches_the_objectives_of_text(luban: CommandLine, given):
    chosen, inputs = opened(luban, *given.split(), "objective.label_smoothing=0.1")
    objective, said = objective_of(chosen, inputs.dataset), {}
    batch = objective.batch(inputs.reader().rows(np.arange(2)), _cpu())
    objective.loss(lambda *_, **more: said.update(more), batch)  # pyright: ignore[reportArgumentType]
    assert said["smoothing"] == 0.1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["model.family=llama", "objective.kind=masked"], "family llama has no use for objective.kind masked"),
        (["model.family=bert", "objective.kind=causal"], "family bert has no use for objective.kind causal"),
        (["model.family=gpt2", "objective.kind=span"], "family gpt2 has no use for objective.kind span"),
        (
            ["model.family=gpt2", "objective.kind=prefix"],
            "reads? the beginning of a row in both directions, and model.attention is document: set it to prefix",
        ),
        (
            ["model.attention=prefix", "objective.kind=causal"],
            "of text only objective.kind prefix draws one: leave it at auto, not causal",
        ),
        (["model.attention=prefix", "data.packing=best_fit"], "model.attention prefix reads a row as one text"),
        (["model.family=t5", "model.attention=prefix"], "attention means something only with family llama or gpt2"),
        (["model.family=t5", "objective.mask_rate=0.2"], "mask_rate means something only with objective masked"),
        (["objective.noise_density=0.2"], "noise_density means something only with objective span.* is causal"),
        (
            ["model.family=bert", "objective.next_sentence=true", "data.lanes=4"],
            r"train.batch_rows \(12\) must be a multiple of twice the lanes \(8\): take 8 or 16",
        ),
        (
            ["model.family=bert", "objective.next_sentence=true", "model.type_vocab_size=1"],
            "needs two token types, and model.type_vocab_size is 1",
        ),
        (
            ["model.family=bert", "objective.next_sentence=true", "data.packing=best_fit"],
            "a row is of many: set data.packing to chop",
        ),
        (["model.family=bert", "data.packing=best_fit"], "no packing plans for a context of 61 .*data pack .*61"),
        (
            ["model.family=t5", "model.context=2048", "objective.mean_span=1", "objective.noise_density=0.4"],
            r"cuts \d+ spans out of a row of \d+ tokens, and the tokenizer has 100 sentinels: no <\|span_100\|>",
        ),
    ],
)
def test_what_does_not_go_together_is_one_error(luban: CommandLine, given, words):
    with pytest.raises(UserError, match=words):
        opened(luban, *given)


def test_a_tokenizer_without_a_needed_piece_is_refused_by_the_piece(folders: Path):
    theirs = Tokenizer.load(folders / "gpt2")
    with pytest.raises(UserError, match=r"no piece '<\|mask\|>'.*tokenizer.special.mask=PIECE"):
        refuse_missing_pieces(recipe("model.family=bert"), "masked", theirs)
    with pytest.raises(UserError, match=r"has 0 sentinels: no <\|span_0\|>"):
        refuse_missing_pieces(recipe("model.family=t5"), "span", theirs)
    refuse_missing_pieces(recipe(), "causal", theirs)
    bert = Tokenizer.load(folders / "bert", {"eos": "[SEP]"})
    refuse_missing_pieces(recipe("model.family=bert"), "masked", bert)


def test_sentinels_are_the_tokenizers_in_the_order_of_the_spans(luban: CommandLine, folders: Path, tmp_path: Path):
    ours = load_dataset(luban.home / "datasets" / "tiny").tokenizer()
    found = sentinels(recipe("model.family=t5"), 75, ours)
    assert found.tolist() == [ours.piece_id(f"<|span_{number}|>") for number in range(4)]
    import tokenizers

    made = tokenizers.Tokenizer.from_file(str(folders / "gpt2" / "tokenizer.json"))
    made.add_special_tokens([f"<extra_id_{number}>" for number in reversed(range(100))])  # T5: the first one last
    made.save(str(tmp_path / "tokenizer.json"))
    theirs = Tokenizer.load(tmp_path / "tokenizer.json", {"eos": "<|endoftext|>"})
    found = sentinels(recipe("model.family=t5"), 75, theirs)
    assert [theirs.pieces[number] for number in found] == [f"<extra_id_{number}>" for number in range(4)]
    assert (np.diff(found) == -1).all()


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of a text, as `word_starts` divides its tokens."""
    ids = tokenizer.encode(text)
    begins = word_starts(tokenizer)[ids].copy()
    begins[0] = True
    return [tokenizer.decode(part).strip(" ") for part in np.split(ids, np.flatnonzero(begins)[1:])]


def test_words_begin_at_a_space_or_where_wordpiece_says_so(luban: CommandLine, folders: Path):
    text = "configuration of distributed checkpoints"
    for tokenizer in (
        load_dataset(luban.home / "datasets" / "tiny").tokenizer(),
        Tokenizer.load(folders / "gpt2"),
        Tokenizer.load(folders / "bert", {"eos": "[SEP]"}),
    ):
        assert words(tokenizer, text) == text.split()
        assert len(tokenizer.encode(text)) > 4  # of several pieces each
        ids = ordinary(tokenizer)
        assert not tokenizer.is_control[ids].any()
        assert len(ids) + tokenizer.is_control.sum() <= tokenizer.vocab_size


def test_masking_takes_its_pieces_from_the_tokenizer(luban: CommandLine):
    chosen, inputs = opened(luban, "model.family=bert", "objective.whole_word=true", "data.lanes=2")
    made, tokenizer = objective_of(chosen, inputs.dataset), inputs.tokenizer
    assert isinstance(made, Masked)
    held = made.vocabulary
    assert [tokenizer.pieces[each] for each in (held.mask, held.cls, held.sep, held.pad)] == [
        "<|mask|>", "<|cls|>", "<|sep|>", "<|pad|>",
    ]  # fmt: skip
    assert (made.seed, made.rate, made.lanes, made.pair_weight) == (chosen.seed, 0.15, 2, 0.0)
    chosen, inputs = opened(
        luban, "model.family=bert", "objective.next_sentence=true", "objective.next_sentence_weight=0.5"
    )
    made = objective_of(chosen, inputs.dataset)
    assert isinstance(made, Masked)
    assert made.pair_weight == 0.5 * 9  # 15 % of 61 tokens
    chosen, inputs = opened(luban, "model.family=t5", "model.decoder_start_id=7")
    made = objective_of(chosen, inputs.dataset)
    assert isinstance(made, Span)
    assert (made.start, made.eos, made.pad) == (7, tokenizer.eos_id, tokenizer.pad_id)


@pytest.mark.parametrize("given", [["bert"], ["bert", "objective.next_sentence=true"], ["t5"]])
def test_an_epoch_has_the_labels_that_its_rows_ask_for(luban: CommandLine, given):
    chosen, inputs = opened(luban, f"model.family={given[0]}", *given[1:])
    made, count = objective_of(chosen, inputs.dataset), inputs.order.rows_per_epoch
    labels = 0
    for start in range(0, count, 64):
        positions = np.arange(start, min(start + 64, count))
        others, reader = made.partners(positions), inputs.reader()
        rows = reader.rows(positions)
        labels += made.batch(rows, _cpu(), None if others is None else reader.rows(others)).label_tokens
    assert inputs.epoch_tokens == labels
    fill = inputs.fills["data"]
    stride = inputs.row[1]
    held = [shard.tokens for shard in inputs.trains["data"].shards]
    assert fill.rows == count == sum(tokens // stride for tokens in held)
    assert fill.unread == sum(tokens % stride for tokens in held)
    assert fill.tokens == fill.slots == count * stride
    rows = inputs.reader().rows(np.arange(12))
    batch = made.batch(rows, _cpu(), rows)
    read = batch.input_ids.numel() + (0 if batch.decoder_input_ids is None else batch.decoder_input_ids.numel())
    assert inputs.read_tokens(12, 100) == read
    assert text_figures(chosen) == (read / 12, pytest.approx(batch.label_tokens / read))


@pytest.mark.parametrize("family", ["bert", "t5", "transformer"])
def test_packed_rows_hold_each_token_of_the_text_and_hide_it(luban: CommandLine, tmp_path: Path, family: str):
    folder = shutil.copytree(luban.home / "datasets" / "tiny", tmp_path / "packed")
    given = [f"data.dataset={folder}", f"model.family={family}", "data.packing=best_fit"]
    length, _ = text_row(recipe(*given), 64)
    pack_dataset(folder, [length - 1])
    chosen = recipe(*given)
    inputs = open_inputs(chosen)
    assert inputs.fills["data"].unread == 0
    made, count = objective_of(chosen, inputs.dataset), inputs.order.rows_per_epoch
    rows = inputs.reader().rows(np.arange(count))
    assert rows.packed
    assert rows.tokens.shape[1] == length
    assert set(rows.lengths.tolist()) > {length}  # some are shorter
    batch = made.batch(rows, _cpu())
    assert batch.padding is not None
    assert batch.rows == count
    if family == "bert":
        assert int(batch.padding.real.sum()) == int(rows.lengths.sum()) + 2 * count
    asked = (batch.labels != -100).sum(1).numpy()
    assert asked.sum() == batch.label_tokens
    assert asked[rows.lengths > 1].min() >= 1


def test_documents_cut_by_rows_without_overlap_are_counted(luban: CommandLine):
    _, inputs = opened(luban, "model.family=bert")
    dataset, cut = inputs.dataset, 0
    index, stride = dataset.index("train"), inputs.row[1]
    for number, shard in enumerate(index.shards):
        opened_shard = dataset.shard(index, number)
        starts = np.array([0, *opened_shard.starts_between(0, shard.tokens)])
        ends = np.append(starts[1:], shard.tokens)
        cut += int((starts // stride != (ends - 1) // stride).sum())
    if len(index.shards) <= 16:
        assert inputs.fills["data"].cut == cut
    assert cut


def test_bits_per_byte_is_shown_of_next_tokens_alone(luban: CommandLine):
    from tests.ranks import alone
    from trainer.clock import Clock

    for family, shown in (("llama", True), ("bert", False)):
        chosen, inputs = opened(luban, f"model.family={family}")
        meter = _meter(chosen, inputs, objective_of(chosen, inputs.dataset), (10_000, 10_000), alone(), False, Clock())
        line = meter.line(step=1, labels=100, loss=2.0, grad_norm=1.0, lr=0.1, applied=1, skipped=0)
        assert ("train/bits_per_byte" in line) == shown
        assert line["train/epoch"] == pytest.approx(100 / (inputs.epoch_tokens or 0))


@pytest.mark.parametrize("lane", [0, 1])
def test_streamed_pairs_are_the_local_ones_also_across_windows_and_within_a_node_s_own_lanes(
    luban: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: int
):
    monkeypatch.setenv("LUBAN_HOME", str(tmp_path))
    given = ["model.family=bert", "objective.next_sentence=true", "data.lanes=2", "data.window=1"]
    chosen, inputs = opened(luban, *given)
    made = objective_of(chosen, inputs.dataset)
    server = Server(luban.home / "datasets" / "tiny")
    streamed = open_inputs(recipe(f"data.dataset={server.url}", *given)).reader([lane])
    try:
        near = inputs.reader()
        for start in range(lane, 2 * inputs.order.rows_per_epoch, 12):
            positions = np.arange(start, start + 12, 2)
            one, two = (read_batch(reader, made, positions, _cpu())[1] for reader in (near, streamed))
            assert one.input_ids.equal(two.input_ids)
            assert one.targets is not None
            assert two.targets is not None
            assert one.targets.equal(two.targets)
    finally:
        streamed.close()
        server.close()
