"""The report: one HTML page for one run, or for several side by side, that needs nothing but itself.

`report_story` reads the run folders, `report_charts` draws, `report_page` holds markup and style; here is what the page
says, and in which order. A run that is still going, was killed or never began has a report too.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.publish import published
from data.settings import differences
from trainer import report_corpus, report_explained, report_time
from trainer.console import STATES, evaluation_figures
from trainer.report_charts import COLOURS, Chart, Piece, Series, render
from trainer.report_page import Html, details, join, page, section, table, tag
from trainer.report_story import Coverage, Story, coverage
from trainer.units import duration, short

SAMPLES_SHOWN = 40
SMALL = (
    ("Learning rate", "train/lr", True, False),
    ("Gradient norm, before clipping", "train/grad_norm", False, True),
    ("Tokens per second", "speed/tokens_per_s", True, False),
    ("Waiting for data, % of a step", "speed/data_wait_pct", True, False),
)
"""(title, metric, from zero, may be logarithmic) of the small charts."""


def write(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of `runs` to `out`, whole or not at all.

    Raises:
        UserError: A path holds no run, a record is damaged, or `out` can't be written.
    """
    if not runs:
        raise UserError("name at least one run to report on")
    stories = [Story.load(run) for run in runs]
    body = join(_one(stories[0]) if len(stories) == 1 else _several(stories))
    title = " · ".join(dict.fromkeys(story.name for story in stories))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with published(out) as draft:
            draft.write_text(page(f"{title} · Luban", body), "utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write the report {out}: {error.strerror or error}") from None
    return out


def _one(story: Story) -> Iterator[Html | None]:
    yield tag("h1", story.name)
    yield tag("p", _subtitle(story), class_="soft")
    yield tag("div", [_card(*figure) for figure in story.figures() if figure[1] != "n/a"], class_="cards")
    yield _loss_section([story])
    yield _small_charts([story])
    yield from _chapters(story)


def _several(stories: list[Story]) -> Iterator[Html | None]:
    yield tag("h1", f"{len(stories)} runs")
    yield tag("p", f"Side by side; written {_date(time.time())}", class_="soft")
    names = _names(stories)
    heads = [tag("span", tag("i", class_=f"swatch f{number % COLOURS}"), name) for number, name in enumerate(names)]
    columns = [[("State", story.state, ""), *story.figures()] for story in stories]
    rows = [[first[0], *(column[index][1] for column in columns)] for index, first in enumerate(columns[0])]
    yield section("Figures", table(["", *heads], rows, "facts"))
    yield _loss_section(stories)
    yield _small_charts(stories)
    yield section("How the recipes differ", _recipe_differences(stories, heads))
    for story, head in zip(stories, heads, strict=True):
        yield section_of_run(story, head)


def section_of_run(story: Story, head: Html) -> Html:
    """Everything of one run among several, folded away."""
    return tag("section", tag("h2", head), details(_subtitle(story), *_chapters(story)))


def _chapters(story: Story) -> Iterator[Html | None]:
    yield _samples(story)
    yield _evaluations(story)
    yield report_explained.chapter(story)
    yield _lineage(story)
    yield _proof(story)
    yield _attempts(story)
    yield report_time.chapter(story)
    yield report_corpus.chapter(story)
    yield _versions(story)
    yield section("Recipe", details("as resolved", tag("pre", story.recipe_text)))


def _subtitle(story: Story) -> str:
    kind = f"goes on from {story.recipe.ancestor}" if story.recipe.ancestor else "from scratch"
    began = f", begun {_date(story.history.attempts[0].start['time'])}" if story.history.attempts else ""
    return f"{story.state}, {kind}{began}; written {_date(time.time())}"


def _card(name: str, value: str, remark: str) -> Html:
    return tag("div", tag("span", name), tag("b", value), tag("span", remark), class_="card")


# Curves


def _loss_section(stories: list[Story]) -> Html:
    by_axis = [
        tag("div", render(_loss_chart(stories, axis)), class_=f"by-{axis}") for axis in ("steps", "labels")
    ]  # both are drawn; the buttons need no script to choose
    return section(
        "Loss",
        tag("input", type="radio", name="axis", id="axis-steps", class_="axis", checked=True),
        tag("label", "steps", for_="axis-steps"),
        tag("input", type="radio", name="axis", id="axis-labels", class_="axis use-labels"),
        tag("label", _counts(stories), for_="axis-labels"),
        *by_axis,
    )


def _loss_chart(stories: list[Story], axis: str) -> Chart:
    series = []
    for number, (story, name) in enumerate(zip(stories, _names(stories), strict=True)):
        alone = len(stories) == 1
        train = story.curve("train/loss", axis)
        valid = story.curve("evaluation/valid/loss", axis, "evaluation")
        series.append(Series("training" if alone else f"{name}, training", number, train))
        valid_colour = 1 if alone else number
        if valid:
            series.append(Series("validation" if alone else f"{name}, validation", valid_colour, valid, dots=True))
    restarts, bands = _marks(stories, axis)
    counts = _counts(stories)
    title = "Nats a token" if counts == "tokens" else "Mean over an update's labels"
    return Chart(title, axis if axis == "steps" else counts, series, restarts, bands, logarithmic=True, tall=True)


def _counts(stories: Iterable[Story]) -> str:
    """What the labels of these runs are, in words."""
    return " or ".join(dict.fromkeys(story.counts for story in stories))


def _small_charts(stories: list[Story]) -> Html:
    restarts, bands = _marks(stories, "steps")
    charts = []
    for title, metric, from_zero, logarithmic in SMALL:
        curves: list[tuple[str, list[Piece]]] = [
            (name, story.curve(metric, "steps")) for story, name in zip(stories, _names(stories), strict=True)
        ]
        series = [Series(name, number, pieces) for number, (name, pieces) in enumerate(curves) if pieces]
        unnamed = [(x, "") for x, _ in restarts]
        charts.append(
            render(Chart(title, "steps", series, unnamed, bands, from_zero=from_zero, logarithmic=logarithmic))
        )
    return section("Course", tag("div", charts, class_="grid"))


def _marks(stories: list[Story], axis: str) -> tuple[list[tuple[float, str]], list[tuple[float, float]]]:
    """Restarts and lost intervals; with several runs they would hide the curves, whose lost parts show anyway."""
    return (stories[0].restarts(axis), stories[0].bands(axis)) if len(stories) == 1 else ([], [])


# What the run did


def _samples(story: Story) -> Html | None:
    held = [(attempt, event) for attempt, event in story.evaluations if event.get("samples")]
    if not held:
        return None
    every = -(-len(held) // SAMPLES_SHOWN)
    shown = held[::-1][::every]
    folded = [
        details(
            f"step {event['step']:,}{_lost(story, attempt, event)}: "
            f"{event['set']} {evaluation_figures(event['metrics'])}",
            [_sample(sample) for sample in event["samples"]],
            opened=index == 0,
        )
        for index, (attempt, event) in enumerate(shown)
    ]
    note = f"Newest first; {len(shown)} of {len(held)} are shown." if every > 1 else "Newest first."
    return section("Samples", tag("p", f"The prompt in grey, the continuation after it. {note}", class_="note"), folded)


def _sample(sample: Mapping[str, Any]) -> Html:
    return tag("pre", tag("b", sample.get("prompt", "")), sample.get("text", ""))


def _evaluations(story: Story) -> Html | None:
    if not story.evaluations:
        return None
    rows = [
        [
            f"{event['step']:,}{_lost(story, attempt, event)}",
            event["set"],
            *(
                _or_na(event["metrics"].get(name), form)
                for name, form in (
                    ("loss", "{:.4f}"),
                    ("perplexity", "{:.3f}"),
                    ("bits_per_byte", "{:.4f}"),
                    ("accuracy", "{:.2%}"),
                )
            ),
            f"{event.get('seconds', 0):.1f} s",
            "best so far" if event.get("best") else "",
        ]
        for attempt, event in story.evaluations
    ]
    head = ["step", "set", "loss", "perplexity", "bits per byte", "accuracy", "took", ""]
    return section("Evaluations", details(f"all {len(rows)}", table(head, rows)))


def _lineage(story: Story) -> Html:
    covered = coverage(story.lineage)
    rows = [
        ["positions covered", f"[0, {covered.consumed:,})", _verdict(covered)],
        [
            "applied updates",
            f"{covered.updates:,}",
            f"{short(max(story.labels_at.values()))} {'label tokens' if story.counts == 'tokens' else 'examples'}",
        ],
        ["skipped updates", str(len(covered.skipped)), _intervals(covered.skipped) or "none"],
        ["lost updates", f"{story.lost_steps:,}", _lost_in_words(story) or "none"],
    ]
    return section(
        "Which samples made these weights",
        tag("p", "From the record of every applied step, over all attempts.", class_="note"),
        table(["", "", ""], rows, "facts"),
    )


def _verdict(covered: Coverage) -> Html:
    if covered.exact:
        return tag("span", "each read once, none left out", class_="good")
    parts = []
    if covered.gaps:
        parts.append(f"never read: {_intervals(covered.gaps)}")
    if covered.repeated:
        parts.append(f"read again: {_intervals(covered.repeated)}")
    return tag("span", "; ".join(parts), class_="bad")


def _lost_in_words(story: Story) -> str:
    spans = [f"steps {first:,} to {last:,} of attempt {number}" for number, first, last in story.history.lost]
    return f"{'; '.join(spans)}: applied after the checkpoint that was adopted, done again" if spans else ""


def _proof(story: Story) -> Html | None:
    proof = story.proof
    if proof is None:
        return None
    passed = bool(proof.get("passed"))
    words = "is equal to" if passed else "is NOT equal to"
    lives = [f"{proof.get(name, '?')} attempt(s)" for name in ("attempts", "attempts_against")]
    rows = [
        [
            check.get("name", ""),
            check.get("compared", ""),
            _mark(bool(check.get("equal"))),
            check.get("largest_difference", ""),
            check.get("detail", ""),
        ]
        for check in proof.get("checks", [])
    ]
    return section(
        "Proof of resuming",
        tag(
            "p",
            _mark(passed),
            f" {proof.get('run', '')} ({lives[0]}) {words} {proof.get('against', '')} ({lives[1]}).",
        ),
        table(["", "compared", "equal", "largest difference", ""], rows),
    )


def _attempts(story: Story) -> Html:
    if not story.history.attempts:
        return section("Attempts", tag("p", "The run has not begun.", class_="note"))
    lost = {number: f"{first:,} to {last:,}" for number, first, last in story.history.lost}
    lives = {life.attempt: life for life in story.goodput.lives}
    rows, rolled_back = [], story.history.rolled_back
    for attempt in story.history.attempts:
        start = attempt.start
        fate = STATES.get(attempt.outcome or "", "rolled back" if attempt.number in rolled_back else "killed")
        if attempt is story.history.attempts[-1]:
            fate = story.state
        rows.append(
            [
                attempt.number,
                _date(start["time"]),
                start.get("adopts") or "the beginning",
                f"{start['step']:,} to {attempt.last_step:,}",
                f"{fate}{': ' + attempt.message if attempt.message else ''}",
                lost.get(attempt.number, ""),
                duration(lives[attempt.number].ended - lives[attempt.number].began),
                f"{start.get('world')} x {start.get('device')}",
                start.get("precision", ""),
                start.get("zero_stage", ""),
                start.get("micro_batch", ""),
                start.get("exact", ""),
            ]
        )
    head = [
        "",
        "began (UTC)",
        "from",
        "steps",
        "ended",
        "lost steps",
        "took",
        "ranks",
        "precision",
        "ZeRO",
        "micro-batch",
    ]
    notes = [
        tag("li", f"attempt {attempt.number}: {event['text']}")
        for attempt in story.history.attempts
        for event in attempt.of("note")
    ]
    said = details(f"{len(notes)} note{'s' * (len(notes) > 1)}", tag("ul", notes)) if notes else None
    return section("Attempts", table([*head, "exact"], rows), said)


# What it was made of


def _versions(story: Story) -> Html | None:
    attempts = story.history.attempts
    if not attempts:
        return None
    newest = attempts[-1].start.get("versions", {})
    names = list(dict.fromkeys(name for attempt in attempts for name in attempt.start.get("versions", {})))
    rows = []
    for name in names:
        others = {str(attempt.start.get("versions", {}).get(name)) for attempt in attempts} - {str(newest.get(name))}
        rows.append([name, newest.get(name, "none"), f"earlier: {', '.join(sorted(others))}" if others else ""])
    rows.append(["dataset", attempts[-1].start.get("dataset", ""), "fingerprint of the training shards"])
    return section("Versions", details("of libraries and data", table(["", "", ""], rows, "facts")))


def _recipe_differences(stories: list[Story], heads: list[Html]) -> Html:
    found: dict[str, tuple[str, list[object]]] = {}
    for number, story in enumerate(stories):
        for name, kind, first, here in differences(stories[0].recipe, story.recipe):
            values = found.setdefault(name, (kind, [first] * len(stories)))[1]
            values[number] = here
    found.pop("name", None)
    if not found:
        return tag("p", "In nothing but the name.", class_="note")
    rows = [[name, kind, *(_value(value) for value in values)] for name, (kind, values) in found.items()]
    return table(["setting", "kind", *heads], rows)


# Words


def _names(stories: list[Story]) -> list[str]:
    """The runs' names, told apart by their folders where they are equal."""
    names = [story.name for story in stories]
    return [name if names.count(name) == 1 else str(story.run) for name, story in zip(names, stories, strict=True)]


def _lost(story: Story, attempt: int, event: Mapping[str, Any]) -> str:
    return " (lost)" if story.is_lost(attempt, event["step"]) else ""


def _mark(good: bool) -> Html:
    return tag("span", "✓" if good else "✗", class_="good" if good else "bad")


def _intervals(found: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"[{first:,}, {last:,})" for first, last in found[:8])
    return f"{shown} and {len(found) - 8} more" if len(found) > 8 else shown


def _or_na(value: float | None, form: str) -> str:
    return "n/a" if value is None else form.format(value)


def _value(value: object) -> str:
    return "null" if value is None else str(value)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
