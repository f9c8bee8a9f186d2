"""BERT, T5 and the Transformer under the real engine at ZeRO 1, 2 and 3, against a plain, unsharded PyTorch loop.

No parameter stays whole under ZeRO 3 here, however small: each is fetched for its module's forward and let go.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import launch
from tests.trainer import toy
from tests.trainer.families import VOCABULARY, config, padded, real, tokens
from trainer import sizes
from trainer.engine import Engine
from trainer.models.build import build
from trainer.models.head import LM, Head
from trainer.models.initialize import initialize
from trainer.optimizer import parameter_groups
from trainer.recipe import Recipe
from trainer.schedule import learning_rate
from trainer.world import World

FAMILIES = ("bert", "t5", "transformer")
KEYS = ("key.bias", "k_proj.bias")
"""A softmax doesn't see what all keys have in common: their gradient is rounding, which Adam makes steps of."""
ROWS, STEPS, CLIP = 8, 4, 0.2
RECIPE = {"train__steps": STEPS, "schedule__warmup_steps": 2, "optimizer__clip": CLIP, "train__batch_rows": ROWS}


def new_model(family: str) -> Any:
    """With its initial weights; T5's two blocks share a bias and are computed twice, its output matrix is its own."""
    head = Head("pretraining") if family == "bert" else LM
    changes = {"tie_word_embeddings": False} if family == "t5" else {"num_hidden_layers": 1}
    model = build(config(family, **changes), VOCABULARY, head, activation_checkpointing=family == "t5")
    initialize(model, 1)
    return model


def loss_of(model: Any, family: str, step: int, rows: slice) -> Tensor:
    """Of some rows of a step; later rows are shorter and have fewer labels, the last one has none."""
    source, inside = tokens(ROWS, 20, step), real([20 - 2 * row for row in range(ROWS)], 20)
    if family == "bert":
        labels = source.masked_fill(~inside | (source % 3 > 0), -100)
        labels[-1] = -100
        follows = torch.arange(ROWS) % 2
        return model(source[rows], labels[rows], padded(inside[rows]), None, follows[rows], 2.0)
    target = tokens(ROWS, 12, step + 100)
    asked = real([12 - row for row in range(ROWS)], 12)
    asked[-1] = False
    labels, paddings = target.masked_fill(~asked, -100), [padded(each[rows]) for each in (inside, asked)]
    return model(source[rows], target.roll(1, 1)[rows], labels[rows], paddings[0], 0.1, paddings[1])


def count_of(family: str) -> int:
    """What a loss is divided by; all that matters here is that it is one number."""
    return 40 if family == "bert" else 70


@lru_cache
def plain(family: str) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses, gradient norms before clipping, and parameters of an ordinary loop."""
    chosen, model = toy.recipe(**RECIPE), new_model(family)
    groups = parameter_groups(model.named_parameters(), chosen.optimizer.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=chosen.optimizer.betas, eps=chosen.optimizer.eps)
    losses, norms = [], []
    for step in range(STEPS):
        loss = loss_of(model, family, step, slice(0, ROWS)) / count_of(family)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, chosen.schedule, chosen.optimizer.lr, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms, {name: each.detach().clone() for name, each in model.named_parameters()}


def sharded(world: World, chosen: Recipe, families: tuple[str, ...]) -> Any:
    """The same by the engine, 2 rows a forward; and what each model decodes, or encodes, afterwards."""
    sizes.PERSISTENT = 0
    return {family: _trained(world, chosen, family) for family in families}


def _trained(world: World, chosen: Recipe, family: str) -> Any:
    model = new_model(family)
    groups = parameter_groups(model.named_parameters(), chosen.optimizer.weight_decay)
    engine = Engine(model, groups, chosen, world, 2, ROWS // 2 // world.size, bf16=False)
    steps = []
    for step in range(STEPS):
        total = 0.0
        for first in range(2 * world.rank, ROWS, 2 * world.size):
            loss = loss_of(engine.model, family, step, slice(first, first + 2))
            engine.backward(loss, count_of(family), last=first + 2 * world.size >= ROWS)
            total += loss.item()
        verdict = engine.step(learning_rate(step, chosen.schedule, chosen.optimizer.lr, STEPS))
        assert verdict.applied
        steps.append((world.total_floats([total])[0] / count_of(family), float(verdict.grad_norm)))
    assert chosen.engine.zero_stage < 3 or not any(each.numel() for each in model.parameters())
    pieces = [(span.name, span.start, span.tensors["weight"].clone()) for span in engine.spans()]
    whole = {name: torch.full(shape, float("nan")).view(-1) for name, shape in engine.shapes().items()}
    for part in world.gather(pieces):
        for name, start, weight in part:
            whole[name][start : start + len(weight)] = weight
    return steps, whole, _read(engine.module.eval(), family)


def _read(model: Any, family: str) -> Tensor:
    ids = tokens(2, 9)
    with torch.no_grad():
        return model(ids)[0] if family == "bert" else model.decode(ids, model.encode(ids))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_family_trains_at_every_stage_as_plain_pytorch(stage: int, tmp_path: Path) -> None:
    chosen = toy.recipe(engine__zero_stage=stage, **RECIPE)
    found = launch(sharded, 2, chosen, FAMILIES, folder=tmp_path)[0]
    for family, (steps, weights, read) in found.items():
        losses, norms, parameters = plain(family)
        assert min(norms) > CLIP
        for (loss, norm), expected_loss, expected_norm in zip(steps, losses, norms, strict=True):
            assert loss == pytest.approx(expected_loss, rel=3e-6), family
            assert norm == pytest.approx(expected_norm, rel=2e-5), family
        for name, expected in parameters.items():
            if name.endswith(KEYS):
                continue
            assert (weights[name].view_as(expected) - expected).abs().max() < 2e-5, name
        model = new_model(family)
        model.load_state_dict({name: each.view_as(parameters[name]) for name, each in weights.items()}, strict=False)
        assert torch.allclose(read, _read(model.eval(), family), atol=1e-4)


@pytest.mark.slow
def test_every_family_is_bitwise_the_same_at_any_topology(tmp_path: Path) -> None:
    found = []
    for stage, size in ((1, 1), (3, 2)):
        chosen = toy.recipe(engine__zero_stage=stage, engine__exact="any", **RECIPE)
        found.append(launch(sharded, size, chosen, FAMILIES, folder=tmp_path)[0])
    for family in FAMILIES:
        (alone, weights, _), (shared, others, _) = (run[family] for run in found)
        assert [norm for _, norm in alone] == [norm for _, norm in shared]
        assert all(torch.equal(weights[name], others[name]) for name in weights), family
