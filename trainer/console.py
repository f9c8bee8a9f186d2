"""What a person sees of a run: a live view while it runs, and `status` at any time.

The process that looks is never a rank. It follows the run folder's files by byte offset, so a rank neither knows nor
waits, a run on another machine looks the same, and a restart of the ranks does not interrupt the view. Redrawing costs
some 6 ms and happens only in `poll`; where there is no terminal each line of metrics becomes one line of text.

Texts from a recipe or a model are printed as they are, without markup, and their control characters as dots: a sample
must not be able to move the cursor.
"""

import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer import claim, goodput, jsonl, record
from trainer.meters import labels_of
from trainer.run import read_recipe
from trainer.units import duration, precise, printable, short, size

SAMPLE_LINES = 12
TAIL = 1 << 16
STATES = {"done": "done", "stopped": "stopped", "fault": "failed", "user_error": "failed", "fenced": "taken over"}


class Follower:
    """Shows what is appended to a run folder from now on."""

    def __init__(
        self, run_folder: Path, steps: int, console: Console | None = None, *, from_the_start: bool = False
    ) -> None:
        """
        Args:
            run_folder: The run; it may be empty, or not exist yet.
            steps: Updates of the whole run.
            console: Where to show it; None: standard output.
            from_the_start: Show what is there already, too.
        """
        self._run, self._steps = run_folder, steps
        self._console = console or Console(highlight=False)
        self._offsets: dict[Path, int] = {}
        self._reached = 0  # newest step seen in a record
        self._figures: Mapping[str, Any] = {}
        self._state = "starting"
        if not from_the_start:
            self._skip_to_the_end()
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(self._view(), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)

    def poll(self) -> None:
        """Show what is new; returns at once."""
        entries = [entry for path in self._files() for entry in self._new(path)]
        entries.sort(key=lambda entry: entry.get("time", 0.0))
        for entry in entries:
            if "event" in entry:
                self._event(entry)
            elif entry.get("kind", "train") == "train":
                self._train(entry)
        if self._live and entries:
            self._live.update(self._view(), refresh=True)

    def close(self) -> None:
        """Show the rest and leave the terminal as it was."""
        self.poll()
        if self._live:
            self._live.stop()
            self._live = None

    def say(self, text: str, style: str = "") -> None:
        """A line of the supervisor's own, above the bar."""
        self._console.print(Text(text, style), soft_wrap=True)

    def _files(self) -> list[Path]:
        return [*record.files(self._run), self._run / "metrics.jsonl"]

    def _new(self, path: Path) -> list[dict[str, Any]]:
        entries, self._offsets[path] = jsonl.read(path, self._offsets.get(path, 0))
        return entries

    def _skip_to_the_end(self) -> None:
        for path in self._files():
            end = path.stat().st_size if path.exists() else 0
            tail, self._offsets[path] = jsonl.read(path, max(0, end - TAIL))
            steps = [entry["step"] for entry in tail if entry.get("event") in ("start", "step")]
            self._reached = steps[-1] if steps else self._reached

    def _event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind in ("start", "step"):
            if kind == "start":
                self._state = "running"
            before, self._reached = self._reached, event["step"]
            for line in _begun(event, before) if kind == "start" else _skipped(event):
                self.say(line, "bold" if kind == "start" else "yellow")
            return
        if kind == "outcome":
            self._state = event["outcome"]
        for text, style in describe(event):
            self.say(text, style)

    def _train(self, line: dict[str, Any]) -> None:
        self._figures = line
        if not self._live:
            step = line.get("train/step", 0)
            self.say(f"step {step}/{self._steps}  " + "  ".join(figures(line)))

    def _view(self) -> Group:
        step = int(self._figures.get("train/step") or self._reached)
        left = self._figures.get("eta_s")
        head = Table.grid(padding=(0, 2))
        head.add_column(no_wrap=True)
        head.add_column(no_wrap=True)
        head.add_column(no_wrap=True)
        head.add_row(
            ProgressBar(total=max(1, self._steps), completed=min(step, self._steps), width=32),
            f"{step}/{self._steps} steps, {100 * step // max(1, self._steps)} %",
            f"{duration(left)} left" if left and self._state == "running" else self._state,
        )
        return Group(head, Text("  ".join(figures(self._figures, eta=False)), "cyan"))


def figures(line: Mapping[str, Any], eta: bool = True) -> Iterator[str]:
    """The figures of a line of metrics that are there, each with its name."""
    shapes = (
        ("train/loss", "loss {:.4f}"),
        ("train/perplexity", "ppl {:.4g}"),
        ("train/bits_per_byte", "{:.4f} bits/byte"),
        ("train/grad_norm", "grad norm {:.3g}"),
        ("train/lr", "lr {:.3g}"),
    )
    yield from (shape.format(line[name]) for name, shape in shapes if line.get(name) is not None)
    if "train/loss" in line and line["train/loss"] is None:
        yield "loss not finite"
    if line.get("speed/tokens_per_s") is not None:
        yield f"{short(line['speed/tokens_per_s'])} tokens/s"
        yield f"{line['speed/step_ms']:.4g} ms/step"
        yield f"data wait {line['speed/data_wait_pct']:.1f} %"
    if line.get("speed/mfu_pct") is not None:
        yield f"MFU {line['speed/mfu_pct']:.1f} %"
    if eta and line.get("eta_s") is not None:
        yield f"{duration(line['eta_s'])} left"


def describe(event: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(text, style) lines for a checkpoint, evaluation, note or outcome."""
    kind = event["event"]
    if kind == "checkpoint":
        size_ = f", {size(event['bytes'])}" if "bytes" in event else ""
        yield f"step {event['step']}: saved {event['name']}{size_} in {event.get('seconds', 0):.1f} s", "green"
    elif kind == "evaluation":
        best = ", the best so far" if event.get("best") else ""
        yield f"step {event['step']}: {event['set']} {evaluation_figures(event['metrics'])}{best}", "magenta"
        for sample in event.get("samples") or ():
            yield from ((line, "") for line in _sample(sample))
    elif kind == "note":
        yield f"note: {printable(event['text'])}", "yellow"
    elif kind == "outcome":
        message = f": {printable(event['message'])}" if event.get("message") else ""
        yield f"{event['outcome'].replace('_', ' ')}{message}", "bold" if event["outcome"] == "done" else "bold yellow"


def evaluation_figures(metrics: Mapping[str, float | None]) -> str:
    """loss 2.1000, perplexity 8.17, 1.5150 bits per byte, accuracy 50.1 %."""
    shapes = (
        ("loss", "loss {:.4f}"),
        ("perplexity", "perplexity {:.4g}"),
        ("bits_per_byte", "{:.4f} bits per byte"),
        ("macro_f1", "macro F1 {:.4f}"),
        ("f1", "F1 {:.4f}"),
        ("pearson", "Pearson {:.4f}"),
        ("discriminator_advantage", "discriminator's advantage {:.3f}"),
    )
    parts = [shape.format(metrics[name]) for name, shape in shapes if metrics.get(name) is not None]
    if metrics.get("accuracy") is not None:
        parts.append(f"accuracy {100 * (metrics['accuracy'] or 0):.1f} %")
    return ", ".join(parts)


def status(run: Path, on: str | None = None) -> str:
    """The state of a run from its folder alone.

    Args:
        on: what `--on` was when it was started last; None: this machine.

    Raises:
        UserError: The folder holds no run, or its record is damaged.
    """
    recipe = read_recipe(run)
    history = record.load(run)
    lines = [line for line in history.metrics() if line.get("train/step") is not None]
    train = next((line for line in reversed(lines) if line.get("kind") == "train"), {})
    state = state_of(history)
    reached = history.attempts[-1].last_step if history.attempts else 0
    rows = [("run", f"{recipe.name}: {state}")]
    if history.attempts and history.attempts[-1].message:
        rows.append(("", printable(history.attempts[-1].message)))
    labels = sum(event["labels"] for event in history.lineage() if event["verdict"] == "applied")
    rows.append(("steps", f"{reached} of {recipe.train.steps}, {short(labels)} {labels_of(lines)}"))
    if train:
        rows.append((f"step {train['train/step']}", ", ".join(figures(train, eta=False))))
    best = best_evaluation(history)
    if best:
        rows.append(("best", f"{evaluation_figures(best['metrics'])} at step {best['step']}"))
    if state == "running" and train.get("eta_s") is not None:
        rows.append(("left", duration(max(0.0, train["eta_s"] - (time.time() - train["time"])))))
    rows += [("attempt", text) for text in fates(history)]
    rows += [("goodput", text) for text in time_spent(goodput.measure(history))]
    sizes = {each["name"]: each.get("bytes", 0) for attempt in history.attempts for each in attempt.of("checkpoint")}
    if recipe.checkpoint.store_role == "primary" and recipe.checkpoint.store:
        held, where = history.checkpoints(sizes), f" in {recipe.checkpoint.store}"
    else:
        held, where = history.checkpoints(), ""
    rows += [("saved", f"{name}, {size(sizes.get(name, 0))}{where}") for name in held]
    if state not in ("running", "done"):
        again = f"luban {'finetune' if recipe.ancestor else 'pretrain'} {run / 'recipe.yaml'}"
        rows.append(("go on", again + (f" --on {on}" if on else "")))
    shown, previous = [], None
    for name, text in rows:
        shown.append(f"{'' if name == previous else name:<10}  {text}")
        previous = name
    return "\n".join(shown)


def state_of(history: record.History) -> str:
    """not started, running, done, stopped, failed or killed."""
    if not history.attempts:
        return "not started"
    if claim.alive(history.run) is not None:
        return "running"
    outcome = history.attempts[-1].outcome
    return STATES[outcome] if outcome else "killed"


def fates(history: record.History) -> Iterator[str]:
    """One line an attempt: where it began, how it ended, what of it was lost."""
    lost = {number: (first, last) for number, first, last in history.lost}
    newest = history.attempts[-1].number if history.attempts else 0
    successors = {before.number: after.start.get("supervisor") for before, after in pairwise(history.attempts)}
    for attempt in history.attempts:
        start = attempt.start
        origin = f"from {start['adopts']}" if start.get("adopts") else "from the beginning"
        fate = STATES.get(attempt.outcome or "", "rolled back" if attempt.number in history.rolled_back else "killed")
        if attempt.outcome is None and successors.get(attempt.number) == "takeover":
            fate = STATES["fenced"]
        if attempt.number == newest and state_of(history) == "running":
            fate = "running"
        why = f": {printable(attempt.message)}" if attempt.outcome == "fault" else ""
        gone = f", steps {lost[attempt.number][0]} to {lost[attempt.number][1]} lost" if attempt.number in lost else ""
        ranks = f"{start['world']} rank{'s' * (start['world'] > 1)}"
        yield f"{attempt.number}: {origin} on {ranks}, {fate} at step {attempt.last_step}{gone}{why}"


def time_spent(account: goodput.Goodput) -> Iterator[str]:
    """The goodput, then where all of the wall-clock went, then what is doubtful about it."""
    if not account.wall:
        return
    share = "not recorded" if account.percent is None else f"{account.percent:.1f} %"
    yield f"{share} of {precise(account.wall)}"
    yield ", ".join(
        f"{goodput.NAMES[name]} {precise(seconds)} ({percent:.1f} %)" for name, seconds, percent in account.shown()
    )
    yield from account.notes


def best_evaluation(history: record.History) -> dict[str, Any] | None:
    """The evaluation on the validation set with the lowest loss, of weights that were not lost."""
    lost = {number: first for number, first, _ in history.lost}
    known = [
        event
        for attempt in history.attempts
        for event in attempt.of("evaluation")
        if event["set"] == "valid"
        and isinstance(event["metrics"].get("loss"), float)
        and event["step"] < lost.get(attempt.number, event["step"] + 1)
    ]
    return min(known, key=lambda event: event["metrics"]["loss"], default=None)


def _begun(event: Mapping[str, Any], reached: int) -> Iterator[str]:
    ancestor = event.get("ancestor")
    first = f"from the weights of {ancestor['checkpoint']}" if ancestor else "from the beginning"
    origin = f"from {event['adopts']}" if event.get("adopts") else first
    how = f"{event['world']} rank{'s' * (event['world'] > 1)}, {event['device']}, {event['precision']}"
    yield f"attempt {event['attempt']}: {origin}, {how}, ZeRO {event['zero_stage']}"
    if reached > event["step"]:
        yield f"steps {event['step'] + 1} to {reached} are lost and will be done again"


def _skipped(event: Mapping[str, Any]) -> Iterator[str]:
    if event["verdict"] != "applied":
        yield f"the update after step {event['step']} was skipped: {event.get('reason')}"


def _sample(sample: Mapping[str, Any]) -> Iterator[str]:
    lines = printable(f"{sample.get('prompt', '')}{sample.get('text', '')}").splitlines()
    yield from (f"    | {line}" for line in lines[:SAMPLE_LINES])
    if len(lines) > SAMPLE_LINES:
        yield f"    | ({len(lines) - SAMPLE_LINES} more lines)"
