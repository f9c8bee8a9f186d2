"""Every call of this process that changes the file system, or asks it something, in one numbered row.

A fault is an object with three hooks, put at any of the calls: so "a crash before each write, fsync, rename, unlink and
open" is a loop over numbers instead of a list of places somebody thought of. The functions of `os` and `io` themselves
are replaced, in a forked child that ends soon after; pathlib, shutil and the trainer all come through here. Heartbeats
are left out: they come by the clock, and would make the numbers differ from one play to the next.
"""

import builtins
import io
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = ("open", "write", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "symlink", "ftruncate")
LOOKS = ("stat", "scandir", "listdir", "read")
GROWS = ("open", "write", "mkdir", "symlink")
"""Calls that a full disk refuses."""


@dataclass(frozen=True)
class Call:
    """One call."""

    number: int
    name: str
    path: Path
    creates: bool = False
    """It makes a new name, or a file that wasn't there."""

    def __str__(self) -> str:
        return f"{self.name} {self.path.parent.name}/{self.path.name}"


class Fault:
    """What happens at the calls; this one does nothing."""

    looks = False
    """Whether calls that change nothing are counted too."""
    alone = False
    """Whether a call and what is done after it are one: no other thread gets between them."""

    def before(self, call: Call) -> None:
        """The call is about to be made; an exception is what it raises instead."""

    def after(self, call: Call) -> None:
        """The call has been made."""

    def some(self, call: Call, size: int) -> int:
        """How many of `size` bytes a write takes."""
        return size


class Gate:
    """Stands before the file system for everything inside a folder. Installed once in a process, for good."""

    def __init__(self, folder: Path, fault: Fault):
        self.folder, self.fault = folder, fault
        self.calls: list[Call] = []
        self._lock, self._one = threading.Lock(), threading.RLock()
        self._plain = {name: getattr(os, name) for name in (*CHANGES, *LOOKS) if hasattr(os, name)}
        self._open = io.open

    def install(self) -> None:
        """From now on every call comes through."""
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "symlink", "fsync", "ftruncate"):
            setattr(os, name, self._through(name))
        os.remove = os.unlink
        os.open, os.write = self._os_open, self._os_write
        if self.fault.looks:
            for name in ("stat", "scandir", "listdir"):
                setattr(os, name, self._through(name))
        io.open = builtins.open = self._io_open

    def _passed(self, name: str, path: Path | None, call: Callable[..., Any], creates: bool = False) -> Any:
        """Make a call with the fault's hooks around it, if it is one that counts; a write is told its number."""
        if path is None or threading.current_thread().name == "heartbeat":
            return call(None) if name == "write" else call()
        with self._lock:
            made = Call(len(self.calls), name, path, creates)
            self.calls.append(made)
        with self._one if self.fault.alone else nullcontext():
            self.fault.before(made)
            result = call(made) if name == "write" else call()
            self.fault.after(made)
        return result

    def _through(self, name: str) -> Callable[..., Any]:
        plain = self._plain[name]
        which = 1 if name in ("rename", "replace", "symlink") else 0
        creates = name in ("mkdir", "symlink")

        def call(*args: Any, **more: Any) -> Any:
            path = self._inside(args[which] if args else ".", more.get("dir_fd"))
            return self._passed(name, path, lambda: plain(*args, **more), creates)

        return call

    def _os_open(self, path: Any, flags: int, *args: Any, **more: Any) -> int:
        inside = self._inside(path, more.get("dir_fd"))
        if not flags & (os.O_WRONLY | os.O_RDWR):
            if not self.fault.looks:
                inside = None
            return self._passed("read", inside, lambda: self._plain["open"](path, flags, *args, **more))
        fresh = inside is not None and not os.path.lexists(inside)
        return self._passed("open", inside, lambda: self._plain["open"](path, flags, *args, **more), fresh)

    def _os_write(self, handle: int, data: Any) -> int:
        return self._write(self._inside(handle, None), data, lambda some: self._plain["write"](handle, some))

    def _write(self, path: Path | None, data: Any, write: Callable[[Any], int]) -> int:
        view = memoryview(data).cast("B")
        return self._passed(
            "write", path, lambda made: write(view[: self.fault.some(made, len(view))] if made else view)
        )

    def _io_open(self, path: Any, mode: str = "r", buffering: int = -1, *args: Any, **more: Any) -> Any:
        inside = self._inside(path, None)
        if inside is None or not set(mode) & set("wax+"):
            look = inside if self.fault.looks else None
            return self._passed("read", look, lambda: self._open(path, mode, buffering, *args, **more))
        fresh = not os.path.lexists(inside)
        gate = self

        class Raw(io.FileIO):
            def write(self, data: Any, /) -> int:
                return gate._write(inside, data, super().write)

        raw = self._passed("open", inside, lambda: Raw(inside, mode.replace("b", "").replace("t", "")), fresh)
        if not buffering:
            return raw
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, more.get("encoding"))

    def _inside(self, what: Any, folder: int | None) -> Path | None:
        """The path that a call is about, if it lies in the folder."""
        if isinstance(what, int):
            text = str(Path(f"/proc/self/fd/{what}").readlink())
        else:
            text = os.fspath(what)
            text = text.decode() if isinstance(text, bytes) else text
            if folder is not None:
                text = f"{Path(f'/proc/self/fd/{folder}').readlink()}/{text}"
        path = Path(text)
        return path if path.is_relative_to(self.folder) else None
