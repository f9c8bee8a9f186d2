"""The other optimizers and rates: Adam with L2 and layer-wise learning rates, against plain PyTorch and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.ranks import launch
from tests.trainer import toy
from tests.trainer.saving import save
from trainer import checkpoint
from trainer.checkpoint import MOMENTS, WEIGHT, Checkpoint, folder_name
from trainer.models.depth import depth, rate_scale
from trainer.models.shapes import decays
from trainer.recipe import Model
from trainer.schedule import learning_rate
from trainer.world import World

STEPS, CUT = 10, 4
KINDS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer__kind": "adam", "optimizer__weight_decay": 0.3, "optimizer__clip": 0.2},
    "layers": {"optimizer__layer_decay": 0.5, "schedule__kind": "inverse_sqrt"},
}
LAYERS = {"model.embed": 0.125, "model.layers.0.": 0.25, "model.layers.1.": 0.5, "model.norm.": 1.0}
"""What layer_decay=0.5 makes of the toy's rates: two blocks."""


def plain(kind: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and parameters of an ordinary loop with torch's optimizer, a group a parameter."""
    chosen = toy.recipe(**KINDS[kind])
    model = toy.new_model(chosen)
    rates = LAYERS if kind == "layers" else {"": 1.0}
    groups = [
        {
            "params": [parameter],
            "weight_decay": chosen.optimizer.weight_decay if decays(name, parameter.dim()) else 0.0,
            "factor": next(rate for part, rate in rates.items() if name.startswith(part)),
        }
        for name, parameter in model.named_parameters()
    ]
    made = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    optimizer = made(groups, lr=1.0, betas=chosen.optimizer.betas, eps=chosen.optimizer.eps, foreach=False)
    losses = []
    for step in range(STEPS):
        inputs, labels = toy.rows(step)
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        if chosen.optimizer.clip:
            nn.utils.clip_grad_norm_(model.parameters(), chosen.optimizer.clip)
        rate = learning_rate(step, chosen.schedule, chosen.optimizer.lr, chosen.train.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}


def sharded(world: World, root: Path) -> Any:
    """Each kind at each stage: all steps, a checkpoint in between; and from it the rest again, at another stage."""
    told = {}
    for kind, settings in KINDS.items():
        for stage in (1, 2, 3):
            run = root / f"{kind}-{stage}"
            training = toy.Training(world, toy.recipe(engine__zero_stage=stage, **settings), micro_batch=2)
            losses = [training.step(number)[0] for number in range(CUT)]
            state = {"step": CUT, "attempt": 1, "adam_step": training.engine.adam_step(), "zero_stage": stage}
            save(run, folder_name(CUT, 1), state, training.engine.spans(), None, world)
            losses += [training.step(number)[0] for number in range(CUT, STEPS)]
            found = Checkpoint(run / checkpoint.FOLDER / folder_name(CUT, 1))
            resumed = []
            for other in (stage, stage % 3 + 1):
                again = toy.Training(world, toy.recipe(engine__zero_stage=other, seed=2, **settings), micro_batch=2)
                again.engine.load(found.read, found.state["adam_step"])
                resumed.append(([again.step(number)[0] for number in range(CUT, STEPS)], again.state()))
            told[kind, stage] = losses, training.state(), resumed
    return told if world.rank == 0 else None


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("tuning")
    return launch(sharded, 2, folder, folder=folder)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_trains_as_plain_pytorch(trained, kind, stage):
    losses, parameters = plain(kind)
    found, state, _ = trained[kind, stage]
    assert found == pytest.approx(losses, abs=3e-6)
    for name, expected in parameters.items():
        assert (state[name][WEIGHT].view_as(expected) - expected).abs().max() < 2e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_resumed_run_is_the_same_one(trained, kind, stage):
    losses, state, ((same, at_same), (other, _)) = trained[kind, stage]
    assert same == losses[CUT:]
    assert all(torch.equal(state[n][part], at_same[n][part]) for n in state for part in (WEIGHT, *MOMENTS))
    assert other == pytest.approx(losses[CUT:], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("model.embed_tokens.weight", 0), ("model.layers.0.self_attn.q_proj.weight", 1),
        ("model.layers.11.mlp.down_proj.lora_A.weight", 12), ("model.norm.weight", 13), ("lm_head.weight", 13),
        ("transformer.wte.weight", 0), ("transformer.wpe.weight", 0), ("transformer.h.3.attn.c_attn.weight", 4),
        ("transformer.ln_f.bias", 13), ("bert.embeddings.LayerNorm.weight", 0),
        ("bert.embeddings.position_embeddings.weight", 0), ("bert.encoder.layer.5.output.dense.bias", 6),
        ("bert.pooler.dense.weight", 13), ("cls.predictions.bias", 13), ("classifier.weight", 13),
    ],
)  # fmt: skip
def test_the_level_of_a_parameter_is_read_from_its_name(name, level):
    assert depth(name, 12) == level


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("shared.weight", 0), ("encoder.block.1.layer.0.SelfAttention.q.weight", 2),
        ("encoder.final_layer_norm.weight", 4), ("decoder.block.0.layer.1.EncDecAttention.k.weight", 4),
        ("decoder.block.4.layer.2.DenseReluDense.wo.weight", 8), ("decoder.final_layer_norm.weight", 9),
        ("lm_head.weight", 9),
    ],
)  # fmt: skip
def test_the_decoder_of_an_encoder_decoder_lies_on_top_of_its_encoder(name, level):
    assert depth(name, 8, decoder_from=3) == level


def test_rates_fall_by_the_decay_from_level_to_level():
    model = Model(num_hidden_layers=2)
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.x", "model.norm.weight"]
    assert [rate_scale(name, model, 0.5) for name in names] == [0.125, 0.25, 0.5, 1.0]
    assert {rate_scale(name, model, 1.0) for name in names} == {1.0}
