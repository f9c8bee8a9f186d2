"""Hosts that are reached by ssh, on one machine: each has a network, a hostname, processes and a home of its own.

A host is a network, UTS, PID and mount namespace (root is needed) with a real sshd as the daemon in it; ending its
first process ends everything that runs on it, and that one dies with the tests. The bridge between them lies in a
namespace too, so that nothing reaches the machine's own network; the names of the namespaces of tests that were killed
are removed by those that come next.
"""

import os
import pwd
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

READY_S = 30


class SshHosts:
    """Hosts 10.79.N.11, .12 ... and a place `login` that isn't a host, from which they are reached.

    N is this process's: Ray's ssh keeps connections open in /tmp by user and address, and tests that run beside these
    would find theirs.
    """

    def __init__(self, folder: Path, count: int):
        self.folder = folder
        self.tag = f"luban-{os.getpid()}"
        _sweep()
        self.network = f"10.79.{os.getpid() % 254 + 1}"
        self.addresses = [f"{self.network}.{11 + number}" for number in range(count)]
        self.key = folder / "id"
        self._daemons: list[subprocess.Popen[bytes]] = []
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host-key"))
        Path("/run/sshd").mkdir(exist_ok=True)
        self._namespace("switch")
        self._switch("link", "add", "bridge", "type", "bridge")
        self._switch("link", "set", "bridge", "up")
        self._plug("login", f"{self.network}.10")
        for number, address in enumerate(self.addresses):
            self._plug(str(number), address)
            self._boot(number)
        self._await_daemons()

    def home(self, number: int) -> Path:
        """The home folder of the account on a host."""
        return self.folder / f"home-{number}"

    def inside(self, *argv: str) -> list[str]:
        """A command line that runs where the hosts can be reached, and nothing else can."""
        return ["ip", "netns", "exec", f"{self.tag}-login", *argv]

    def login(self, number: int, command: str) -> subprocess.CompletedProcess[str]:
        """What a command does that somebody runs on a host."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        argv = ["ssh", "-i", str(self.key), *options, f"root@{self.addresses[number]}", command]
        return subprocess.run(self.inside(*argv), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)

    def on(self, number: int) -> list[str]:
        """The processes of a host: their command lines."""
        world = Path(f"/proc/{_child(self._daemons[number].pid)}/ns/pid").readlink()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if (process / "ns" / "pid").readlink() == world:
                    found.append((process / "cmdline").read_bytes().decode().replace("\0", " ").strip())
        return [words for words in found if words]

    def listening(self, number: int) -> list[str]:
        """ADDRESS:PORT of everything that listens on a host's TCP."""
        listed = _do("ip", "netns", "exec", f"{self.tag}-{number}", "ss", "-Hltn")
        return [line.split()[3] for line in listed.splitlines()]

    def remove(self) -> None:
        """End every host and everything on it."""
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait()
        for name in _do("ip", "netns", "list").split():
            if name.startswith(f"{self.tag}-"):
                _do("ip", "netns", "del", name)

    def _namespace(self, name: str) -> None:
        _do("ip", "netns", "add", f"{self.tag}-{name}")
        _do("ip", "-n", f"{self.tag}-{name}", "link", "set", "lo", "up")

    def _switch(self, *words: str) -> None:
        _do("ip", "-n", f"{self.tag}-switch", *words)

    def _plug(self, name: str, address: str) -> None:
        self._namespace(name)
        space = f"{self.tag}-{name}"
        self._switch("link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", space)
        self._switch("link", "set", f"v-{name}", "master", "bridge", "up")
        _do("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _do("ip", "-n", space, "link", "set", "eth0", "up")

    def _boot(self, number: int) -> None:
        home, settings = self.home(number), self.folder / f"sshd-{number}.conf"
        home.mkdir()
        settings.write_text(
            f"HostKey {self.folder}/host-key\nAuthorizedKeysFile {self.key}.pub\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
        )
        script = (
            f"set -e; hostname host-{number}; mount -t tmpfs tmpfs /dev/shm; mkdir -p /tmp/ray; "
            f"mount -t tmpfs tmpfs /tmp/ray; {_move_in(home)}"
            f"exec {shutil.which('sshd') or '/usr/sbin/sshd'} -D -e -f {settings}"
        )
        isolated = [
            "unshare",
            "--uts",
            "--pid",
            "--mount",
            "--mount-proc",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            script,
        ]
        with (self.folder / f"sshd-{number}.log").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", f"{self.tag}-{number}", *isolated],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _await_daemons(self) -> None:
        deadline = time.monotonic() + READY_S
        for number in range(len(self.addresses)):
            while not any(address.endswith(":22") for address in self.listening(number)):
                log = (self.folder / f"sshd-{number}.log").read_text()
                assert self._daemons[number].poll() is None and time.monotonic() < deadline, log
                time.sleep(0.05)


def _move_in(home: Path) -> str:
    """Shell commands that put `home` where the account's home is, with what the tests run from still in it."""
    account = Path(pwd.getpwuid(os.getuid()).pw_dir)
    needed = {Path(place).resolve() for place in (sys.base_prefix, sys.prefix, Path(__file__).parents[2])}
    kept = [place.relative_to(account) for place in sorted(needed) if place.is_relative_to(account)]
    lines = [f"mkdir -p {home / place}; mount --bind {account / place} {home / place}; " for place in kept]
    return "".join(lines) + f"mount --rbind {home} {account}; "


def _sweep() -> None:
    for name in _do("ip", "netns", "list").split():
        tag, _, owner = name.partition("-")
        if tag == "luban" and not Path(f"/proc/{owner.partition('-')[0]}").exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)  # another test may be at it as well


def _child(pid: int) -> int:
    """The first process of the PID namespace that `unshare` made."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _do(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout
