"""DeepSpeed behind our engine against a plain, unsharded PyTorch loop with torch's AdamW."""

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.ranks import launch
from tests.trainer import toy
from trainer.optimizer import parameter_groups
from trainer.schedule import learning_rate
from trainer.world import World

CLIP = 0.2  # below the norms of all 20 steps, so that it always acts
STAGES, CLIPS = (0, 1, 2, 3), (None, CLIP)


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


def sharded(world: World) -> Any:
    """The same by the engine, 2 rows a forward, by stage and clipping."""
    told = {}
    for stage, clip in product(STAGES, CLIPS):
        chosen = toy.recipe(optimizer__clip=clip, engine__zero_stage=stage)
        training = toy.Training(world, chosen, micro_batch=2)
        steps = [training.step(number) for number in range(toy.STEPS)]
        told[stage, clip] = steps, {name: parts["weight"] for name, parts in training.state().items()}
    return told


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    """By number of ranks."""
    folder = tmp_path_factory.mktemp("parity")
    return cache(lambda size: launch(sharded, size, folder=folder)[0])


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_as_plain_pytorch(
    trained: Callable[[int], Any], stage: int, size: int, clip: float | None
) -> None:
    losses, norms, parameters = plain(clip)
    if clip is not None:
        assert min(norms) > CLIP
    steps, weights = trained(size)[stage, clip]
    assert all(applied for _, _, applied in steps)
    for (loss, norm, _), expected_loss, expected_norm in zip(steps, losses, norms, strict=True):
        assert loss == pytest.approx(expected_loss, abs=3e-6)
        assert norm == pytest.approx(expected_norm, rel=1e-5)
    for name, expected in parameters.items():
        assert (weights[name].view_as(expected) - expected).abs().max() < 2e-5, name


def poisoned(world: World) -> Any:
    """By stage."""
    told = []
    for stage in STAGES:
        training = toy.Training(world, toy.recipe(engine__zero_stage=stage), micro_batch=2)
        training.step(0)
        before = training.state()
        verdict = training.step(1, poison=float("nan"))
        after = training.state()
        same = all(torch.equal(before[name][part], after[name][part]) for name in before for part in before[name])
        told.append((verdict[2], same, training.engine.adam_step(), training.step(2)))
    return told


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any(tmp_path: Path) -> None:
    for rank in launch(poisoned, 2, folder=tmp_path):
        assert len(rank) == len(STAGES)
        for stage, (applied, same, adam_step, after) in enumerate(rank):
            assert (applied, same, adam_step) == (False, True, 1), stage
            assert after[2], stage
            assert after[0] == after[0], stage


def mixed(world: World) -> Any:
    """Losses in bf16, by stage."""
    told = {}
    for stage in STAGES[1:]:
        training = toy.Training(world, toy.recipe(engine__zero_stage=stage), micro_batch=2, bf16=True)
        told[stage] = [training.step(number)[0] for number in range(toy.STEPS)]
    return told


@pytest.mark.slow
def test_bf16_with_fp32_masters_follows_fp32(tmp_path: Path) -> None:
    losses, _, _ = plain(None)
    for stage, found in launch(mixed, 2, folder=tmp_path)[0].items():
        assert found == pytest.approx(losses, abs=2e-2), stage
        assert found != pytest.approx(losses, abs=1e-6), stage  # it really computes in bf16
