import io
import os
import re
import time

from rich.console import Console

from trainer.console import Follower, status


def plain() -> tuple[Console, io.StringIO]:
    """A console that is a log file."""
    out = io.StringIO()
    return Console(file=out, force_terminal=False, width=200, highlight=False), out


def test_a_log_gets_one_line_for_each_line_of_metrics(fake_run):
    run = fake_run()
    console, out = plain()
    follower = Follower(run.folder, 60, console)
    run.attempt()
    run.steps(1, 3)
    follower.poll()
    lines = out.getvalue().splitlines()
    assert lines[0] == "attempt 1: from the beginning, 2 ranks, cpu, fp32, ZeRO 2"
    assert [line.split("  ")[0] for line in lines[1:]] == ["step 1/60", "step 2/60", "step 3/60"]
    for word in ("loss 7.", "ppl", "bits/byte", "grad norm 1", "lr 0.0001", "tokens/s", "ms/step", "data wait 0.4 %"):
        assert word in lines[1]
    assert lines[1].endswith("59 s left")


def test_following_shows_each_entry_once_and_waits_for_the_rest_of_a_torn_line(fake_run):
    run = fake_run()
    console, out = plain()
    follower = Follower(run.folder, 60, console)
    run.attempt()
    run.steps(1, 1)
    path = run.folder / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    follower.poll()
    assert "step 1/60" not in out.getvalue()
    with path.open("ab") as file:
        file.write(whole[40:])
    follower.poll()
    follower.poll()
    follower.close()
    assert out.getvalue().count("step 1/60") == 1
    assert out.getvalue().count("attempt 1") == 1


def test_a_run_that_does_not_exist_yet_can_be_followed(tmp_path, fake_run):
    console, out = plain()
    follower = Follower(tmp_path / "runs" / "later", 60, console)
    follower.poll()
    run = fake_run("later")
    run.attempt()
    follower.poll()
    assert "attempt 1" in out.getvalue()


def test_what_was_there_before_is_shown_only_when_asked(killed_run):
    console, out = plain()
    Follower(killed_run.folder, 60, console).poll()
    assert out.getvalue() == ""
    Follower(killed_run.folder, 60, console, from_the_start=True).poll()
    assert "step 60/60" in out.getvalue()


def test_restarts_checkpoints_evaluations_and_notes_are_told(killed_run):
    console, out = plain()
    Follower(killed_run.folder, 60, console, from_the_start=True).close()
    text = out.getvalue()
    assert "attempt 2: from step-000000020.a1, 1 rank, cpu, fp32, ZeRO 2" in text
    assert "steps 21 to 35 are lost and will be done again" in text
    assert "step 20: saved step-000000020.a1, 12 MiB in 0.4 s" in text
    assert "step 20: valid loss 3.2000, perplexity 24.53, 1.6000 bits per byte, accuracy 50.0 %" in text
    assert "    | def f( x\n    | <script>alert(1)</script>\n" in text
    assert "note: adopted <b>step 20</b>" in text
    assert text.rstrip().endswith("done: step 60 reached")


def test_lost_steps_are_told_to_a_follower_that_came_after_them(fake_run):
    run = fake_run()
    run.attempt()
    run.steps(1, 30)
    console, out = plain()
    follower = Follower(run.folder, 60, console)
    run.attempt(20, "step-000000020.a1")
    follower.poll()
    assert "steps 21 to 30 are lost" in out.getvalue()


def test_a_skipped_update_and_a_loss_that_is_not_finite_are_told(fake_run):
    run = fake_run()
    console, out = plain()
    follower = Follower(run.folder, 60, console)
    run.attempt()
    run.event("step", step=0, positions=[0, 8], labels=9, verdict="skipped", reason="non-finite gradient")
    run.metrics.write({"train/step": 0, "train/loss": float("nan")})
    follower.poll()
    assert "the update after step 0 was skipped: non-finite gradient" in out.getvalue()
    assert "loss not finite" in out.getvalue()


def test_a_terminal_shows_a_bar_and_is_left_clean(fake_run):
    run = fake_run()
    out = io.StringIO()
    follower = Follower(run.folder, 60, Console(file=out, force_terminal=True, width=100, highlight=False))
    run.attempt()
    run.steps(1, 30)
    run.checkpoint(30)
    follower.poll()
    assert "30/60 steps, 50 %" in out.getvalue()
    assert "30 s left" in out.getvalue()
    assert "saved step-000000030.a1" in out.getvalue()
    follower.close()
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1  # cursor hidden, shown


def test_a_sample_can_neither_steer_the_terminal_nor_be_read_as_markup(fake_run):
    run = fake_run()
    console, out = plain()
    follower = Follower(run.folder, 60, console)
    run.attempt()
    run.evaluation(10, 2.0, text="\x1b[2J[bold]x[/bold]\x07")
    follower.poll()
    assert "def f(·[2J[bold]x[/bold]·" in out.getvalue()


def test_polling_is_quick(fake_run):
    run = fake_run()
    run.attempt()
    run.steps(1, 60)
    follower = Follower(run.folder, 60, plain()[0])
    began = time.perf_counter()
    for _ in range(100):
        follower.poll()
    assert (time.perf_counter() - began) / 100 < 0.005


def test_status_of_a_run_that_was_killed_once_and_is_done(killed_run):
    text = status(killed_run.folder)
    assert "demo: done" in text
    assert "60 of 60, 15.4k tokens" in text
    assert "loss 2.1000" in text and "at step 60" in text
    assert "1: from the beginning on 2 ranks, killed at step 35, steps 21 to 35 lost" in text
    assert "2: from step-000000020.a1 on 1 rank, done at step 60" in text
    assert "luban pretrain" not in text
    assert re.search(r"^goodput     5\d\.\d % of 1 min 48 s$", text, re.MULTILINE)
    assert re.search(r"compute 1 min 01 s \(5\d\.\d %\), lost work 15.2 s .*, down 14.0 s .*, start-up 12.0 s", text)


def test_status_counts_the_examples_of_a_run_whose_labels_are_no_tokens(fake_run):
    run = fake_run()
    run.counts = "examples"
    run.attempt()
    run.steps(1, 10)
    text = status(run.folder)
    assert "10 of 60, 2.56k examples" in text
    assert "ppl" not in text


def test_status_tells_running_from_killed_by_the_heartbeat(fake_run):
    run = fake_run()
    assert "demo: not started" in status(run.folder)
    run.attempt()
    run.steps(1, 10)
    assert "demo: killed" in status(run.folder)
    assert f"go on       luban pretrain {run.folder}/recipe.yaml\n" in status(run.folder) + "\n"
    assert f"luban pretrain {run.folder}/recipe.yaml --on slurm=s.yaml" in status(run.folder, "slurm=s.yaml")
    beat = run.folder / "attempts" / "0001.alive"
    beat.touch()
    assert "demo: running" in status(run.folder)
    assert "running at step 10" in status(run.folder)
    os.utime(beat, (time.time() - 60, time.time() - 60))
    assert "demo: killed" in status(run.folder)


def test_status_of_a_failed_run_says_why(fake_run):
    run = fake_run()
    run.attempt()
    run.steps(1, 3)
    run.outcome("fault", "RuntimeError: out of memory")
    text = status(run.folder)
    assert "demo: failed" in text
    assert "RuntimeError: out of memory" in text
    assert "go on" in text
