"""What can happen to a run, each as a function of a `Victim`: something is done to it at a random moment.

A fault may leave the run going, ended by its supervisor, or ended for good; whoever injects it starts the run again
until it is done.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import CommandLine
from trainer import checkpoint, record


@dataclass
class Victim:
    """A run under way."""

    luban: CommandLine
    name: str
    draw: random.Random
    settings: tuple[str, ...]
    process: subprocess.Popen[str]
    texts: list[str] = field(default_factory=list)
    """What its commands printed."""

    @property
    def run(self) -> Path:
        """Its folder."""
        return self.luban.run(self.name)

    def ranks(self, attempt: int) -> list[int]:
        """Process ids of an attempt's ranks, when it has begun."""
        events = self.luban.wait_for(self.name, attempt, lambda event: event["event"] == "start")
        return [rank["pid"] for rank in events[0]["ranks"]]

    def after_step(self, attempt: int, lowest: int = 1, highest: int = 44) -> None:
        """Wait until an attempt has applied some step, and a random fraction of a second more."""
        step = self.draw.randint(lowest, highest)
        self.luban.wait_for(self.name, attempt, lambda e: e["event"] == "outcome" or e.get("step", 0) >= step)
        time.sleep(self.draw.random() * 0.2)

    def end(self) -> int:
        """Wait for the command; its exit code."""
        text, _ = self.process.communicate(timeout=300)
        self.texts.append(text)
        return self.process.returncode

    def again(self, **environment: str) -> None:
        """Call the same command again."""
        self.process = start(self.luban, self.name, *self.settings, **environment)

    def newest(self) -> Path | None:
        """Folder of the newest checkpoint that the record vouches for."""
        held = record.load(self.run).checkpoints()
        return self.run / checkpoint.FOLDER / held[-1] if held else None


def start(luban: CommandLine, name: str, *settings: str, **environment: str) -> subprocess.Popen[str]:
    """Begin to pretrain, with more environment variables than the fixture's."""
    before, luban.environment = luban.environment, luban.environment | environment
    try:
        return luban.start_pretrain(name, *settings)
    finally:
        luban.environment = before


def send(pid: int, number: int) -> None:
    """A signal to a process that may have ended by now."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


# -- ranks -----------------------------------------------------------------------------------------------------------


def kill_a_rank(v: Victim) -> None:
    v.after_step(1)
    send(v.draw.choice(v.ranks(1)), signal.SIGKILL)


def kill_all_ranks(v: Victim) -> None:
    v.after_step(1)
    for pid in v.ranks(1):
        send(pid, signal.SIGKILL)


def kill_a_rank_twice(v: Victim) -> None:
    kill_a_rank(v)
    with suppress(AssertionError):
        v.luban.wait_for(v.name, 2, lambda event: event["event"] == "step", timeout=60)
        send(v.draw.choice(v.ranks(2)), signal.SIGKILL)


def kill_while_starting(v: Victim) -> None:
    deadline = time.monotonic() + 60
    while not (v.run / "attempts" / "0001.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(v.draw.random())
    for child in _children(v.process.pid):
        send(child, signal.SIGKILL)


def kill_at_the_end(v: Victim) -> None:
    v.luban.wait_for(v.name, 1, lambda event: event["event"] == "step" and event["step"] == 48)
    time.sleep(v.draw.random() * 0.1)
    send(v.draw.choice(v.ranks(1)), signal.SIGKILL)


def kill_during_a_save(v: Victim) -> None:
    """As soon as a checkpoint's folder is there without its manifest."""
    folder, deadline = v.run / checkpoint.FOLDER, time.monotonic() + 60
    skipped = v.draw.randint(0, 3)
    seen: set[str] = set()
    while time.monotonic() < deadline and v.process.poll() is None:
        for path in folder.glob("step-*"):
            if path.name not in seen and not (path / checkpoint.MANIFEST).exists():
                seen.add(path.name)
                if len(seen) > skipped:
                    send(v.draw.choice(v.ranks(1)), signal.SIGKILL)
                    return
        time.sleep(0.0005)


def freeze_a_rank(v: Victim) -> None:
    """SIGSTOP, for good: the others' collectives time out."""
    v.after_step(1, highest=30)
    send(v.draw.choice(v.ranks(1)), signal.SIGSTOP)


def freeze_everything_for_a_while(v: Victim) -> None:
    v.after_step(1)
    pids = v.ranks(1)
    for pid in pids:
        send(pid, signal.SIGSTOP)
    time.sleep(1 + v.draw.random())
    for pid in pids:
        send(pid, signal.SIGCONT)


# -- the command -----------------------------------------------------------------------------------------------------


def kill_the_supervisor(v: Victim) -> None:
    v.after_step(1)
    v.process.kill()


def ask_to_stop(v: Victim) -> None:
    v.after_step(1)
    v.process.send_signal(v.draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))


def stop_twice(v: Victim) -> None:
    """The second signal ends everything at once."""
    v.after_step(1)
    v.process.send_signal(signal.SIGTERM)
    time.sleep(v.draw.random() * 0.3)
    v.process.send_signal(signal.SIGTERM)


# -- the disk --------------------------------------------------------------------------------------------------------


def corrupt_the_newest_checkpoint(v: Victim) -> None:
    ask_to_stop(v)
    v.end()
    newest = v.newest()
    if newest is not None:
        path = v.draw.choice(sorted(newest.iterdir()))
        content = bytearray(path.read_bytes())
        content[v.draw.randrange(len(content))] ^= 1 << v.draw.randrange(8)
        path.write_bytes(content)
    v.again()


def lose_a_file_of_the_newest_checkpoint(v: Victim) -> None:
    ask_to_stop(v)
    v.end()
    newest = v.newest()
    if newest is not None:
        v.draw.choice(sorted(newest.iterdir())).unlink()
    v.again()


def tear_the_record(v: Victim) -> None:
    """Power goes off in the middle of a line: the record and the metrics end in half of one."""
    kill_the_supervisor(v)
    v.end()
    _wait_until_gone(v)
    for path in (v.run / "attempts" / "0001.jsonl", v.run / "metrics.jsonl"):
        if path.exists() and b'"outcome"' not in path.read_bytes():
            with path.open("ab") as file:
                file.write(b'{"event": "step", "step": 7, "pos')
    v.again()


def fill_the_disk(v: Victim) -> None:
    """A small file system of its own under checkpoints/, full from some step on, and free again later."""
    v.process.kill()
    v.end()
    _wait_until_gone(v)
    folder = v.run / checkpoint.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=True)
    v.again()
    attempt = max(record.numbers(v.run), default=0) + 1
    with suppress(AssertionError):
        v.luban.wait_for(v.name, attempt, lambda event: event["event"] == "step", timeout=60)
    free = os.statvfs(folder)
    with suppress(OSError):
        (folder / "ballast").write_bytes(b"x" * v.draw.randrange(max(1, free.f_bavail)) * free.f_bsize)
        (folder / "ballast2").write_bytes(b"x" * os.statvfs(folder).f_bavail * free.f_bsize)
    v.end()
    (folder / "ballast").unlink(missing_ok=True)
    (folder / "ballast2").unlink(missing_ok=True)
    v.again()


# -- the world -------------------------------------------------------------------------------------------------------


def kill_wandb(v: Victim) -> None:
    """Its process dies; the run goes on without it."""
    v.after_step(1, highest=20)
    for pid in v.ranks(1):
        for child in _children(pid):
            with suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().startswith("wandb-core"):
                    send(child, signal.SIGKILL)


def jump_the_clock(v: Victim) -> None:
    """The ranks' wall clock leaps by a day, either way, in the middle; and one of them is killed after that."""
    v.process.kill()
    v.end()
    _wait_until_gone(v)
    leap = v.draw.choice([-86400, 86400])
    v.again(PYTHONPATH=_with(Path(__file__).with_name("clock")), LUBAN_TEST_LEAP=f"{leap}:{v.draw.randint(5, 30)}")
    attempt = max(record.numbers(v.run), default=0) + 1
    with suppress(AssertionError):
        v.after_step(attempt, lowest=32)
        send(v.draw.choice(v.ranks(attempt)), signal.SIGKILL)


FAULTS: dict[str, Callable[[Victim], None]] = {
    function.__name__.replace("_", " "): function
    for function in (
        kill_a_rank, kill_all_ranks, kill_a_rank_twice, kill_while_starting, kill_at_the_end, kill_during_a_save,
        freeze_a_rank, freeze_everything_for_a_while, kill_the_supervisor, ask_to_stop, stop_twice,
        corrupt_the_newest_checkpoint, lose_a_file_of_the_newest_checkpoint, tear_the_record, fill_the_disk,
        kill_wandb, jump_the_clock,
    )
}  # fmt: skip


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in path.read_text().split()]
    return found


def _wait_until_gone(v: Victim) -> None:
    """Ranks that lost their supervisor save and end by themselves."""
    pids = [rank["pid"] for attempt in record.load(v.run).attempts[-1:] for rank in attempt.start["ranks"]]
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)


def _with(folder: Path) -> str:
    """PYTHONPATH with one more folder."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
