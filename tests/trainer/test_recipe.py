"""A recipe's own checks, and the recipes that come along."""

import pytest

from data import settings
from data.errors import UserError
from data.recipe import RECIPES as DATASET_RECIPES
from data.recipe import DatasetRecipe
from trainer.recipe import RECIPES, Model, Recipe


def load(*overrides: str) -> Recipe:
    return settings.load(Recipe, None, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.hidden_size=64"], "hidden_size 64 does not divide by num_attention_heads 6"),
        (
            ["model.hidden_size=72", "model.num_attention_heads=8"],
            "hidden_size / num_attention_heads = 9, must be even",
        ),
        (["model.num_key_value_heads=4"], "num_attention_heads 6 does not divide by num_key_value_heads 4"),
        (["model.hidden_size=60"], "model.hidden_size: must be a multiple of 8 (got 60)"),
        (["train.steps=40"], "schedule.warmup_steps 40 must be below train.steps 40"),
        (["schedule.kind=wsd", "train.steps=139"], "warmup_steps + schedule.decay_steps must not exceed train.steps"),
        (["engine.zero_stage=0", "engine.precision=bf16"], "engine.zero_stage 0 is for comparison in fp32"),
        (["engine.zero_stage=0", "engine.exact=any"], "engine.exact any needs stage 1, 2 or 3"),
        (["log.profile=[5, 5]"], "log.profile [5, 5] must be [from, to] with 0 <= from < to"),
        (["log.profile=[-1, 5]"], "log.profile [-1, 5] must be"),
        (["optimizer.kind=muon"], "optimizer.kind: DeepSpeed's Muon clips its orthogonalised update, not the gradient"),
        (["adapter.kind=prompt", "adapter.tokens=250"], "adapter.tokens 250 leaves 6 tokens of model.context 256"),
        (["name=a/b"], "name: String should match pattern"),
        (["name=.."], "name: String should match pattern"),
        (["seed=-1"], "seed: Input should be greater than or equal to 0 (got -1)"),
        (["seed=9223372036854775808"], "seed: Input should be less than"),
        (["optimizer.clip=0"], "optimizer.clip: Input should be greater than 0 (got 0)"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_their_values(overrides, message):
    with pytest.raises(UserError) as caught:
        load(*overrides)
    assert message in str(caught.value)


def test_several_contradictions_are_told_together():
    with pytest.raises(UserError) as caught:
        load("train.steps=10", "engine.zero_stage=0", "engine.precision=bf16", "log.profile=[9, 3]")
    for part in ("warmup_steps 40", "zero_stage 0", "log.profile [9, 3]"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.steps=41"],
        ["train.steps=1", "schedule.kind=constant"],
        ["train.steps=1", "schedule.warmup_steps=0"],
        ["schedule.kind=wsd", "train.steps=140"],
        ["engine.zero_stage=0", "engine.precision=fp32"],
        ["engine.zero_stage=0", "engine.precision=auto"],
        ["engine.zero_stage=1", "engine.precision=bf16"],
        ["log.profile=[0, 1]"],
        ["optimizer.clip=null"],
        ["model.num_key_value_heads=6"],
    ],
)
def test_what_is_just_allowed_is_allowed(overrides):
    load(*overrides)


def test_sizes_left_open_are_derived():
    assert Model(hidden_size=96, num_attention_heads=6).head_size == 16
    assert Model(hidden_size=192).mlp_size == 512
    assert Model(hidden_size=200, num_attention_heads=10).mlp_size == 576  # 533.3, up to a multiple of 64
    assert Model(intermediate_size=100).mlp_size == 100


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along_load_and_survive_a_dump(path, tmp_path):
    recipe = settings.load(Recipe, path)
    (tmp_path / "recipe.yaml").write_text(settings.dump(recipe))
    assert settings.load(Recipe, tmp_path / "recipe.yaml") == recipe
    assert recipe.ancestor is None


def test_the_recipes_of_the_manual_come_along():
    assert {path.stem for path in RECIPES.glob("*.yaml")} >= {"stdlib", "docstrings", "own"}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_that_comes_along_reads_what_a_dataset_recipe_that_comes_along_builds(path):
    built = {}
    for each in sorted(DATASET_RECIPES.glob("*.yaml")):
        dataset = settings.load(DatasetRecipe, each)
        built[f"datasets/{dataset.name}"] = dataset
    recipe = settings.load(Recipe, path)
    dataset = built[recipe.data.dataset]
    if dataset.kind == "examples":
        task = dataset.task
        encoder = task.layout == "encoder"
        assert (recipe.model.family == "bert") == encoder
        assert recipe.model.is_encoder_decoder == (task.layout == "encoder_decoder")
        assert not recipe.evaluate.prompts or recipe.model.is_decoder


def test_a_single_fp32_rank_shards_nothing_unless_the_recipe_says_so():
    assert [load().engine.stage(ranks, bf16) for ranks, bf16 in ((1, False), (1, True), (2, False))] == [0, 2, 2]
    assert load("engine.exact=any").engine.stage(1, bf16=False) == 2
    assert load("engine.zero_stage=1").engine.stage(1, bf16=False) == 1
