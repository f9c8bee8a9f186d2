"""Text from a model whose weights are sharded over ranks, between two steps of its training."""

from typing import Any

import pytest
import torch

from tests.ranks import launch
from tests.trainer import toy
from trainer.engine import Engine
from trainer.generate import generate
from trainer.generation.settings import Decoding
from trainer.models.build import build
from trainer.models.initialize import initialize
from trainer.optimizer import parameter_groups
from trainer.recipe import Model, Recipe
from trainer.world import World

PROMPTS = [[5, 9, 33, 2, 7, 7, 1], [8], [60, 12, 3]]
WAYS = (
    Decoding(9, temperature=1.0, seed=3, at_context="stop"),
    Decoding(8, num_beams=3, early_stopping=True, repetition_penalty=1.2),
)
FAMILIES = ("llama", "t5", "transformer")


def model_of(family: str) -> tuple[Recipe, Any]:
    sizes = {"context": toy.CONTEXT, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Model.model_validate({"family": family} | sizes)
    model = build(config, toy.VOCAB)
    initialize(model, 5)
    return toy.recipe(engine__zero_stage=3).model_copy(update={"model": config}), model


def texts(model: Any, lockstep: bool) -> list[Any]:
    return [generate(model, PROMPTS, way, eos_id=[4, 11, 50, 70, 77], start_id=0, lockstep=lockstep) for way in WAYS]


def sampled(world: World) -> dict[str, list[Any]]:
    """Each family's texts before, between and after two updates that move nothing to speak of."""
    made = {}
    for family in FAMILIES:
        recipe, model = model_of(family)
        engine = Engine(model, parameter_groups(model.named_parameters(), 0.0), recipe, world, 2, 1, bf16=False)
        made[family] = [texts(engine.module, True)]
        ids = torch.arange(40).view(2, 20)
        given = (ids, ids) if recipe.model.is_encoder_decoder else (ids,)
        for _ in range(2):
            engine.backward(engine.model(*given, ids.roll(-1, 1)), 40 * world.size, last=True)
            engine.step(1e-9)
            made[family].append(texts(engine.module, True))
    return made


@pytest.mark.slow
def test_ranks_that_hold_a_shard_each_make_the_text_of_the_whole_model(tmp_path):
    alone = {family: [texts(model_of(family)[1], False)] * 3 for family in FAMILIES}
    assert launch(sampled, 2, folder=tmp_path) == [alone, alone]
