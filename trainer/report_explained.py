"""The report's chapter on single inputs: coloured tokens, bars, and maps of what each token looks at.

A map has a cell for each pair of tokens. Cells of one shade that touch in a row are one stroke, and the lightest shade
is not drawn, so that a map of 128 tokens takes 10 to 60 KiB, not a megabyte of squares. The shade goes by the root of
the probability: heads that spread their attention would else be blank beside those that don't.
"""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from trainer.explanation import Explanation
from trainer.report_page import Html, details, join, section, tag
from trainer.report_story import Story

KINDS = {
    "self": ("Self-attention", "encoder", "encoder"),
    "cross": ("What the decoder looks at in the input", "decoder", "encoder"),
    "encoder": ("Self-attention of the encoder", "encoder", "encoder"),
    "decoder": ("Self-attention of the decoder", "decoder", "decoder"),
}
"""Kind of map -> its title, whose tokens look, and whose are looked at."""
SHADES = 8
LONGEST = 14
"""Columns of a token's name."""
FONT = 11
COLUMN = 0.61 * FONT
"""Pixels of a column in the page's monospace font."""
ROW = 15


def chapter(story: Story) -> Html | None:
    """The inputs that were asked about last, the newest unfolded; None where none was."""
    found = story.explanations
    if not found and not story.unread:
        return None
    said = f"{len(found)} of {story.explained} are shown." if story.explained > len(found) else ""
    note = f"What `luban explain` found, the newest first. {said}"
    return section(
        "Single inputs",
        tag("p", note, class_="note"),
        [tag("p", each, class_="note") for each in story.unread],
        [details(_title(each), *_parts(each), opened=not number) for number, each in enumerate(found)],
    )


def _title(found: Explanation) -> str:
    about = found.about
    text = " | ".join(about.texts)
    return f"step {about.step:,}: {text[:80]}{'…' if len(text) > 80 else ''}"


def _parts(found: Explanation) -> Iterator[Html | None]:
    about = found.about
    yield tag("pre", join(tag("div", text) for text in about.texts))
    if about.figure:
        yield from _attributions(found)
    else:
        yield tag("p", f"A model of {about.objective} gives nothing to attribute: attention alone.", class_="note")
    for kind in KINDS:
        if kind in found.attention:
            yield from _attention(found, kind, found.attention[kind])


# Attributions


def _attributions(found: Explanation) -> Iterator[Html | None]:
    about = found.about
    target = [" ", tag("b", about.target)] if about.target else []
    yield tag("h3", "What it owes to each token", style="margin-top:14px")
    yield tag("p", about.figure, *target, f": {about.value:.4f}")
    values = found.attributions[: about.given]
    most = float(np.abs(values).max(initial=0.0)) or 1.0
    tokens = about.tokens[: about.given]
    coloured = [
        tag("span", name, style=_colour(float(value) / most), title=f"{value:+.4f}")
        for name, value in zip(tokens, values.tolist(), strict=True)
    ]
    yield tag("p", coloured, class_="tokens")
    rough = f"; {found.warning}" if found.warning else ""
    yield tag(
        "p",
        f"Blue raises the figure, orange lowers it. Integrated gradients (arXiv:1703.01365), {about.points} points, "
        f"from the {about.baseline_value:.4f} that the model gives with {about.baseline} for every token: they add up "
        f"to {found.total:+.4f}, of a difference of {found.wanted:+.4f}{rough}.",
        class_="note",
    )
    yield details("token by token", tag("div", _bars(tokens, values.tolist(), most), class_="scroll"))


def _colour(share: float) -> str:
    """A background for -1 .. 1."""
    colour = "--c0" if share >= 0 else "--c1"
    return f"background:color-mix(in srgb,var({colour}) {min(75, round(75 * abs(share)))}%,transparent)"


def _bars(tokens: Sequence[str], values: Sequence[float], most: float) -> Html:
    """A bar a token, from a line in the middle."""
    names, half = _width(tokens), 160.0
    middle = names + half
    drawn = []
    for place, (name, value) in enumerate(zip(tokens, values, strict=True)):
        length = half * abs(value) / most
        left = middle if value >= 0 else middle - length
        drawn += [
            tag("text", _short(name), x=f"{names - 6:.1f}", y=ROW * place + 11, text_anchor="end"),
            tag(
                "rect", x=f"{left:.1f}", y=ROW * place + 2, width=f"{length:.1f}", height=ROW - 4,
                class_="up" if value >= 0 else "down",
            ),
            tag("text", f"{value:+.4f}", x=f"{middle + half + 8:.1f}", y=ROW * place + 11),
        ]  # fmt: skip
    height = ROW * len(tokens)
    line = tag("path", d=f"M{middle:.1f} 0V{height}", class_="grid-line")
    return _svg(middle + half + 70, height, [line, *drawn], "attribution of each token")


# Attention


def _attention(found: Explanation, kind: str, maps: np.ndarray) -> Iterator[Html | None]:
    about = found.about
    name, looking, looked = KINDS[kind]
    rows = about.decoder_tokens if looking == "decoder" else about.tokens
    columns = about.decoder_tokens if looked == "decoder" else about.tokens
    layer = min(about.layer, len(maps) - 1)
    yield tag("h3", name, style="margin-top:22px")
    yield tag(
        "p",
        f"Layer {layer + 1} of {len(maps)}, the mean of its {maps.shape[1]} heads. A row is a token that looks, a "
        "column one that is looked at; a row adds up to 1, and the shade goes by the root.",
        class_="note",
    )
    yield tag("div", _labelled(maps[layer].mean(0), rows, columns), class_="scroll")
    yield _small(f"Heads of layer {layer + 1}", "head", maps[layer])
    if len(maps) > 1:
        yield _small("Layers, each the mean of its heads", "layer", maps.mean(1))


def _small(title: str, what: str, maps: np.ndarray) -> Html:
    """Many maps without names, side by side."""
    drawn = [
        tag("figure", _unlabelled(each, f"{what} {number}"), tag("figcaption", f"{what} {number}"))
        for number, each in enumerate(maps, 1)
    ]
    return join([tag("p", title, class_="note"), tag("div", drawn, class_="maps")])


def _unlabelled(probabilities: np.ndarray, name: str) -> Html:
    rows, columns = probabilities.shape
    return tag(
        "svg",
        tag("rect", x=0, y=0, width=columns, height=rows, class_="sheet"),
        _cells(probabilities),
        viewBox=f"0 0 {columns} {rows}",
        role="img",
        aria_label=f"attention, {name}",
    )


def _labelled(probabilities: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Html:
    """One map with the tokens' names at its left and, turned, above it."""
    cell = max(12.0, min(22.0, 760 / max(1, len(columns))))
    left, top = _width(rows), _width(columns)
    drawn = [
        tag("text", _short(name), x=f"{left - 6:.1f}", y=f"{top + cell * (place + 0.5) + 4:.1f}", text_anchor="end")
        for place, name in enumerate(rows)
    ]
    drawn += [
        tag(
            "text", _short(name), transform=f"translate({left + cell * (place + 0.5) + 4:.1f} {top - 6:.1f})rotate(-90)"
        )
        for place, name in enumerate(columns)
    ]
    width, height = cell * len(columns), cell * len(rows)
    drawn.append(
        tag("rect", x=f"{left:.1f}", y=f"{top:.1f}", width=f"{width:.1f}", height=f"{height:.1f}", class_="sheet")
    )
    place = f"translate({left:.1f} {top:.1f})scale({cell:.2f})"
    drawn.append(tag("g", _cells(probabilities), transform=place))
    return _svg(left + width + 2, top + height + 2, drawn, "attention between tokens")


def _cells(probabilities: np.ndarray) -> list[Html]:
    """A path for each shade, of cells of 1 x 1."""
    shades = np.rint(np.sqrt(np.clip(probabilities, 0, 1)) * SHADES).astype(int)
    strokes: list[list[str]] = [[] for _ in range(SHADES + 1)]
    for y, row in enumerate(shades):
        edges = np.flatnonzero(np.diff(row)) + 1
        for begin, end in zip([0, *edges.tolist()], [*edges.tolist(), len(row)], strict=True):
            strokes[row[begin]].append(f"M{begin} {y}.5h{end - begin}")
    return [
        tag("path", d="".join(drawn), class_="cells", stroke_opacity=f"{shade / SHADES:.3f}")
        for shade, drawn in enumerate(strokes)
        if shade and drawn
    ]


# Names


def _short(name: str) -> str:
    """A token's name in at most `LONGEST` columns."""
    if _columns(name) <= LONGEST:
        return name
    kept = ""
    for character in name:
        if _columns(kept + character) >= LONGEST:
            break
        kept += character
    return f"{kept}…"


def _columns(name: str) -> int:
    """Columns of a monospace font; a Chinese character takes two."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in name)


def _width(names: Sequence[str]) -> float:
    """Pixels of the longest of them, with a margin."""
    return COLUMN * max((min(LONGEST, _columns(name)) for name in names), default=0) + 10


def _svg(width: float, height: float, drawn: Sequence[Html], name: str) -> Html:
    shape = {"width": f"{width:.0f}", "height": f"{height:.0f}", "viewBox": f"0 0 {width:.0f} {height:.0f}"}
    return tag("svg", drawn, class_="named", role="img", aria_label=name, **shape)
