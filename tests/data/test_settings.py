"""Recipes: every mistake named at once, YAML as it is meant, and a manual of every setting."""

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data import recipe as data_recipe
from data.errors import UserError
from data.recipe import DatasetRecipe
from data.settings import KINDS, Section, apply, differences, dump, fields, kind, load, manual, validate, value
from data.settings import given as stated
from trainer import recipe as trainer_recipe
from trainer.recipe import Recipe

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def refusal(*overrides: str, section: type[Section] = Recipe, path=None) -> str:
    """The message of the UserError."""
    with pytest.raises(UserError) as caught:
        load(section, path, overrides)
    return str(caught.value)


def from_text(text: str, folder, section: type[Section] = Recipe):
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return load(section, path)


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_every_mistake_is_named_at_once_with_the_value_seen(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: x\nmodel: {hidden_sise: 64, context: 2}\ntrian: {steps: 3}\nengine: {zero_stage: 5}\n")
    said = refusal("optimizer.lr=fast", "log.wandb=of", path=path)
    assert said.startswith(f"{path} has 7 mistakes:\n")
    lines = said.splitlines()[1:]
    assert len(lines) == 7
    for part in (
        "seed: Input should be a valid integer, unable to parse string as an integer (got 'x')",
        "model.hidden_sise: no such setting. Did you mean model.hidden_size?",
        "model.context: Input should be greater than or equal to 8 (got 2)",
        "trian: no such setting. Did you mean train?",
        "engine.zero_stage: Input should be 0, 1, 2 or 3 (got 5)",
        "optimizer.lr: Input should be a valid number, unable to parse string as a number (got 'fast')",
        "log.wandb: Input should be 'auto', 'online', 'offline' or 'off' (got 'of')",
    ):
        assert f"  {part}" in lines


@pytest.mark.parametrize(
    ("given_as", "meant"),
    [
        ("optimizer.lrr=1", "optimizer.lr"),
        ("lr=1", "optimizer.lr"),
        ("context=64", "model.context"),
        ("model.steps=1", "train.steps"),
        ("micro_batch=1", "engine.micro_batch"),
        ("checkpoint.keep_lst=1", "checkpoint.keep_last"),
    ],
)
def test_a_misspelt_or_misplaced_setting_is_answered_with_the_one_that_was_meant(given_as, meant):
    assert refusal(given_as).endswith(f"{given_as.partition('=')[0]}: no such setting. Did you mean {meant}?")


def test_a_setting_like_no_other_is_answered_with_those_there_are():
    assert refusal("train.qqq=1").endswith("Known here: steps, batch_rows, trainable, patience")


def test_a_misspelt_setting_inside_a_list_of_sections_is_found():
    said = refusal("sources=[{kind: text, paht: x}]", section=DatasetRecipe)
    assert "sources.0.paht: no such setting. Did you mean sources.0.path?" in said


@pytest.mark.parametrize("name", ["model.context", "launch.ranks", "log.every_steps"])
@pytest.mark.parametrize("wrong", ["many", "[1]", "{a: 1}", "1.5", "null"])
def test_a_value_of_a_wrong_type_is_refused_by_name(name, wrong):
    assert f"\n  {name}" in refusal(f"{name}={wrong}")


@pytest.mark.parametrize("wrong", ["model=3", "model=[1]", "engine=null", "data=text"])
def test_a_value_where_a_section_belongs_is_refused(wrong):
    assert f"  {wrong.partition('=')[0]}: Input should be a valid dictionary" in refusal(wrong)


def test_overrides_without_an_equals_sign_are_named_all():
    assert refusal("optimizer.lr", "=3", "train.steps=100") == (
        "optimizer.lr: write a setting as key=value, such as optimizer.lr=3e-4\n"
        "=3: write a setting as key=value, such as optimizer.lr=3e-4"
    )


def test_a_file_that_cannot_be_read_or_is_no_mapping_is_refused_by_name(tmp_path):
    assert f"cannot read the recipe {tmp_path}/none.yaml: No such file" in refusal(path=tmp_path / "none.yaml")
    assert "Is a directory" in refusal(path=tmp_path)
    for text, message in (
        (b"train: [1, 2", "not valid YAML"),
        (b"\tx: 1", "not valid YAML"),
        (b"name: \xff\xfe", "not valid YAML"),
        (b"- name\n- run\n", "must hold `name: value` lines at its top level, not list"),
        (b"words", "must hold `name: value` lines at its top level, not str"),
    ):
        (tmp_path / "bad.yaml").write_bytes(text)
        said = refusal(path=tmp_path / "bad.yaml")
        assert str(tmp_path / "bad.yaml") in said and message in said


def test_a_recipe_cannot_be_changed_once_it_is_made():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 4


# -- what is read ----------------------------------------------------------------------------------------------------


def test_no_file_an_empty_file_and_no_overrides_are_the_defaults(tmp_path):
    assert load(Recipe) == from_text("", tmp_path) == from_text("# nothing\n", tmp_path) == Recipe()


def test_overrides_go_over_the_file_and_the_last_one_counts(tmp_path):
    (tmp_path / "r.yaml").write_text("name: a\ntrain: {steps: 500, batch_rows: 8}\n")
    found = load(Recipe, tmp_path / "r.yaml", ["train.steps=700", "name=b", "train.steps=900", "model.vocab_size=512"])
    assert (found.name, found.train.steps, found.train.batch_rows, found.model.vocab_size) == ("b", 900, 8, 512)


def test_values_of_overrides_are_read_as_yaml():
    overrides = ["optimizer.clip=null", "evaluate.prompts=[a, 'b = c']", "optimizer.betas=[0.8, 0.99]", "log.profile="]
    found = load(Recipe, None, [*overrides, "train={steps: 77}"])
    assert found.optimizer.clip is None
    assert found.evaluate.prompts == ("a", "b = c")
    assert found.optimizer.betas == (0.8, 0.99)
    assert found.log.profile is None
    assert found.train.steps == 77


def test_a_setting_of_an_entry_of_a_list_is_reached_by_its_number(tmp_path):
    (tmp_path / "r.yaml").write_text("sources: [{kind: text, path: a}, {kind: text, path: b}]\n")
    found = load(DatasetRecipe, tmp_path / "r.yaml", ["sources.1.path=c"])
    assert [str(source.path) for source in found.sources] == ["a", "c"]
    assert "set the whole list" in refusal("sources.5=x", section=DatasetRecipe, path=tmp_path / "r.yaml")


@pytest.mark.parametrize("word", ["off", "no", "on", "yes", "y", "n", "2026-07-01", "1.2.3", "e5"])
def test_words_of_yaml_1_1_are_words(word, tmp_path):
    assert load(Recipe, None, [f"name={word}"]).name == word
    assert from_text(f"name: {word}\n", tmp_path).name == word


@pytest.mark.parametrize(
    ("text", "number"),
    [("3e-4", 3e-4), ("1e3", 1000.0), ("2", 2.0), (".5", 0.5), ("5.", 5.0), ("1E+2", 100.0), ("2.5e-3", 0.0025)],
)
def test_numbers_are_numbers(text, number, tmp_path):
    found = from_text(f"optimizer: {{lr: {text}}}\n", tmp_path)
    assert found.optimizer.lr == load(Recipe, None, [f"optimizer.lr={text}"]).optimizer.lr == number
    assert isinstance(found.optimizer.lr, float)
    assert stated_as({"x": text}) == {"x": number}


def stated_as(said: dict[str, str]) -> dict:
    """How the values are read, before any type is asked."""
    return apply({}, [f"{name}={text}" for name, text in said.items()])


@pytest.mark.parametrize(("text", "flag"), [("true", True), ("False", False), ("TRUE", True)])
def test_flags_are_flags(text, flag):
    assert stated_as({"x": text}) == {"x": flag}
    assert load(Recipe, None, [f"checkpoint.keep_best={text}"]).checkpoint.keep_best is flag


def test_what_a_recipe_states_itself_is_told_from_defaults():
    tree = {"name": "a", "model": {"context": 64}, "evaluate": {"prompts": ["x"]}}
    assert list(stated(tree)) == ["name", "model.context", "evaluate.prompts"]


# -- what is written -------------------------------------------------------------------------------------------------


@st.composite
def recipes(draw) -> Recipe:
    """Recipes with values of every type that occurs."""
    numbers = st.floats(1e-12, 1e12)
    return validate(
        Recipe,
        {
            "name": draw(st.from_regex(r"\A[A-Z][A-Za-z0-9._-]*\Z")),
            "seed": draw(st.integers(0, 2**63 - 1)),
            "ancestor": draw(st.none() | WORDS),
            "data": {"dataset": draw(WORDS)},
            "model": {"vocab_size": draw(st.none() | st.integers(2, 10**6)), "rope_theta": draw(numbers)},
            "train": {"trainable": draw(st.lists(WORDS, max_size=3))},
            "optimizer": {"lr": draw(numbers), "betas": [draw(st.floats(0, 0.999)), draw(st.floats(0, 0.999))]},
            "checkpoint": {"keep_best": draw(st.booleans())},
            "evaluate": {"prompts": draw(st.lists(WORDS | st.sampled_from(["off", "null", "~", "1", "- a"])))},
            "log": {"profile": draw(st.none() | st.just([2, 5])), "wandb": draw(st.sampled_from(["off", "auto"]))},
        },
        "drawn",
    )


@hypothesis_settings(deadline=None)
@given(recipes())
def test_a_dumped_recipe_reads_back_equal(tmp_path_factory, recipe):
    folder = tmp_path_factory.getbasetemp()
    assert from_text(dump(recipe), folder) == recipe
    assert from_text(manual(recipe), folder) == recipe


def test_the_manual_explains_the_settings_inside_a_list_once_and_reads_back(tmp_path):
    sources = [
        {"kind": "jsonl", "path": "a", "glob": ["*.x", "*.y"], "columns": {"prompt": "p", "completion": ["c", "d"]}},
        {"kind": "lines", "name": "n", "files": {"a": "x", "b": "y"}, "columns": {"prompt": "a", "completion": "b"}},
    ]
    tree = {"kind": "examples", "task": {"kind": "prompt_completion"}, "sources": sources}
    recipe = validate(DatasetRecipe, tree, "made")
    text = manual(recipe)
    assert from_text(text, tmp_path, DatasetRecipe) == recipe
    for field in data_recipe.Source.model_fields.values():
        assert text.count(" ".join((field.description or "").split())) == 1


@pytest.mark.parametrize("write", [dump, manual])
@pytest.mark.parametrize("word", ["5e3", "1E-4", "0x1F", "010", "2026-07-01", "off", "null", "~", "=", "<<", "- a", ""])
def test_a_word_that_looks_like_something_else_reads_back_as_a_word(word, write, tmp_path):
    recipe = validate(Recipe, {"data": {"dataset": word}, "evaluate": {"prompts": [word]}}, "made")
    assert from_text(write(recipe), tmp_path) == recipe


@pytest.mark.parametrize("write", [dump, manual])
@pytest.mark.parametrize("character", "\n\r\t\0\x85\xa0\u2028\u2029\u3000\ufeff\U0001f642")
def test_odd_characters_read_back_as_themselves(character, write, tmp_path):
    text = [character, f"a{character}b", f" {character}{character} ", "#" + 60 * f"word {character}"]
    recipe = validate(Recipe, {"data": {"dataset": text[1]}, "evaluate": {"prompts": text}}, "made")
    assert from_text(write(recipe), tmp_path) == recipe


def test_differences_are_named_with_their_kind():
    old = Recipe()
    new = load(Recipe, None, ["seed=2", "optimizer.lr=1", "launch.ranks=2", "model.context=64"])
    assert differences(old, old) == []
    assert differences(old, new) == [
        ("seed", "fixed", 1, 2),
        ("model.context", "fixed", 256, 64),
        ("optimizer.lr", "branch", 2e-3, 1.0),
        ("launch.ranks", "free", 1, 2),
    ]


# -- the manual ------------------------------------------------------------------------------------------------------


def sections(module) -> list[type[Section]]:
    return [held for held in vars(module).values() if isinstance(held, type) and issubclass(held, Section)]


@pytest.mark.parametrize("module", [data_recipe, trainer_recipe])
def test_every_field_of_every_section_is_described(module):
    undocumented = [
        f"{section.__name__}.{name}"
        for section in sections(module)
        for name, field in section.model_fields.items()
        if not (field.description or "").strip()
    ]
    assert not undocumented


@pytest.mark.parametrize("section", [Recipe, DatasetRecipe])
def test_the_manual_shows_every_setting_under_its_own_description(section, tmp_path):
    page = manual(section())
    lines = page.splitlines()
    named = list(fields(section))
    assert len({name for name, _ in named}) == len(named) > 20
    held = [value(section(), name) for name, _ in named]
    listed = [each[0] for each in held if isinstance(each, tuple) and each and isinstance(each[0], Section)]
    assert page.count("# [") == len(named) + sum(len(type(entry).model_fields) for entry in listed)
    at = 0
    for name, field in named:
        text = " ".join(field.description.split())
        pad = "  " * name.count(".")
        comment = f"{pad}# [{kind(field)}] {text}"
        at = lines.index(comment, at)
        assert lines[at + 1].startswith(f"{pad}{name.rpartition('.')[2]}:")
    assert from_text(page, tmp_path, section) == section()


def test_the_manual_shows_the_resolved_values():
    shown = yaml.safe_load(manual(load(Recipe, None, ["train.steps=123", "data.dataset=elsewhere"])))
    assert shown["train"]["steps"] == 123
    assert shown["data"]["dataset"] == "elsewhere"
    assert shown["model"]["context"] == Recipe().model.context


def test_every_setting_of_a_run_says_whether_it_is_fixed_branch_or_free():
    for name, field in fields(Recipe):
        marks = [mark for mark in field.metadata if mark in KINDS]
        assert len(marks) == 1, f"{name} is marked {marks or 'not at all'}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seed", "fixed"),
        ("model.hidden_size", "fixed"),
        ("data.window", "fixed"),
        ("optimizer.lr", "branch"),
        ("train.steps", "branch"),
        ("train.batch_rows", "branch"),
        ("launch.ranks", "free"),
        ("engine.zero_stage", "free"),
        ("data.dataset", "free"),
    ],
)
def test_what_decides_the_run_is_fixed_and_where_it_runs_is_free(name, expected):
    assert kind(dict(fields(Recipe))[name]) == expected
