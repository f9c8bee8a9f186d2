"""Checkpoints across topologies: what any stage and world size saved, any other loads, and goes on from."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import launch
from tests.trainer import toy
from tests.trainer.saving import save
from trainer import checkpoint
from trainer.checkpoint import MOMENTS, WEIGHT, Checkpoint, folder_name, save_frozen
from trainer.manifest import pieces
from trainer.optimizer import freeze
from trainer.recipe import Recipe
from trainer.world import World

PARTS = (WEIGHT, *MOMENTS)
State = dict[str, dict[str, Tensor]]


STAGES, BEFORE, AFTER = (0, 1, 2, 3), (0, 1, 2), (3, 4, 5)
VARIANTS: dict[str, dict[str, Any]] = {"tied": {}, "untied": {"model__tie_word_embeddings": False}, "frozen": {}}
LEARNING = ("model.layers.1.*", "model.norm.weight")
OTHERS: dict[str, dict[str, Any]] = {"gpt2": {"model__family": "gpt2"}}
"""Variants that not every pair of stages is tried with."""
SAVES = {
    2: [*((stage, variant) for stage in STAGES for variant in VARIANTS), (2, "gpt2"), (3, "gpt2")],
    8: [(0, "tied"), (1, "frozen"), (2, "untied"), (3, "tied")],
}
"""(stage, variant), by number of ranks."""
Case = tuple[int, int, int, str]
"""(ranks that saved, their stage, stage that loads, variant)"""
FARTHER: dict[int, list[Case]] = {
    1: [(8, 3, 1, "tied"), (8, 1, 0, "frozen"), (2, 3, 1, "gpt2")],
    2: [(8, 2, 3, "untied"), (8, 0, 1, "tied")],
    3: [(8, 1, 2, "frozen"), (8, 3, 3, "tied"), (2, 2, 3, "gpt2")],
    4: [(2, 1, 3, "untied")],
    5: [(2, 3, 2, "tied")],
    6: [(2, 0, 1, "frozen")],
    7: [(8, 2, 0, "untied")],
    8: [(2, 2, 3, "untied"), (2, 3, 1, "frozen"), (8, 2, 2, "untied"), (8, 3, 3, "tied")],
}
"""By number of ranks that load."""


def cases(size: int) -> list[Case]:
    """Every pair of stages from 2 ranks to 1, 2 or 3, a variant each; where nothing changes, every variant; FARTHER."""
    variants = list(VARIANTS)
    near = [(a, b, variants[(a + 2 * b + size) % 3]) for a in STAGES for b in STAGES if (a + b + size) % 2 == 0]
    same = [(stage, stage, variant) for stage, variant in SAVES[2]] if size == 2 else []
    crossed = [(2, *case) for case in dict.fromkeys([*near, *same])] if size < 4 else []
    return [*crossed, *FARTHER[size]]


def named(case: Case, size: int) -> str:
    """For a message."""
    ranks, stage, mine, variant = case
    return f"stage {stage} on {ranks} ranks -> stage {mine} on {size}, {variant}"


def recipe(stage: int, variant: str, seed: int) -> Recipe:
    return toy.recipe(engine__zero_stage=stage, optimizer__clip=0.2, seed=seed, **(VARIANTS | OTHERS)[variant])


def new_model(chosen: Recipe, variant: str) -> nn.Module:
    model = toy.new_model(chosen)
    freeze(model, LEARNING if variant == "frozen" else ["*"])
    return model


def train_and_save(world: World, root: Path) -> Any:
    """A checkpoint of every stage and variant after 3 steps, its state, and the next 3 steps without a break."""
    told = {}
    for stage, variant in SAVES[world.size]:
        run, chosen = root / f"{world.size}-{stage}-{variant}", recipe(stage, variant, seed=1)
        model = new_model(chosen, variant)
        still = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
        base = world.gather(save_frozen(run, still) if world.rank == 0 else None)[0]
        training = toy.Training(world, chosen, micro_batch=2, model=model)
        for number in BEFORE:
            training.step(number)
        done = {"step": len(BEFORE), "attempt": 1}
        state = done | {"adam_step": training.engine.adam_step(), "zero_stage": stage}
        save(run, folder_name(len(BEFORE), 1), state, training.engine.spans(), base, world)
        at = training.state()
        told[world.size, stage, variant] = at, [training.step(number) for number in AFTER], training.state(), still
    return told if world.rank == 0 else None


def load_and_go_on(world: World, root: Path, wanted: list[Case]) -> Any:
    """Each case loaded into an engine of other initial weights: its state, AdamW's count, and 3 more steps."""
    told = {}
    for ranks, saved, stage, variant in wanted:
        found = Checkpoint(root / f"{ranks}-{saved}-{variant}" / checkpoint.FOLDER / folder_name(len(BEFORE), 1))
        chosen = recipe(stage, variant, seed=2)
        model = new_model(chosen, variant)
        with torch.no_grad():
            for name, tensor in found.frozen().items():
                model.get_parameter(name).copy_(tensor)
        training = toy.Training(world, chosen, micro_batch=2, model=model)
        training.engine.load(found.read, found.state["adam_step"])
        at, count = training.state(), training.engine.adam_step()
        told[ranks, saved, stage, variant] = at, count, [training.step(number) for number in AFTER], training.state()
    return told if world.rank == 0 else None


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("topologies")
    told: dict[Any, Any] = {}
    for ranks in SAVES:
        told |= launch(train_and_save, ranks, folder, folder=folder)[0]
    return folder, told


@pytest.fixture(scope="module")
def loaded(saved) -> Callable[[int], Any]:
    """By number of ranks."""
    folder, _ = saved
    return cache(lambda size: launch(load_and_go_on, size, folder, cases(size), folder=folder)[0])


def equal(one: State, other: State) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name][part].view(torch.int32), other[name][part].view(torch.int32))
        for name in one
        for part in PARTS
    )


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage", "variant"), [(n, *each) for n, saves in SAVES.items() for each in saves])
def test_a_checkpoint_holds_every_element_of_the_state_once(saved, ranks, stage, variant):
    root, told = saved
    state, _, _, still = told[ranks, stage, variant]
    found = Checkpoint(root / f"{ranks}-{stage}-{variant}" / checkpoint.FOLDER / folder_name(len(BEFORE), 1))
    assert found.problems() == []
    assert found.manifest["parameters"].keys() == state.keys()
    for name, parts in state.items():
        shape = tuple(found.manifest["parameters"][name])
        held = sorted(pieces(found.manifest["spans"][name]))
        assert [first for first, _, _ in held] == [0, *(first + count for first, count, _ in held)][:-1]
        assert sum(count for _, count, _ in held) == len(parts[WEIGHT]) == torch.empty(shape).numel()
        assert equal({name: found.read(name, shape, 0, len(parts[WEIGHT]))}, {name: parts})
        assert parts["exp_avg_sq"].any()
    shares = [0] * ranks
    for runs in found.manifest["spans"].values():
        for _, count, rank in pieces(runs):
            shares[rank] += count
    assert max(shares) < 1.2 * sum(shares) / ranks  # the ranks share the writing
    assert ("lm_head.weight" in state) == (variant == "untied")
    assert bool(still) == (variant == "frozen")
    weights = found.weights()
    assert weights.keys() == state.keys() | still.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in still.items())


@pytest.mark.slow
@pytest.mark.parametrize("size", FARTHER)
def test_every_topology_loads_the_very_state_that_another_saved(saved, loaded, size):
    for case, (state, count, _, _) in loaded(size).items():
        ranks, stage, _, variant = case
        assert equal(state, saved[1][ranks, stage, variant][0]), named(case, size)
        assert count == len(BEFORE), named(case, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", SAVES)
def test_the_same_topology_goes_on_bitwise_as_if_never_interrupted(saved, loaded, size):
    same = {case: held for case, held in loaded(size).items() if case[0] == size and case[1] == case[2]}
    assert len(same) == (len(SAVES[2]) if size == 2 else 2)
    for (ranks, stage, _, variant), (_, _, steps, state) in same.items():
        _, expected, after, _ = saved[1][ranks, stage, variant]
        assert steps == expected, (stage, variant)
        assert equal(state, after), (stage, variant)


@pytest.mark.slow
@pytest.mark.parametrize("size", FARTHER)
def test_another_topology_goes_on_with_the_same_losses(saved, loaded, size):
    crossed = {case: held for case, held in loaded(size).items() if size != case[0] or case[1] != case[2]}
    assert crossed
    for case, (_, _, steps, state) in crossed.items():
        ranks, stage, _, variant = case
        _, expected, after, _ = saved[1][ranks, stage, variant]
        assert all(applied for _, _, applied in steps), named(case, size)
        for (loss, norm, _), (known, known_norm, _) in zip(steps, expected, strict=True):
            assert loss == pytest.approx(known, abs=1e-6), named(case, size)
            assert norm == pytest.approx(known_norm, rel=1e-4), named(case, size)
        off = max(float((state[name][WEIGHT] - after[name][WEIGHT]).abs().max()) for name in state)
        assert off < 1e-5, named(case, size)


def test_every_pair_of_stages_and_every_number_of_ranks_up_to_eight_is_covered():
    pairs = {case[1:3] for size in (1, 2, 3) for case in cases(size) if case[0] == 2}
    assert pairs == {(a, b) for a in STAGES for b in STAGES}
    assert set(FARTHER) == set(range(1, 9))
    assert {case[0] for size in FARTHER for case in cases(size)} == {2, 8}
    assert all((case[1], case[3]) in SAVES[case[0]] for size in FARTHER for case in cases(size))
