"""`exact: any`: the same run, bit for bit, at 1 to 4 ranks and ZeRO 1 to 3, uninterrupted or moved between them."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from data.order.deal import turn
from tests.ranks import alone, launch
from tests.trainer import toy
from tests.trainer.test_parity import CLIP, plain
from tests.trainer.test_topology import equal, new_model
from trainer.exact import CHUNK, ExactGradient, Piece, addable, folded, total
from trainer.recipe import Recipe
from trainer.world import World

RANKS, STAGES, BEFORE, AFTER = (1, 2, 3, 4), (1, 2, 3), (0, 1), (2, 3)
State = dict[str, dict[str, Tensor]]
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"optimizer__clip": CLIP},
    # 40 floats are no whole number of cache lines, so that parameters lie differently in every flat partition
    "untied": {
        "optimizer__clip": None, "model__tie_word_embeddings": False, "model__residual_dropout": 0.1,
        "model__hidden_size": 40, "model__num_attention_heads": 5, "model__num_key_value_heads": 5,
    },
    "frozen": {"optimizer__clip": CLIP, "engine__activation_checkpointing": True},
    "bf16": {"optimizer__clip": CLIP, "engine__precision": "bf16"},
}  # fmt: skip
MICRO_BATCH = {"tied": 2, "untied": 1, "frozen": 5, "bf16": 5}
"""Rows of a forward: 6 micro-batches of 2; 12; and 3, so that a fourth rank has only fillers."""


def recipe(stage: int, variant: str, **changes: Any) -> Recipe:
    chosen = {"engine__zero_stage": stage, "engine__exact": "any", **VARIANTS[variant], **changes}
    return toy.recipe(**chosen)


def training(world: World, stage: int, variant: str, **changes: Any) -> toy.Training:
    chosen = recipe(stage, variant, **changes)
    return toy.Training(
        world, chosen, MICRO_BATCH[variant], new_model(chosen, variant), chosen.engine.precision == "bf16"
    )


def moves(size: int) -> list[tuple[int, int, str]]:
    """(stage before, stage now, variant): how the run of one rank less goes on."""
    return [((n + size) % 3 + 1, (n + size + 1) % 3 + 1, name) for n, name in enumerate(VARIANTS)] if size > 1 else []


def everything(world: World, root: Path) -> Any:
    """By stage and variant: figures, state half way and at the end; and the same of what one rank less had begun."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    told: dict[Any, Any] = {}
    for variant in VARIANTS:
        for stage in STAGES:
            run = training(world, stage, variant)
            steps = [run.step(number) for number in BEFORE]
            half = run.state()
            if world.rank == 0:
                torch.save(half, root / f"{world.size}-{stage}-{variant}.pt")
            steps += [run.step(number) for number in AFTER]
            told[stage, variant] = steps, half, run.state()
    for before, stage, variant in moves(world.size):
        state = torch.load(root / f"{world.size - 1}-{before}-{variant}.pt")

        def read(
            name: str, shape: tuple[int, ...], start: int, count: int, state: State = state
        ) -> dict[str, Tensor]:  # fmt: skip
            assert math.prod(shape) == len(state[name]["weight"])
            return {part: held[start : start + count] for part, held in state[name].items()}

        run = training(world, stage, variant)
        run.step(9)  # what it is loaded over
        run.engine.load(read, len(BEFORE))
        told["moved", stage, variant] = [run.step(number) for number in AFTER], run.state()
    return told if world.rank == 0 else None


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Callable[[int], Any]:
    """By number of ranks; each goes on from what the number before it wrote."""
    folder = tmp_path_factory.mktemp("exact")

    @cache
    def of(size: int) -> Any:
        if size > 1:
            of(size - 1)
        return launch(everything, size, folder, folder=folder)[0]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("size", RANKS)
def test_the_same_run_at_any_ranks_and_stage(told, size):
    for variant in VARIANTS:
        steps, half, end = told(1)[1, variant]
        assert all(applied for _, _, applied in steps)
        assert not equal(half, end)
        for stage in STAGES:
            mine = told(size)[stage, variant]
            case = f"ZeRO {stage} on {size} ranks, {variant}"
            assert mine[0] == steps, case
            assert equal(mine[1], half), case
            assert equal(mine[2], end), case


@pytest.mark.slow
@pytest.mark.parametrize("size", RANKS[1:])
def test_the_same_run_when_moved_to_other_ranks_and_another_stage(told, size):
    for before, stage, variant in moves(size):
        steps, _, end = told(1)[1, variant]
        case = f"ZeRO {before} on {size - 1} ranks -> ZeRO {stage} on {size}, {variant}"
        mine = told(size)["moved", stage, variant]
        assert mine[0] == steps[len(BEFORE) :], case
        assert equal(mine[1], end), case


def ordinary(world: World) -> Any:
    run = training(world, 1, "untied", engine__exact="topology")
    return [run.step(number) for number in range(3)], run.state()


@pytest.mark.slow
def test_the_ordinary_sum_of_twelve_micro_batches_is_not_the_same_on_four_ranks(tmp_path):
    one, four = (launch(ordinary, size, folder=tmp_path)[0] for size in (1, 4))
    assert not equal(one[1], four[1])


def against_plain(world: World, clip: float | None) -> Any:
    told = {}
    for stage in STAGES:
        run = toy.Training(world, recipe(stage, "tied", optimizer__clip=clip), 2)
        steps = [run.step(number) for number in range(toy.STEPS)]
        told[stage] = steps, {name: parts["weight"] for name, parts in run.state().items()}
    return told


@pytest.mark.slow
@pytest.mark.parametrize(("size", "clip"), [(1, CLIP), (3, None)])
def test_it_trains_as_plain_pytorch(size, clip, tmp_path):
    losses, norms, parameters = plain(clip)
    for stage, (steps, weights) in launch(against_plain, size, clip, folder=tmp_path)[0].items():
        for (loss, norm, applied), expected_loss, expected_norm in zip(steps, losses, norms, strict=True):
            assert applied
            assert loss == pytest.approx(expected_loss, abs=3e-6), stage
            assert norm == pytest.approx(expected_norm, rel=1e-5), stage
        for name, expected in parameters.items():
            assert (weights[name].view_as(expected) - expected).abs().max() < 2e-5, name


def poisoned(world: World) -> Any:
    told = []
    for stage in STAGES:
        run = training(world, stage, "tied")
        run.step(0)
        before = run.state()
        refused = run.step(1, poison=float("nan"))
        told.append((refused[2], equal(before, run.state()), run.engine.adam_step(), run.step(2)))
    return told


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any(tmp_path):
    for rank in launch(poisoned, 2, folder=tmp_path):
        assert [held[:3] for held in rank] == [(False, True, 1)] * 3
        assert rank[0][3] == rank[1][3] == rank[2][3]
        assert rank[0][3][2]


def measured(world: World) -> Any:
    """Each layer's gradient norm by this mode and by the ordinary one, before the step."""
    told = []
    for mode in ("any", "topology"):
        run = training(world, 3, "frozen", engine__exact=mode)
        batches, count = toy.micro_batches(0, 5, world), toy.label_tokens(0)
        for number, batch in enumerate(batches, 1):
            loss = run.engine.model(batch.input_ids, batch.labels, batch.documents)
            run.engine.backward(loss, count, last=number == len(batches))
        told.append((run.engine.gradient_norms(), float(run.engine.step(1e-3).grad_norm)))
    return told


@pytest.mark.slow
def test_each_layers_norm_is_that_of_the_ordinary_gradient(tmp_path):
    (exact, whole), (ordinary_norms, ordinary_whole) = launch(measured, 2, folder=tmp_path)[0]
    assert exact == pytest.approx(ordinary_norms, rel=1e-5)
    assert whole == pytest.approx(ordinary_whole, rel=1e-5)
    assert math.hypot(*exact.values()) == pytest.approx(whole, rel=1e-12)


def mixed(world: World, stage: int) -> Any:
    torch.use_deterministic_algorithms(True, warn_only=True)
    run = training(world, stage, "bf16", train__steps=200, model__num_hidden_layers=1)
    return [run.step(number) for number in range(200)], run.state()


@pytest.mark.slow
def test_two_hundred_steps_in_bf16_are_the_same(tmp_path):
    steps, state = launch(mixed, 1, 1, folder=tmp_path)[0]
    assert all(applied for _, _, applied in steps)
    for size, stage in ((2, 2), (4, 3)):
        mine, reached = launch(mixed, size, stage, folder=tmp_path)[0]
        assert mine == steps, (size, stage)
        assert equal(reached, state), (size, stage)


# -- sums ------------------------------------------------------------------------------------------------------------


def test_a_rows_sum_depends_on_nothing_but_the_row():
    rows = torch.randn(300, CHUNK, dtype=torch.float64) * torch.logspace(-9, 9, 300, dtype=torch.float64)[:, None]
    at_once = folded(rows)
    assert torch.equal(at_once, torch.cat([folded(row[None]) for row in rows]))
    assert torch.equal(at_once, folded(rows.T.contiguous().T))
    unaligned = torch.empty(rows.numel() + 1, dtype=torch.float64)[1:].view_as(rows).copy_(rows)
    assert torch.equal(at_once, folded(unaligned))
    assert torch.allclose(at_once, rows.sum(1), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000])
def test_a_total_is_the_sum(count):
    terms = torch.rand(count, dtype=torch.float64)
    assert float(total(terms)) == pytest.approx(float(terms.sum()), rel=1e-13)


def cut_anywhere(world: World) -> Any:
    """Norms of the same three gradients, owned whole by rank 0, and in pieces cut at random places."""
    generator, told = torch.Generator().manual_seed(5), []
    for _ in range(20):
        sizes = torch.randint(1, 4 * CHUNK, (5,), generator=generator).tolist()
        gradients = [[torch.randn(size, generator=generator) for size in sizes] for _ in range(3)]
        together = [Piece(number, 0, size) for number, size in enumerate(sizes)]
        apart = []
        for number, size in enumerate(sizes):
            cuts = [0, *sorted(torch.randint(0, size + 1, (world.size - 1,), generator=generator).tolist()), size]
            apart.append(Piece(number, cuts[world.rank], cuts[world.rank + 1] - cuts[world.rank]))
        held = []
        for pieces in (together if world.rank == 0 else [], [piece for piece in apart if piece.count]):
            sums = ExactGradient(sizes, pieces, torch.float32, world)
            sums.add(gradients[world.rank])
            held.append((sums.norm(), sums.norms()))
        told.append(held)
    return told


@pytest.mark.slow
def test_the_norm_is_the_same_however_the_elements_are_owned(tmp_path):
    everyone = launch(cut_anywhere, 3, folder=tmp_path)
    assert all(together == apart for told in everyone for together, apart in told)
    assert everyone[0] == everyone[1] == everyone[2]


def far_apart(world: World) -> bool:
    """Micro-batches of numbers so far apart that float64 rounds: whether this rank's sums are those in order.

    Four ranks are of two nodes that read lanes of their own, and take their turns across the nodes.
    """
    world = replace(world, groups=2 if world.size == 4 else 1)
    size = 2 * CHUNK + 100
    generator = torch.Generator().manual_seed(7)
    exponents = torch.randint(-30, 30, (12, size), generator=generator)
    gradients = torch.randn(12, size, generator=generator) * 10.0**exponents
    expected = torch.zeros(size, dtype=torch.float64)
    for gradient in gradients:
        expected += gradient
    assert not torch.equal(expected, gradients.flip(0).double().sum(0))
    start, stop = world.rank * size // world.size, (world.rank + 1) * size // world.size
    sums = ExactGradient([size], [Piece(0, start, stop - start)], torch.float32, world)
    for number in range(12 // world.size):
        sums.add([gradients[number * world.size + turn(world.rank, world.size, world.groups)]])
    target = torch.empty(stop - start, dtype=torch.float64)
    sums.write([target], 1.0)
    return torch.equal(target, expected[start:stop])


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 4])
def test_micro_batches_are_added_in_their_order(size, tmp_path):
    assert launch(far_apart, size, folder=tmp_path) == [True] * size


@hypothesis_settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 3 * CHUNK), min_size=1, max_size=6), st.integers(0, 2**31))
def test_sums_norms_and_what_is_written_by_one_rank(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    whole = ExactGradient(sizes, [Piece(n, 0, size) for n, size in enumerate(sizes)], torch.float32, alone())
    expected = [torch.zeros(size, dtype=torch.float64) for size in sizes]
    for _ in range(3):
        gradients: list[Tensor | None] = [torch.randn(size, generator=generator) for size in sizes]
        gradients[seed % len(sizes)] = None
        whole.add(gradients)
        for sums, gradient in zip(expected, gradients, strict=True):
            sums += 0 if gradient is None else gradient
    assert whole.norm() == pytest.approx(math.hypot(*(float(sums.norm()) for sums in expected)), rel=1e-12)
    assert whole.norms() == pytest.approx([float(sums.norm()) for sums in expected], rel=1e-12)
    targets = [torch.empty(size) for size in sizes]
    whole.write(targets, 0.3)
    for target, sums in zip(targets, expected, strict=True):
        assert torch.equal(target, (sums * 0.3).float())
    whole.clear()
    assert whole.norm() == 0


@given(st.lists(st.floats(0, 1e6, width=32), min_size=2, max_size=50), st.randoms())
def test_losses_add_up_in_any_order(losses, random):
    terms = addable(torch.tensor(losses)).tolist()
    assert terms == pytest.approx(losses, abs=2.0**-21)
    forwards = sum(terms)
    random.shuffle(terms)
    assert sum(terms) == forwards == math.fsum(terms)
