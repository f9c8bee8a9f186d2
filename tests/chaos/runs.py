"""Whole runs, hurt: `make chaos`, or `python -m tests.chaos.runs [TIMES] [MINUTES]`.

Every fault of `harm.py` befalls a run of its own, TIMES times at other moments; the run is started again until it is
done. Then its lineage must be exactly the uninterrupted one (each row once, by position and digest), its weights and
moments equal bit for bit, and `luban verify` must hold. What is done is kept in `chaos/results.jsonl`: called again,
it goes on where it was.
"""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos.harm import FAULTS, Victim, start
from tests.conftest import CommandLine, tiny_home
from trainer import jsonl, record
from trainer.console import duration
from trainer.verify import check_run, compare

SETTINGS = (
    "train.steps=48", "checkpoint.every_steps=6", "launch.max_restarts=6", "engine.timeout_s=8", "log.wandb=offline",
    "evaluate.every_steps=16",
)  # fmt: skip
STARTS = 6  # of one run, at most
TWIN = "unhurt"


def unhurt(luban: CommandLine) -> None:
    """The run that nothing happens to."""
    process = start(luban, TWIN, *SETTINGS)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text


def hurt(luban: CommandLine, fault: str, number: int) -> dict[str, Any]:
    """One run, hurt once; what came of it."""
    name = f"{fault.replace(' ', '-')}-{number}"
    began = time.monotonic()
    v = Victim(luban, name, random.Random(f"{fault}/{number}"), SETTINGS, start(luban, name, *SETTINGS))
    FAULTS[fault](v)
    codes = [v.end()]
    while codes[-1] and len(codes) < STARTS:
        v.again()
        codes.append(v.end())
    problems = [f"ended with {codes}: {v.texts[-1][-2000:]}"] if codes[-1] else list(differences(luban, name))
    known = [tuple(event["positions"]) for event in record.load(luban.run(TWIN)).lineage()]
    seen = Counter(tuple(event["positions"]) for event in record.load(v.run).lineage())
    rows = sum(last - first for first, last in known if (first, last) not in seen)
    repeated = sum((last - first) * (count - 1) for (first, last), count in seen.items())
    history = record.load(v.run)
    if (v.run / "checkpoints").is_mount():
        subprocess.run(["umount", v.run / "checkpoints"], check=True)
    return {
        "fault": fault, "number": number, "name": name, "recovered": not problems,
        "rows lost": rows, "rows repeated": repeated, "attempts": len(history.attempts),
        "redone": sum(last - first + 1 for _, first, last in history.lost),
        "problems": problems, "seconds": time.monotonic() - began,
    }  # fmt: skip


def differences(luban: CommandLine, name: str) -> list[str]:
    """Everything in which a run isn't what the uninterrupted one is."""
    run, twin = luban.run(name), luban.run(TWIN)
    return [str(check) for check in (*check_run(run), *compare(run, twin)) if not check.equal]


def table(results: list[dict[str, Any]]) -> str:
    """One line a fault."""
    lines = [
        f"{'fault':38} {'times':>6} {'recovered':>10} {'rows lost':>10} {'rows repeated':>14} {'steps redone':>13}"
    ]
    for fault in dict.fromkeys(result["fault"] for result in results):
        mine = [result for result in results if result["fault"] == fault]
        lost, repeated, redone = (sum(r[key] for r in mine) for key in ("rows lost", "rows repeated", "redone"))
        recovered = sum(r["recovered"] for r in mine)
        lines.append(f"{fault:38} {len(mine):6} {recovered:10} {lost:10} {repeated:14} {redone:13}")
    return "\n".join(lines)


def main() -> int:
    """Run what isn't done yet, and print the table."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    minutes = float(sys.argv[2]) if len(sys.argv) > 2 else 60
    folder = Path("chaos").absolute()
    folder.mkdir(exist_ok=True)
    deadline = time.monotonic() + 60 * minutes
    luban = tiny_home(folder)
    results, _ = jsonl.read(folder / "results.jsonl")
    done = {(result["fault"], result["number"]) for result in results}
    if not (luban.run(TWIN) / "checkpoints").exists():
        unhurt(luban)
    file = jsonl.Appender(folder / "results.jsonl")
    wanted = [(fault, number) for number in range(times) for fault in FAULTS if (fault, number) not in done]
    for at, (fault, number) in enumerate(wanted):
        if time.monotonic() > deadline:
            print(f"{len(wanted) - at} are left: the time is over; call it again to go on")
            break
        result = hurt(luban, fault, number)
        file.append(result)
        results.append(result)
        mean = sum(each["seconds"] for each in results) / len(results)
        fate = "recovered" if result["recovered"] else f"NOT AS PROMISED: {'; '.join(result['problems'])[:2000]}"
        print(f"{fault} {number}: {fate}; {duration(mean * (len(wanted) - at - 1))} left", flush=True)
    print(table(results))
    return 0 if all(result["recovered"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
