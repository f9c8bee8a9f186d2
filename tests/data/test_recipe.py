import pytest

from data.errors import UserError
from data.recipe import RECIPES, DatasetRecipe
from data.settings import dump, load, read_yaml, validate


def refuse(tree, match):
    with pytest.raises(UserError, match=match):
        validate(DatasetRecipe, tree, "the recipe")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along_are_valid_and_survive_a_dump(path, tmp_path):
    recipe = load(DatasetRecipe, path)
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert load(DatasetRecipe, tmp_path / "again.yaml") == recipe


def test_the_default_is_the_standard_library():
    assert [source.kind for source in DatasetRecipe().sources] == ["stdlib"]


def test_every_mistake_is_named_with_its_path_at_once():
    tree = {"sources": [{"kind": "stdlib"}, {"kind": "foldr"}], "clean": {"min_leters": 1}, "seed": -1}
    with pytest.raises(UserError) as caught:
        validate(DatasetRecipe, tree, "x.yaml")
    for part in ("sources.1.kind", "Did you mean clean.min_letters", "seed", "x.yaml has 3 mistakes"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"sources": []}, "at least one source"),
        ({"memory": "lots"}, r"memory: it is a number of bytes, such as 500MB or 2GB \(got 'lots'\)"),
        (
            {"sources": [{"kind": "jsonl", "path": "x-*"}]},
            "several files needs a name",
        ),
        ({"sources": [{"kind": "jsonl"}]}, "sources.0: a source of kind jsonl needs a path"),
        ({"sources": [{"kind": "stdlib", "path": "x"}]}, "takes no path"),
        ({"sources": [{"kind": "text", "path": "x", "glob": ["*"]}]}, "takes no glob"),
        ({"sources": [{"kind": "text", "path": "a/x"}, {"kind": "text", "path": "b/x"}]}, "two sources are called 'x'"),
        ({"split": {"valid": 0.5, "heldout": 0.5}}, "nothing would be left to train on"),
        ({"name": "a/b"}, "name: String should match"),
        ({"kind": "examples", "task": {"kind": "prompt_completion"}}, "sources.0 must be of kind jsonl"),
        ({"sources": [{"kind": "jsonl", "path": "x", "columns": {"text": "y"}}]}, "it needs kind: examples"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tree, match):
    refuse(tree, match)


def test_every_setting_is_documented():
    from data import recipe

    for section in vars(recipe).values():
        if isinstance(section, type) and issubclass(section, recipe.Section):
            for name, field in section.model_fields.items():
                assert field.description or name == "kind", f"{section.__name__}.{name}"


def test_the_heldout_share_of_the_standard_library_feeds_the_docstring_recipe():
    stdlib, docstrings = (read_yaml(RECIPES / f"{name}.yaml") for name in ("stdlib", "docstrings"))
    assert stdlib["split"]["heldout"] > 0
    assert docstrings["sources"][0]["split"] == "heldout"
    assert docstrings["sources"][0]["path"] == docstrings["tokenizer"]["reuse"] == f"datasets/{stdlib['name']}"
