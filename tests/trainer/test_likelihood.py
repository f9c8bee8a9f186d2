"""Sliding windows, minimal pairs and groups, against each token's loss read by itself."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from data.build.build import build
from data.corpus.source import Source
from data.errors import UserError
from data.recipe import DatasetRecipe, Dedup, Split, TokenizerTraining
from data.tasks.task import Task
from tests.conftest import MODEL, CommandLine
from tests.trainer.families import built, scatter
from tests.trainer.untrained import untrained
from trainer.groups import Text, chance, gap, read_texts, values_of
from trainer.likelihood import Passage, sums_of
from trainer.minimal_pairs import Pair, judged, read_pairs
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.objectives.examples import read
from trainer.scores import Loaded
from trainer.sliding import passages_of, sliding

CONTEXT = 64


def drawn(seed: int, *wide: str) -> Callable[[nn.Module], None]:
    """Draws a model's weights, those called `wide` 40 times as far apart."""

    def draw(model: nn.Module) -> None:
        initialize(model, seed)
        with torch.no_grad():
            for name in wide:
                model.get_parameter(name).mul_(40)

    return draw


@pytest.fixture(scope="module")
def loaded(luban: CommandLine) -> Loaded:
    """A decoder of random weights, far from uniform."""
    return untrained(luban.home / "datasets" / "tiny", MODEL, drawn(3, "model.embed_tokens.weight"))


def alone(loaded: Loaded, before: np.ndarray, token: int) -> float:
    """The loss of one token after those before it."""
    with torch.no_grad():
        logits = loaded.model(torch.from_numpy(before.astype(np.int64))[None], None, None)[0, -1]
    return -float(torch.log_softmax(logits.float(), -1)[token])


@given(st.integers(2, 400), st.integers(1, 64), st.data())
def test_windows_ask_each_token_once_with_context_minus_stride_before_it(length, context, data):
    stride = data.draw(st.integers(1, context))
    document, asked = np.arange(length), []
    for passage in passages_of(document, context, stride):
        assert len(passage.tokens) <= context + 1
        for place in range(passage.asked, len(passage.tokens)):
            assert place > context - stride or passage.tokens[0] == 0
            asked.append(int(passage.tokens[place]))
    assert asked == list(range(1, length))


def test_a_stride_of_one_gives_each_token_all_the_context_there_is(loaded):
    text = loaded.inputs.tokenizer.encode("A list of names, and of what they stand for, is kept. " * 8).astype(np.int64)
    document = np.concatenate([[loaded.inputs.tokenizer.eos_id], text])[: CONTEXT + 20]
    expected = sum(
        alone(loaded, document[max(0, at - CONTEXT) : at], int(document[at])) for at in range(1, len(document))
    )
    sums = sums_of(loaded, list(passages_of(document, CONTEXT, 1))).sum(0)
    assert sums[1] == len(document) - 1
    assert sums[0] == pytest.approx(expected, rel=1e-5)


def test_a_model_with_prefix_attention_reads_what_is_not_asked_in_both_directions(loaded):
    model = loaded.recipe.model.model_copy(update={"attention": "prefix"})
    loaded = replace(loaded, model=Decoder(model, loaded.inputs.vocab_size).eval())
    scatter(loaded.model)
    subject = replace(loaded, recipe=loaded.recipe.model_copy(update={"model": model}))
    tokens = torch.randint(5, 400, (30,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = loaded.model(tokens[None, :-1], prefixes=torch.tensor([12]))[0, 11:]
    expected = torch.nn.functional.cross_entropy(logits.float(), tokens[12:], reduction="sum")
    passages = [Passage(tokens.numpy(), 12), Passage(tokens[:9].numpy())]
    [loss, labels, *_], other = sums_of(subject, passages)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert labels == 18
    assert sums_of(loaded, passages)[0, 0] != pytest.approx(loss, rel=1e-3)
    assert other == pytest.approx(sums_of(loaded, passages)[1], rel=1e-5)  # after a prefix of one token


def test_every_token_of_the_validation_text_counts_once_at_any_stride(loaded):
    tokens = sum(len(tokens) for _, tokens in loaded.inputs.dataset.documents("valid"))
    wide, narrow = sliding(loaded, CONTEXT), sliding(loaded, 40)
    assert wide["tokens"] == narrow["tokens"] == tokens
    assert narrow["windows"] > wide["windows"]
    assert narrow["perplexity"] == pytest.approx(math.exp(narrow["loss"]))
    assert sliding(loaded, 40, rows=3)["windows"] == 3


def test_what_no_window_can_do_is_refused(loaded):
    with pytest.raises(UserError, match="take one from 1 to the model's context, 64"):
        sliding(loaded, 65)
    bert = loaded.recipe.model_copy(update={"model": loaded.recipe.model.model_copy(update={"family": "bert"})})
    encoder = Loaded(built("bert"), bert, loaded.inputs, loaded.objective, 0, loaded.device)
    with pytest.raises(UserError, match="of family bert"):
        sliding(encoder, 8)


def test_neighbours_and_padding_change_nothing(loaded):
    eos, encode = loaded.inputs.tokenizer.eos_id, loaded.inputs.tokenizer.encode
    passages = [Passage(np.array([eos, *encode(text)])) for text in ("One.", "Two and many more words than that.", "3")]
    together = sums_of(loaded, passages)
    for passage, sums in zip(passages, together, strict=True):
        assert sums_of(loaded, [passage])[0] == pytest.approx(sums, rel=1e-5)
    assert together[:, 3].tolist() == [len("One."), len("Two and many more words than that."), 1]


def test_the_good_sentence_must_be_strictly_likelier(loaded):
    texts = ("The cats sleep.", "The cats sleeps.")
    losses = []
    for text in texts:
        tokens = loaded.inputs.tokenizer.encode(text)
        read = np.array([loaded.inputs.tokenizer.eos_id, *tokens])
        losses.append(sum(alone(loaded, read[:at], int(read[at])) for at in range(1, len(read))))
    first = losses[0] < losses[1]
    pairs = [
        Pair(texts[0], texts[1], "agreement", "a"),
        Pair(texts[1], texts[0], "agreement", "b"),
        Pair("Same.", "Same.", "x", "c"),
    ]
    assert judged(loaded, pairs).tolist() == [first, not first, False]


def test_pairs_are_read_as_blimp_writes_them_and_bad_lines_are_named(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"sentence_good": "Who sleeps?", "sentence_bad": "Who sleep?", "UID": "wh"}\n\n')
    (tmp_path / "a.jsonl").write_text(
        json.dumps(
            {"sentence_good": "x", "sentence_bad": "y", "UID": "u", "linguistics_term": "binding", "pair_id": "0"}
        )
    )
    (tmp_path / "c.jsonl").write_text('{"sentence_good": "x", "sentence_bad": "y"}')
    assert [pair.phenomenon for pair in read_pairs(str(tmp_path))] == ["binding", "wh", "c"]
    (tmp_path / "c.jsonl").write_text('{"sentence_good": "x"}')
    with pytest.raises(UserError, match=r"line 1 of .*c.jsonl .* needs sentence_good and sentence_bad"):
        read_pairs(str(tmp_path))
    with pytest.raises(UserError, match="cannot read the pairs in"):
        read_pairs(str(tmp_path / "none.jsonl"))


def test_a_decoder_gives_each_text_of_a_group_its_mean_loss(loaded, tmp_path):
    rows = [{"text": "He is a nurse.", "group": "m"}, {"text": "She is a nurse.", "group": "f", "template": 3}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names, values = values_of(loaded, read_texts(str(tmp_path / "t.jsonl")))
    tokens = np.array([loaded.inputs.tokenizer.eos_id, *loaded.inputs.tokenizer.encode("He is a nurse.")])
    mean = np.mean([alone(loaded, tokens[:at], int(tokens[at])) for at in range(1, len(tokens))])
    assert names == ("loss, nats/token",)
    assert values[0, 0] == pytest.approx(mean, rel=1e-5)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """An encoder of random weights with two classes."""
    folder = tmp_path_factory.mktemp("classes")
    lines = [f"Number {n} is a {('bad', 'good')[n % 2]} one.\t{n % 2}" for n in range(40)]
    (folder / "rows.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    source = Source(kind="tsv", path=str(folder / "rows.tsv"), columns={"text": "text", "label": "label"})
    wanted = DatasetRecipe(
        name="rows", kind="examples", sources=(source,), task=Task(kind="classification", max_tokens=40),
        tokenizer=TokenizerTraining(vocab_size=600), dedup=Dedup(near=False), split=Split(valid=0.2), workers=1,
    )  # fmt: skip
    place = build(wanted, folder / "dataset").folder
    given = ["model.family=bert", "model.context=48", "model.hidden_size=32", "model.num_attention_heads=2"]
    wide = drawn(5, "bert.embeddings.word_embeddings.weight", "classifier.weight")
    return untrained(place, [*given, "model.num_hidden_layers=2"], wide)


def test_a_classifier_gives_each_text_the_class_it_gives_the_dataset_s_own_row(classifier):
    reader, count = classifier.inputs.fixed["data"]
    texts, logits = [], []
    for position in range(count):
        rows = reader.rows(np.array([position]))
        with torch.no_grad():
            logits.append(read(classifier.model, classifier.objective.batch(rows, classifier.device))[0])
        held = rows.tokens[0, 1 : rows.lengths[0] - 1]
        texts.append(Text((classifier.inputs.tokenizer.decode(held),), "a", "", "here"))
    margins = torch.stack(logits).diff(dim=1)[:, 0]
    bias = classifier.model.get_parameter("classifier.bias")
    with torch.no_grad():
        bias[0] += margins.median()  # so that it says both classes
    names, values = values_of(classifier, texts)
    assert names == ("0", "1")
    assert values[:, 1].tolist() == (margins > margins.median()).double().tolist()
    assert 0 < values[:, 1].sum() < count
    with pytest.raises(UserError, match="there: the text is too long"):
        values_of(classifier, [*texts, Text(("long " * 60,), "a", "", "there")])
    with pytest.raises(UserError, match="trained on text, and"):
        values_of(classifier, [Text(("one", "two"), "a", "", "there")])


def test_groups_that_differ_are_told_from_groups_that_do_not():
    generator = np.random.default_rng(1)
    groups, templates = np.tile([0, 1], 40), np.repeat(np.arange(40), 2)
    level = np.repeat(generator.normal(0, 10, 40), 2)  # templates differ far more than groups do
    same, other = level + generator.normal(0, 1, 80), level + generator.normal(0, 1, 80) + 2.0 * groups
    values = np.stack([same, other], 1)
    assert gap(values, groups)[1] == pytest.approx(abs(other[::2].mean() - other[1::2].mean()))
    within = chance(values, groups, templates)
    assert within[0] > 0.05
    assert within[1] < 0.01
    assert chance(values, groups, np.zeros(80, int))[1] > 0.05  # without templates the groups can't be told apart


def test_one_group_is_no_comparison(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "group": "m"}\n{"text": "b", "group": "m"}\n')
    with pytest.raises(UserError, match="a comparison needs two"):
        read_texts(str(tmp_path / "t.jsonl"))


@pytest.mark.slow
def test_the_command_answers_each_question_by_itself(straight: CommandLine) -> None:
    (straight.home / "pairs.jsonl").write_text(
        '{"sentence_good": "They are.", "sentence_bad": "They is.", "UID": "be"}'
    )
    (straight.home / "groups.jsonl").write_text('{"text": "He is.", "group": "m"}\n{"text": "She is.", "group": "f"}')
    said = straight("evaluate", "straight", "--stride", "32", "--rows", "50")
    assert "windows of 64 tokens every 32: a token has 32 or more before it" in said
    assert "in 50 windows" in said
    said = straight("evaluate", "straight", "--pairs", str(straight.home / "pairs.jsonl"))
    assert "on 1 minimal pairs" in said
    assert "  be " in said
    said = straight("evaluate", "straight", "--groups", str(straight.home / "groups.jsonl"))
    assert "furthest apart" in said
    assert "--stride and --pairs are several questions" in straight(
        "evaluate", "straight", "--stride", "8", "--pairs", "x", code=2
    )
