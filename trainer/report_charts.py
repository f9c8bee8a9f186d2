"""Line charts as inline SVG whose labels are text of the page.

A curve is drawn in a box of 1000 by 1000 that the browser stretches to whatever the screen offers, with strokes that
don't stretch along; ticks and names stand beside it as ordinary text. So one chart of some 6 KiB is sharp and legible
on a wide screen and on a phone alike; a plotting library would put 1 to 5 MB of script into the page.

Two rules keep a curve honest and readable: thinning keeps the lowest and the highest point of every column, so no
spike disappears, and a range that the first steps or a few spikes would flatten is cut at robust quantiles, with the
values outside said in the caption.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trainer.report_page import Html, tag
from trainer.units import short

COLUMNS = 400
COLOURS = 8
FIRST_STEPS = 0.04
"""Share of the x axis whose values don't decide the range."""
LOG_FROM = 3.0
"""Ratio of a range from which its axis is logarithmic, where that is allowed."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Piece:
    """Points that a line joins."""

    points: list[Point]
    lost: bool = False
    """Steps that were rolled back and done again."""


@dataclass(frozen=True)
class Series:
    """One named curve of one colour."""

    name: str
    colour: int
    pieces: list[Piece]
    dots: bool = False
    """Mark every point: for measurements far apart."""


@dataclass(frozen=True)
class Chart:
    """What is drawn into one frame."""

    title: str
    x_name: str
    series: list[Series]
    restarts: list[tuple[float, str]] = field(default_factory=list)
    """(x, name) of vertical marks."""
    bands: list[tuple[float, float]] = field(default_factory=list)
    """Intervals of x that are shaded."""
    from_zero: bool = False
    logarithmic: bool = False
    """May be logarithmic, if its range asks for it."""
    tall: bool = False


@dataclass(frozen=True)
class Scale:
    """From values to [0, 1]."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where `value` lies; outside of [0, 1] for values outside."""
        if self.log:
            return math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[float]:
        """Some `count` round values inside."""
        if not self.log:
            return linear_ticks(self.low, self.high, count)
        found = log_ticks(self.low, self.high, count)
        return found if len(found) >= 3 else linear_ticks(self.low, self.high, count)


def render(chart: Chart) -> Html:
    """The chart with its title, legend and caption; a sentence where there is nothing to draw."""
    points = [point for series in chart.series for piece in series.pieces for point in piece.points]
    title = tag("h3", chart.title)
    if not points:
        return tag("div", title, tag("p", "Nothing was logged.", class_="note"), class_="chart")
    xs = [x for x, _ in points]
    x_scale = _padded(min(xs), max(xs))
    y_scale = value_scale(points, chart.from_zero, chart.logarithmic)
    svg = tag(
        "svg",
        [_band(x_scale, low, high) for low, high in chart.bands],
        [_rule(f"M0 {_y(y_scale, tick)}H1000") for tick in y_scale.ticks(5)],
        [tag("path", d=f"M{_x(x_scale, x)} 0V1000", class_="restart", **STEADY) for x, _ in chart.restarts],
        [_curves(series, x_scale, y_scale) for series in chart.series],
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    plot = tag(
        "div",
        svg,
        _mark_names(chart.restarts, x_scale),
        class_="plot",
        data_x0=f"{x_scale.low:.10g}",
        data_x1=f"{x_scale.high:.10g}",
        data_y0=f"{y_scale.low:.10g}",
        data_y1=f"{y_scale.high:.10g}",
        data_log=int(y_scale.log),
        data_x=chart.x_name,
    )
    ticks = y_scale.ticks(5)
    names = tick_names(ticks)
    widest = max(names, key=len, default="")
    ys = [_at(name, top=1 - y_scale.at(tick)) for tick, name in zip(ticks, names, strict=True)]
    xs_ = [_at(short(tick), left=x_scale.at(tick)) for tick in linear_ticks(max(0, x_scale.low), x_scale.high, 6)]
    frame = tag(
        "div",
        tag("div", tag("i", widest), ys, class_="ys"),
        plot,
        tag("div", xs_, tag("em", chart.x_name), class_="xs"),
        class_="frame",
        role="img",
        aria_label=_in_words(chart),
    )
    return tag(
        "div", title, _legend(chart), frame, _caption(points, y_scale), class_="chart tall" if chart.tall else "chart"
    )


def value_scale(points: Sequence[Point], from_zero: bool, logarithmic: bool) -> Scale:
    """The y axis: the range of all values, unless the first steps or rare spikes would more than double it."""
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    values = sorted(y for _, y in points)
    by_ratio = logarithmic and values[0] > 0
    measure, back = (math.log, math.exp) if by_ratio else (float, float)
    late = sorted(measure(y) for x, y in points if x >= first + FIRST_STEPS * (last - first))
    low, high = _cut(measure(values[0]), measure(values[-1]), _quantile(late, 0.002), _quantile(late, 0.995))
    if from_zero:
        return Scale(0.0, 1.08 * high if high > 0 else 1.0)
    if by_ratio and high - low >= math.log(LOG_FROM):
        margin = 0.05 * (high - low)
        return Scale(back(low - margin), back(high + margin), log=True)
    low, high = back(low), back(high)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    margin = 0.06 * (high - low)
    return Scale(low - margin, high + margin)


def _cut(low: float, high: float, typical_low: float, typical_high: float) -> tuple[float, float]:
    """A range, cut on a side where it reaches further beyond what is typical than all that is typical does."""
    spread = max(typical_high - typical_low, 1e-12)
    if high > typical_high + spread:
        high = typical_high + 0.25 * spread
    if low < typical_low - spread:
        low = typical_low - 0.25 * spread
    return low, high


def thinned(points: Sequence[Point], columns: int = COLUMNS) -> list[Point]:
    """At most four points a column: its first, lowest, highest and last."""
    if len(points) <= 2 * columns:
        return list(points)
    first, last = points[0][0], points[-1][0]
    width = (last - first) / columns or 1.0
    kept: list[Point] = []
    column: list[Point] = []
    number = 0
    for point in points:
        now = int((point[0] - first) / width)
        if now != number and column:
            kept += _extremes(column)
            column = []
        number = now
        column.append(point)
    return kept + _extremes(column)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten inside [low, high], some `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.85)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Round values inside [low, high], evenly spread by ratio: powers of ten, else with 2 and 5, else finer ones."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        inside = [digit * 10.0**decade for decade in decades for digit in digits]
        finer = [tick for tick in inside if low <= tick <= high]
        if found and len(finer) > count + 3:
            break
        found = finer
    every = -(-len(found) // (count + 3))
    return found[:: max(1, every)]


def tick_names(ticks: Sequence[float]) -> list[str]:
    """The ticks as text, all with as many decimals as their distance needs."""
    if not ticks:
        return []
    largest = max(abs(tick) for tick in ticks)
    if largest >= 10_000:
        return [short(tick) for tick in ticks]
    if 0 < largest < 0.001:
        return ["0" if tick == 0 else f"{tick:.3g}" for tick in ticks]
    return [f"{tick:.6f}".rstrip("0").rstrip(".") or "0" for tick in ticks]


STEADY = {"vector_effect": "non-scaling-stroke"}


def _curves(series: Series, x_scale: Scale, y_scale: Scale) -> list[Html]:
    drawn = []
    for piece in series.pieces:
        points = [f"{_x(x_scale, x)} {_y(y_scale, y)}" for x, y in thinned(piece.points)]
        name = f"{series.name} (lost)" if piece.lost else series.name
        style = f"c{series.colour % COLOURS}{' lost' if piece.lost else ''}"
        drawn.append(tag("path", d="M" + "L".join(points), class_=f"curve {style}", data_name=name, **STEADY))
        if series.dots:
            dots = "".join(f"M{point}h0" for point in points)
            drawn.append(tag("path", d=dots, class_=f"dots {style}", **STEADY))
    return drawn


def _legend(chart: Chart) -> Html | None:
    entries = [
        (series.name, f"c{series.colour % COLOURS}", series.dots)
        for series in chart.series
        if any(not piece.lost for piece in series.pieces)
    ]
    lost = any(piece.lost for series in chart.series for piece in series.pieces)
    if len(entries) < 2 and not chart.tall:
        return None
    shown = [tag("span", _key(style, dots), name) for name, style, dots in entries]
    if lost:
        shown.append(tag("span", _key("c7 lost", False), "lost: rolled back and done again"))
    if chart.restarts:
        shown.append(tag("span", tag("svg", tag("path", d="M11 0V8", class_="restart"), aria_hidden="true"), "restart"))
    return tag("div", shown, class_="legend")


def _key(style: str, dots: bool) -> Html:
    line = tag("path", d="M0 4H22", class_=f"curve {style}")
    dot = tag("path", d="M11 4h0", class_=f"dots {style}") if dots else None
    return tag("svg", line, dot, aria_hidden="true")


def _caption(points: Iterable[Point], scale: Scale) -> Html | None:
    above = [y for _, y in points if y > scale.high]
    below = [y for _, y in points if y < scale.low]
    parts = []
    if above:
        parts.append(f"{len(above)} higher value{'s' * (len(above) > 1)}, up to {max(above):.4g}")
    if below:
        parts.append(f"{len(below)} lower value{'s' * (len(below) > 1)}, down to {min(below):.4g}")
    return tag("p", f"Outside the frame: {'; '.join(parts)}.", class_="note") if parts else None


def _mark_names(marks: Sequence[tuple[float, str]], scale: Scale) -> list[Html]:
    """Names of the marks, leaving out those that would cover the one before."""
    shown, free_from = [], 0.0
    for x, name in sorted(marks):
        at = scale.at(x)
        if at >= free_from and at < 0.93:
            shown.append(_at(name, left=at, class_="mark"))
            free_from = at + 0.13
    return shown


def _at(text: str, *, left: float | None = None, top: float | None = None, class_: str | None = None) -> Html:
    side, share = ("left", left) if left is not None else ("top", top or 0.0)
    return tag("span", text, style=f"{side}:{100 * share:.2f}%", class_=class_)


def _in_words(chart: Chart) -> str:
    """For who can't see it: the last value of each curve."""
    ends = []
    for series in chart.series:
        kept = [piece.points[-1] for piece in series.pieces if not piece.lost]
        if kept:
            ends.append(f"{series.name} ends at {kept[-1][1]:.4g}")
    return f"{chart.title} over {chart.x_name}: {'; '.join(ends)}"


def _band(scale: Scale, low: float, high: float) -> Html:
    left = _x(scale, low)
    return tag("rect", x=left, y=0, width=f"{float(_x(scale, high)) - float(left):.1f}", height=1000, class_="band")


def _rule(path: str) -> Html:
    return tag("path", d=path, class_="grid-line", **STEADY)


def _x(scale: Scale, value: float) -> str:
    return f"{1000 * scale.at(value):.1f}"


def _y(scale: Scale, value: float) -> str:
    return f"{max(-2000.0, min(3000.0, 1000 * (1 - scale.at(value)))):.1f}"


def _padded(low: float, high: float) -> Scale:
    margin = 0.012 * (high - low) or 0.5
    return Scale(low - margin, high + margin)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, max(0, round(share * (len(ordered) - 1))))]


def _extremes(column: Sequence[Point]) -> list[Point]:
    """First, lowest, highest and last, in order, each once."""
    low = min(range(len(column)), key=lambda index: column[index][1])
    high = max(range(len(column)), key=lambda index: column[index][1])
    return [column[index] for index in sorted({0, low, high, len(column) - 1})]
