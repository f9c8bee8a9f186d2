"""What a cluster on one machine can be asked, wherever its nodes are: brought up, spoken to, taken down.

Whatever is not ready ends the attempt at once, with the words of the daemon that failed: a slurmd that finds its port
taken dies without a sound otherwise, and srun waits for ever.
"""

import os
import pwd
import re
import shutil
import stat
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.slurm_testbed.configuration import DEVICES, Shape, cgroup_conf, gres_conf
from tests.slurm_testbed.daemons import POLL_S, Daemons, TestbedError, of_jobs

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # Debian keeps daemons from the PATH of those who aren't root
NEEDED = ("munged", "slurmctld", "slurmd", "srun", "setpriv")
READY_S = 60.0  # four nodes take 1 s on an idle machine
LONGEST_SOCKET = 107  # bytes the kernel takes for the path of a socket

Seen = TypeVar("Seen")


class Cluster(ABC):
    """A Slurm cluster in one folder; as a context it is up inside and gone after."""

    def __init__(self, folder: Path, shape: Shape | None = None):
        """
        Args:
            folder: its own; must not exist before it is up.
        """
        self.folder, self.shape = folder.absolute(), shape or Shape()
        self.conf = self.folder / "etc" / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.conf), "PATH": PATH}
        """What a command needs beside the caller's environment to speak to it."""
        self.daemons = Daemons(self.folder)

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        self.down()

    def up(self, bound: bool = True) -> None:
        """Bring it up; all nodes are idle then.

        Args:
            bound: its daemons die with this process.

        Raises:
            TestbedError: it can't be, and why; nothing is left then.
        """
        self._lay_out()
        try:
            self._configure()
            self._start(bound)
            self.wait_for_nodes("idle")
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End every process of it and remove its folder; also where another process brought it up."""
        if not self.folder.exists():
            return
        self._stop()
        shutil.rmtree(self.folder)

    @abstractmethod
    def _configure(self) -> None:
        """Write slurm.conf."""

    @abstractmethod
    def _start(self, bound: bool) -> None:
        """Start all daemons."""

    @abstractmethod
    def _stop(self) -> None:
        """End all processes."""

    @abstractmethod
    def words(self, *command: str) -> list[str]:
        """The words that run a command where users of the cluster are."""

    def __call__(self, *command: str, code: int = 0, timeout: float = 60) -> str:
        """Run a command of Slurm's; its exit code must be `code`. Returns what it printed."""
        done = self.attempt(*command, timeout=timeout)
        text = done.stdout + done.stderr
        if done.returncode != code:
            raise TestbedError(f"{' '.join(command)} ended with {done.returncode}: {text}\n{self.last_words()}")
        return done.stdout if code == 0 else text

    def attempt(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm's, whatever comes of it."""
        return self.here(*self.words(*command), timeout=timeout)

    def here(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine's."""
        return subprocess.run(
            command, env=os.environ | self.environment, text=True, capture_output=True, timeout=timeout
        )

    def job(self, id: str) -> dict[str, str]:
        """What slurmctld knows of a job: JobState, Restarts, NodeList, Reason ..."""
        return dict(re.findall(r"(\w[\w:/]*)=(\S*)", self("scontrol", "show", "job", "-o", id)))

    def wait_for_job(self, id: str, *states: str, timeout: float = 120) -> dict[str, str]:
        """Wait until a job is in one of some states, such as RUNNING or COMPLETED; returns what is known of it."""
        return self.wait(lambda: self.job(id), lambda job: job["JobState"] in states, f"job {id} {states}", timeout)

    def nodes(self) -> dict[str, str]:
        """The state of every node, as sinfo says it in short: idle, mix, alloc, comp, down ..."""
        done = self.attempt("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t", timeout=20)
        return dict(line.split() for line in done.stdout.splitlines()) if done.returncode == 0 else {}

    def wait_for_nodes(self, state: str, *names: str, timeout: float = READY_S) -> None:
        """Wait until nodes, or all of them, are in a state."""
        wanted = names or self.shape.names
        self.wait(self.nodes, lambda now: all(now.get(n) == state for n in wanted), f"{wanted} {state}", timeout)

    def wait(self, look: Callable[[], Seen], ready: Callable[[Seen], bool], what: str, timeout: float = 120) -> Seen:
        """Look until it is ready; returns what was seen last.

        Raises:
            TestbedError: a daemon has ended, or the time is over.
        """
        deadline = time.monotonic() + timeout
        while True:
            self.daemons.check()
            seen = look()
            if ready(seen):
                return seen
            if time.monotonic() > deadline:
                raise TestbedError(f"not within {timeout:g} s: {what}; {seen}\n{self.last_words()}")
            time.sleep(POLL_S)

    def clear(self) -> None:
        """Cancel every job, kill its tasks without the grace that Slurm gives them, wait until all nodes are idle."""
        self("scancel", "--user", user_name())

        def look() -> dict[str, str]:
            for process in of_jobs(self.conf):
                if process.name == "task":
                    process.kill()
            return self.nodes()

        self.wait(look, lambda now: set(now.values()) == {"idle"}, "all nodes idle", READY_S)

    def last_words(self) -> str:
        """The end of every daemon's log."""
        return "\n".join(f"{name}:\n{self.daemons.tail(name)}" for name in self.daemons.all)

    def _lay_out(self) -> None:
        missing = [command for command in NEEDED if not shutil.which(command, path=PATH)]
        if missing:
            raise TestbedError(f"{', '.join(missing)} not found: install by tests/slurm_testbed/install.sh")
        if self.folder.exists():
            raise TestbedError(f"{self.folder} exists: take down what is there, or choose another folder")
        socket = self.folder / "run" / "munge.sock"
        if len(os.fsencode(socket)) > LONGEST_SOCKET:
            raise TestbedError(f"{socket} is too long for a socket's path: choose a shorter folder")
        for name in ("etc", "run", "log", "state", "munge", "gpu", *(f"spool/{n}" for n in self.shape.names)):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        (self.folder / "munge").chmod(0o700)
        (self.folder / "munge" / "key").write_bytes(os.urandom(1024))
        (self.folder / "munge" / "key").chmod(0o600)

    def _write_conf(self, text: str) -> None:
        self.conf.write_text(text)
        self.conf.with_name("gres.conf").write_text(gres_conf(self.shape, self._devices()))
        version = subprocess.run(["slurmd", "-V"], env=self.environment, text=True, capture_output=True).stdout
        self.conf.with_name("cgroup.conf").write_text(cgroup_conf(version))

    def _devices(self) -> list[str]:
        """A node's GPUs: null devices of our own for root, any devices of the machine for others."""
        if os.geteuid() == 0:
            paths = [self.folder / "gpu" / f"nvidia{number}" for number in range(self.shape.gpus)]
            for path in paths:
                os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        else:
            found = [Path("/dev") / name for name in DEVICES if (Path("/dev") / name).is_char_device()]
            paths = found[: self.shape.gpus]
        if len(paths) < self.shape.gpus:
            raise TestbedError(f"/dev has devices for {len(paths)} fake GPUs a node, {self.shape.gpus} are asked for")
        return [str(path) for path in paths]

    def _start_munged(self, bound: bool) -> None:
        folder = self.folder
        self.daemons.start(
            "munged",
            [
                *("munged", "--foreground", "--force", "--num-threads=2", f"--key-file={folder}/munge/key"),
                *(f"--socket={folder}/run/munge.sock", f"--pid-file={folder}/run/munged.pid"),
                *(f"--log-file={folder}/munge/munged.log", f"--seed-file={folder}/munge/seed"),
            ],
            bound,
        )
        self.wait(lambda: folder / "run" / "munge.sock", Path.exists, "munged listens", READY_S)


def user_name() -> str:
    """Who is asking, as Slurm knows them."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
