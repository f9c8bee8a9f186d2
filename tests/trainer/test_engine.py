"""The engine doesn't take DeepSpeed's word: a step that its counters don't show was not taken."""

from typing import Any

import pytest

from tests.ranks import launch
from tests.trainer import toy
from trainer.world import World


def betrayed(world: World, stage: int, exact: str) -> list[str]:
    """What is raised where DeepSpeed does nothing, and where it reports a skip that it didn't count."""
    told = []
    for lie in ("nothing", "uncounted skip"):
        training = toy.Training(world, toy.recipe(engine__zero_stage=stage, engine__exact=exact), 4)
        training.step(0)
        inner: Any = training.engine._engine
        if lie == "nothing":
            inner.step = lambda: None
        else:
            inner.was_step_applied = lambda: False
        try:
            training.step(1)
            told.append("taken for applied")
        except RuntimeError as error:
            told.append(str(error))
    return told


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "exact"), [(0, "topology"), (2, "topology"), (3, "topology"), (2, "any")])
def test_a_step_that_deepspeed_did_not_take_is_never_taken_for_applied(stage, exact, tmp_path):
    nothing, uncounted = launch(betrayed, 1, stage, exact, folder=tmp_path)[0]
    assert "global_steps went from 1 to 1" in nothing
    assert "skipped_steps from 0 to 0" in uncounted
