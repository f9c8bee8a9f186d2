"""What a plan says: memory as the engine really holds it, time only where it is known, and what would fit."""

import json
import sys
from pathlib import Path
from subprocess import run as run_process
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import luban
from cluster.plan import memory, pace, plan
from cluster.plan.devices import KNOWN, device
from cluster.plan.memory import Setup
from cluster.plan.plan import Question
from cluster.plan.scale import held_by, own
from data import settings
from data.errors import UserError
from tests.bench.plan import held, held_since
from tests.ranks import launch
from tests.trainer.records import begin
from tests.trainer.records import run as recorded  # noqa: F401  (a fixture)
from trainer import sizes, zero
from trainer.engine import Engine
from trainer.jsonl import Appender
from trainer.models.build import build
from trainer.optimizer import freeze, parameter_groups
from trainer.recipe import Recipe
from trainer.shape import Shape
from trainer.world import World

VOCAB = 200
TINY = (
    "model.context=24", "model.hidden_size=72", "model.num_hidden_layers=2", "model.num_attention_heads=4",
    "model.num_key_value_heads=2", "train.batch_rows=12", "engine.micro_batch=3", "model.attention=full",
    f"model.vocab_size={VOCAB}",
)  # fmt: skip
BF16, UNTIED = "engine.precision=bf16", "model.tie_word_embeddings=false"
FROZEN = 'train.trainable=["model.layers.1.*", "model.norm.weight"]'
FAMILIES = ("llama", "gpt2", "bert", "t5", "transformer")
VARIANTS = ((), (BF16,), (BF16, "engine.micro_batch=12"), (UNTIED,), (FROZEN,))
FAMILIES = ("llama", "gpt2", "bert", "t5", "transformer")
OTHERS = [
    (f"engine.zero_stage={stage}", f"model.family={family}", "model.attention=document", *more)
    for stage, family, *more in ((1, "gpt2"), (3, "gpt2"), (2, "bert"), (3, "t5", UNTIED, BF16), (2, "transformer"))
]
"""Other families: a stage each, since what a stage does with a parameter doesn't depend on whose it is."""
SCALARS = 4096
"""Bytes of what an engine holds beside its state: counters, norms, flags."""
LARGE = (
    "model.vocab_size=32000", "model.hidden_size=4096", "model.num_hidden_layers=32", "model.num_attention_heads=32",
    "model.num_key_value_heads=8", "model.intermediate_size=14336", "model.context=4096", "train.batch_rows=256",
    "launch.ranks=16", "launch.gpus_per_rank=1",
)  # fmt: skip


def recipe_of(*more: str) -> Recipe:
    """The tiny recipe with changes."""
    return settings.load(Recipe, None, [*TINY, *more])


def setup_of(recipe: Recipe, ranks: int, gpu: bool = False) -> Setup:
    """As a plan makes it."""
    return Setup.of(recipe, recipe.model.vocab_size or VOCAB, ranks, gpu)


def observed(world: World, recipes: list[Recipe]) -> list[dict[str, Any]]:
    """Of an engine of each recipe after an update: bytes that the rank holds, its buckets, its pieces to save."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    found = []
    for recipe in recipes:
        before = held()
        bf16, shape = recipe.engine.bf16(False), Shape.of(recipe, world.size)
        model = build(recipe.model, VOCAB)
        freeze(model, recipe.train.trainable)
        groups = parameter_groups(model.named_parameters(), 0.1)
        engine = Engine(model, groups, recipe, world, shape.micro_batch, shape.accumulation, bf16)
        del model, groups
        tokens = torch.zeros(shape.micro_batch, recipe.model.context, dtype=torch.long)
        for number in range(1, shape.accumulation + 1):
            inputs = [tokens] * (3 if recipe.model.is_encoder_decoder else 2)
            engine.backward(engine.model(*inputs), 1000, last=number == shape.accumulation)
        engine.step(1e-3)
        del tokens, inputs
        rest = held_since(before)
        bucket = getattr(engine._engine.optimizer, "reduce_bucket_size", None)
        pieces = sorted((span.name, span.start, span.count) for span in engine.spans())
        extra = engine.extra
        found.append({"rest": rest, "bucket": bucket, "pieces": pieces, "exact": extra and extra[0]})
        engine._engine.destroy()
        del engine
    return found


def expected_pieces(setup: Setup, rank: int) -> list[tuple[str, int, int]]:
    runs = held_by(setup, setup.ranks)
    return sorted((name, start, count) for name, found in runs.items() for start, count in own(found, rank))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_at_rest_a_rank_holds_to_the_byte_what_the_plan_says(ranks, tmp_path):
    recipes = [
        recipe_of(f"engine.zero_stage={stage}", *variant)
        for variant in VARIANTS
        for stage in (0, 1, 2, 3)
        if not (stage == 0 and BF16 in variant)
    ]
    recipes += [recipe_of(*other) for other in OTHERS]
    everyone = launch(observed, ranks, recipes, folder=tmp_path)
    for rank, seen in enumerate(everyone):
        for recipe, told in zip(recipes, seen, strict=True):
            setup = setup_of(recipe, ranks)
            said = sum(memory.at_rest(setup).values())
            where = (recipe.engine.zero_stage, recipe.engine.precision, setup.shape, recipe.train.trainable)
            assert 0 <= told["rest"] - said < SCALARS, (where, told["rest"], memory.at_rest(setup))
            assert told["bucket"] in (None, setup.bucket), where
            assert told["pieces"] == expected_pieces(setup, rank), where
            assert sum(count for *_, count in told["pieces"]) == setup.owned(rank), where


@pytest.mark.slow
def test_what_exact_any_holds_is_in_the_plan(tmp_path):
    for stage in (1, 3):
        recipe = recipe_of(f"engine.zero_stage={stage}", "engine.exact=any")
        (told,) = launch(observed, 2, [recipe], folder=tmp_path)[0]
        said = memory.at_rest(setup_of(recipe, 2))["exact"]
        assert abs(told["exact"] - said) < 0.15 * said  # chunks that begin inside a parameter take a row of their own


def test_the_plan_moves_with_the_engine_s_buckets(monkeypatch):
    recipe = settings.load(Recipe, None, [*LARGE, "engine.zero_stage=2"])
    before = memory.peak(setup_of(recipe, 16, gpu=True)).total
    monkeypatch.setattr(sizes, "GRADIENT_BUCKET", 4 * sizes.GRADIENT_BUCKET)
    told = zero.configuration(recipe, 16, 1, 1, True, 10**10, True)["zero_optimization"]["reduce_bucket_size"]
    assert told == sizes.GRADIENT_BUCKET  # what the engine hands to DeepSpeed
    walk = [moment.held.get("buckets", 0) for moment in memory.moments(setup_of(recipe, 16, gpu=True))]
    assert max(walk) >= 2 * 2 * told
    monkeypatch.setitem(sizes.CHUNK_LOGITS, "cuda", 8 * sizes.CHUNK_LOGITS["cuda"])
    assert memory.peak(setup_of(recipe, 16, gpu=True)).total > before


def test_sharding_more_never_takes_more_at_rest_and_recomputing_never_more_at_the_peak():
    for ranks in (2, 8, 64):
        rests, peaks = [], []
        for stage in (1, 2, 3):
            setup = setup_of(settings.load(Recipe, None, [*LARGE, f"engine.zero_stage={stage}"]), ranks, gpu=True)
            rests.append(sum(count for name, count in memory.at_rest(setup).items() if name in ("weights", "masters")))
            again = settings.load(
                Recipe, None, [*LARGE, f"engine.zero_stage={stage}", "engine.activation_checkpointing=true"]
            )
            peaks.append((memory.peak(setup_of(again, ranks, gpu=True)).total, memory.peak(setup).total))
        assert rests == sorted(rests, reverse=True)
        assert all(checkpointed < plain for checkpointed, plain in peaks)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_of_every_family_and_its_walk_end_with_nothing_left_over(family):
    recipe = settings.load(Recipe, None, [f"model.family={family}", "model.preset=base" if family != "gpt2" else
                                          "model.preset=small", "engine.zero_stage=2"])  # fmt: skip
    setup = setup_of(recipe, 2)
    assert set(setup.trained) == set(setup.names) and len(setup.names) == len(setup.trained)
    walked = [moment.name for moment in memory.moments(setup)]
    blocks = recipe.model.num_hidden_layers + recipe.model.is_encoder_decoder * recipe.model.decoder_layers
    assert {name for name in walked if "of block" in name} == {f"backward of block {n}" for n in range(blocks)}
    assert walked.index(f"backward of block {blocks - 1}") < walked.index("backward of block 0")
    again = memory.peak(setup_of(recipe.model_copy(update={"engine": recipe.engine.model_copy(
        update={"activation_checkpointing": True})}), 2))  # fmt: skip
    assert again.total < memory.peak(setup).total


def test_what_is_not_known_is_not_guessed():
    found = plan.plan(recipe_of(), Question())
    for name in ("step_s", "tokens_per_day", "total_s", "stall_s", "write_s", "cost", "energy_kwh", "limit_bytes"):
        assert getattr(found, name) is None
    assert found.fits is None and found.suggestion is None
    assert plan.text(found).count("n/a") == 8
    assert json.loads(json.dumps(plan.as_json(found)))["step_s"] is None


def test_time_cost_and_energy_follow_from_a_stated_efficiency():
    recipe = settings.load(Recipe, None, [*LARGE, "train.steps=1000"])
    asked = Question(device="h100", efficiency=0.4, price=2.0, copy_gb_s=10, disk_gb_s=5)
    found = plan.plan(recipe, asked)
    flops = 6 * (7_110_660_096 - 32000 * 4096) + 6 * 32 * 4096 * 4096  # PaLM's count, by hand; tied embeddings stay
    flops += 6 * 32000 * 4096
    assert found.step_s == pytest.approx(flops * 256 * 4096 / 16 / (989.4e12 * 0.4), rel=1e-6)
    assert found.total_s == pytest.approx(1000 * found.step_s)
    assert found.tokens_per_day == pytest.approx(256 * 4096 / found.step_s * 86400)
    assert found.cost == pytest.approx(2.0 * 16 * found.total_s / 3600)
    assert found.energy_kwh == pytest.approx(0.7 * 16 * found.total_s / 3600)
    assert found.checkpoint_bytes == 12 * 7_110_660_096
    assert found.write_s == pytest.approx(found.checkpoint_bytes / 5e9)
    assert found.stall_s == pytest.approx(found.checkpoint_bytes / 16 / 10e9, rel=1e-3)
    slower = plan.plan(settings.load(Recipe, None, [*LARGE, "engine.activation_checkpointing=true"]), asked)
    assert slower.step_s == pytest.approx(found.step_s * 4 / 3)


def test_a_recipe_that_does_not_fit_is_told_by_how_much_and_what_would():
    words = [*LARGE, "--device", "h100", "--ranks-per-node", "8"]
    outcome = CliRunner().invoke(luban.app, ["plan", *words])
    assert isinstance(outcome.exception, UserError)
    assert "DOES NOT FIT" in outcome.stdout
    message = str(outcome.exception)
    assert "more than the 72 GB that are to be filled; this would fit: " in message
    suggested = [word for word in message.partition("would fit: ")[2].split() if "=" in word]
    assert "launch.nodes=2" in suggested
    again = CliRunner().invoke(luban.app, ["plan", *LARGE, *suggested, "--device", "h100", "--json"])
    assert again.exception is None and json.loads(again.stdout)["fits"] is True


def test_a_model_that_no_setting_makes_fit_says_so():
    found = plan.plan(settings.load(Recipe, None, list(LARGE)), Question(memory_gb=0.5))
    assert "no stage, micro-batch or number of ranks would" in (plan.refusal(found) or "")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Question(device="h300"), "--device h300 is not known; known are b200, h200"),
        (Question(efficiency=0.4), "has none in fp32: take --measure"),
        (Question(device="h100", efficiency=40.0), "is a share of the device's peak: above 0, at most 1"),
        (Question(measure=True, efficiency=0.4), "give one of them"),
    ],
)
def test_what_cannot_be_is_refused(asked, words):
    with pytest.raises(UserError, match=words):
        plan.check(asked)
        plan.plan(recipe_of(), asked)


def test_two_networks_are_not_planned_as_one():
    with pytest.raises(UserError, match="adversarial trains two and samples from one"):
        plan.plan(recipe_of("objective.kind=adversarial"), Question())


def test_every_known_gpu_has_the_meters_peak_and_a_machine_s_own_is_found(tmp_path):
    assert all(each.peak("bf16") for each in KNOWN.values() if each.gpu)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 7\n")
    assert device(None, True, tmp_path) == KNOWN["h200"]
    assert device(None, True, tmp_path / "none").name == "a GPU"
    assert device(None, False, tmp_path / "none").name == "cpu"


def test_a_plan_loads_neither_torch_nor_ray():
    text = (
        "import sys, luban; from typer.testing import CliRunner; "
        f"print(CliRunner().invoke(luban.app, {['plan', *TINY]!r}).stdout); "
        "sys.exit(sorted({'torch', 'deepspeed', 'ray', 'wandb'} & set(sys.modules)) or 0)"
    )
    done = run_process([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "memory of a rank" in done.stdout


def test_a_vocabulary_comes_from_the_dataset_and_is_otherwise_stated_to_be_assumed(luban):
    folder = f"data.dataset={luban.home}/datasets/tiny"
    told = json.loads(luban("plan", "own", folder, "--json"))
    assert told["vocab_size"] == 1024 and told["vocab_source"].startswith("the tokenizer of")
    unbuilt = json.loads(luban("plan", "own", "data.dataset=nowhere", "--json"))
    assert unbuilt["vocab_size"] == 32768 and unbuilt["vocab_source"].startswith("assumed: nowhere isn't built")


def metrics(run: Path, attempt: int, step_ms: list[float]) -> None:
    """Lines of metrics as the tracker writes them."""
    file = Appender(run / "metrics.jsonl")
    for number, value in enumerate(step_ms, 1):
        file.append({"line": number, "attempt": attempt, "train/step": number, "speed/step_ms": value})
    file.close()


def test_hours_come_from_what_is_stated_or_measured_and_from_nothing_else(recorded):  # noqa: F811
    recipe = recipe_of("train.steps=100")
    assert pace.hours(recipe) is None
    assert pace.hours(recipe, step_s=36.0) == pytest.approx(1.0)
    assert pace.minutes(1.0) == 90  # a quarter more, and a quarter of an hour to start
    assert pace.hours(recipe, recorded) is None
    writer = begin(recorded)
    writer.append("step", step=20, positions=[0, 8], verdict="applied", loss=2.5)
    assert pace.hours(recipe, recorded) is None
    metrics(recorded, 1, [1000.0, 2000.0, 9000.0])
    assert pace.hours(recipe, recorded, step_s=36.0) == pytest.approx(0.8)


@pytest.mark.slow
def test_a_measured_plan_is_of_real_updates_here(luban):
    told = json.loads(luban("plan", "own", *TINY, "launch.ranks=2", "--measure", "--json"))
    assert told["measured"]["ranks"] in (1, 2) and told["step_s"] == told["measured"]["step_s"] > 0
    assert told["stall_s"] > 0 and told["write_s"] > 0 and told["measured"]["device"] == "cpu"
    assert "measured here" in told["step_source"]


def test_a_run_s_own_speed_says_how_fast_another_recipe_would_be(recorded):  # noqa: F811
    recipe = recipe_of("launch.ranks=1")
    begin(recorded)
    file = recorded / "attempts" / "0001.jsonl"
    start = json.loads(file.read_text().splitlines()[0])
    assert "device" not in start
    metrics(recorded, 1, [500.0, 400.0, 450.0])
    half, told = recipe_of("train.batch_rows=6"), pace.of_run(recorded)
    assert told[0] == pytest.approx(0.45)
    with_device = told[1] | {"device": "cpu (some, AVX2)", "world": 1}
    found = pace.scaled(setup_of(half, 1), setup_of(recipe, 1), told[0], with_device, recorded, "cpu")
    assert found.step_s == pytest.approx(0.225)
    with pytest.raises(UserError, match="this plan is for NVIDIA H200: its speed says nothing"):
        pace.scaled(setup_of(half, 1), setup_of(recipe, 1), told[0], with_device, recorded, "NVIDIA H200")
