"""Two processes that take turns, a few steps each, so that one machine's weather meets both alike.

A token goes round through two pipes. Whoever holds it computes; the other waits, and its waiting isn't counted.
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STEPS = 5
"""Of a turn."""


class Turns:
    """One side: it waits for its turn, and counts its steps' seconds."""

    def __init__(self, mine: int, others: int):
        """`mine`: the read end of this side's pipe; `others`: the write end of the other's."""
        self.mine, self.others = mine, others
        self.seconds: list[tuple[float, float]] = []
        """Of each step, by the wall's clock and by the processor's, all threads together."""

    def begin(self) -> None:
        """Wait for the first turn."""
        self._wait()

    def stepped(self, last: bool) -> None:
        """A step has ended; after the `last` the turn goes over for good."""
        now = time.perf_counter(), time.process_time()
        self.seconds.append((now[0] - self._began[0], now[1] - self._began[1]))
        if last or len(self.seconds) % STEPS == 0:
            os.write(self.others, b"!")
        if not last and len(self.seconds) % STEPS == 0:
            self._wait()
        else:
            self._began = time.perf_counter(), time.process_time()

    def _wait(self) -> None:
        if not os.read(self.mine, 1):
            raise RuntimeError("the other side has gone")
        self._began = time.perf_counter(), time.process_time()


def take_turns(
    commands: Sequence[Sequence[str | Path]], environments: Sequence[Mapping[str, str]], logs: Sequence[Path]
) -> None:
    """Run two commands to their ends; each gets two file descriptors as its last words, for `Turns`.

    Raises:
        SystemExit: one of them failed.
    """
    pipes = [os.pipe() for _ in commands]
    sides = []
    for number, (command, environment, log) in enumerate(zip(commands, environments, logs, strict=True)):
        ends = (pipes[number][0], pipes[1 - number][1])
        with log.open("wb") as file:
            sides.append(
                subprocess.Popen(
                    [*command, *map(str, ends)], env=dict(environment), pass_fds=ends, stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
    os.write(pipes[0][1], b"!")
    while any(side.poll() is None for side in sides):
        for side, log in zip(sides, logs, strict=True):
            if side.poll():
                for other in sides:
                    other.kill()
                raise SystemExit(f"{log} ended with {side.returncode}:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)
    for end in (end for pipe in pipes for end in pipe):
        os.close(end)
