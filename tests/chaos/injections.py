"""All that is done to the checkpoint writer and the record: one injection is a fault in one attempt of a small run.

Each is a forked child that plays an attempt and meets the fault, then another that goes on from what is there, then a
comparison with the uninterrupted run. The folders lie in memory where there is such a place: what a disk would have
kept is worked out by `power.py`, so that 1,200 injections take no flush of a real one.
"""

import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import damage, play
from tests.chaos.faults import FIRED, KILLED, Broken, Crash, Full, PowerLoss, Short
from tests.chaos.gate import GROWS, Call, Fault
from tests.chaos.judge import Verdict, judge
from trainer import record

PARTIAL = "open step-000000006.a1/state.json"
REMOVED = "unlink step-000000003.a1/state.json"
TWO_RANKS = 60  # crashes of two ranks that are threads: their calls come in any order, so these are drawn


@dataclass
class Result:
    """What came of one injection."""

    fault: str
    where: str
    verdict: Verdict
    fired: bool = True


@dataclass(frozen=True)
class Injection:
    """A fault to come."""

    fault: str
    base: str
    """Which prepared folder the attempt starts from: "fresh", "partial" (killed in a save), "removed" (in retention)"""
    at: int
    make: Callable[[Path], Fault] = field(compare=False)
    ranks: int = 1
    power: bool = False

    def run(self, home: Path) -> Result:
        """Do it, in the folder `home`, whose `run` is a copy of the base."""
        where, saved = f"{self.base}, call {self.at}", 0
        code = play.ended(play.forked(home, lambda: self.make(home), self.ranks))
        told = home.with_suffix(f".{FIRED}")
        if told.exists():
            step, _, call = told.read_text().partition(" ")
            where, saved = f"{self.base}, {call}", int(step)
            told.unlink()
        elif code == play.DONE:
            return Result(self.fault, where, Verdict(), fired=False)
        if code not in (KILLED, play.TOLD, play.DONE):
            return Result(self.fault, where, Verdict(problems=[f"ended with {code}: {play.output(home)[-2000:]}"]))
        clear = ("cannot write", "No space left", "Input/output error")
        if code == play.TOLD and not any(words in play.output(home) for words in clear):
            return Result(self.fault, where, Verdict(problems=[f"no clear error: {play.output(home)[-300:]}"]))
        code = play.ended(play.forked(home, Fault, self.ranks))
        if code != play.DONE:
            problem = f"the next attempt ended with {code}: {play.output(home)[-2000:]}"
            return Result(self.fault, where, Verdict(problems=[problem]))
        found = judge(home / "run", flushed_metrics=self.power)
        began = record.load(home / "run").attempts[-1].start["step"]
        if began < saved:
            found.problems.append(f"the record said that step {saved} was saved, and the run went on from {began}")
        return Result(self.fault, where, found)


class Census(Fault):
    """Writes down the calls of a play."""

    def __init__(self, path: Path):
        self.path = path

    def before(self, call: Call) -> None:
        with self.path.open("a") as out:
            out.write(f"{call.name in GROWS:d} {call}\n")


def prepare(folder: Path) -> dict[str, list[str]]:
    """Make the base folders in `folder`; the calls of an attempt that starts from each, "1 name path" if it grows."""
    bases, found = folder / "bases", {}
    (bases / "fresh").mkdir(parents=True)
    fresh = found["fresh"] = _census(folder, bases / "fresh")
    for name, where in (("partial", PARTIAL), ("removed", REMOVED)):
        at = next(number for number, call in enumerate(fresh) if call.endswith(where))
        home = bases / name
        home.mkdir()
        play.ended(play.forked(home, lambda home=home, at=at: Crash(home, at)))
        found[name] = _census(folder, home)
    return found


def copy(folder: Path, base: str, home: Path) -> None:
    """A fresh copy of a base."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(folder / "bases" / base, home, symlinks=True)


def _census(folder: Path, base: Path) -> list[str]:
    home, told = folder / "census", folder / "calls"
    told.unlink(missing_ok=True)
    shutil.copytree(base, home, symlinks=True)
    code = play.ended(play.forked(home, lambda: Census(told)))
    if code != play.DONE:
        raise AssertionError(play.output(home))
    shutil.rmtree(home)
    return told.read_text().splitlines()


def all_of_them(calls: dict[str, list[str]]) -> Iterator[Injection]:
    """Every fault at every call where it means something."""
    for base, made in calls.items():
        for at, call in enumerate(made):
            grows, name, *_ = call.split(" ")
            yield Injection("killed before a call", base, at, lambda home, at=at: Crash(home, at))
            yield Injection(
                "power lost after a call: only what was flushed is left", base, at,
                lambda home, at=at: PowerLoss(home, at, None), power=True,
            )  # fmt: skip
            if base == "fresh":
                yield Injection(
                    "power lost after a call: of the rest some is left, torn or as zeros", base, at,
                    lambda home, at=at: PowerLoss(home, at, at), power=True,
                )  # fmt: skip
            if name == "write":
                yield Injection("killed in the middle of a write", base, at, lambda home, at=at: Crash(home, at, True))
                yield Injection("a write takes half of the bytes", base, at, lambda home, at=at: Short(home, at))
            if grows == "1" and base != "removed":
                yield Injection("disk full at one call", base, at, lambda home, at=at: Full(home, at, False))
                yield Injection("disk full from a call on", base, at, lambda home, at=at: Full(home, at, True))
            if name == "fsync":
                yield Injection("a flush fails", base, at, lambda home, at=at: Broken(home, at))
    draw = random.Random(1)
    for number in range(TWO_RANKS):
        at = draw.randrange(len(calls["fresh"]))
        if number % 2:
            yield Injection("two ranks, killed", "fresh", at, lambda home, at=at: Crash(home, at), ranks=2)
        else:
            yield Injection(
                "two ranks, power lost", "fresh", at, lambda home, at=at: PowerLoss(home, at, at), 2, power=True
            )


def share(folder: Path, number: int, workers: int, calls: dict[str, list[str]]) -> Iterator[Result]:
    """One worker's part of all injections, one after the other."""
    home = folder / f"home-{number}"
    for injection in list(all_of_them(calls))[number::workers]:
        copy(folder, injection.base, home)
        try:
            yield injection.run(home)
        except Exception:
            where = f"{injection.base}, call {injection.at}"
            yield Result(injection.fault, where, Verdict(problems=[traceback.format_exc()]))
    yield from damage.share(folder, number, workers)
