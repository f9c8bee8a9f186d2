"""Cleaning one document: a pure function of its text and the rules, called in workers.

    changes to the text     line ends and NFC
    whole document          dropped by the first rule it breaks, on the text as it would be kept

Each change is told with what it removed and an excerpt of it; a dropped document's changes are not told, as it is
booked with its whole size.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from data.clean.characters import normalise
from data.clean.quality import fault
from data.clean.rules import Clean

EXCERPT = 120


@dataclass(frozen=True)
class Change:
    """What one rule did to one document."""

    rule: str
    items: int
    """Places, lines or matches, by rule."""
    bytes: int
    """UTF-8 bytes fewer than before; negative: more."""
    excerpt: str
    """Some of what it changed, on one line."""


@dataclass(frozen=True)
class Cleaned:
    """One document after the rules."""

    text: str | None
    """None: dropped."""
    rule: str = ""
    """The rule that dropped it."""
    excerpt: str = ""
    """The beginning of a dropped text, on one line."""
    changes: tuple[Change, ...] = ()
    """In the order they were made; none for a dropped document."""
    language: str = ""
    """ISO 639-1; empty: not looked for."""


def clean(text: str, rules: Clean) -> Cleaned:
    """Change and judge a document."""
    mended, changes = mend(text, rules)
    rule = fault(mended, rules)
    if rule is not None:
        return Cleaned(None, rule, excerpt(mended))
    return Cleaned(mended, changes=changes)


def mend(text: str, rules: Clean) -> tuple[str, tuple[Change, ...]]:
    """Only the changes to characters, for the fields of an example, which aren't judged as documents are."""
    changes: list[Change] = []
    for name, change in _changes(rules):
        after, items, shown = change(text)
        if items:
            changes.append(Change(name, items, _size(text) - _size(after), excerpt(shown)))
            text = after
    return text, tuple(changes)


def combined(changes: Iterable[Change]) -> tuple[Change, ...]:
    """One change for each rule, where the fields of an example had some of the same."""
    found: dict[str, Change] = {}
    for change in changes:
        first = found.get(change.rule)
        if first is not None:
            change = replace(first, items=first.items + change.items, bytes=first.bytes + change.bytes)
        found[change.rule] = change
    return tuple(found.values())


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def excerpt(text: str) -> str:
    """The beginning of a text on one line, control characters escaped."""
    line = " ".join(text[: 4 * EXCERPT].split())[:EXCERPT]
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


_Change = Callable[[str], tuple[str, int, str]]


def _changes(rules: Clean) -> list[tuple[str, _Change]]:
    return [("nfc", normalise)] if rules.nfc else []
