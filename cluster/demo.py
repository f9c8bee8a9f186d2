"""The whole road on this machine, as a user would walk it: each station is the command itself, printed and run.

What is shown is real: the rank is killed by SIGKILL from outside while it trains, the twin run is trained separately
and never interrupted, and every figure of the summary is read from what the commands wrote.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.dataset import load_dataset
from data.errors import UserError
from trainer import jsonl, record
from trainer.evaluate import unigram_baseline
from trainer.scores import load_model, measure
from trainer.units import duration
from trainer.verify import read_proof

RUN, TWIN, TUNED = "stdlib", "stdlib-uninterrupted", "docstrings"
PATIENCE_S = 900  # for the moment to kill a rank


@dataclass(frozen=True)
class Length:
    """How far the demo goes, in steps."""

    pretrain: tuple[str, ...]
    finetune: tuple[str, ...]
    kill_after: int
    generations: int
    """Examples whose completions are generated for BLEU."""


FULL = Length((), (), kill_after=230, generations=64)
SHORT = Length(
    ("train.steps=40", "schedule.warmup_steps=10", "checkpoint.every_steps=10", "evaluate.every_steps=40"),
    ("train.steps=30", "schedule.warmup_steps=5", "evaluate.every_steps=15", "checkpoint.every_steps=15"),
    kill_after=25,
    generations=16,
)


def run_demo(out: Path, short: bool) -> int:
    """Walk the road in the folder `out`; returns the exit code of the first command that fails, or 0.

    Raises:
        UserError: `out` holds something that no demo left there.
    """
    began = time.monotonic()
    length = SHORT if short else FULL
    _clear(out)
    try:
        _walk(Road(out), length)
    except Failed as failed:
        print(f"\nluban: {failed}", file=sys.stderr)
        return failed.code
    print("\n" + "\n".join(summary(out, began)), flush=True)
    return 0


def _walk(road: "Road", length: Length) -> None:
    road.luban("data", "build", "stdlib")
    road.pretrain_and_kill(length)
    road.luban("pretrain", "stdlib", f"name={TWIN}", "evaluate.prompts=[]", *length.pretrain)
    road.luban("verify", RUN, "--against", TWIN)
    road.luban("data", "build", "docstrings")
    road.luban("finetune", "docstrings", "--from", RUN, *length.finetune)
    road.luban("evaluate", f"{TUNED}@best", "--generations", str(length.generations))
    road.luban("generate", f"{TUNED}@best", "def is_empty(items):\n    return len(items) == 0\n", "--tokens", "32")
    road.luban("report", RUN)
    road.luban("report", TUNED)


class Failed(Exception):
    """A command of the demo ended otherwise than it should."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Road:
    """Runs Luban's own commands in one folder."""

    def __init__(self, home: Path):
        self.home = home
        self.environment = os.environ | {"LUBAN_HOME": str(home.absolute())}
        print(f"$ cd {home}", flush=True)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Print a command and begin it."""
        shown = " ".join(word if word.isprintable() and " " not in word else repr(word) for word in words)
        print(f"\n$ luban {shown}", flush=True)
        return subprocess.Popen([sys.executable, "-P", "-m", "luban", *words], cwd=self.home, env=self.environment)

    def luban(self, *words: str) -> None:
        """Run a command to its end. Raises Failed if it doesn't end with 0."""
        self.end(self.start(*words), words)

    def end(self, process: subprocess.Popen[bytes], words: Sequence[str]) -> None:
        """Wait for a command."""
        code = process.wait()
        if code:
            what = f"`luban {' '.join(words)}` ended with {code}; its output is above, its files are in {self.home}"
            raise Failed(what, code)

    def pretrain_and_kill(self, length: Length) -> None:
        """Pretrain; in the middle, after a checkpoint, kill one rank from outside."""
        words = ("pretrain", "stdlib", *length.pretrain)
        process = self.start(*words)
        victim = self._wait_for_step(process, length.kill_after)
        print(f"\n*** kill -9 {victim}: rank 1, after step {length.kill_after}\n", flush=True)
        os.kill(victim, signal.SIGKILL)
        self.end(process, words)

    def _wait_for_step(self, process: subprocess.Popen[bytes], step: int) -> int:
        """The process id of rank 1, once the run has recorded `step`."""
        path = self.home / "runs" / RUN / "attempts" / "0001.jsonl"
        deadline = time.monotonic() + PATIENCE_S
        offset, pid = 0, 0
        while time.monotonic() < deadline and process.poll() is None:
            events, offset = jsonl.read(path, offset)
            for event in events:
                if event["event"] == "start":
                    pid = event["ranks"][1]["pid"]
                if event["event"] == "step" and event["step"] >= step:
                    return pid
            time.sleep(0.05)
        process.terminate()
        raise Failed(f"the run never came to step {step}; see {path}", 1)


def summary(home: Path, began: float) -> list[str]:
    """What came of it, in ten lines, read from the files."""
    runs = home / "runs"
    with contextlib.chdir(home), _home_here():
        base = load_model(RUN)
        figures, fixed = measure(base, base.recipe.evaluate.rows)
        unigram = unigram_baseline(base.inputs.sources, fixed)
        plain, _ = measure(load_model(RUN, Path("datasets/docstrings")))
        tuned, _ = measure(load_model(f"{TUNED}@best"))
    history, proof = record.load(runs / RUN), read_proof(runs / RUN)
    assert proof is not None and proof["passed"]  # `luban verify` has ended with 0
    dataset = load_dataset(home / "datasets" / "stdlib").info
    read = dataset["stages"][0]
    lost = sum(last - first + 1 for _, first, last in history.lost)
    lineage = history.lineage()
    bits, unigram_bits = figures["bits_per_byte"], unigram["bits_per_byte"]
    return [
        f"The demo took {duration(time.monotonic() - began)}. Everything lies in {home}/",
        f"corpus     {read['documents_in']:,} files, {read['bytes_in'] / 1e6:.1f} MB -> {dataset['documents']:,} "
        f"documents, {dataset['tokens'] / 1e6:.1f} M tokens: datasets/stdlib",
        f"pretrained {len(lineage)} updates in {len(history.attempts)} attempts, {lost} lost to the kill and redone: "
        f"runs/{RUN}",
        f"record     positions [0, {lineage[-1]['positions'][1]:,}) read once each",
        f"proof      bitwise equal to the uninterrupted run in {len(proof['checks'])} comparisons: "
        f"runs/{RUN}/proof.json",
        f"model      {bits:.3f} bits per byte on unseen files; a unigram model of the tokens {unigram_bits:.3f}",
        f"fine-tuned completion bits per byte {plain['bits_per_byte']:.3f} -> {tuned['bits_per_byte']:.3f}, "
        f"tokens right {plain['accuracy']:.1%} -> {tuned['accuracy']:.1%}: runs/{TUNED}",
        f"reports    {runs / RUN / 'report.html'}",
        f"           {runs / TUNED / 'report.html'}",
        f"go on      cd {home} && luban generate {TUNED}@best 'def area(width, height):'",
    ]


@contextlib.contextmanager
def _home_here() -> Iterator[None]:
    """Without the caller's LUBAN_HOME: the demo's is the working directory."""
    before = os.environ.pop("LUBAN_HOME", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["LUBAN_HOME"] = before


def _clear(out: Path) -> None:
    """Make room for a new demo where an older one was."""
    mark = out / ".luban-demo"
    if out.exists() and any(out.iterdir()) and not mark.exists():
        raise UserError(f"{out} holds something else than a demo: choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
    shutil.rmtree(out / "runs", ignore_errors=True)
