"""What a model made of one input, as a file in the run's folder: attention, attributions and what was asked.

One safetensors file an input, `explained/DIGEST.safetensors`: the tensors as they were computed, and in its header, as
JSON, everything else. The digest is of what was asked, so the same question is the same file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from data.errors import UserError
from data.publish import published

FORMAT, VERSION = "luban-explanation", 1
FOLDER = "explained"
HEADER = "luban"
"""Where the file's header says what it is."""
MISSED = 0.01
"""Share of f(input) - f(baseline) that attributions may miss: with more, more points are taken."""
ROUNDING = 1e-4
"""What they may miss in any case."""


def adds_up(total: float, wanted: float) -> bool:
    """Whether attributions of this sum are as good as complete."""
    return abs(total - wanted) <= MISSED * abs(wanted) + ROUNDING


@dataclass(frozen=True)
class About:
    """All but the arrays."""

    step: int
    """Of the checkpoint."""
    family: str
    objective: str
    texts: tuple[str, ...]
    """As they were asked; two of a pair, or a question and its context."""
    figure: str
    """What the attributions are of, in words; empty where the model gives nothing to attribute."""
    target: str
    """The class, text or answer that it was measured for; empty for a number."""
    value: float
    """The figure for this input."""
    baseline_value: float
    """The figure where every token but control pieces is the baseline's."""
    baseline: str
    """The piece that stands in for them."""
    points: int
    """Of the integral."""
    tokens: tuple[str, ...]
    """As a person can tell them apart: what the encoder reads, or the decoder where there is no encoder."""
    decoder_tokens: tuple[str, ...] = ()
    """What an encoder-decoder's decoder reads."""
    given: int = 0
    """Tokens of the input itself; what follows them is a target's that is being read."""
    layer: int = 0
    """Whose heads are shown one by one, from 0."""


@dataclass(frozen=True)
class Explanation:
    """A model's answer to one input, taken apart."""

    about: About
    attention: Mapping[str, np.ndarray]
    """By kind (`models/attention_maps.py`): (layers, heads, looking tokens, tokens looked at) fp32."""
    attributions: np.ndarray
    """(tokens,) fp32, in the figure's unit; empty where there is no figure."""

    @property
    def total(self) -> float:
        """What the attributions add up to."""
        return float(self.attributions.sum(dtype=np.float64))

    @property
    def wanted(self) -> float:
        """What they should add up to."""
        return self.about.value - self.about.baseline_value

    @property
    def warning(self) -> str | None:
        """Where the integral isn't as good as complete: that, in words."""
        if adds_up(self.total, self.wanted):
            return None
        return f"they miss more than {MISSED:.0%} of it, after {self.about.points} points: read them as rough"

    def write(self, run: Path) -> Path:
        """Into the run's folder, whole or not at all.

        Raises:
            UserError: it can't be written.
        """
        from safetensors.numpy import save

        asked = [self.about.step, self.about.texts, self.about.target]
        digest = hashlib.sha256(json.dumps(asked, ensure_ascii=True).encode()).hexdigest()[:12]
        path = run / FOLDER / f"{digest}.safetensors"
        head = {"format": FORMAT, "version": VERSION} | asdict(self.about)
        tensors = {f"attention.{kind}": np.ascontiguousarray(maps) for kind, maps in self.attention.items()}
        tensors["attributions"] = np.ascontiguousarray(self.attributions, np.float32)
        try:
            path.parent.mkdir(exist_ok=True)
            with published(path) as draft:
                draft.write_bytes(save(tensors, {HEADER: json.dumps(head, ensure_ascii=True)}))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None
        return path

    @classmethod
    def read(cls, path: Path) -> "Explanation":
        """The file at `path`.

        Raises:
            UserError: it is damaged, or of another version.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                head: dict[str, Any] = json.loads((file.metadata() or {})[HEADER])
                told = (head.pop("format", None), head.pop("version", None))
                if told != (FORMAT, VERSION):
                    raise UserError(
                        f"{path} has version {told[1]} of {told[0]}; this Luban reads version {VERSION} of {FORMAT}"
                    )
                about = TypeAdapter(About).validate_python(head)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
                attributions = tensors.pop("attributions")
        except (OSError, SafetensorError, KeyError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is no whole explanation ({error}): remove it, and ask again") from None
        return cls(about, {name.removeprefix("attention."): maps for name, maps in tensors.items()}, attributions)


def newest(run: Path, most: int) -> tuple[list[Explanation], list[str], int]:
    """Of a run's folder: its newest explanations, `most` at most, what is wrong with those of them that can't be read,
    and how many there are in all."""
    paths = sorted((run / FOLDER).glob("*.safetensors"), key=lambda path: (-path.stat().st_mtime_ns, path.name))
    found, unread = [], []
    for path in paths[:most]:
        try:
            found.append(Explanation.read(path))
        except UserError as error:
            unread.append(str(error))
    return found, unread, len(paths)
