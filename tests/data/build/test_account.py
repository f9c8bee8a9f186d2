"""What a build tells of its cleaning: in dataset.json, at its end, in inspect."""

import json
import random

import pytest
from pyarrow import parquet

from data.build.account import account_lines
from data.build.build import build
from data.build.tally import Tally
from data.clean.quota import Quota
from data.clean.rules import Clean
from data.errors import UserError
from data.inspect import report
from data.progress import Lines
from data.recipe import DatasetRecipe, Decontaminate, Source, Split, TokenizerTraining
from data.settings import validate
from tests.data.build.test_build import digests

_WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from they which one you "
    "were all her she there would their we him been has when who will no more if out so house river garden winter "
    "letter morning street window children mother brother walked spoke found carried opened remembered slowly early"
)
ENGLISH = _WORDS.split()
CHINESE = "春夏秋冬山水花草树木人家门窗朋友老师学生父母天地日月风雨雪云江河湖海走看听说读写来去大小多少长短高低"
NOTICE = "This site uses cookies; questions to jane@corp.de"


def english(seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(" ".join(draw.choices(ENGLISH, k=12)).capitalize() + "." for _ in range(15))


def chinese(seed: int) -> str:
    draw = random.Random(seed)
    return "".join("".join(draw.choices(CHINESE, k=20)) + "。" for _ in range(15))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for number in range(30):
        text = english(number)
        if number % 3 == 0:
            text += f"\n{NOTICE}\nand to joe@corp.de it is.\n"
        (folder / f"en{number:02d}.txt").write_text(text)
        (folder / f"zh{number:02d}.txt").write_text(chinese(number))
    (folder / "menu.txt").write_text("Home page, write to jane@corp.de")
    return folder


def recipe(pages, **settings) -> DatasetRecipe:
    given = {
        "name": "pages",
        "sources": (Source(kind="folder", path=pages, name="pages"),),
        "clean": Clean(preset="web", language="identify"),
        "languages": {"en": None, "zh": Quota(max_share=0.2)},
        "split": Split(valid=0.1),
        "tokenizer": TokenizerTraining(vocab_size=768),
        "workers": 1,
    }
    return DatasetRecipe(**given | settings)


@pytest.fixture(scope="module")
def dataset(pages, tmp_path_factory):
    return build(recipe(pages), tmp_path_factory.mktemp("built") / "out")


def test_each_rule_is_told_with_counts_and_examples_without_personal_data(dataset, pages, capsys):
    stages = {stage["name"]: stage for stage in dataset.info["stages"]}
    changed = stages["clean"]["changed"]
    assert changed["line_cookies"]["documents"] == changed["line_cookies"]["items"] == 10
    assert changed["pii_email"]["items"] == 20
    assert len(changed["line_cookies"]["examples"]) == 3
    for example in changed["line_cookies"]["examples"]:
        assert example["id"].startswith("pages/en")
        assert example["excerpt"] == "This site uses cookies; questions to [EMAIL]"
    dropped = stages["clean"]["dropped"]
    assert dropped["few_sentences"] == {
        "documents": 1,
        "bytes": 32,
        "examples": [{"id": "pages/menu.txt", "excerpt": "Home page, write to [EMAIL]"}],
    }
    for stage in stages.values():
        told = sum(each["bytes"] for kind in ("dropped", "changed") for each in stage[kind].values())
        assert stage["bytes_in"] - stage["bytes_out"] == told
    assert "corp.de" not in json.dumps(dataset.info)
    said = report(dataset.folder, samples=0)
    for line in account_lines(dataset.info["stages"]):
        assert line in said
    assert "changed in 20 places" in said


def test_quotas_hold_and_languages_are_recorded_for_each_document(dataset):
    held = dataset.info["languages"]
    assert sum(each["documents"] for each in held.values()) == dataset.info["documents"]
    assert held["zh"]["text_bytes"] <= 0.2 * dataset.info["text_bytes"]
    assert dataset.info["stages"][-2]["dropped"]["over_quota"]["documents"] == 30 - held["zh"]["documents"]
    table = parquet.read_table(dataset.folder / "train-000000.docs.parquet").to_pylist()
    assert {row["language"] == "zh" for row in table if "/zh" in row["id"]} == {True}
    assert {row["language"] == "zh" for row in table if "/en" in row["id"]} == {False}
    assert set(dataset.info["versions"]) >= {"ftfy", "py3langid", "resiliparse"}


@pytest.mark.slow
def test_quotas_and_evaluation_sets_together_give_the_same_bytes_at_any_number_of_workers(pages, tmp_path, monkeypatch):
    (tmp_path / "eval.jsonl").write_text(
        "".join(json.dumps({"q": text[5:200]}) + "\n" for text in (english(3), chinese(4), chinese(5)))
    )
    sets = (Source(kind="jsonl", path=str(tmp_path / "eval.jsonl"), name="questions", text_field="q"),)
    built = []
    for workers, part in ((1, 1 << 21), (3, 9000)):
        monkeypatch.setattr("data.build.pipeline._CHUNK_CHARACTERS", part)
        asked = recipe(pages, workers=workers, decontaminate=Decontaminate(sets=sets))
        built.append(build(asked, tmp_path / f"with-{workers}"))
    assert digests(built[0].folder) == digests(built[1].folder)
    stages = {stage["name"]: stage["dropped"] for stage in built[0].info["stages"]}
    assert stages["decontaminate"]["in_questions"]["documents"] == 3
    assert stages["quota"]["over_quota"]["documents"] > 15
    assert built[0].info["languages"]["zh"]["text_bytes"] <= 0.2 * built[0].info["text_bytes"]


def test_the_end_of_a_build_shows_the_account(pages, tmp_path, capsys):
    build(
        recipe(pages, languages={"zh": None}, clean=Clean(preset="books", language="zh")),
        tmp_path / "o",
        progress=Lines(),
    )
    said = capsys.readouterr().err
    for part in ("changed and dropped:", "pii_email", "changed in 21 places", "[EMAIL]"):
        assert part in said


def test_each_source_can_have_rules_of_its_own(pages, tmp_path):
    sources = (
        Source(kind="folder", path=pages, glob=("en*",), name="english"),
        Source(kind="folder", path=pages, glob=("zh*",), name="chinese"),
    )
    own = {"chinese": Clean(preset="off", min_words=10_000, language="zh")}
    made = build(recipe(pages, sources=sources, clean_sources=own), tmp_path / "out")
    clean = next(stage for stage in made.info["stages"] if stage["name"] == "clean")
    assert {rule: held["documents"] for rule, held in clean["dropped"].items()} == {"few_words": 30}
    assert clean["changed"]["line_cookies"]["documents"] == 10
    with pytest.raises(UserError, match="clean_sources has rules for 'chinse', but the sources are pages"):
        validate(DatasetRecipe, recipe(pages).model_dump() | {"clean_sources": {"chinse": {}}}, "the recipe")


def test_a_tally_of_parts_is_the_tally_of_the_whole():
    whole, parts = Tally(), [Tally() for _ in range(4)]
    for number in range(1000):
        whole.add(f"d{number}", 2, number, f"text {number}")
        parts[number % 4].add(f"d{number}", 2, number, f"text {number}")
    merged = Tally()
    for part in reversed(parts):
        merged.merge(part)
    assert merged == whole
    assert (whole.documents, whole.items, whole.bytes, len(whole.examples)) == (1000, 2000, 499500, 3)
