"""Loaders side by side on one corpus: ours, local and over http, against those that people use.

Each runs in a process of its own that lives through all rounds; they take turns of a second and a half, so one at a
time is at work (and for http, the server, a process of its own that serves all alike). What comes over http starts
from an empty cache. Mtok/s are per processor second of the loader and its children, and by the wall clock.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench import yardsticks
from tests.bench.loader_contenders import CONTENDERS
from tests.bench.loader_corpus import dataset, home, write_flat, write_luban, write_webdataset

COPIES, ROUNDS, SECONDS = 6, 5, 1.5
THEIRS = {"litdata", "mosaic", "stateful", "stateful_workers"}


class Contender:
    """One loader's process."""

    def __init__(self, name: str, python: str, folder: Path, url: str):
        self.name = name
        self._process = subprocess.Popen(
            [python, "-m", "tests.bench.loader_contenders", name, str(folder), url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        self.rounds: list[tuple[int, float, float]] = []

    def wait(self) -> None:
        """Until it has read its first batch."""
        while (line := self._said()) != "ready":
            print(line)

    def turn(self) -> None:
        """Let it read."""
        assert self._process.stdin is not None
        print(SECONDS, file=self._process.stdin, flush=True)
        while not (line := self._said()).startswith("["):
            pass
        self.rounds.append(tuple(json.loads(line)))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        return line.strip()


def main() -> None:
    """Print a table: Mtok/s per processor second, by the wall clock, and the ratio to memmap."""
    chosen = sys.argv[1:] or list(CONTENDERS)
    theirs = yardsticks.python_with(yardsticks.LOADERS) if THEIRS & set(chosen) else sys.executable
    source = dataset(home())
    with tempfile.TemporaryDirectory(dir=home(), prefix="loaders-") as name:
        folder = Path(name)
        tokens = write_flat(source, COPIES, folder / "tokens.bin")
        write_luban(source, COPIES, folder / "luban")
        for suffix in ("npy", "bin"):
            write_webdataset(source, COPIES, folder / f"docs_{suffix}", suffix)
        for contender in sorted({"litdata", "mosaic"} & set(chosen)):
            subprocess.run(
                [theirs, "-m", "tests.bench.loader_contenders", f"write_{contender}", name, ""], check=True,
                env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        mean = source.info["tokens"] / source.info["documents"]
        print(
            f"{tokens:,} tokens, {mean:.0f} a document; batches of 8 x 2048, int64; {ROUNDS} rounds of {SECONDS} s",
            flush=True,
        )
        server = subprocess.Popen([sys.executable, "-m", "tests.bench.loader_server", name], stdout=subprocess.PIPE,
                                  text=True, env=environment())  # fmt: skip
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        contenders = []
        try:
            for contender in chosen:
                python = theirs if contender in THEIRS else sys.executable
                contenders.append(Contender(contender, python, folder, url))
                contenders[-1].wait()
            for _ in range(ROUNDS):
                for contender in contenders:
                    contender.turn()
        finally:
            for contender in contenders:
                contender.close()
            server.kill()
            server.wait()
    _table(contenders)


def _table(contenders: list[Contender]) -> None:
    base = next((contender for contender in contenders if contender.name == "memmap"), contenders[0])
    print(f"{'loader':<24}{'Mtok/cpu-s':>12}{'Mtok/s':>10}{'of ' + base.name:>14}{'lowest':>9}{'highest':>9}")
    for contender in contenders:
        rates = [tokens / used / 1e6 for tokens, _, used in contender.rounds]
        walls = [tokens / wall / 1e6 for tokens, wall, _ in contender.rounds]
        against = [
            (tokens / used) / (theirs / spent)
            for (tokens, _, used), (theirs, _, spent) in zip(contender.rounds, base.rounds, strict=True)
        ]
        print(
            f"{contender.name:<24}{statistics.median(rates):>12.1f}{statistics.median(walls):>10.1f}"
            f"{statistics.median(against):>14.3f}{min(against):>9.3f}{max(against):>9.3f}"
        )


def environment() -> dict[str, str]:
    """Of a benchmark's processes: this code, one thread."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
