"""An attempt that stops at any call, is taken for dead, and wakes when a newer one has gone on.

The older attempt stops itself before call k, whatever the call is: a write, a flush, a rename, or the look for a newer
attempt. The parent starts the newer one, which claims the run, adopts, trains, saves and removes; or which stops or
dies at a call of its own, above all between its claim and its first line. Then the older one wakes and runs to its end,
and must have changed nothing that anybody reads.
"""

import hashlib
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import play
from tests.chaos.faults import FIRED, Crash, Sleep
from tests.chaos.gate import LOOKS, Call, Fault
from tests.chaos.injections import Result, copy
from tests.chaos.judge import Verdict, judge
from trainer import checkpoint, record

OLDER, NEWER = 6, 9  # steps: the older one ends early, so that the newer always has something to save and to remove
KEEP = {"checkpoint.keep_last": 1}
PAIRS = 40  # of calls, drawn, at which the older and the newer attempt stop


@dataclass(frozen=True)
class Duel:
    """One interleaving of two attempts."""

    story: str
    base: str
    """"fresh": the older attempt is the run's first; "killed": it goes on from one that was killed in a save."""
    older_at: int
    newer_at: int | None = None
    """The call before which the newer stops; None: it runs to its end first."""
    newer_dies: bool = False

    def run(self, home: Path) -> Result | None:
        """Do it, in `home`, a copy of the base; None if the older ended before its call."""
        taken = record.numbers(home / "run")
        older = play.forked(home, lambda: Sleep(home, self.older_at), steps=OLDER, name="older", **KEEP)
        if not _stopped(older):
            return None
        told = home.with_suffix(f".{FIRED}")
        older_number = max({*record.numbers(home / "run")} - {*taken}, default=0)
        where = f"{self.base}, older stopped at {told.read_text().partition(' ')[2]}"
        told.unlink()
        fault = Fault if self.newer_at is None else lambda: _newer(home, self.newer_at or 0, self.newer_dies)
        newer = play.forked(home, fault, steps=NEWER, name="newer", **KEEP)
        sleeps = _stopped(newer)
        if not sleeps and not self.newer_dies and os.waitstatus_to_exitcode(_status[newer]) != play.DONE:
            return Result(self.story, where, Verdict(problems=[f"the newer failed: {play.output(home, 'newer')}"]))
        if told.exists():
            where += f", newer at {told.read_text().partition(' ')[2]}"
        before = snapshot(home / "run", older_number)
        os.kill(older, signal.SIGCONT)
        code = play.ended(older)
        problems = differences(before, snapshot(home / "run", older_number, before["there"]))
        if code not in (play.DONE, play.FENCED, play.TOLD):
            problems.append(f"the older ended with {code}: {play.output(home, 'older')[-1500:]}")
        if sleeps:
            os.kill(newer, signal.SIGCONT)
            if (code := play.ended(newer)) != play.DONE:
                problems.append(f"the newer ended with {code}: {play.output(home, 'newer')[-1500:]}")
        if self.newer_dies:
            third = play.forked(home, Fault, steps=NEWER, name="newer", **KEEP)
            if (code := play.ended(third)) != play.DONE:
                problems.append(f"the third ended with {code}: {play.output(home, 'newer')[-1500:]}")
        found = Verdict(problems=problems)
        if not problems:
            found = judge(home / "run", NEWER, kept=1)
        return Result(self.story, where, found)


def _newer(home: Path, at: int, dies: bool) -> Fault:
    if not dies:
        return Sleep(home, at)
    fault = Crash(home, at)
    fault.looks = True  # numbered as the stops are
    return fault


def _stopped(child: int) -> bool:
    """Wait until a child has stopped or ended; whether it has stopped."""
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        _status[child] = status
    return os.WIFSTOPPED(status)


_status: dict[int, int] = {}


def snapshot(run: Path, older: int, there: list[str] | None = None) -> dict[str, Any]:
    """All that the run says, and each file's digest, without what lies in files of the older attempt's number.

    Args:
        there: the checkpoints that anybody may be about to adopt, whosever they are; None: those that exist now.
    """
    history = record.load(run)
    names = history.checkpoints() if there is None else there
    found: dict[str, Any] = {
        "there": names,
        "attempts": [(attempt.number, attempt.events) for attempt in history.attempts if attempt.number != older],
        "lineage": history.lineage(),
        "metrics": history.metrics(),
    }
    if history.attempts and history.attempts[-1].number > older:
        found |= {"checkpoints": history.checkpoints(), "lost": history.lost}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).parts
        own = name[0] == "attempts" and len(name) > 1 and int(path.stem) == older
        if name[0] == checkpoint.FOLDER and len(name) > 2:
            # what the record has given up, and what never got a manifest, may be cleared away by anybody
            own = name[1] not in names and checkpoint.attempt_of(name[1]) <= older
        shared = name[0] == record.METRICS or name[-1].startswith((".probe", "latest")) or path.suffix == ".draft"
        if path.is_file() and not own and not shared and path.suffix != ".alive":
            found["/".join(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What the waking has changed."""
    if "checkpoints" not in before:  # the newer has only claimed: the older's lines count until somebody's first line
        before = {name: value for name, value in before.items() if name not in ("lineage", "metrics")}
        after = {name: value for name, value in after.items() if name in before}
    odd = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return [f"{name} changed: {before.get(name)} -> {after.get(name)}"[:600] for name in odd]


def prepare(folder: Path) -> dict[str, list[str]]:
    """Make the bases in `folder`; the calls, looks included, of an older attempt from each and of one after a kill."""
    bases = folder / "bases"
    (bases / "fresh").mkdir(parents=True)
    (bases / "killed").mkdir()
    calls = {"fresh": _calls(folder, "fresh", OLDER)}
    changes = [call for call in calls["fresh"] if not call.startswith(LOOKS)]
    at = next(at for at, call in enumerate(changes) if call.endswith("step-000000006.a1/state.json"))
    play.ended(play.forked(bases / "killed", lambda: Crash(bases / "killed", at), steps=OLDER, **KEEP))
    return calls | {"killed": _calls(folder, "killed", OLDER), "newer": _calls(folder, "killed", NEWER)}


class _Census(Fault):
    looks = True

    def __init__(self, path: Path):
        self.path = path

    def before(self, call: Call) -> None:
        with self.path.open("a") as out:
            out.write(f"{call}\n")


def _calls(folder: Path, base: str, steps: int) -> list[str]:
    home, told = folder / "census", folder / "calls"
    told.unlink(missing_ok=True)
    copy(folder, base, home)
    if play.ended(play.forked(home, lambda: _Census(told), steps=steps, **KEEP)) != play.DONE:
        raise AssertionError(play.output(home))
    return told.read_text().splitlines()


def all_of_them(calls: dict[str, list[str]]) -> Iterator[Duel]:
    """Every call of an older one against three newer ones; then pairs of calls."""
    newer = calls["newer"]
    claim, first_line = (newer.index(f"{name} attempts/0002.jsonl") for name in ("open", "write"))
    for base, number in (("fresh", 1), ("killed", 2)):
        older = calls[base]
        own_claim = older.index(f"open attempts/{number:04d}.jsonl")  # before it, it isn't the older one yet
        for at in range(own_claim, len(older), 1 if base == "fresh" else 3):
            yield Duel("older wakes when the newer has ended", base, at)
            if at % 2:
                yield Duel("newer stopped between its claim and its first line", base, at, first_line)
            else:
                yield Duel("newer dies between its claim and its first line", base, at, claim + 1, newer_dies=True)
        draw = random.Random(number)
        for _ in range(PAIRS):
            older_at, newer_at = draw.randrange(own_claim, len(older)), draw.randrange(claim + 1, len(newer))
            yield Duel("both stopped, the older wakes first", base, older_at, newer_at)


def share(folder: Path, number: int, workers: int, calls: dict[str, list[str]]) -> Iterator[Result]:
    """One worker's part of the duels."""
    home = folder / f"home-{number}"
    for duel in list(all_of_them(calls))[number::workers]:
        copy(folder, duel.base, home)
        result = duel.run(home)
        if result is not None:
            yield result
