import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from trainer.jsonl import read
from trainer.recipe import Evaluate, Log, Recipe
from trainer.recipe_data import Data
from trainer.tracker import Metrics, Tracker, WandB, chosen_mode
from trainer.wandb_session import kill_service, public, run_id

KEY = "0123456789abcdef" * 3
LINE = {"line": 0, "train/step": 1, "train/tokens": 10, "train/loss": 1.0}


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    """W&B as on a machine where nobody ever logged in."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "home").mkdir()


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def records(folder: Path) -> list:
    """Everything in the newest .wandb file: LevelDB framing around protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data = max((folder / "wandb").glob("*run-*/*.wandb")).read_bytes()
    position, buffer, found = 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if kind == 0 or position + 7 + length > len(data):
            break
        buffer += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(buffer)
            found.append(record)
            buffer = b""
    return found


def history(folder: Path) -> list[dict]:
    """The logged lines, in order."""
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


def closed_port() -> int:
    """A loopback port where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_line_numbers_go_on_over_attempts(run):
    for attempt, steps in ((1, 3), (2, 2)):
        metrics = Metrics(run, attempt)
        for step in range(steps):
            metrics.write({"train/step": step})
        metrics.close()
    lines, _ = read(run / "metrics.jsonl")
    assert [line["line"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["attempt"] for line in lines] == [1, 1, 1, 2, 2]
    assert all(line["kind"] == "train" and line["time"] > 1e9 for line in lines)


@pytest.mark.parametrize("size", [1, 10, 100_000])
def test_a_torn_last_line_is_ended_and_costs_no_other(run, size):
    metrics = Metrics(run, 1)
    metrics.write({"train/step": 1})
    metrics.write({"train/step": 2})
    metrics.close()
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    torn = b'{"line": 2, "x": "' + b"y" * size
    path.write_bytes(whole + torn)
    metrics = Metrics(run, 2)
    assert path.read_bytes() == whole + torn + b"\n"  # another process may be writing: nothing is ever cut off
    assert metrics.write({"train/step": 3})["line"] == 2
    assert [line["train/step"] for line in read(path)[0]] == [1, 2, 3]


def test_what_is_not_finite_becomes_null(run):
    written = Metrics(run, 1).write({"train/loss": float("nan"), "nested": {"x": [float("inf"), 1.0]}})
    assert written["train/loss"] is None
    text = (run / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert json.loads(text)["nested"] == {"x": [None, 1.0]}


def test_other_ranks_write_nothing(run):
    tracker = Tracker(run, 1, Recipe(), rank=1)
    tracker.log({"train/step": 1})
    tracker.alert("a", "b")
    tracker.finish(0)
    assert not list(run.iterdir())


@pytest.mark.parametrize(
    ("recipe", "environment", "mode"),
    [
        ("auto", "", "auto"),
        ("online", "offline", "offline"),
        ("auto", "disabled", "off"),
        ("off", "online", "off"),
        ("offline", "nonsense", "offline"),
    ],
)
def test_mode_from_recipe_and_environment(recipe, environment, mode):
    assert chosen_mode(recipe, {"WANDB_MODE": environment}) == mode


def test_offline_run_holds_the_lines_under_their_numbers(run):
    said = []
    tracker = Tracker(run, 1, Recipe(name="first"), facts={"parameters": 7}, say=said.append)
    for step in range(1, 6):
        tracker.log({"train/step": step, "train/tokens": 10 * step, "train/loss": 1 / step, "speed/mfu_pct": None})
    sample = {"prompt": "def f", "text": "(x)"}
    tracker.log({"train/step": 5, "evaluation/valid/loss": 0.5, "samples": [sample]}, "evaluation")
    tracker.alert("slow", "very")
    tracker.finish(0)
    lines = history(run)
    assert [line["_step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line.get("train/loss") for line in lines[:5]] == [1 / step for step in range(1, 6)]
    assert not {"line", "time", "kind", "speed/mfu_pct"} & set(lines[0])
    kinds = {record.WhichOneof("record_type") for record in records(run)}
    assert {"exit", "alert"} <= kinds
    axes = {record.metric.name for record in records(run) if record.WhichOneof("record_type") == "metric"}
    assert {"train/step", "train/tokens"} <= axes
    begun = next(record.run for record in records(run) if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.display_name, begun.project, config["parameters"]) == ("first", "luban", 7)
    assert config["optimizer"]["lr"] == Recipe().optimizer.lr
    assert any("wandb sync" in text for text in said)


def test_all_attempts_are_one_wandb_run(run):
    identity = run_id(run)
    for attempt in (1, 2):
        tracker = Tracker(run, attempt, Recipe(log=Log(wandb="offline")), say=lambda text: None)
        tracker.log({"train/step": attempt})
        tracker.finish(75)
        time.sleep(1.1 * (attempt == 1))  # W&B names a folder after the second
    assert run_id(run) == identity
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{identity}.wandb"] * 2
    assert history(run)[0]["_step"] == 1
    assert "preempting" in {record.WhichOneof("record_type") for record in records(run)}


def test_a_refusing_server_neither_stalls_nor_stops_and_the_run_is_kept_offline(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    said = []
    began = time.monotonic()
    tracker = Tracker(run, 1, Recipe(), say=said.append)
    for step in range(100):
        tracker.log({"train/step": step})
    assert time.monotonic() - began < 0.5
    tracker.finish(0)
    assert time.monotonic() - began < 15
    assert any("can't be reached" in text for text in said)
    assert len(history(run)) == 100


def test_a_hanging_server_costs_finish_no_more_than_its_deadline(run):
    program = textwrap.dedent(f"""
        import os, socket, time
        from pathlib import Path
        from trainer.recipe import Recipe
        from trainer.tracker import WandB
        listener = socket.create_server(("127.0.0.1", 0))
        os.environ["WANDB_API_KEY"] = {KEY!r}
        os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{{listener.getsockname()[1]}}"
        wandb = WandB(Path({str(run)!r}), Recipe(), "auto", finish_timeout_s=3, init_timeout_s=60, say=print)
        wandb.log({LINE!r})
        wandb.finish(0)
    """)
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert time.monotonic() - began < 10
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "gave up after 3 s" in ended.stdout
    assert KEY not in ended.stdout


def test_logging_falls_from_online_to_offline_when_the_service_dies(run, monkeypatch):
    """The service is killed under an offline run, which is what a run online would see too."""
    said = []
    monkeypatch.setattr(WandB, "_modes", lambda self, session: ["offline", "offline"])
    wandb = WandB(run, Recipe(), "offline", say=said.append)
    wandb.log(LINE)
    deadline = time.monotonic() + 20
    while not any("wandb sync" in text for text in said) and time.monotonic() < deadline:
        time.sleep(0.05)
    kill_service()
    time.sleep(1.2)
    wandb.log(LINE | {"line": 1})
    wandb.log(LINE | {"line": 2})
    wandb.finish(0)
    assert any("logging failed" in text and "keeping the run offline" in text for text in said)
    assert [line["_step"] for line in history(run)] == [1, 2], said


def test_when_nothing_works_any_more_that_is_said_and_the_lines_are_dropped(run, monkeypatch):
    said = []
    monkeypatch.setattr(WandB, "_modes", lambda self, session: ["offline"])
    monkeypatch.setattr("trainer.wandb_session.Session.do", lambda self, what, value: 1 / 0)
    wandb = WandB(run, Recipe(), "offline", say=said.append)
    wandb.log(LINE)
    wandb.log(LINE)
    wandb.finish(0)
    assert said[-1] == "W&B: logging failed (ZeroDivisionError: division by zero); the run goes on without it"


def test_a_full_queue_drops_counts_and_says_so_once(run, monkeypatch):
    said = []
    monkeypatch.setattr(WandB, "_serve", lambda self, session: time.sleep(1))
    wandb = WandB(run, Recipe(), "offline", queue_lines=10, finish_timeout_s=10, say=said.append)
    for _ in range(50):
        wandb.log(LINE)
    wandb.finish(0)
    assert wandb.dropped == 40
    assert len([text for text in said if "newer ones are dropped" in text]) == 1
    assert said[-1].startswith("W&B: 40 lines were dropped")


def test_without_the_package_there_is_one_warning(run, monkeypatch):
    said = []
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = Tracker(run, 1, Recipe(), say=said.append)
    time.sleep(0.2)
    tracker.log({"train/step": 1})
    tracker.finish(0)
    assert len(said) == 1
    assert "can't be imported" in said[0]
    assert len(read(run / "metrics.jsonl")[0]) == 1


def test_a_key_from_netrc_makes_auto_try_online(run, monkeypatch):
    port = closed_port()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    path = Path(os.environ["NETRC"])
    path.write_text(f"machine 127.0.0.1:{port} login user password {KEY}\n")
    path.chmod(0o600)
    said = []
    wandb = WandB(run, Recipe(), "auto", say=said.append)
    wandb.finish(0)
    assert any("can't be reached" in text for text in said)


def test_the_key_reaches_no_file_and_no_message(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    said = []
    recipe = Recipe(
        name="r", evaluate=Evaluate(prompts=(f"my key is {KEY}",)), data=Data(dataset="s3://me:pw@host/data")
    )
    tracker = Tracker(run, 1, recipe, say=said.append)
    tracker.log({"train/step": 1})
    tracker.finish(0)
    held = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert b"my key is [key]" in held
    assert KEY.encode() not in held
    assert b"me:pw" not in held
    assert not any(KEY in text for text in said)


def test_a_malformed_key_is_a_warning(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "bad")
    said = []
    wandb = WandB(run, Recipe(), "auto", say=said.append)
    wandb.log(LINE)
    wandb.finish(0)
    assert any("keeping the run offline" in text for text in said)
    assert len(history(run)) == 1


def test_public_hides_secrets_at_any_depth():
    held = {"a": [{"b": "x SECRET y"}], "url": "https://user:pw@host/path", "n": 1}
    assert public(held, ["SECRET"]) == {"a": [{"b": "x [key] y"}], "url": "https://host/path", "n": 1}
