"""A finished run folder with one byte flipped, one file cut short, or one file gone.

Damage in a checkpoint is named, and the run goes on from the one before. Damage in the record is an error that names
the file and the line, and takes nothing: with the file restored the run goes on. metrics.jsonl is for curves; a line
of it that is damaged is passed over.
"""

import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

from tests.chaos import play
from tests.chaos.faults import Crash
from tests.chaos.gate import Fault
from tests.chaos.judge import Verdict, judge
from trainer import checkpoint, record
from trainer.checkpoint import Checkpoint, CorruptCheckpoint

MORE = play.STEPS + 3  # updates of the run that goes on
FLIPS = 4  # bytes of each file


def share(folder: Path, number: int, workers: int) -> Iterator:
    """One worker's part: damage a copy of a run of two attempts, go on, compare."""
    from tests.chaos.injections import Result

    base = folder / f"finished-{number}"
    base.mkdir()
    play.ended(play.forked(base, lambda: Crash(base, 100)))
    if play.ended(play.forked(base, Fault)) != play.DONE:
        raise AssertionError(play.output(base))
    files = sorted(
        path
        for path in (base / "run").rglob("*")
        if path.is_file() and not path.is_symlink() and path.suffix != ".alive"
    )
    cases = [(path.relative_to(base), how) for path in files for how in (*range(FLIPS), "short", "gone")]
    for name, how in cases[number::workers]:
        home = folder / f"home-{number}"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(base, home, symlinks=True)
        kind = {"short": "a file cut short", "gone": "a file gone"}.get(str(how), "a byte flipped")
        _do(home / name, how)
        try:
            found = _aftermath(base, home, name)
        except Exception:
            found = Verdict(problems=[traceback.format_exc()])
        yield Result(f"{kind}, {_part(name)}", f"{name}, {how}", found)


def _do(path: Path, how: int | str) -> None:
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "short":
        path.write_bytes(data[: len(data) // 2])
    else:
        assert isinstance(how, int)
        at = (len(data) - 1) * how // (FLIPS - 1)
        data[at] ^= 1 << (at % 7)
        path.write_bytes(data)


def _part(name: Path) -> str:
    return {"attempts": "record", "metrics.jsonl": "metrics"}.get(name.parts[1], name.parts[1])


def _aftermath(base: Path, home: Path, name: Path) -> Verdict:
    """Go on with a run in which the file `name` is damaged; what is wrong with what follows."""
    run, part, gone = home / "run", _part(name), not (home / name).exists()
    problems = []
    if part == checkpoint.FOLDER and not any(name.name in text for text in _problems(run, name.parts[2])):
        problems.append("the damage is not found by reading the checkpoint")
    newest = record.load(base / "run").checkpoints()[-1]
    code = play.ended(play.forked(home, Fault, steps=MORE))
    said = play.output(home)
    if part == "record" and code == play.TOLD:
        if name.name not in said or ("line" not in said and not gone):
            problems.append(f"the error doesn't say where: {said[-300:]}")
        shutil.copy(base / name, home / name)
        code = play.ended(play.forked(home, Fault, steps=MORE))
        said = play.output(home)
    elif part == "record" and not _harmless((base / name).read_bytes(), (home / name).read_bytes()):
        problems.append("the damage is not found")
    elif part in (checkpoint.FOLDER, checkpoint.BASE):
        # a checkpoint whose manifest isn't there is none, and nobody passes over it
        hit = part == checkpoint.BASE or (name.parts[2] == newest and not (gone and name.name == checkpoint.MANIFEST))
        if hit != ("CORRUPT CHECKPOINT passed over" in said and name.name in said):
            problems.append(f"passed over: {not hit}, and it should be {hit}: {said[-300:]}")
    if code != play.DONE:
        return Verdict(problems=[*problems, f"it ended with {code}: {said[-2000:]}"])
    damaged = name.parts[2] if part == checkpoint.FOLDER else ""
    found = judge(run, MORE, flushed_metrics=True, kept=None, damaged=damaged)
    if part == "metrics":
        found.problems = [text for text in found.problems if not text.startswith("metrics.jsonl")]
    found.problems += problems
    return found


def _problems(run: Path, name: str) -> list[str]:
    try:
        return Checkpoint(run / checkpoint.FOLDER / name).problems()
    except CorruptCheckpoint as error:
        return [str(error)]


def _harmless(before: bytes, after: bytes) -> bool:
    """Whether each line says what it said, up to a last one that looks torn: that is what a kill leaves, too."""
    lines = after.splitlines(keepends=True)
    whole = lines if after.endswith(b"\n") else lines[:-1]
    bodies = [line.rpartition(b', "')[0] for line in before.splitlines()]
    return all(line.startswith(body) for line, body in zip(whole, bodies, strict=False))
