"""A run's figures as Ray's own metrics, from the driver: `ray_luban_train_loss{run="..."}` and so on in its Prometheus.

They are read from the run's folder, like everything that is shown of a run. Not by `ray.train.report`: that is a
barrier of all workers, and drops figures that come without a checkpoint of Ray's own.
"""

from pathlib import Path
from typing import Any

from cluster.supervisor import Watcher
from trainer import jsonl, record


class Metered:
    """Another watcher, and the newest figures to Ray."""

    def __init__(self, watcher: Watcher, run: Path):
        self._watcher, self._run = watcher, run
        self._gauges: dict[str, Any] = {}
        path = run / record.METRICS
        self._offset = path.stat().st_size if path.exists() else 0

    def poll(self) -> None:
        """Pass on what is new."""
        self._watcher.poll()
        lines, self._offset = jsonl.read(self._run / record.METRICS, self._offset)
        for name, value in figures(lines).items():
            self._gauge(name).set(value, tags={"run": self._run.name})

    def say(self, text: str, style: str = "") -> None:
        """As the other does."""
        self._watcher.say(text, style)

    def close(self) -> None:
        """Pass the last ones on."""
        self.poll()
        self._watcher.close()

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            from ray.util.metrics import Gauge

            self._gauges[name] = Gauge(f"luban_{name}", description=f"{name} of a run", tag_keys=("run",))
        return self._gauges[name]


def figures(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The newest of each figure in some lines of metrics.jsonl, by a name that Prometheus takes."""
    found: dict[str, float] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("time", "line"):
                found["".join(c if c.isalnum() else "_" for c in name)] = float(value)
    return found
