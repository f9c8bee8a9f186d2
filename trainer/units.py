"""Numbers and foreign texts as a person can read them."""

import math


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 05 s, 2 h 07 min, 3 d 04 h."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def precise(seconds: float) -> str:
    """As `duration`, but in tenths of a second below a minute: where parts are to add up."""
    return f"{seconds:.1f} s" if seconds < 59.95 else duration(seconds)


def short(value: float) -> str:
    """A count or rate in three digits or so: 950, 12.3k, 4.56M."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}" if abs(value) < 1000 * scale else f"{value / scale:.0f}{unit}"
    return f"{value:.3g}" if value != int(value) else f"{int(value)}"


def size(count: float) -> str:
    """Bytes in powers of 1024: 950 B, 12.3 KiB, 4.56 GiB."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def printable(text: str) -> str:
    """`text` with every character but newline and tab that could steer a terminal or turn the line around as a dot."""
    return "".join(each if each.isprintable() or each in "\n\t" else "·" for each in text)
