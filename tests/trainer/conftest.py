"""A run folder as the record and the tracker would have left it, without training anything."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from data import settings
from tests.trainer import records
from trainer.clock import Clock
from trainer.recipe import Recipe
from trainer.tracker import Metrics

ROWS, CONTEXT, BEGAN = 8, 32, 1_760_000_000.0
START_UP = 6.0  # from an attempt's process to its first event

run = records.run  # a fixture of several files


class FakeRun:
    """Writes attempts, metrics, evaluations; `steps` gives loss 8 falling to about 2."""

    def __init__(self, folder: Path, **overrides: object) -> None:
        self.folder, self.clock, self.counts = folder, BEGAN, "tokens"
        folder.mkdir(parents=True)
        given = {"name": folder.name, "data.dataset": str(folder.parent / "corpus"), "train.steps": 60} | overrides
        self.recipe = settings.load(Recipe, None, [f"{key}={json.dumps(value)}" for key, value in given.items()])
        (folder / "recipe.yaml").write_text(settings.dump(self.recipe))
        self.number = 0

    def attempt(self, step: int = 0, adopts: str | None = None, world: int = 2, **start: object) -> None:
        """A new distributed life that goes on after `step`."""
        self.number += 1
        self.clock += 20
        self.spent = Clock(lambda: round(1e9 * self.clock), began=round(1e9 * (self.clock - START_UP)))
        self.path = self.folder / "attempts" / f"{self.number:04d}.jsonl"
        self.path.parent.mkdir(exist_ok=True)
        earlier = {path.stem: path.stat().st_size for path in self.path.parent.glob("*.jsonl")}
        self.metrics = Metrics(self.folder, self.number)
        self.event(
            "start", began=self.clock - START_UP, format="luban-attempt", version=1, attempt=self.number,
            adopts=adopts, step=step, consumed=step * ROWS, accepts=earlier, world=world, zero_stage=2, micro_batch=4,
            precision="fp32", device="cpu", exact="topology", dataset="ab" * 32, parameters=3_111_111,
            ranks=[{"rank": 0, "host": "node-1", "pid": 7}], versions={"luban": "0.1.0", "torch": "2.13.0"},
            supervisor="restart" if adopts else "start", **start,
        )  # fmt: skip
        self.spent.enter("compute")

    def event(self, event: str, **values: object) -> None:
        """One line of the attempt's file."""
        self.clock += 0.01
        with self.path.open("a") as file:
            file.write(json.dumps({"event": event, **values, "time": self.clock}) + "\n")

    def steps(self, first: int, last: int, tilt: float = 0.0) -> None:
        """Apply steps and log each of them."""
        for step in range(first, last + 1):
            self.clock += 1
            loss = 2 + 6 * math.exp(-step / 12) + tilt * step + 0.05 * math.sin(7 * step)
            positions = [(step - 1) * ROWS, step * ROWS]
            self.event(
                "step", step=step, positions=positions, labels=ROWS * CONTEXT, rows="0f", verdict="applied",
                reason=None, loss=loss, grad_norm=1 / step, lr=1e-3,
            )  # fmt: skip
            of_tokens = {"train/perplexity": math.exp(loss), "train/bits_per_byte": loss / 2}
            self.metrics.write(
                {
                    "train/step": step, f"train/{self.counts}": step * ROWS * CONTEXT, "train/loss": loss,
                    **(of_tokens if self.counts == "tokens" else {}), "train/grad_norm": 1 / step,
                    "train/lr": 1e-3 * min(1, step / 10), "speed/tokens_per_s": 250.0 + step % 5,
                    "speed/step_ms": 1000.0, "speed/data_wait_pct": 0.4, "memory/peak_gib": 0.5, "eta_s": 60.0 - step,
                    "time": self.clock,
                }
            )  # fmt: skip
        self.event("clock", clock=self.spent.seconds())

    def checkpoint(self, step: int) -> str:
        """Announce a checkpoint; no files."""
        name = f"step-{step:09d}.a{self.number}"
        self.event("checkpoint", step=step, name=name, seconds=0.4, bytes=12 << 20, clock=self.spent.seconds())
        return name

    def evaluation(self, step: int, loss: float, text: str = " and so on", best: bool = True) -> None:
        """A validation with one sample."""
        with self.spent.of("evaluation"):
            self.clock += 2
        figures = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / 2, "accuracy": 0.5}
        samples = [{"prompt": "def f(", "text": text}]
        self.event("evaluation", step=step, set="valid", metrics=figures, seconds=2.0, best=best, samples=samples)
        axes = {"train/step": step, f"train/{self.counts}": step * ROWS * CONTEXT}
        named = {f"evaluation/valid/{name}": value for name, value in figures.items()}
        self.metrics.write({**axes, **named, "samples": samples, "time": self.clock}, "evaluation")

    def outcome(self, outcome: str, message: str = "") -> None:
        """The attempt's last word."""
        self.event("outcome", outcome=outcome, message=message, clock=self.spent.seconds())


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., FakeRun]:
    """`fake_run(name, **overrides)` makes an empty run under a temporary folder."""
    return lambda name="demo", **overrides: FakeRun(tmp_path / "runs" / name, **overrides)


@pytest.fixture
def killed_run(fake_run: Callable[..., FakeRun]) -> FakeRun:
    """60 steps: saved at 20, 40 and 60, killed at 35, goes on from 20; steps 21 to 35 are lost."""
    run = fake_run("demo")
    run.attempt()
    run.steps(1, 20)
    run.evaluation(20, 3.2, text=" x\n<script>alert(1)</script>")
    saved = run.checkpoint(20)
    run.steps(21, 35)
    run.attempt(20, saved, world=1)
    run.event("note", text="adopted <b>step 20</b>")
    run.steps(21, 40)
    run.evaluation(40, 2.4)
    run.checkpoint(40)
    run.steps(41, 60)
    run.evaluation(60, 2.1)
    run.checkpoint(60)
    run.outcome("done", "step 60 reached")
    return run
