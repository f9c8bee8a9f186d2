"""What many tests share: a small dataset of real text, and Luban's command line run for real."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: tests share the cores with their ranks

from tests.corpora import texts
from trainer import jsonl

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background has it ignored

MODEL = (
    "model.context=64", "model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
)  # fmt: skip
SETTINGS = (
    *MODEL, "data.window=2", "train.batch_rows=12", "train.steps=24", "schedule.warmup_steps=4", "launch.ranks=2",
    "launch.backoff_s=0.1", "checkpoint.every_steps=8", "evaluate.every_steps=12", "evaluate.rows=8",
    "log.every_steps=4", "log.wandb=off",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The fast tests first, whatever their file; otherwise the order stays."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


class CommandLine:
    """`luban` in one working directory."""

    def __init__(self, home: Path):
        self.home = home
        self.environment = os.environ | {"LUBAN_HOME": str(home), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Begin a command; its output is collected."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "luban", *words], cwd=self.home, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __call__(self, *words: str, code: int = 0, timeout: float = 240) -> str:
        """Run a command; its exit code must be `code`. Returns all it printed, and never a traceback."""
        process = self.start(*words)
        text, _ = process.communicate(timeout=timeout)
        assert process.returncode == code, f"luban {' '.join(words)} ended with {process.returncode}:\n{text}"
        assert "Traceback" not in text, text
        return text

    def pretrain(self, name: str, *more: str, code: int = 0) -> str:
        """Train a tiny model on the tiny dataset."""
        return self(
            "pretrain", "own", f"name={name}", f"data.dataset={self.home}/datasets/tiny", *SETTINGS, *more, code=code
        )

    def start_pretrain(self, name: str, *more: str) -> subprocess.Popen[str]:
        """The same, without waiting."""
        return self.start(
            "pretrain", "own", f"name={name}", f"data.dataset={self.home}/datasets/tiny", *SETTINGS, *more
        )

    def run(self, name: str) -> Path:
        """A run's folder."""
        return self.home / "runs" / name

    def wait_for(self, name: str, attempt: int, happened: Callable[[dict], bool], timeout: float = 120) -> list[dict]:
        """The events of an attempt, as soon as one of them has `happened`."""
        path = self.run(name) / "attempts" / f"{attempt:04d}.jsonl"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            events, _ = jsonl.read(path)
            if any(happened(event) for event in events):
                return events
            time.sleep(0.02)
        raise AssertionError(f"it never happened in {path}")


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    """Look every hundredth of a second."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def kill_rank(events: Sequence[dict], rank: int) -> None:
    """SIGKILL a rank of the attempt that begins with these events."""
    os.kill(events[0]["ranks"][rank]["pid"], signal.SIGKILL)


def tiny_home(home: Path) -> CommandLine:
    """The command line in `home`, with a dataset `tiny` of 300 kB of English; built once."""
    command = CommandLine(home)
    if not (home / "datasets" / "tiny" / "dataset.json").exists():
        (home / "texts").mkdir(exist_ok=True)
        for number, text in enumerate(texts(300_000)):
            (home / "texts" / f"{number:04d}.txt").write_text(text, "utf-8")
        command(
            "data", "build", "folder", "name=tiny", f"sources=[{{kind: folder, path: {home}/texts}}]",
            "tokenizer.vocab_size=1024", "split.valid=0.1", "shard_tokens=10000",
        )  # fmt: skip
    return command


@pytest.fixture(scope="session")
def luban(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """The command line, in a folder with a dataset `tiny`."""
    return tiny_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def straight(luban: CommandLine) -> CommandLine:
    """The same, with a run `straight` that was never interrupted."""
    luban.pretrain("straight")
    return luban
