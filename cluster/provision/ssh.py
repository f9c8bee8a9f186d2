"""Commands on hosts by ssh: the system's own client, never asking anything of a terminal.

A host's key is kept when it is first seen and compared from then on, in a file of Luban's own. Ray itself, which
comes after, checks no keys: asking first notices a host that isn't the one it was, before a token is sent to it.
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError

CONNECT_S = 10
TOGETHER = 32
"""Hosts that are asked at once."""


@dataclass(frozen=True)
class Ssh:
    """One account on many hosts."""

    user: str
    key: Path | None
    """None: the client's own choice, such as an agent."""
    known: Path
    """Where the hosts' keys are kept."""

    def check(self) -> None:
        """Raises UserError where there is no ssh client, or the key is missing or readable by others."""
        if shutil.which("ssh") is None:
            raise UserError("there is no ssh here: install openssh-client")
        if self.key is None:
            return
        if not self.key.is_file():
            raise UserError(f"ssh.key {self.key} is missing: make one with ssh-keygen, or name another")
        mode = stat.S_IMODE(self.key.stat().st_mode)
        if mode & 0o077:
            raise UserError(f"ssh.key {self.key} can be read by others (mode {mode:o}): chmod 600 {self.key}")

    def argv(self, host: str, *words: str) -> list[str]:
        """The command line of the client, for a shell's text in `words`."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_S),
            "ServerAliveInterval": "5",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": str(self.known),
            "LogLevel": "ERROR",
        }
        key = ["-i", str(self.key), "-o", "IdentitiesOnly=yes"] if self.key else []
        return ["ssh", *key, *(f"-o{name}={value}" for name, value in options.items()), f"{self.user}@{host}", *words]

    def run(self, host: str, command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """What a command did on a host; exit code 255 where the host wasn't reached, 124 after `timeout` seconds."""
        try:
            return subprocess.run(
                self.argv(host, command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess([], 124, "", f"no answer within {timeout:.0f} s")

    def everywhere(
        self, hosts: Iterable[str], command: str, timeout: float = 120
    ) -> dict[str, subprocess.CompletedProcess[str]]:
        """The same on several hosts at once."""
        asked = list(hosts)
        with ThreadPoolExecutor(TOGETHER) as pool:
            return dict(zip(asked, pool.map(lambda host: self.run(host, command, timeout), asked), strict=True))


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Why a command failed, in one line."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"


def write_secret(path: Path, text: str) -> None:
    """A new file that only its owner can read from its first moment on. Raises FileExistsError where there is one."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
