"""The processes of a cluster: started in the foreground with their words in a log, known by number and birth.

They are kept in `processes.json` of the cluster's folder, so that another process can end them, and end nothing else:
a number that was given to somebody else in the meantime has another birth.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "processes.json"
POLL_S = 0.05
TAIL = 8  # lines of a log that are shown


class TestbedError(Exception):
    """The cluster is not what it should be; says what its daemons said last."""

    __test__ = False


@dataclass(frozen=True)
class Process:
    """A process that may not be ours to wait for."""

    name: str
    pid: int
    birth: str
    """Clock ticks since boot, as the kernel tells."""

    def alive(self) -> bool:
        """Whether it is there still; a zombie is not."""
        state, birth = _standing(self.pid)
        return birth == self.birth and state != "Z"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, if it is there."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Daemons:
    """All processes of a cluster that were started from here."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = folder / FILE
        kept = json.loads(self._file.read_text()) if self._file.exists() else []
        self.all = {entry["name"]: Process(**entry) for entry in kept}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, words: Sequence[str], bound: bool) -> Process:
        """Start one.

        Args:
            bound: it is killed when the process dies that starts it.
        """
        words = ["setpriv", "--pdeathsig", "KILL", *words] if bound else words
        with self._log(name).open("ab") as log:
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        process = Process(name, child.pid, _standing(child.pid)[1])
        self._children[name] = child
        self.all[name] = process
        self._keep()
        return process

    def check(self) -> None:
        """Raise TestbedError where one has ended."""
        for name, process in self.all.items():
            if not process.alive():
                raise TestbedError(f"{name} has ended; its last words, in {self._log(name)}:\n{self.tail(name)}")

    def tail(self, name: str) -> str:
        """What one said last."""
        with suppress(OSError):
            return "\n".join(self._log(name).read_text("utf-8", "replace").splitlines()[-TAIL:])
        return ""

    def end(self, names: Iterable[str], number: int = signal.SIGTERM, patience_s: float = 10) -> None:
        """End some, those that don't heed `number` by SIGKILL; returns when they are gone."""
        gone = [self.all.pop(name) for name in list(names) if name in self.all]
        end_all(gone, number, patience_s)
        for process in gone:
            if child := self._children.pop(process.name, None):
                child.wait()
        self._keep()

    def _log(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.out"

    def _keep(self) -> None:
        self._file.write_text(json.dumps([asdict(process) for process in self.all.values()]) + "\n")


def end_all(processes: Iterable[Process], number: int = signal.SIGKILL, patience_s: float = 10) -> None:
    """End processes, those that don't heed `number` by SIGKILL; returns when they are gone."""
    processes = list(processes)
    for now in (number, signal.SIGKILL):
        for process in processes:
            process.kill(now)
        deadline = time.monotonic() + patience_s
        while any(process.alive() for process in processes) and time.monotonic() < deadline:
            time.sleep(POLL_S / 5)


def of_jobs(conf: Path) -> Iterator[Process]:
    """The tasks that a cluster's jobs have started on this machine, and the stepds over them.

    A task knows its slurm.conf and its node. So a shell in which somebody uses the cluster is no task.
    """
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "environ").read_bytes().split(b"\0")
            if f"SLURM_CONF={conf}".encode() not in words:
                continue
            stepd = (path / "cmdline").read_bytes().startswith(b"slurmstepd: ")
            if stepd or any(word.startswith(b"SLURMD_NODENAME=") for word in words):
                yield Process("stepd" if stepd else "task", int(path.name), _standing(int(path.name))[1])


def _standing(pid: int) -> tuple[str, str]:
    """(state, birth) of a process, as in proc(5); empty where it is gone."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    return "", ""
