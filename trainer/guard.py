"""When is a run in trouble, and which rows does it go round? Pure: figures in, a decision out.

A figure is compared with the last `window` applied updates by the robust z-score, z = (x - median) / (1.4826 * MAD),
MAD being the median distance from the median (Iglewicz and Hoaglin 1993, "How to detect and handle outliers"): an
outlier that is already in the window hardly moves it, which a mean and a deviation would let it do. Looked at are the
loss and the logarithm of the gradient norm, and only upward. Choices, and the figures behind them:

- The MAD has a floor, so that a flat curve doesn't cry wolf: 0.02 nats for the loss, 0.15 for the log of the norm. At
  the default threshold of 10 a loss must rise by 0.3 nats and a norm to 9 times its median, at the least: norms
  jump 3 to 5 times in early training and nothing comes of it.
- A standard deviation has a floor, too: what a mean over the update's `labels` scatters by, where one label's loss
  scatters by about its size, loss / sqrt(labels), and 2 / sqrt(labels) for the log of the norm. Among tokens by the
  thousand it says nothing. Of 16 examples the losses lie still at chance and scatter once the classes are told apart:
  SST-2's rose from 0.683 to 1.28, its norm from 0.5 to 10, in a run that was well and was rolled back twice.
- A spike is `confirm` updates in a row above the threshold. One is enough where the loss is at 3 times the threshold
  (0.9 nats, at the least), or the norm at 100 times its median: without clipping such a gradient takes Adam's moments
  with it, and the damage shows only later. What else the next update has forgotten did little harm, and going back
  would cost a hundred updates.
- In 34 recorded runs (7,386 updates of text and of examples, 40 to 1,000 a run) it would have spoken once: where a
  loss of 0.65 rose to 2.7 within an update and stayed for eight, z = 68. The largest z of the others was 4.2.

Which rows: the loss of an update is of the weights before it, so the update before a spike may be its cause: `margin`
updates on both sides go with the offending ones. Rewinding to before a spike and passing over its batches is what PaLM
did by hand, some twenty times (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1). Here the interval starts small
and is doubled when the trouble comes back within `window` updates of the last.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from data.errors import UserError
from trainer import recipe

SIGMA = 1.4826  # a normal distribution's standard deviation in MADs
LEAST_LOSS = 0.02  # floor of the loss's MAD, in nats
LEAST_NORM = 0.15  # floor of the MAD of the norm's logarithm
NORM_NOISE = 2.0  # standard deviation of the norm's logarithm by one label
LOSS_BEYOND_DOUBT = 3.0  # times the threshold: one update is enough
NORM_BEYOND_DOUBT = 100.0  # times the median


@dataclass(frozen=True)
class Trouble:
    """What was seen, and where."""

    reason: str
    """In words, with the figures."""
    step: int
    """Updates applied when it was seen."""
    positions: tuple[int, int]
    """Of the offending updates, [from, to)."""
    figures: dict[str, float]
    """Of the last of them: "loss", "grad_norm", and "z" or "in_a_row"."""


class Avoid(TypedDict):
    """Rows that a run passes over, as its record and its checkpoints hold them."""

    positions: list[int]
    """[from, to), whole updates."""
    trouble: list[int]
    """[from, to) of the offending updates among them."""
    times: int
    """How often trouble had come by then, each within `window` updates of the last."""
    reason: str


class Window:
    """The last so many values, also in the order of their size: what is sorted already is sorted again in a third of
    the time, and so are the distances from its middle."""

    def __init__(self, size: int):
        self._latest: deque[float] = deque(maxlen=size)
        self.ordered: list[float] = []

    def add(self, value: float) -> None:
        """Take in a value, and forget the oldest when there are enough."""
        if len(self._latest) == self._latest.maxlen:
            del self.ordered[bisect_left(self.ordered, self._latest[0])]
        self._latest.append(value)
        insort(self.ordered, value)


class Guard:
    """Watches one update after the other. Its state is a function of the last `window` of them."""

    def __init__(self, chosen: recipe.Guard):
        self._recipe = chosen
        self._losses, self._norms = Window(chosen.window), Window(chosen.window)
        self._nonfinite: list[tuple[int, int]] = []  # positions of the updates in a row up to now
        self._spikes: list[tuple[int, int]] = []

    @property
    def suspects(self) -> bool:
        """Whether the last update was out of bounds, though not yet trouble."""
        return bool(self._nonfinite or self._spikes)

    def observe(
        self, step: int, positions: tuple[int, int], labels: int, loss: float, grad_norm: float, applied: bool
    ) -> Trouble | None:
        """Take note of an update, in the order of positions.

        Args:
            step: updates applied, this one included.
            positions: its rows, [from, to).
            labels: what its loss is the mean of.
            loss: in nats a label; anything where it wasn't applied.
            grad_norm: before clipping.
            applied: whether it changed the weights.
        """
        if not applied or not math.isfinite(loss) or not math.isfinite(grad_norm):
            return self._not_finite(step, positions, loss, grad_norm, applied)
        self._nonfinite.clear()
        trouble = None
        norm = math.log(max(grad_norm, 1e-30))
        if step > self._recipe.warmup and len(self._losses.ordered) >= min(self._recipe.warmup, self._recipe.window):
            trouble = self._spike(step, positions, labels, loss, grad_norm, norm)
        self._losses.add(loss)
        self._norms.add(norm)
        return trouble

    def _not_finite(
        self, step: int, positions: tuple[int, int], loss: float, grad_norm: float, applied: bool
    ) -> Trouble | None:
        """An update that was refused may be the rows' fault alone; one that was applied has ruined the weights."""
        self._nonfinite.append(positions)
        in_a_row = len(self._nonfinite)
        if not applied and in_a_row < self._recipe.max_nonfinite:
            return None
        reason = f"{in_a_row} non-finite update{'s' * (in_a_row > 1)} in a row"
        figures = {"loss": loss, "grad_norm": grad_norm, "in_a_row": float(in_a_row)}
        return Trouble(reason, step, (self._nonfinite[0][0], positions[1]), figures)

    def _spike(
        self, step: int, positions: tuple[int, int], labels: int, loss: float, grad_norm: float, norm: float
    ) -> Trouble | None:
        few, held = 1 / math.sqrt(max(1, labels)), len(self._losses.ordered)
        usual_loss, usual_norm = median(self._losses.ordered), median(self._norms.ordered)
        scores = (
            robust_z(loss, self._losses.ordered, LEAST_LOSS, few * abs(usual_loss)),
            robust_z(norm, self._norms.ordered, LEAST_NORM, few * NORM_NOISE),
        )
        z = max(scores)
        beyond_doubt = scores[0] > LOSS_BEYOND_DOUBT * self._recipe.threshold
        beyond_doubt |= norm - usual_norm > math.log(NORM_BEYOND_DOUBT)
        if z <= self._recipe.threshold and not beyond_doubt:
            self._spikes.clear()
            return None
        self._spikes.append(positions)
        if len(self._spikes) < self._recipe.confirm and not beyond_doubt:
            return None
        by_loss = scores[0] == z
        what = f"loss {loss:.4g}" if by_loss else f"gradient norm {grad_norm:.4g}"
        usual = usual_loss if by_loss else math.exp(usual_norm)
        reason = f"{what} is {z:.3g} robust standard deviations above {usual:.4g}, the median of {held} updates"
        figures = {"loss": loss, "grad_norm": grad_norm, "z": z}
        return Trouble(reason, step, (self._spikes[0][0], positions[1]), figures)


def robust_z(value: float, window: Sequence[float], least: float, noise: float = 0.0) -> float:
    """How many robust standard deviations `value` is above the median of `window`, whose MAD is `least` or more and
    whose standard deviation `noise` or more; 0 where it isn't above."""
    middle = median(window)
    if value <= middle:
        return 0.0
    return (value - middle) / max(noise, SIGMA * max(least, median([abs(held - middle) for held in window])))


def median(values: Sequence[float]) -> float:
    """Of at least one value; `statistics.median` takes longer."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def plan(trouble: Trouble, earlier: Sequence[Avoid], chosen: recipe.Guard, rows: int) -> Avoid:
    """Which rows to pass over, before what the checkpoint has read already is taken off.

    Args:
        earlier: what the run already passes over.
        rows: of one update.

    Raises:
        UserError: trouble came more than `max_rollbacks` times, each within `window` updates of the one before.
    """
    first, last = trouble.positions
    near = chosen.window * rows
    times = 1 + max(
        (
            each["times"]
            for each in earlier
            if each["positions"][0] - near <= last and first <= each["positions"][1] + near
        ),
        default=0,
    )
    if times > chosen.max_rollbacks:
        before = f", after {times - 1} rollbacks within {chosen.window} updates of one another" if times > 1 else ""
        raise UserError(
            f"{trouble.reason}, at step {trouble.step}, positions [{first}, {last}){before}: passing over rows doesn't "
            "mend this run. Lower optimizer.lr or set optimizer.clip and start a new run --from an earlier "
            "checkpoint; look at the documents named in the run's guard/ folder; or raise guard.max_rollbacks "
            f"({chosen.max_rollbacks})"
        )
    margin = chosen.margin if times == 1 else min(max(1, chosen.margin) << (times - 1), chosen.window)
    return {
        "positions": [max(0, first - margin * rows), last + margin * rows],
        "trouble": [first, last],
        "times": times,
        "reason": f"guard: {trouble.reason}",
    }
