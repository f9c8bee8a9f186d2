"""The report's chapter on time: one bar for the whole run and one an attempt, on one scale, and their figures."""

from collections.abc import Mapping

from trainer.goodput import NAMES, Goodput
from trainer.report_page import Html, details, section, table, tag
from trainer.report_story import Story
from trainer.units import precise

COLOURS = {
    "compute": "f2",
    "data_wait": "f5",
    "checkpoint": "f3",
    "evaluation": "f0",
    "start_up": "f4",
    "shutdown": "f6",
    "lost": "f1",
    "down": "f7",
    "unattributed": "unknown",
}
"""The page's class of each category."""


def chapter(story: Story) -> Html | None:
    account = story.goodput
    if not account.wall:
        return None
    note = (
        "Goodput is the share that computed what the newest weights are made of. The parts add up to the wall-clock, "
        "from the first process's start on; a gap is counted to the attempt after it."
    )
    bars = [_bar("whole run", account.seconds, account.wall, account.wall)]
    if len(account.lives) > 1:
        bars += [
            _bar(f"attempt {life.attempt}", life.seconds, sum(life.seconds.values()), account.wall)
            for life in account.lives
        ]
    rows = [
        [tag("span", tag("i", class_=f"swatch {COLOURS[name]}"), NAMES[name]), precise(seconds), f"{share:.1f} %"]
        for name, seconds, share in account.shown()
    ]
    return section(
        "Where the time went",
        tag("p", note, class_="note"),
        tag("div", bars, class_="bars"),
        table(["", "", ""], rows),
        details("attempt by attempt", _by_attempt(account)) if len(account.lives) > 1 else None,
        [tag("p", doubt, class_="note") for doubt in account.notes],
    )


def _bar(name: str, seconds: Mapping[str, float], whole: float, widest: float) -> list[Html]:
    """A name, a bar as long as its share of the widest one, and its length in words."""
    parts = [
        tag("div", class_=COLOURS[kind], style=f"flex-grow:{spent:.3f}", title=f"{NAMES[kind]}: {precise(spent)}")
        for kind, spent in seconds.items()
        if spent >= whole / 1000
    ]
    width = f"width:{max(0.5, 100 * whole / widest):.2f}%"
    return [tag("span", name), tag("div", tag("div", parts, class_="bar", style=width)), tag("span", precise(whole))]


def _by_attempt(account: Goodput) -> Html:
    """Every category of every attempt; those that took no time are left out."""
    shown = [name for name, _, _ in account.shown()]
    rows = [
        [f"attempt {life.attempt}", *(_cell(life.seconds[name]) for name in shown), precise(sum(life.seconds.values()))]
        for life in account.lives
    ]
    return table(["", *(NAMES[name] for name in shown), "in all"], rows)


def _cell(seconds: float) -> str:
    return precise(seconds) if seconds >= 0.05 else ""
