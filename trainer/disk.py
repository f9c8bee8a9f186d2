"""What a run folder's file system doesn't promise: a checkpoint is only as durable as fsync and rename are."""

import errno
import os
from contextlib import suppress
from pathlib import Path

IN_MEMORY = {"tmpfs", "ramfs"}
UNSURE = {"vfat", "exfat", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.goofys", "9p", "davfs"}
"""Types that are known to lose the order of writes, or to rename by copying."""


def shortcomings(folder: Path) -> list[str]:
    """What a person should know before trusting `folder`, in sentences; a probe of the calls, then the type."""
    found = _probe(folder)
    kind = file_system(folder)
    if kind in IN_MEMORY:
        found.append(
            f"{folder} lies in memory ({kind}): its checkpoints survive a kill, but not a reboot of this machine"
        )
    elif kind in UNSURE:
        found.append(
            f"{folder} lies on {kind}, which doesn't promise that what was flushed and renamed is there after a crash: "
            "take a local disk or a parallel file system, or a checkpoint.store beside it"
        )
    if not takes_direct(folder):
        found.append(
            f"{folder} lies on a file system ({kind}) that refuses O_DIRECT: its checkpoints go through the page "
            "cache, which takes more of the CPU from the steps beside a save"
        )
    return found


def takes_direct(folder: Path) -> bool:
    """Whether files there can be written past the page cache; true where nothing can be written at all."""
    probe = folder / f".probe-{os.getpid()}.direct"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError as error:
        return error.errno != errno.EINVAL
    finally:
        with suppress(OSError):  # a read-only file system refuses even what isn't there
            probe.unlink(missing_ok=True)
    return True


def file_system(folder: Path, mounts: str = "/proc/mounts") -> str:
    """The type of the file system that holds `folder`, as the kernel names it; "" where that isn't known."""
    path, best, kind = str(folder.resolve()), "", ""
    try:
        lines = Path(mounts).read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        _, point, name, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind


def _probe(folder: Path) -> list[str]:
    """Try what a checkpoint needs: flush a file and a folder, and replace a file by a rename."""
    probe, target = folder / f".probe-{os.getpid()}", folder / f".probe-{os.getpid()}.renamed"
    try:
        for path in (target, probe):
            with path.open("wb", buffering=0) as file:
                file.write(path.name.encode())
                os.fsync(file.fileno())
        probe.rename(target)
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if target.read_text() != probe.name:
            return [f"{folder}: a renamed file doesn't replace the one before; checkpoints are not safe here"]
    except OSError as error:
        return [f"{folder} can't flush or rename files ({error}); checkpoints are not safe here"]
    finally:
        for path in (probe, target):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return []
