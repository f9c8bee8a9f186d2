"""How much memory an action takes at its worst: the kernel's peak of resident pages, reset before it."""

import re
from collections.abc import Callable
from pathlib import Path

from trainer.meters import peak_memory_gib


def resident() -> int:
    """Bytes this process holds now."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii", "replace"), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def peak_growth(action: Callable[[], object]) -> int:
    """Bytes by which this process was larger, at some moment of `action`, than before it."""
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak (man 5 proc)
    action()
    return int(peak_memory_gib("cpu") * 2**30) - before
