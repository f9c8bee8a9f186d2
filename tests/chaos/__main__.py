"""`python -m tests.chaos writer|fencing [SHARE]`: faults in the checkpoint writer and the record, and a table of them.

SHARE: a number above 0 and at most 1, of the injections that are made; all by default. Ends with 1 if any failed.
"""

import os
import pickle
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from pathlib import Path
from types import ModuleType

from tests.chaos import fencing, injections
from tests.chaos.injections import Result


def main() -> int:
    """Make them, on all cores; print the table and the first failures."""
    layer = {"writer": injections, "fencing": fencing}[sys.argv[1]]
    part = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    began, memory = time.monotonic(), Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        results = spread(Path(name), layer, part)
    print(table(results))
    failed = [result for result in results if result.verdict.problems]
    for result in failed[:10]:
        print(f"\nFAILED {result.fault}: {result.where}\n  " + "\n  ".join(result.verdict.problems))
    print(f"{len(results)} injections in {time.monotonic() - began:.0f} s, {len(failed)} failed")
    return 1 if failed else 0


def spread(folder: Path, layer: ModuleType, part: float) -> list[Result]:
    """The results of all workers, one a core."""
    calls = layer.prepare(folder)
    workers = len(os.sched_getaffinity(0))
    children = []
    for number in range(workers):
        child = os.fork()
        if not child:
            code = 1
            try:
                every = max(1, round(1 / part))
                found = list(layer.share(folder, number, workers * every, calls))
                (folder / f"results-{number}").write_bytes(pickle.dumps(found))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        raise RuntimeError("a worker has failed; its error is above")
    results = [each for number in range(workers) for each in pickle.loads((folder / f"results-{number}").read_bytes())]  # noqa: S301
    return [result for result in results if result.fired]


def table(results: list[Result]) -> str:
    """Fault, times injected, recovered, rows lost, rows repeated, updates redone."""
    rows = defaultdict(list)
    for result in results:
        rows[result.fault].append(result.verdict)
    width = max(map(len, rows))
    lines = [f"{'fault':{width}} {'injected':>9} {'recovered':>10} {'rows lost':>10} {'repeated':>9} {'redone':>7}"]
    for fault, found in rows.items():
        whole = sum(not each.problems for each in found)
        lost, repeated, redone = (sum(getattr(each, name) for each in found) for name in ("lost", "repeated", "redone"))
        lines.append(f"{fault:{width}} {len(found):9} {whole:10} {lost:10} {repeated:9} {redone:7}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
