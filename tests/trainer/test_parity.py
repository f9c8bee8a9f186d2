"""DeepSpeed behind our engine against a plain, unsharded PyTorch loop with torch's AdamW."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.ranks import launch
from tests.trainer import toy
from trainer.optimizer import parameter_groups
from trainer.recipe import Recipe
from trainer.schedule import learning_rate
from trainer.world import World

CLIP = 0.2  # below the norms of all 20 steps, so that it always acts


@lru_cache
def plain(clip: float | None) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, gradient norms before clipping, and parameters after 20 steps of an ordinary loop."""
    chosen = toy.recipe(optimizer__clip=clip)
    model = toy.new_model(chosen)
    optimizer = torch.optim.AdamW(
        parameter_groups(model.named_parameters(), chosen.optimizer.weight_decay),
        lr=chosen.optimizer.lr, betas=chosen.optimizer.betas, eps=chosen.optimizer.eps, foreach=False,
    )  # fmt: skip
    losses, norms = [], []
    for step in range(toy.STEPS):
        inputs, labels = toy.rows(step)
        logits = model(inputs)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip or 1e9)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, chosen.schedule, chosen.optimizer.lr, chosen.train.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms, {name: p.detach().clone() for name, p in model.named_parameters()}


def sharded(world: World, chosen: Recipe) -> Any:
    """The same by the engine, 2 rows a forward."""
    training = toy.Training(world, chosen, micro_batch=2)
    steps = [training.step(number) for number in range(toy.STEPS)]
    return steps, {name: parts["weight"] for name, parts in training.state().items()}


@pytest.mark.slow
@pytest.mark.parametrize("clip", [None, CLIP])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_trains_as_plain_pytorch(stage: int, size: int, clip: float | None, tmp_path: Path) -> None:
    chosen = toy.recipe(optimizer__clip=clip, engine__zero_stage=stage)
    losses, norms, parameters = plain(clip)
    if clip is not None:
        assert min(norms) > CLIP
    steps, weights = launch(sharded, size, chosen, folder=tmp_path)[0]
    assert all(applied for _, _, applied in steps)
    for (loss, norm, _), expected_loss, expected_norm in zip(steps, losses, norms, strict=True):
        assert loss == pytest.approx(expected_loss, abs=3e-6)
        assert norm == pytest.approx(expected_norm, rel=1e-5)
    for name, expected in parameters.items():
        assert (weights[name].view_as(expected) - expected).abs().max() < 2e-5, name


def poisoned(world: World, chosen: Recipe) -> Any:
    training = toy.Training(world, chosen, micro_batch=2)
    training.step(0)
    before = training.state()
    verdict = training.step(1, poison=float("nan"))
    after = training.state()
    same = all(torch.equal(before[name][part], after[name][part]) for name in before for part in before[name])
    return verdict[2], same, training.engine.adam_step(), training.step(2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any(stage: int, tmp_path: Path) -> None:
    for applied, same, adam_step, after in launch(poisoned, 2, toy.recipe(engine__zero_stage=stage), folder=tmp_path):
        assert (applied, same, adam_step) == (False, True, 1)
        assert after[2]
        assert after[0] == after[0]


def mixed(world: World, chosen: Recipe) -> Any:
    training = toy.Training(world, chosen, micro_batch=2, bf16=True)
    return [training.step(number)[0] for number in range(toy.STEPS)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_with_fp32_masters_follows_fp32(stage: int, tmp_path: Path) -> None:
    losses, _, _ = plain(None)
    found = launch(mixed, 2, toy.recipe(engine__zero_stage=stage), folder=tmp_path)[0]
    assert found == pytest.approx(losses, abs=2e-2)
    assert found != pytest.approx(losses, abs=1e-6)  # it really computes in bf16
