"""How benchmarks measure: contenders take turns in one process, and the ratio is the median over the rounds.

On a shared machine a figure by itself says little; two contenders a moment apart meet the same weather.
"""

import statistics
import time
from collections.abc import Callable, Mapping


def turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after a round that isn't counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    """How many times faster `ours` is than `theirs`: the median over rounds."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def median(seconds: list[float]) -> float:
    """Of the rounds."""
    return statistics.median(seconds)
