"""A run's record made by hand, for tests: attempts, steps and checkpoints as far as the record knows them."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from trainer import checkpoint
from trainer.claim import Writer
from trainer.record import load

ROWS = 8
RANKS = [{"rank": 0, "host": "node-7", "pid": 4242}, {"rank": 1, "host": "node-8", "pid": 17}]


@pytest.fixture
def run(tmp_path: Path):
    """A run's folder; every writer that was opened in it with `begin` is closed at the end."""
    with ExitStack() as opened:
        OPENED[tmp_path] = opened
        yield tmp_path
    del OPENED[tmp_path]


OPENED: dict[Path, ExitStack] = {}


def begin(run: Path, adopts: str | None = None, step: int = 0, consumed: int | None = None) -> Writer:
    """The next attempt, going on from a checkpoint."""
    at = step * ROWS if consumed is None else consumed
    writer = Writer(run)
    writer.start(adopts=adopts, step=step, consumed=at, ranks=RANKS)
    OPENED[run].callback(writer.close)
    return writer


def apply(writer: Writer, first: int, last: int) -> None:
    """Applied steps, where none was ever skipped."""
    for step in range(first, last + 1):
        writer.append("step", step=step, positions=[(step - 1) * ROWS, step * ROWS], verdict="applied", loss=2.5)


def save(writer: Writer, step: int) -> str:
    """A checkpoint as far as the record knows it."""
    name = checkpoint.folder_name(step, writer.number)
    folder = writer.run / checkpoint.FOLDER / name
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    writer.append("checkpoint", step=step, name=name)
    return name


def file(run: Path, number: int) -> Path:
    return run / "attempts" / f"{number:04d}.jsonl"


def told(run: Path, consumed: int | None = None) -> list[tuple[int, int]]:
    """(attempt, step) of the lineage."""
    history = load(run)
    author = {id(event): attempt.number for attempt in history.attempts for event in attempt.events}
    return [(author[id(event)], event["step"]) for event in history.lineage(consumed)]


def steps(attempt: int, first: int, last: int) -> list[tuple[int, int]]:
    return [(attempt, step) for step in range(first, last + 1)]
