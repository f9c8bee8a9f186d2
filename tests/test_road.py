"""The promises of a run, on real ranks started by the real command: killed, stopped, resized, damaged, held."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import CommandLine, kill_rank, wait_until
from trainer import checkpoint, claim, goodput, jsonl, record, report
from trainer.checkpoint import Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def lineage(luban: CommandLine, name: str) -> list[dict]:
    return record.load(luban.run(name)).lineage()


def test_an_uninterrupted_run_holds_what_it_promises(straight: CommandLine) -> None:
    text = straight("verify", "straight")
    assert "everything holds" in text
    assert "positions [0, 288) in 24 updates, once each" in text
    losses = [event["loss"] for event in lineage(straight, "straight")]
    assert losses[-1] < losses[0] - 0.2
    assert "done" in straight("status", "straight")


def test_a_run_that_is_called_again_when_done_does_nothing(straight: CommandLine) -> None:
    before = checkpoint.names(straight.run("straight"))
    assert "is done: step 24 reached" in straight.pretrain("straight")
    assert checkpoint.names(straight.run("straight")) == before
    assert len(record.load(straight.run("straight")).attempts) == 1


def test_a_killed_rank_is_noticed_and_the_run_ends_bitwise_as_the_uninterrupted_one(straight: CommandLine) -> None:
    process = straight.start_pretrain("killed")
    events = straight.wait_for("killed", 1, lambda event: event["event"] == "step" and event["step"] >= 11)
    killed_at = time.time()
    kill_rank(events, 1)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    assert "rank 1 was killed by SIGKILL" in text
    history = record.load(straight.run("killed"))
    assert len(history.attempts) == 2
    assert history.attempts[1].start["adopts"] == "step-000000008.a1"
    ranks_died = (straight.run("killed") / "logs" / "attempt-2").stat().st_ctime
    assert ranks_died - killed_at < 10
    assert history.lost
    text = straight("verify", "killed", "--against", "straight")
    assert "everything holds" in text
    assert re.search(r"ok +weights \(\d+ tensors, [\d,]+ values, bit by bit\)", text)
    proof = json.loads((straight.run("killed") / "proof.json").read_text())
    assert proof["passed"]
    assert {"weights", "moments exp_avg", "rows of each step", "lr of each step"} <= {
        c["name"] for c in proof["checks"]
    }
    check_that_every_second_is_attributed(straight, "killed")


def check_that_every_second_is_attributed(luban: CommandLine, name: str) -> None:
    """Of a run that was killed once: against the record's Unix times, which the clocks of the ranks know nothing of."""
    history = record.load(luban.run(name))
    first, last = history.attempts
    found = goodput.measure(history)
    seconds = found.seconds
    assert found.wall == pytest.approx(last.ended - first.start["began"], abs=0.25)
    assert found.wall == pytest.approx(sum(seconds.values()))
    assert seconds["unattributed"] == 0
    assert not found.notes
    imports = [attempt.start["time"] - attempt.start["began"] for attempt in history.attempts]
    assert all(spent > 0.5 for spent in imports)
    assert seconds["start_up"] == pytest.approx(sum(imports), abs=2)
    died = max(first.ended, claim.last_beat(luban.run(name), 1) or 0)
    assert seconds["down"] == pytest.approx(last.start["began"] - died, abs=0.05)
    saved = next(event for event in first.of("step") if event["step"] == 8)["time"]
    beside = sum(event["seconds"] for kind in ("checkpoint", "evaluation") for event in first.of(kind))
    assert died - saved - beside - 0.5 < seconds["lost"] < died - saved + 0.25
    assert seconds["compute"] > 0
    logged = [line for line in jsonl.read(luban.run(name) / "metrics.jsonl")[0] if line["kind"] == "train"][-1]
    assert logged["goodput/lost_pct"] > 0
    assert sum(share for figure, share in logged.items() if figure.startswith("goodput/")) == pytest.approx(100)
    assert logged["goodput/compute_pct"] == pytest.approx(found.percent, rel=0.1)
    assert f"goodput     {found.percent:.1f} % of " in luban("status", name)
    page = report.write([luban.run(name)], luban.run(name) / "report.html").read_text("utf-8")
    assert f"<b>{found.percent:.1f} %</b>" in page
    assert f"lost work: {seconds['lost']:.1f} s" in page


def test_a_loss_edited_in_record_and_metrics_alike_is_found(straight: CommandLine) -> None:
    edited = straight.home / "edited"
    shutil.copytree(straight.run("straight"), edited, symlinks=True)
    for file in (edited / "attempts" / "0001.jsonl", edited / "metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            for name in {"loss", "train/loss"} & set(line):
                line[name] = 1.5 if line.get("step", line.get("train/step")) == 4 else line[name]
        unsealed = [{name: value for name, value in line.items() if name != "crc"} for line in lines]
        file.write_bytes(b"".join(map(jsonl.sealed, unsealed)))  # whoever edits a line mends its checksum too
    text = straight("verify", str(edited), code=1)
    assert "FAIL seals" in text
    assert "attempts/0001.jsonl is not as it was written" in text
    assert "ok   metrics" in text


def test_ranks_whose_interpreter_aborts_at_its_end_have_done_what_they_have_done(
    straight: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os\nif 'RANK' in os.environ:\n    atexit.register(os.abort)\n"
    )
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setitem(straight.environment, "PYTHONPATH", os.pathsep.join(filter(None, paths)))
    text = straight.pretrain("aborted", "train.steps=5", "launch.ranks=1")
    assert "SIGABRT" not in text
    assert text.rstrip().endswith("done: step 5 reached")


def test_ctrl_c_saves_stops_with_75_and_the_next_start_goes_on_bitwise(straight: CommandLine) -> None:
    name = "stopped"
    process = straight.start_pretrain(name)
    straight.wait_for(name, 1, lambda event: event["event"] == "step" and event["step"] >= 5)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 75, text
    stopped = record.load(straight.run(name)).attempts[-1]
    assert stopped.outcome == "stopped"
    saved = checkpoint.names(straight.run(name))
    assert saved[-1] == f"step-{stopped.last_step:09d}.a1"
    straight.pretrain(name)
    assert not record.load(straight.run(name)).lost
    assert "everything holds" in straight("verify", name, "--against", "straight")


def test_a_run_goes_on_with_the_same_rows_on_other_ranks_and_another_stage(straight: CommandLine) -> None:
    for attempt, (ranks, stage, step) in enumerate([(2, 2, 5), (1, 2, 11), (3, 3, 17)], 1):
        process = straight.start_pretrain("resized", f"launch.ranks={ranks}", f"engine.zero_stage={stage}")
        straight.wait_for("resized", attempt, lambda e, step=step: e["event"] == "step" and e["step"] >= step)
        process.terminate()
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 75, text
    straight.pretrain("resized", "launch.ranks=2", "engine.zero_stage=3")
    assert [a.start["world"] for a in record.load(straight.run("resized")).attempts] == [2, 1, 3, 2]
    assert "everything holds" in straight("verify", "resized")
    for mine, theirs in zip(lineage(straight, "resized"), lineage(straight, "straight"), strict=True):
        assert (mine["positions"], mine["rows"], mine["labels"]) == (
            theirs["positions"],
            theirs["rows"],
            theirs["labels"],
        )
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=2e-5)
    notes = [event["text"] for a in record.load(straight.run("resized")).attempts for event in a.of("note")]
    assert any("not bitwise" in note for note in notes)


def test_ranks_that_do_not_divide_the_batch_say_so_and_train_the_same(straight: CommandLine) -> None:
    text = straight.pretrain("uneven", "launch.ranks=3", "engine.micro_batch=3")
    assert "6 filler rows in every update" in text
    assert "everything holds" in straight("verify", "uneven")
    for mine, theirs in zip(lineage(straight, "uneven"), lineage(straight, "straight"), strict=True):
        assert mine["rows"] == theirs["rows"]
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=2e-5)


def test_a_corrupt_checkpoint_is_passed_over_loudly_and_nothing_is_lost(straight: CommandLine) -> None:
    process = straight.start_pretrain("corrupt")
    straight.wait_for("corrupt", 1, lambda event: event["event"] == "checkpoint" and event["step"] == 16)
    process.terminate()
    process.communicate(timeout=60)
    newest = straight.run("corrupt") / "checkpoints" / checkpoint.names(straight.run("corrupt"))[-1]
    file = newest / "spans-00001.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    text = straight.pretrain("corrupt")
    assert f"CORRUPT CHECKPOINT passed over: {newest.name}: spans-00001.safetensors has another digest" in text
    adopted = record.load(straight.run("corrupt")).attempts[-1].start["adopts"]
    assert adopted is not None
    assert adopted != newest.name
    held = Checkpoint(straight.run("corrupt") / "checkpoints" / checkpoint.names(straight.run("corrupt"))[-1])
    expected = Checkpoint(straight.run("straight") / "checkpoints" / checkpoint.names(straight.run("straight"))[-1])
    assert held.step == expected.step == 24
    for name, tensor in expected.weights().items():
        assert (held.weights()[name] == tensor).all(), name
    assert newest.exists()  # nobody deletes it, and it counts for nothing any more
    assert "everything holds" in straight("verify", "corrupt")
    assert newest.name not in straight("status", "corrupt").partition("saved")[2]


def test_a_full_disk_is_one_clear_error_that_is_not_retried(straight: CommandLine, tmp_path: Path) -> None:
    # The limit on a file's size stands in for a full disk, and is met by the first file larger than 100 kB.
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        text = straight.pretrain("full", code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert "cannot write the checkpoint step-000000008.a1" in text
    assert "make room" in text
    assert "restart" not in text
    assert not checkpoint.names(straight.run("full"))
    straight.pretrain("full")
    assert "everything holds" in straight("verify", "full", "--against", "straight")


def test_a_run_from_another_has_its_weights_and_ancestry_and_verify_finds_that_it_is_not_the_same(
    straight: CommandLine,
) -> None:
    straight.pretrain("branch", "optimizer.lr=1e-4", "seed=5", "--from", "straight@16")
    recipe = (straight.run("branch") / "recipe.yaml").read_text()
    assert "runs/straight@16" in recipe
    first = lineage(straight, "branch")[0]["loss"]
    assert first < lineage(straight, "straight")[2]["loss"]
    assert "everything holds" in straight("verify", "branch")
    text = straight("verify", "branch", "--against", "straight", code=1)
    assert "FAIL weights" in text
    assert "FAIL rows of each step" in text
    assert "first differs at step 1" in text
    moved = straight.run("straight").rename(straight.home / "elsewhere")
    assert "is done" in straight.pretrain("branch", "optimizer.lr=1e-4", "seed=5", "--from", "straight@16")
    assert "is done" in straight("pretrain", f"{straight.run('branch')}/recipe.yaml")
    moved.rename(straight.run("straight"))
    ancestry = record.load(straight.run("branch")).attempts[0].start["ancestor"]
    assert (ancestry["step"], ancestry["consumed"]) == (16, 192)
    odd = straight.pretrain("wider", "model.hidden_size=64", "--from", "straight", code=2)
    assert "model.hidden_size is 32 in straight" in odd


def test_a_second_start_of_a_running_run_is_refused_and_ranks_die_with_their_supervisor(straight: CommandLine) -> None:
    first = straight.start_pretrain("held", "train.steps=400", "schedule.kind=constant")
    ranks = straight.wait_for("held", 1, lambda event: event["event"] == "step" and event["step"] >= 3)[0]["ranks"]
    slow = ranks[1]["pid"]
    os.kill(slow, signal.SIGSTOP)  # or the run might be done before the second has looked
    text = straight.pretrain("held", "train.steps=400", "schedule.kind=constant", code=2)
    assert f"is already running: attempt 1, by process {first.pid} on" in text
    os.kill(slow, signal.SIGCONT)
    reached = record.load(straight.run("held")).attempts[0].last_step
    straight.wait_for("held", 1, lambda event: event["event"] == "step" and event["step"] > reached + 3)
    first.kill()
    first.communicate()
    wait_until(lambda: not any(Path(f"/proc/{rank['pid']}").exists() for rank in ranks), 30)
    (attempt,) = record.load(straight.run("held")).attempts
    assert attempt.outcome == "stopped"
