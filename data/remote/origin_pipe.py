"""Files from a command's standard output."""

import os
import select
import shlex
import signal
import subprocess
import tempfile
from contextlib import suppress

from data.errors import UserError
from data.remote.origin import PIECE, About, NoRanges, skipped
from data.remote.patience import Patience, Unreachable


class Pipe:
    """A command's standard output, a process a file. Reading from the middle reads from the start."""

    def __init__(self, url: str, patience: Patience):
        self.name, self.ranges = url, False
        self._command, self._timeout_s = url.removeprefix("pipe:"), patience.timeout_s
        if "{file}" not in self._command:
            raise UserError(
                f"{url}: write {{file}} where the command takes the name of a file, as pipe:cat /x/{{file}}"
            )

    def open(self, file: str, start: int = 0) -> "_Output":
        output = _Output(self._command.replace("{file}", shlex.quote(file)), self._timeout_s)
        return skipped(output, 0, start, f"{file} from {self.name}")

    def read(self, file: str, start: int, stop: int) -> bytes:
        raise NoRanges

    def about(self, file: str) -> About:
        return About(None, "")


class _Output:
    """What a command writes; it and its children are killed when nobody wants more."""

    def __init__(self, command: str, timeout_s: float):
        self.size: int | None = None
        self.version = ""
        self._timeout_s = timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the command)
        self._process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
            start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self._stream, self._poll = self._process.stdout, select.poll()
        self._poll.register(self._stream, select.POLLIN)

    def read(self, most: int = PIECE) -> bytes:
        if not self._poll.poll(self._timeout_s * 1000):
            raise Unreachable(f"the command wrote nothing for {self._timeout_s:g} s")
        piece = os.read(self._stream.fileno(), most)
        if not piece:
            self._refuse_failure()
        return piece

    def close(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stream.close()
        self._errors.close()

    def _refuse_failure(self) -> None:
        try:
            code = self._process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            raise Unreachable(f"the command closed its output and did not end in {self._timeout_s:g} s") from None
        if code:
            self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 400))
            said = self._errors.read().decode("utf-8", "replace").strip()
            raise Unreachable(f"the command ended with {code}" + (f": {said}" if said else ""))
