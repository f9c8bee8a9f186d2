"""`engine.exact=any` from the command line: a run moved to fewer ranks and another ZeRO stage is the same run."""

import signal

import pytest

from tests.conftest import CommandLine
from trainer import record

STEPS = ("train.steps=8", "engine.exact=any", "schedule.warmup_steps=2", "evaluate.every_steps=0")


def notes(luban: CommandLine, name: str) -> str:
    return "\n".join(event["text"] for event in record.load(luban.run(name)).attempts[-1].of("note"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_moved_to_other_ranks_and_another_stage_ends_bitwise_as_the_unmoved_one(luban: CommandLine) -> None:
    luban.pretrain("unmoved", *STEPS)
    assert "exact any costs each rank" in notes(luban, "unmoved")
    process = luban.start_pretrain("moved", *STEPS)
    luban.wait_for("moved", 1, lambda event: event["event"] == "step" and event["step"] >= 2)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 75, text
    luban.pretrain("moved", *STEPS, "launch.ranks=1", "engine.zero_stage=3")
    assert [attempt.start["world"] for attempt in record.load(luban.run("moved")).attempts] == [2, 1]
    assert "not bitwise" not in notes(luban, "moved")
    text = luban("verify", "moved", "--against", "unmoved")
    for name in ("weights", "moments exp_avg_sq", "loss of each step", "grad_norm of each step"):
        assert f"ok   {name}" in text, text
