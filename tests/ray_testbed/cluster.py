"""A real Ray cluster of several nodes on this machine: each raylet has a loopback address and fake GPUs of its own.

All of it lives in a network and process namespace of its own, with a home of its own: it can collide with nothing, and
when its first process is killed the kernel kills every other, however a test ends. Authentication is by token, the
dashboard on loopback. Root is not needed where the kernel allows user namespaces.

Two seconds to see a node dead instead of fourteen: tests are to take minutes, not hours.
"""

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BIN = Path(sys.executable).parent
HEALTH = {
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 1000,
}
DASHBOARD = "http://127.0.0.1:8265"
METRICS = "http://127.0.0.1:8090/metrics"
SMALL = ["--object-store-memory=78643200", "--disable-usage-stats"]


class RayCluster:
    """A head without GPUs at 127.0.0.1, and nodes that a test adds and takes away."""

    def __init__(self, folder: Path):
        """Bring the head up.

        Args:
            folder: an empty one, for logs and the home; the sockets lie in one of a short name under /tmp.
        """
        self.folder = folder
        self.token = secrets.token_hex(16)
        self.short = Path("/tmp") / f"ray-{secrets.token_hex(3)}"
        self.short.mkdir()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "home").mkdir()
        ready = folder / "ready"
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._user = bool(user)
        self._first = subprocess.Popen(
            ["unshare", *user, "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc",
             sys.executable, str(HERE / "init.py"), str(ready)],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        wait(ready.exists, 20, "a namespace of its own (unshare)")
        self._inside = psutil.Process(self._first.pid).children()[0].pid
        config = json.dumps(HEALTH)
        self._start(
            1, "--head", "--port=6379", "--num-cpus=2", "--num-gpus=0", "--dashboard-host=127.0.0.1",
            "--dashboard-port=8265", "--metrics-export-port=8090", f"--temp-dir={self.short}",
            f"--system-config={config}",
        )  # fmt: skip
        wait(self._answers, 240, "the dashboard")

    def environment(self) -> dict[str, str]:
        """For commands that use the cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{BIN}:{kept.get('PATH', '/usr/bin:/bin')}"
        return kept | {
            "HOME": str(self.folder / "home"), "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token,
            "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "WANDB_MODE": "offline",
        }  # fmt: skip

    def inside(self, *argv: str) -> list[str]:
        """The command line that runs a command in the cluster's namespace."""
        user = ["--user", "--preserve-credentials"] if self._user else []
        return ["nsenter", "--target", str(self._inside), *user, "--net", "--pid", "--mount", "--wdns=.", *argv]

    def add(self, number: int, gpus: int = 1, blind: Path | None = None) -> None:
        """Have a node at 127.0.0.NUMBER join; returns when the cluster counts it.

        Args:
            blind: a folder of which this node has another one than the others.
        """
        words = ["--address=127.0.0.1:6379", f"--num-cpus={gpus}", f"--num-gpus={gpus}"]
        self._start(number, *words, blind=blind)
        wait(lambda: self.address(number) in self.alive(), 240, f"node {number}")

    def kill(self, number: int) -> None:
        """A node loses its power: raylet, workers and ranks at once. One that has gone by itself stays gone."""
        processes = self._processes(number)
        for act in (psutil.Process.suspend, psutil.Process.kill):  # none is to see another die
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    act(process)
        self._nodes.pop(number).wait()

    def drain(self, number: int, seconds: int) -> None:
        """Give notice that a node will be taken away for a better payer."""
        node = self.alive()[self.address(number)]
        subprocess.run(
            self.inside(
                str(BIN / "ray"), "drain-node", "--address=127.0.0.1:6379", f"--node-id={node}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
                f"--deadline-remaining-seconds={seconds}",
            ),
            env=self.environment(), check=True, capture_output=True,
        )  # fmt: skip

    def alive(self) -> dict[str, str]:
        """Address -> id of the nodes that are there."""
        nodes = self.get("/api/v0/nodes")["data"]["result"]["result"]
        return {node["node_ip"]: node["node_id"] for node in nodes if node["state"] == "ALIVE"}

    def get(self, path: str) -> dict:
        """What the dashboard answers."""
        return json.loads(self._asked("get", DASHBOARD + path))

    def post(self, path: str) -> None:
        """Have the dashboard do something."""
        self._asked("post", DASHBOARD + path)

    def metrics(self) -> str:
        """What the head offers to Prometheus."""
        return self._asked("get", METRICS)

    def _asked(self, method: str, url: str) -> str:
        code = (
            "import os, sys, requests; "
            "r = requests.request(sys.argv[1], sys.argv[2], timeout=20, "
            "headers={'Authorization': 'Bearer ' + os.environ['RAY_AUTH_TOKEN']}); r.raise_for_status(); print(r.text)"
        )
        return subprocess.run(
            self.inside(sys.executable, "-c", code, method, url), env=self.environment(), check=True,
            capture_output=True, text=True,
        ).stdout  # fmt: skip

    def processes(self, words: str) -> list[psutil.Process]:
        """Those of the cluster whose command line contains some words."""
        return [process for process in psutil.process_iter() if self._is_inside(process) and words in _said(process)]

    def _is_inside(self, process: psutil.Process) -> bool:
        try:
            return Path(f"/proc/{process.pid}/ns/pid").readlink() == Path(f"/proc/{self._inside}/ns/pid").readlink()
        except OSError:
            return False

    def address(self, number: int) -> str:
        """Of a node."""
        return f"127.0.0.{number}"

    def close(self) -> None:
        """Nothing of it is left."""
        os.kill(self._inside, signal.SIGKILL)
        self._first.wait()
        for node in self._nodes.values():
            node.wait()
        logs = self.folder / "ray-logs"
        for session in self.short.glob("session_*/logs"):
            if not session.parent.is_symlink():
                shutil.copytree(session, logs, dirs_exist_ok=True, ignore_dangling_symlinks=True)
        shutil.rmtree(self.short, ignore_errors=True)

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def kill_inside(self, pid: int) -> None:
        """SIGKILL a process by the number that it has in the namespace."""
        subprocess.run(self.inside("kill", "-KILL", str(pid)), check=True)

    def _start(self, number: int, *words: str, blind: Path | None = None) -> None:
        argv = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={self.address(number)}", *words, *SMALL]
        if blind:
            cover = f"mount -t tmpfs none {shlex.quote(str(blind))} && exec {shlex.join(argv)}"
            argv = ["unshare", "--mount", "sh", "-c", cover]
        with (self.folder / f"node-{number}.log").open("ab") as log:
            self._nodes[number] = subprocess.Popen(
                self.inside(*argv), env=self.environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip

    def _processes(self, number: int) -> list[psutil.Process]:
        if self._nodes[number].poll() is not None:
            return []
        started = psutil.Process(self._nodes[number].pid)
        return [*started.children(recursive=True), started]

    def _answers(self) -> bool:
        if self._nodes[1].poll() is not None:
            raise AssertionError((self.folder / "node-1.log").read_text())
        try:
            return bool(self.alive())
        except (subprocess.CalledProcessError, KeyError):
            return False


def wait(happened: Callable[[], object], seconds: float, what: str) -> None:
    """Until something has happened. Raises AssertionError when it hasn't in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"it took more than {seconds:g} s: {what}"
        time.sleep(0.2)


def _said(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
