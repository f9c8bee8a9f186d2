"""One rank of the doctor: `python -P -m cluster.doctor.probe FOLDER`, with the five variables of a training rank.

It knows nothing of who started it, so what it finds is what a training rank there would meet. Its facts are written to
FOLDER/facts/rank-R.json after every stage, so that one that never gets further has said how far it came; they also go
to the other ranks, and where a rank doesn't see the folder another writes its facts for it. It judges nothing.

Stages: what this machine has; is rank 0 there; who else came; is the folder the same one everywhere, do the nodes
reach each other, what do their clocks say; how fast is the disk; how fast do the ranks compute and talk. The last is
left out with --quick, and where the network is cut. Facts on a node are those of its rank with LOCAL_RANK 0.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.doctor.gpus import gpus
from data.publish import write_json
from trainer.__main__ import speak_into

FORMAT, VERSION = "luban-probe", 1
FACTS = "facts"
PACKAGES = ("luban", "torch", "deepspeed", "numpy", "safetensors", "sentencepiece")
WRITE_BYTES = {True: 1 << 23, False: 1 << 26}  # of the test file; quick or not
BLOCK = 1 << 22
LINK_S = 3.0  # a node that doesn't answer a connection in this time isn't reached
NEIGHBOURS = 16  # up to so many nodes each connects to each
PINGS = 8  # the quickest one tells the clocks apart best
SHARED_S = 5.0  # a network file system may show a new file late
ANSWER = struct.Struct("!d")
ASKED = b"t"


def main() -> int:
    """Find out; returns 0 also where something is amiss, for that is a fact; 1 where the probe itself failed."""
    parser = argparse.ArgumentParser(prog="python -m cluster.doctor.probe", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder beside the runs; it is there already")
    parser.add_argument("--quick", action="store_true", help="no speeds of computing and talking, a small write")
    parser.add_argument("--patience", type=float, default=120.0, help="wait so long for the others, in seconds")
    parser.add_argument("--wandb", default="off", choices=("auto", "online", "offline", "off"))
    parser.add_argument("--logs", type=Path, help="write what this rank says to rank-R.log in this folder")
    arguments, _ = parser.parse_known_args()  # a launcher's words to a training rank, such as --life, mean nothing here
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a notice before a time limit; there is nothing to save
    if arguments.logs:
        speak_into(arguments.logs / f"rank-{os.environ['RANK']}.log")
    probe = Probe(arguments.folder, arguments.quick, arguments.patience, arguments.wandb)
    try:
        probe.look_here()
        if probe.reaches_rank_0() and probe.meet():
            probe.look_around()
            probe.measure()
            probe.part()
        return 0
    except Exception as error:
        traceback.print_exc()
        probe.facts["crashed"] = f"{type(error).__name__}: {error}"
        probe.write()
        return 1


class Probe:
    """What one rank finds, stage by stage."""

    def __init__(self, folder: Path, quick: bool, patience_s: float, wandb: str):
        self.folder, self.quick, self.patience_s, self.wandb = folder, quick, patience_s, wandb
        self.rank, self.size, self.local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        self.master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store: Any = None
        self.everyone: list[dict[str, Any]] = []
        self.answering: socket.socket | None = None
        self.facts: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "rank": self.rank, "local_rank": self.local, "world": self.size,
            "host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), "stage": "began",
        }  # fmt: skip

    def look_here(self) -> None:
        """This machine, without a word to any other."""
        self.facts["versions"] = versions()
        if self.local == 0:
            self.facts["machine"] = machine()
            self.facts["gpus"] = gpus()
            self.facts["folder"] = self._look_at_folder()
        if self.rank == 0:
            self.facts["wandb"] = wandb_facts(self.wandb)
        self.write("alone")

    def _look_at_folder(self) -> dict[str, Any]:
        found: dict[str, Any] = {"path": str(self.folder.absolute()), "seen": self.folder.is_dir()}
        try:
            if found["seen"]:  # a nonce of this node's, to be read on others
                (self.folder / f"nonce-{self.rank}").write_text(nonce := secrets.token_hex(16))
                found |= {"nonce": nonce, "clock_s": self._clock_of_files()}
        except OSError as error:
            found["error"] = error.strerror or str(error)
        with suppress(OSError):
            disk = shutil.disk_usage(self.folder if found["seen"] else self.folder.parent)
            found |= {"free": disk.free, "total": disk.total}
        return found

    def _clock_of_files(self) -> float:
        """The file system's clock minus this machine's, in seconds: heartbeats are compared across the two."""
        path = self.folder / f"clock-{self.rank}"
        before = time.time()
        path.touch()
        found = path.stat().st_mtime - (before + time.time()) / 2
        path.unlink()
        return found

    def reaches_rank_0(self) -> bool:
        """Whether MASTER_ADDR:MASTER_PORT takes connections; waits for it, for it may begin later."""
        if self.rank == 0:
            return True
        deadline, began = time.monotonic() + self.patience_s, time.monotonic()
        while True:
            try:
                socket.create_connection(self.master, LINK_S).close()
                return True
            except OSError as error:
                why = error.strerror or str(error)
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        at = f"{self.master[0]}:{self.master[1]}"
        self.facts["meeting"] = {"at": at, "seconds": time.monotonic() - began, "error": why}
        self.write("alone")
        return False

    def meet(self) -> bool:
        """Whether all ranks came, each with a word on where it listens."""
        import torch
        from torch.cuda import nccl

        from trainer.world import meet

        at, began = f"{self.master[0]}:{self.master[1]}", time.monotonic()
        self.facts["torch"] = {
            "gpus": torch.cuda.device_count(),
            "nccl": ".".join(map(str, nccl.version())) if torch.cuda.is_available() else None,
        }
        try:
            self.store = meet(self.patience_s)
            hello: dict[str, Any] = {"local_rank": self.local, "seen": self.folder.is_dir()}
            if self.local == 0:
                hello |= {"nonce": self.facts["folder"].get("nonce"), "at": self._answer_others()}
            self._tell("hello", hello)
            self.everyone = self._hear("hello")
            self.facts["meeting"] = {"at": at, "seconds": time.monotonic() - began, "error": None}
            self.write("met")
            return True
        except (RuntimeError, OSError) as error:  # torch's own are RuntimeErrors
            absent = self._absent() if self.store is not None else []
            first = str(error).splitlines()[0]
            self.facts["meeting"] = {"at": at, "seconds": time.monotonic() - began, "error": first, "absent": absent}
            self.write("alone")
            return False

    def look_around(self) -> None:
        """The other nodes, as this one sees them."""
        if self.local == 0:
            nodes = [rank for rank, each in enumerate(self.everyone) if each["local_rank"] == 0]
            self.facts["shared"] = {"unread": self._unread(nodes)}
            with ThreadPoolExecutor(8) as pool:
                tries = pool.map(self._reach, list(neighbours(nodes, self.rank)))
            self.facts["unreached"] = [failed for failed in tries if failed]
            if self.rank:
                self.facts["clock"] = self._clock_of_rank_0()
        gpus_here = self.facts["torch"]["gpus"]
        self._tell("cut", bool(self.facts.get("unreached")) or 0 < gpus_here <= self.local)
        self.facts["cut"] = any(self._hear("cut"))  # everybody knows whether a collective would hang
        if self.answering:
            self.answering.close()
        self.write("looked")

    def measure(self) -> None:
        """The disk, then the ranks."""
        if self.local == 0 and self.facts["folder"].get("nonce"):
            self.facts["disk"] = self._write_speed()
        self.write("wrote")
        self._tell("wrote", True)
        self._hear("wrote")
        if self.quick or self.facts["cut"]:
            return
        from cluster.doctor import speed
        from trainer.world import join, leave

        self.facts["speed"] = speed.measure(join(self.patience_s, self.store))
        leave()

    def part(self) -> None:
        """Write the last of it, also for those who can't; rank 0, which holds the store, goes last."""
        self.facts["stage"] = "done"
        self._tell("facts", self.facts)
        if self.rank == next((rank for rank, each in enumerate(self.everyone) if each["seen"]), None):
            for rank in range(self.size):
                facts = self._ask("facts", rank)
                if not (self.folder / FACTS / f"rank-{rank}.json").exists():
                    write_facts(self.folder, facts)
        self.write("done")
        self._tell("bye", True)
        if self.rank == 0:
            for rank in range(self.size):
                self._ask("bye", rank)

    def write(self, stage: str | None = None) -> None:
        """Write the facts so far, where the folder is seen and takes them."""
        self.facts["stage"] = stage or self.facts["stage"]
        with suppress(OSError):
            write_facts(self.folder, self.facts)

    def _answer_others(self) -> tuple[str, int]:
        """Tell the time to whoever asks at the address returned, by which the others would reach this rank."""
        self.answering = socket.create_server((self._own_address(), 0), backlog=1024)
        threading.Thread(target=_tell_time, args=(self.answering,), daemon=True).start()
        return self.answering.getsockname()[:2]

    def _own_address(self) -> str:
        """The address from which rank 0 is reached: the one that the others can reach."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:  # sends nothing
            asking.connect(self.master)
            return asking.getsockname()[0]

    def _unread(self, nodes: list[int]) -> list[int]:
        """Ranks whose nonce can't be read in the folder here: rank 0's by all, everybody's by rank 0."""
        wanted = nodes if self.rank == 0 else nodes[:1]
        left = [rank for rank in wanted if self.everyone[rank].get("nonce")]
        never = [rank for rank in wanted if rank not in left]
        deadline = time.monotonic() + SHARED_S
        while True:
            left = [rank for rank in left if _text(self.folder / f"nonce-{rank}") != self.everyone[rank]["nonce"]]
            if not left or time.monotonic() > deadline or not self.folder.is_dir():
                return sorted(left + never)
            time.sleep(0.1)

    def _reach(self, rank: int) -> dict[str, Any] | None:
        address = tuple(self.everyone[rank]["at"])
        try:
            socket.create_connection(address, LINK_S).close()
            return None
        except OSError as error:
            return {"rank": rank, "at": f"{address[0]}:{address[1]}", "error": error.strerror or str(error)}

    def _clock_of_rank_0(self) -> dict[str, float] | None:
        """This machine's clock minus rank 0's, and how wrong that may be, in seconds: Cristian's method (1989)."""
        best = None
        with suppress(OSError), socket.create_connection(tuple(self.everyone[0]["at"]), LINK_S) as asking:
            asking.settimeout(LINK_S)
            for _ in range(PINGS):
                began, mine = time.perf_counter(), time.time()
                asking.sendall(ASKED)
                theirs = ANSWER.unpack(_exactly(asking, ANSWER.size))[0]
                took = time.perf_counter() - began
                if best is None or took / 2 < best["error_s"]:
                    best = {"ahead_s": mine + took / 2 - theirs, "error_s": took / 2}
        return best

    def _write_speed(self) -> dict[str, Any]:
        """Write a file as a checkpoint's part is written, all nodes at once; removed again."""
        path, block = self.folder / f"write-{self.rank}", secrets.token_bytes(BLOCK)
        size = min(WRITE_BYTES[self.quick], self.facts["folder"].get("free", 0) // 4)
        try:
            began = time.perf_counter()
            with path.open("wb", buffering=0) as file:
                for at in range(0, size, BLOCK):
                    piece = memoryview(block)[: size - at]
                    while piece:
                        piece = piece[file.write(piece) or 0 :]
                os.fsync(file.fileno())
            return {"bytes": size, "seconds": time.perf_counter() - began}
        except OSError as error:
            return {"error": error.strerror or str(error)}
        finally:
            path.unlink(missing_ok=True)

    def _tell(self, what: str, value: Any) -> None:
        self.store.set(f"probe/{what}/{self.rank}", json.dumps(value))

    def _ask(self, what: str, rank: int) -> Any:
        return json.loads(self.store.get(f"probe/{what}/{rank}"))  # waits, up to the store's timeout

    def _hear(self, what: str) -> list[Any]:
        """What each rank tells. Rank 0 alone asks them all, so that n ranks don't ask n times n."""
        if self.rank == 0:
            self.store.set(f"probe/{what}", json.dumps([self._ask(what, rank) for rank in range(self.size)]))
        return json.loads(self.store.get(f"probe/{what}"))

    def _absent(self) -> list[int]:
        """Ranks that have not said hello."""
        with suppress(RuntimeError):
            return [rank for rank in range(self.size) if not self.store.check([f"probe/hello/{rank}"])]
        return []


def versions() -> dict[str, str]:
    """Of what must be equal on all ranks; "code" is a digest of Luban's own sources."""
    import hashlib

    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    digest, home = hashlib.sha256(), Path(__file__).parents[2]
    for path in sorted(path for part in ("data", "trainer", "cluster") for path in (home / part).rglob("*.py")):
        digest.update(str(path.relative_to(home)).encode() + b"\0" + path.read_bytes())
    return found | {"code": digest.hexdigest()[:12]}


def machine() -> dict[str, Any]:
    """CPUs this process may use, memory and shared memory in bytes, files it may open."""
    import resource

    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "memory": int(memory["MemTotal"].split()[0]) * 1024,
        "available": int(memory["MemAvailable"].split()[0]) * 1024,
        "shm": shared,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def wandb_facts(mode: str) -> dict[str, Any]:
    """Whether rank 0 could talk to Weights & Biases: "mode", and if that may be online "url", "key", "error"."""
    if mode in ("off", "offline"):
        return {"mode": mode}
    from trainer.recipe import Recipe
    from trainer.wandb_session import Session, unreachable

    try:
        import wandb

        url, key = Session(wandb, Path(), Recipe(), {}, {}).credentials()
        return {"mode": mode, "url": url, "key": bool(key), "error": unreachable(url) if key else None}
    except (Exception, SystemExit) as error:  # wandb raises that, too
        return {"mode": mode, "url": None, "key": False, "error": f"{type(error).__name__}: {str(error)[:200]}"}


def neighbours(nodes: list[int], me: int) -> Iterator[int]:
    """The nodes, by their first ranks, that `me` tries to reach: all of a few, else those at distances 1, 2, 4 ..."""
    at = nodes.index(me)
    if len(nodes) <= NEIGHBOURS:
        yield from (node for node in nodes if node != me)
        return
    distance = 1
    while distance < len(nodes):
        yield nodes[(at + distance) % len(nodes)]
        distance *= 2


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Publish a rank's facts. Raises OSError where the folder isn't there, or takes nothing."""
    (folder / FACTS).mkdir(exist_ok=True)
    write_json(folder / FACTS / f"rank-{facts['rank']}.json", facts)


def _tell_time(answering: socket.socket) -> None:
    """Until the socket is closed."""

    def serve(asking: socket.socket) -> None:
        with suppress(OSError), asking:
            asking.settimeout(LINK_S)
            while asking.recv(1):
                asking.sendall(ANSWER.pack(time.time()))

    with suppress(OSError):
        while True:
            threading.Thread(target=serve, args=(answering.accept()[0],), daemon=True).start()


def _exactly(source: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = source.recv(size - len(found))
        if not more:
            raise OSError("the other side hung up")
        found += more
    return found


def _text(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text()
    return None


if __name__ == "__main__":
    sys.exit(main())
