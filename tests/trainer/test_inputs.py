"""Every mistake in sources, stages and lanes is one error, before anything starts, with the value and the mend."""

import re
import shutil
from pathlib import Path

import pytest

from data import settings
from data.build.build import build
from data.corpus.source import Source
from data.errors import UserError
from data.recipe import DatasetRecipe, Dedup, Split, TokenizerTraining
from data.tasks.task import Task
from tests.conftest import MODEL, CommandLine
from trainer.inputs import open_inputs
from trainer.recipe import Recipe

TWO = "data.sources={web: {dataset: a}, code: {dataset: b}}"


def recipe(*given: str) -> Recipe:
    return settings.load(
        Recipe, None, [*MODEL, "train.batch_rows=12", "train.steps=24", "schedule.warmup_steps=1", *given]
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            [TWO, "data.stages=[{weights: {web: 0, code: 1}}]"],
            r"above 0, and web 0 is not: leave out what it",
        ),
        ([TWO, "data.stages=[{weights: {web: -1, code: 1}}]"], r"above 0, and web -1 is not"),
        ([TWO, "data.stages=[{weights: {}}]"], r"a stage needs a source"),
        (
            [TWO, "data.stages=[{weights: {web: 1, cod: 1}}]"],
            r"names cod, and .* doesn't. Did you mean code\?",
        ),
        ([TWO, "data.stages=[{weights: {web: 1}}]"], r"source code is in no stage's weights"),
        ([TWO], r"several sources need weights, such as data.stages='\[\{weights: \{web: 1, code: 1\}\}\]'"),
        (
            [TWO, "data.dataset=c", "data.stages=[{weights: {web: 1, code: 1}}]"],
            r"both say what .*data.dataset=null",
        ),
        (["data.dataset=null"], r"nothing to read: set data.dataset, or data.sources"),
        (
            ["data.stages=[{weights: {data: 1}}, {start: 30, weights: {data: 1}}]"],
            r"starts at row 30, which is in the middle of an update of 12 rows.*take 24 or 36",
        ),
        (
            ["data.lanes=8", "data.stages=[{weights: {data: 1}}, {start: 36, weights: {data: 1}}]"],
            r"round of 8 lanes: take 24 or 48",
        ),
        (["data.stages=[{start: 12, weights: {data: 1}}]"], r"stages start at \[12\]: the first must start at 0"),
        (
            ["data.stages=[{weights: {data: 1}}, {start: 24, weights: {data: 1}}, {start: 24, weights: {data: 1}}]"],
            r"each later than the one before",
        ),
        (["data.stages=[{weights: {data: 1}, context: 65}]"], r"has a context of 65, and the model takes 64"),
        ([TWO, "data.sources.web.max_epochs=0"], r"max_epochs: Input should be greater than 0"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_its_mend(given: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe(*given)


@pytest.fixture(scope="module")
def tiny(luban: CommandLine) -> str:
    return f"{luban.home}/datasets/tiny"


def stages(first: str, second: str, extra: str = "") -> list[str]:
    sources = f"{{web: {{dataset: {first}{extra}}}, code: {{dataset: {second}}}}}"
    return [f"data.sources={sources}", "data.stages=[{weights: {web: 1, code: 1}}]"]


def test_a_dataset_of_another_tokenizer_is_refused(luban: CommandLine, tiny: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    luban(
        "data", "build", "folder", "name=other", f"sources=[{{kind: folder, path: {luban.home}/texts}}]",
        "tokenizer.vocab_size=1100", "split.valid=0.1", "--out", str(other),
    )  # fmt: skip
    with pytest.raises(
        UserError, match=rf"code with \w+: build {re.escape(str(other))} again with tokenizer.reuse={tiny}"
    ):
        open_inputs(recipe(*stages(tiny, str(other))))


def test_the_same_shards_twice_are_refused(tiny: str, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "copy")
    with pytest.raises(UserError, match=r"sources web and code hold the same shards"):
        open_inputs(recipe(*stages(tiny, str(copy))))


def test_more_lanes_than_shards_are_refused(tiny: str) -> None:
    with pytest.raises(UserError, match=r"data has \d+ shards and data.lanes is 240: .* lower data.lanes"):
        open_inputs(recipe(f"data.dataset={tiny}", "data.lanes=240"))


def test_sources_that_end_before_the_run_are_refused(tiny: str) -> None:
    given = [f"data.sources={{web: {{dataset: {tiny}, max_epochs: 0.5}}}}", "train.steps=10000"]
    with pytest.raises(UserError, match=r"reads 120,000 rows, and at row [\d,]+ every .* lower train.steps to \d+"):
        open_inputs(recipe(*given))


def test_a_single_source_needs_no_stages(tiny: str) -> None:
    named = open_inputs(recipe(f"data.sources={{web: {{dataset: {tiny}}}}}"))
    plain = open_inputs(recipe(f"data.dataset={tiny}"))
    assert (
        named.order.describe()["stages"][0]["sources"]["web"] == plain.order.describe()["stages"][0]["sources"]["data"]
    )


def test_examples_for_a_head_are_no_rows_for_a_decoder(tmp_path: Path) -> None:
    rows = tmp_path / "rows.tsv"
    rows.write_text("".join(f"sentence number {n} of some text\t{n % 2}\n" for n in range(80)))
    columns = {"text": "text", "label": "label"}
    source = Source(kind="tsv", path=rows, header=("text", "label"), columns=columns)
    made = {}
    for template in ("encoder", "generate"):
        wanted = DatasetRecipe(
            name="rows", kind="examples", sources=(source,), task=Task(kind="classification", template=template),
            tokenizer=TokenizerTraining(vocab_size=600), dedup=Dedup(near=False), split=Split(valid=0.2), workers=1,
        )  # fmt: skip
        made[template] = build(wanted, tmp_path / template).folder
    with pytest.raises(
        UserError, match="kind classification with template encoder, for a model of family bert, not llama: build"
    ):
        open_inputs(recipe(f"data.dataset={made['encoder']}"))
    open_inputs(recipe(f"data.dataset={made['generate']}"))
