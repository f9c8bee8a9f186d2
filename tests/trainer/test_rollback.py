"""Back to the beginning, and which checkpoints a rollback leaves behind."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import launch
from tests.trainer import toy
from tests.trainer.records import apply, begin, run, save, told
from trainer import checkpoint, claim, record
from trainer.models.head import LM
from trainer.rollback import initial
from trainer.world import World

__all__ = ["run"]  # a fixture

CASES = [(1, False), (2, True), (3, False), (3, True)]


def there_and_back(world: World, folder: Path) -> list[Any]:
    """For each case: what differs from a fresh engine after training and going back, and the losses of both."""
    told = []
    for stage, bf16 in CASES:
        chosen = toy.recipe(engine__zero_stage=stage, engine__precision="bf16" if bf16 else "fp32")
        training = toy.Training(world, chosen, micro_batch=2, bf16=bf16)
        fresh = training.state()
        first = [training.step(number)[0] for number in range(3)]
        moved = sum(not torch.equal(fresh[name]["weight"], held["weight"]) for name, held in training.state().items())
        training.engine.load(initial(folder, chosen, toy.VOCAB, LM, world, bf16), 0)
        back = training.state()
        every = [(name, part) for name in fresh for part in fresh[name]]
        odd = [(name, part) for name, part in every if not torch.equal(fresh[name][part], back[name][part])]
        told.append((moved, odd, training.engine.adam_step(), first, [training.step(number)[0] for number in range(3)]))
    return told


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_going_back_to_the_beginning_is_bitwise_a_fresh_start(tmp_path: Path) -> None:
    for (stage, bf16), (moved, odd, adam_step, first, again) in zip(
        CASES, launch(there_and_back, 2, tmp_path, folder=tmp_path)[0], strict=True
    ):
        assert moved
        assert (odd, adam_step) == ([], 0), f"stage {stage}, bf16 {bf16}"
        assert again == first


def roll_back(run: Path, adopts: str | None, step: int) -> claim.Writer:
    """The next attempt, begun by a rollback."""
    from tests.trainer.records import OPENED, RANKS, ROWS, Writer

    behind = [name for name in record.load(run).checkpoints() if checkpoint.step_of(name) > step]
    writer = Writer(run)
    writer.start(
        adopts=adopts, step=step, consumed=step * ROWS, ranks=RANKS, rollback={"attempt": 1}, retires=behind,
    )  # fmt: skip
    OPENED[run].callback(writer.close)
    return writer


def test_checkpoints_that_a_rollback_went_back_behind_are_never_adopted_again(run: Path) -> None:
    first = begin(run)
    apply(first, 1, 2)
    kept = save(first, 2)
    apply(first, 3, 4)
    left = save(first, 4)
    assert record.load(run).checkpoints() == [kept, left]
    second = roll_back(run, kept, 2)
    assert record.load(run).checkpoints() == [kept]
    apply(second, 3, 6)
    fresh = save(second, 6)
    begin(run, fresh, 6)  # a restart, later
    assert record.load(run).checkpoints() == [kept, fresh]
    assert told(run)[:2] == [(1, 1), (1, 2)]
    roll_back(run, None, 0)
    assert record.load(run).checkpoints() == []
