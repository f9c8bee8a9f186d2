"""A run over best-fit rows, from the command line."""

import shutil
import signal

import pytest

from tests.conftest import CommandLine
from trainer import record

STEPS = ("data.packing=best_fit", "train.steps=10", "schedule.warmup_steps=2", "evaluate.rows=4")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_packed_run_moved_to_fewer_ranks_reads_each_row_of_the_plan_once(luban: CommandLine) -> None:
    dataset = shutil.copytree(luban.home / "datasets" / "tiny", luban.home / "datasets" / "packed")
    here = (*STEPS, f"data.dataset={dataset}")
    text = luban.pretrain("packed", *here, code=2)
    assert f"luban data pack {dataset} --context 64" in text
    text = luban("data", "pack", str(dataset), "--context", "64")
    assert "best fit" in text and "% of the documents cut" in text

    process = luban.start_pretrain("packed", *here)
    luban.wait_for("packed", 1, lambda event: event["event"] == "step" and event["step"] >= 2)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 75, text
    for plan in dataset.glob("*pack-65*"):
        plan.unlink()
    text = luban.pretrain("packed", *here, "launch.ranks=1", code=2)
    assert f"Make them: luban data pack {dataset} --context 64" in text
    luban("data", "pack", str(dataset), "--context", "64")
    text = luban.pretrain("packed", *here, "launch.ranks=1")
    assert "an epoch of data (best_fit): " in text and "0 tokens unread an epoch" in text
    assert [attempt.start["world"] for attempt in record.load(luban.run("packed")).attempts] == [2, 1]
    text = luban("verify", "packed")
    assert "ok   rows (tokens of 10 updates read again, digests equal)" in text
    assert "ok   exactly once" in text
