"""One input taken apart: attention, attributions, their record and their picture."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

from data.build.build import build
from data.corpus.source import Source
from data.errors import UserError
from data.recipe import DatasetRecipe, Dedup, Split, TokenizerTraining
from data.tasks.task import Task
from tests.conftest import CommandLine
from tests.trainer.families import ENCODER_DECODERS, built, scatter, tokens
from tests.trainer.test_report import OUTSIDE, parsed
from tests.trainer.untrained import untrained
from trainer.adapters.prompt import embedding
from trainer.attributions import embedded, integrated_gradients
from trainer.explain import explain
from trainer.explanation import HEADER, About, Explanation, adds_up
from trainer.generate import generate
from trainer.generation.settings import Decoding
from trainer.models.attention_maps import attention_maps, probabilities
from trainer.report import write
from trainer.scores import Loaded

FAMILIES = ("llama", "gpt2", "bert", "t5", "transformer")


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_probabilities_times_values_are_what_torch_s_attention_gives(mask: str) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (6, 2, 2))
    seen = torch.rand(2, 1, 9, 9, generator=generator) > 0.4
    seen |= torch.eye(9, dtype=torch.bool)
    masks = {"bool": seen, "float": torch.randn(1, 6, 9, 9, generator=generator).masked_fill(~seen, -torch.inf)}
    told: dict[str, Any] = {"attn_mask": masks.get(mask), "is_causal": mask == "causal", "enable_gqa": True}
    told["scale"] = 1.0 if mask == "float" else None
    wanted = F.scaled_dot_product_attention(q, k, v, **told)
    found = probabilities(q, k, v, **told)
    assert torch.allclose(found @ v.repeat_interleave(3, 1), wanted, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_is_watched_gives_what_it_gives_unwatched(family: str) -> None:
    model, source, target = built(family).eval(), tokens(1, 12), tokens(1, 7, seed=1)
    inputs = (source, target) if family in ENCODER_DECODERS else (source,)
    told = []
    maps = attention_maps(model, lambda: told.append(model(*inputs)))
    with torch.no_grad():
        assert torch.equal(told[0], model(*inputs))
    sizes = {"encoder": (12, 12), "decoder": (7, 7), "cross": (7, 12)} if len(inputs) == 2 else {"self": (12, 12)}
    assert {kind: tuple(held.shape) for kind, held in maps.items()} == {k: (2, 4, *size) for k, size in sizes.items()}
    causal = {"llama": "self", "gpt2": "self", "t5": "decoder", "transformer": "decoder"}
    for kind, held in maps.items():
        assert torch.allclose(held.sum(-1), torch.ones(()), atol=1e-5)
        assert bool((held.triu(1) == 0).all()) == (causal.get(family) == kind)


def test_of_a_linear_figure_each_token_owes_its_own_part() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, inputs, baseline = (torch.randn(5, 8, generator=generator) for _ in range(3))
    found, full, empty, points = integrated_gradients(lambda x: (x * weight).sum((1, 2)), inputs, baseline)
    assert found == pytest.approx((weight * (inputs - baseline)).sum(1).numpy(), abs=1e-5)
    assert (full - empty, points) == (pytest.approx(found.sum(), abs=1e-5), 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_attributions_add_up_to_what_the_input_changes(family: str) -> None:
    model, source, target = built(family).eval(), tokens(1, 10), tokens(1, 5, seed=1)
    table: Any = embedding(model)[1]
    inputs, baseline = table(source)[0].detach(), table(torch.full_like(source, 5))[0].detach()

    def value(vectors: torch.Tensor) -> torch.Tensor:
        with embedded(table, vectors):
            rows = source.expand(len(vectors), -1)
            more = (target.expand(len(vectors), -1),) if family in ENCODER_DECODERS else ()
            return model(rows, *more).double().log_softmax(-1)[:, -1, 7]

    with torch.no_grad():
        assert value(inputs[None]).item() == pytest.approx(value(table(source)).item())
        assert value(baseline[None]).item() != pytest.approx(value(inputs[None]).item(), abs=0.1)
    found, full, empty, _ = integrated_gradients(value, inputs, baseline)
    assert abs(found.sum() - (full - empty)) <= 0.01 * abs(full - empty) + 1e-4


def of_run(dataset: Path, *given: str) -> Loaded:
    """A model of random weights, far from uniform, on a dataset."""
    sizes = ["context=64", "hidden_size=32", "num_hidden_layers=2", "num_attention_heads=2"]
    return untrained(dataset, [*(f"model.{each}" for each in sizes), *given], lambda model: scatter(model, 4), step=7)


@pytest.mark.parametrize(
    ("given", "text", "figure"),
    [
        (["model.family=llama", "model.num_key_value_heads=1"], "A list of names.", "likeliest next token"),
        (["model.family=gpt2", "adapter.kind=lora"], "A list of names.", "likeliest next token"),
        (["model.family=bert"], "A list of <|mask|>s.", "token at the mask"),
        (["model.family=bert", "objective.next_sentence=true"], "A <|mask|> of names.", "token at the mask"),
        (["model.family=t5"], "A list of names.", "its answer"),
        (["model.family=transformer", "objective.kind=prefix"], "A list of names.", "its answer"),
    ],
)
def test_every_model_of_text_is_asked_what_it_was_trained_on(luban: CommandLine, given: Any, text: str, figure: str):
    loaded = of_run(luban.home / "datasets" / "tiny", *given)
    found = explain(loaded, [text])
    about = found.about
    assert about.figure.endswith(figure)
    assert len(found.attributions) == len(about.tokens) == about.given
    assert "".join(about.tokens).replace("▁", " ").replace("<|cls|>", "").replace("<|sep|>", "") == text
    assert adds_up(found.total, found.wanted)
    controls = [place for place, token in enumerate(about.tokens) if token.startswith("<|")]
    assert not found.attributions[controls].any()
    assert np.abs(found.attributions).max() > 0.05
    if about.decoder_tokens:
        assert found.attention["cross"].shape[2:] == (len(about.decoder_tokens), len(about.tokens))


def test_a_prompt_is_read_in_both_directions_where_the_model_learned_it_so(luban: CommandLine) -> None:
    loaded = of_run(luban.home / "datasets" / "tiny", "model.attention=prefix")
    ids = loaded.inputs.tokenizer.encode("A list of names.").tolist()
    found = explain(loaded, ["A list of names."])
    read = generate(loaded.model, [ids], Decoding(1), eos_id=None)[0][0]
    assert found.about.target == loaded.inputs.tokenizer.decode(read, control=True)
    assert (found.attention["self"].shape[2:], found.about.given) == ((len(ids), len(ids)), len(ids))
    assert (found.attention["self"] > 0).all()


def test_of_two_nets_the_one_that_writes_is_explained(luban: CommandLine) -> None:
    given = ("objective.kind=adversarial", "model.attention=full")
    loaded = of_run(luban.home / "datasets" / "tiny", *given)
    alone = replace(loaded, model=loaded.model.generator)
    assert explain(loaded, ["A list of names."]).about.value == explain(alone, ["A list of names."]).about.value


def test_a_text_that_is_asked_for_is_read_but_the_input_alone_is_owed_to(luban: CommandLine) -> None:
    loaded = of_run(luban.home / "datasets" / "tiny")
    said = loaded.inputs.tokenizer.encode(" and words").tolist()
    found = explain(loaded, ["The names"], " and words", layer=1)
    ids = loaded.inputs.tokenizer.encode("The names").tolist()
    with torch.no_grad():
        logits = loaded.model(torch.tensor([[*ids, *said]]))[0].double().log_softmax(-1)
    wanted = sum(float(logits[len(ids) - 1 + place, token]) for place, token in enumerate(said))
    assert found.about.value == pytest.approx(wanted, abs=1e-4)
    assert (found.about.given, len(found.about.tokens)) == (len(ids), len(ids) + len(said) - 1)
    assert not found.attributions[len(ids) :].any()
    assert found.about.layer == 0


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small datasets of examples, by what they teach."""
    folder = tmp_path_factory.mktemp("examples")
    rows = [f"Number {n} is {('bad', 'good')[n % 2]}.\tIt is {n}.\t{n % 2}" for n in range(40)]
    (folder / "rows.tsv").write_text("\n".join(["a\tb\tlabel", *rows]) + "\n")
    context = "Names are kept in a book."
    asked = [
        {
            "id": str(n),
            "question": f"Where are the {n} names kept?",
            "answers": [{"text": "a book", "answer_start": 18}],
        }
        for n in range(40)
    ]
    articles = [{"title": str(n), "paragraphs": [{"context": context, "qas": [each]}]} for n, each in enumerate(asked)]
    (folder / "squad.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    rowsource: dict[str, Any] = {"kind": "tsv", "path": str(folder / "rows.tsv")}
    wanted: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "classes": (rowsource | {"columns": {"text": "a", "label": "label"}}, {"kind": "classification"}),
        "pairs": (
            rowsource | {"columns": {"text_a": "a", "text_b": "b", "label": "label"}},
            {"kind": "pair", "regression": True, "template": "decoder"},
        ),
        "questions": (
            {"kind": "squad", "path": str(folder / "squad.json")},
            {"kind": "qa", "doc_stride": 8, "max_question_tokens": 24},
        ),
    }
    found = {}
    for name, (source, task) in wanted.items():
        recipe = DatasetRecipe(
            name=name, kind="examples", sources=(Source(**source),), task=Task(max_tokens=40, **task),
            tokenizer=TokenizerTraining(vocab_size=600), dedup=Dedup(near=False, exact=False), split=Split(valid=0.2),
            workers=1,
        )  # fmt: skip
        found[name] = build(recipe, folder / name).folder
    return found


def test_a_head_is_asked_for_its_class_its_number_or_its_answer(datasets: dict[str, Path]) -> None:
    classifier = of_run(datasets["classes"], "model.family=bert")
    found = explain(classifier, ["Number 3 is good."])
    other = explain(classifier, ["Number 3 is good."], "0" if found.about.target == "1" else "1")
    assert found.about.value > other.about.value
    assert (found.about.tokens[0], found.about.tokens[-1]) == ("<|cls|>", "<|sep|>")
    number = explain(of_run(datasets["pairs"], "model.family=gpt2"), ["Number 3 is good.", "It is 3."])
    assert (number.about.figure, number.about.target) == ("the number", "")
    answer = explain(
        of_run(datasets["questions"], "model.family=bert"), ["Where are they?", "Names are kept in a book."]
    )
    assert answer.about.target and answer.about.target in "Names are kept in a book."
    alike = of_run(datasets["classes"], "model.family=bert", "objective.kind=contrastive", "model.residual_dropout=0.1")
    bare = explain(alike, ["Number 3 is good."])
    assert bare.about.figure == "" and len(bare.attributions) == 0 and bare.attention["self"].shape[:2] == (2, 2)
    tuned = of_run(datasets["classes"], "model.family=bert", "adapter.kind=prompt", "adapter.tokens=3")
    virtual = explain(tuned, ["Number 3 is good."])
    assert virtual.about.tokens[3:] == found.about.tokens
    assert virtual.attention["self"].shape[2] == len(found.about.tokens) + 3
    assert not virtual.attributions[:4].any()
    for each in (found, other, number, answer, virtual):
        assert adds_up(each.total, each.wanted)


def test_what_can_not_be_explained_is_refused(luban: CommandLine, datasets: dict[str, Path]) -> None:
    loaded = of_run(luban.home / "datasets" / "tiny", "model.context=256")
    for texts, target, layer, said in (
        (["names " * 80], None, None, "a picture shows 128: shorten"),
        (["a", "b"], None, None, "reads one text: leave --second out"),
        ([""], None, None, "the text is empty"),
        (["a"], "", None, "--target is empty"),
        (["a"], None, 3, "layers 1 to 2"),
        (["a"], " words" * 200, None, "the input and its target are"),
    ):
        with pytest.raises(UserError, match=said):
            explain(loaded, texts, target, layer)
    with pytest.raises(UserError, match="the model's context holds 64"):
        explain(of_run(luban.home / "datasets" / "tiny"), ["a b c d e " * 20])
    masked = of_run(luban.home / "datasets" / "tiny", "model.family=bert")
    for text, target, said in (
        ("none", None, "holds 0: put one <|mask|>"),
        ("<|mask|> <|mask|>", None, "holds 2"),
        ("a <|mask|>", "many many words", "a mask stands for one"),
    ):
        with pytest.raises(UserError, match=said.replace("|", r"\|")):
            explain(masked, [text], target)
    classifier = of_run(datasets["classes"], "model.family=bert")
    for texts, target, said in (
        (["a", "b"], None, "trained on text: give 1 text, and leave --second out"),
        (["a"], "fine", "'fine' is no class of the model: 0, 1"),
        (["long " * 60], None, "longer than the dataset's task.max_tokens, 40"),
    ):
        with pytest.raises(UserError, match=said):
            explain(classifier, texts, target)
    with pytest.raises(UserError, match="give 2 texts, the second by --second"):
        explain(of_run(datasets["pairs"], "model.family=gpt2"), ["a"])


def example(text: str = "a <b>", layers: int = 2, tokens: tuple[str, ...] = ("<script>", "▁b", "你好")) -> Explanation:
    """An explanation made up, of 3 heads."""
    size = len(tokens)
    maps = np.random.default_rng(0).dirichlet(np.full(size, 0.3), (layers, 3, size)).astype(np.float32)
    about = About(7, "bert", "classification", (text,), "logit of the class", "<i>", 1.5, 0.5, "<|mask|>", 32, tokens,
                  given=size)  # fmt: skip
    return Explanation(about, {"self": maps}, np.linspace(-0.5, 1, size).astype(np.float32))


def test_a_record_comes_back_as_it_was_and_the_same_question_is_the_same_file(tmp_path: Path) -> None:
    found = example()
    path = found.write(tmp_path)
    before = path.read_bytes()
    again = Explanation.read(path)
    assert again.about == found.about
    assert np.array_equal(again.attention["self"], found.attention["self"])
    assert np.array_equal(again.attributions, found.attributions)
    assert (found.write(tmp_path), path.read_bytes()) == (path, before)
    assert example("another").write(tmp_path) != path


def test_a_damaged_or_newer_record_is_named(tmp_path: Path) -> None:
    path = example().write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=f"{path} is no whole explanation"):
        Explanation.read(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    head = {"format": "luban-explanation", "version": 2}
    save_file(tensors, path, {HEADER: json.dumps(head)})
    with pytest.raises(UserError, match="has version 2 of luban-explanation; this Luban reads version 1"):
        Explanation.read(path)
    save_file(tensors, path, {HEADER: json.dumps(head | {"version": 1, "step": "x"})})
    with pytest.raises(UserError, match="is no whole explanation"):
        Explanation.read(path)


def test_one_that_is_damaged_leaves_the_report_its_others(fake_run: Any) -> None:
    run = fake_run()
    run.attempt()
    path, _ = (example(text).write(run.folder) for text in ("first", "second"))
    path.write_bytes(path.read_bytes()[:-20])
    words = " ".join(parsed(write([run.folder], run.folder / "report.html").read_text("utf-8")).text)
    assert "step 7: second" in words
    assert f"{path} is no whole explanation" in words
    assert "1 of 2 are shown" in words


def test_the_report_draws_it_and_its_texts_stay_text(fake_run: Any) -> None:
    run = fake_run()
    run.attempt()
    example("a </pre><script>alert(1)</script> \x1b[2J").write(run.folder)
    text = write([run.folder], run.folder / "report.html").read_text("utf-8")
    page = parsed(text)
    words = " ".join(page.text)
    assert not OUTSIDE.search(text)
    assert len([tag for tag, _ in page.seen if tag == "script"]) == 1
    for word in ("Single inputs", "<script>", "▁b", "你好", "<i>", "logit of the class", "+1.0000", "Layer 1 of 2",
                 "head 3", "layer 2", "they add up to +0.7500, of a difference of +1.0000"):  # fmt: skip
        assert word in words
    assert "\x1b" not in text
    fake = [attrs for tag, attrs in page.seen if tag == "path" and attrs.get("class") == "cells"]
    assert fake and all(0 < float(attrs["stroke-opacity"]) <= 1 for attrs in fake)


def test_attributions_that_miss_their_sum_are_called_rough_where_they_are_shown(fake_run: Any) -> None:
    run, rough = fake_run(), example()
    run.attempt()
    assert "they miss more than 1% of it, after 32 points" in str(rough.warning)
    whole = replace(rough, attributions=rough.attributions / rough.total)
    assert whole.warning is None
    for found, said in ((whole, False), (rough, True)):
        found.write(run.folder)
        page = write([run.folder], run.folder / "report.html").read_text("utf-8")
        assert ("read them as rough" in page) is said


def test_the_cells_of_a_map_are_its_probabilities() -> None:
    from trainer.report_explained import _cells

    shades = np.array([[0.0, 1.0, 0.25], [0.25, 0.25, 1 / 1000]])
    drawn = {str(cell).split('"')[5]: str(cell).split('"')[1] for cell in _cells(shades)}
    assert drawn == {"0.500": "M2 0.5h1M0 1.5h2", "1.000": "M1 0.5h1"}


def test_a_picture_of_the_longest_input_stays_small(fake_run: Any) -> None:
    run = fake_run()
    run.attempt()
    bare = len(write([run.folder], run.folder / "report.html").read_bytes())
    example(layers=4, tokens=tuple(f"▁token{n}" for n in range(128))).write(run.folder)
    assert len(write([run.folder], run.folder / "report.html").read_bytes()) - bare < 1_000_000


@pytest.mark.slow
def test_the_command_explains_the_newest_checkpoint_and_the_report_shows_it(straight: CommandLine) -> None:
    said = straight("explain", "straight", "The list of names", "--target", " is")
    assert "straight at step 24" in said and "log-probability of the text that follows ' is'" in said
    page = write([straight.run("straight")], straight.home / "page.html").read_text("utf-8")
    assert "Single inputs" in page and "step 24: The list of names" in page
