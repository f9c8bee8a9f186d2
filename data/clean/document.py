"""Cleaning one document: a pure function of its text and the rules, called in workers.

The order is fixed, and such that cleaning what was cleaned changes nothing:

    whole document     control characters and U+FFFD counted before any is removed
    characters         wrongly decoded lines, control characters, line ends and composed form
    personal data      masked
    lines              boilerplate taken out
    language           of what is left
    whole document     dropped by the first rule it breaks, as it would be kept

Each change is told with what it removed and an excerpt of it. A dropped document's changes are not told, as it is
booked with its whole size.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from data.clean import characters, pii
from data.clean.excerpt import RAW, SHOWN
from data.clean.language import identify
from data.clean.lines import without_boilerplate
from data.clean.measured import Measured
from data.clean.quality import RULES, broken
from data.clean.rules import Clean

_BEFORE_CHANGES = ("max_characters", "max_control_characters", "max_replacement_characters")
_CHARACTERS = (
    ("mojibake", "mojibake", characters.mended_encoding),
    ("controls", "remove_controls", characters.without_controls),
    ("nfc", "nfc", characters.normalise),
)


@dataclass(frozen=True)
class Change:
    """What one rule did to one document."""

    rule: str
    items: int
    """Lines changed or removed; of personal data: masks."""
    bytes: int
    """UTF-8 bytes fewer than before; negative: more."""
    sample: str
    """Where it begins, some of what was changed or removed, as it was."""


@dataclass(frozen=True)
class Cleaned:
    """One document after the rules."""

    text: str | None
    """None: dropped."""
    rule: str = ""
    """The rule that dropped it."""
    sample: str = ""
    """The beginning of a dropped text."""
    changes: tuple[Change, ...] = ()
    """In the order they were made; none for a dropped document."""
    language: str = ""
    """ISO 639-1, or what the recipe says; empty: not looked for."""


def clean(text: str, rules: Clean) -> Cleaned:
    """Change and judge a document.

    Raises:
        UserError: a rule needs a library that is not installed.
    """
    seen = Measured(text)
    rule = broken(seen, rules, _FIRST)
    if rule is not None:
        return Cleaned(None, rule, text[:RAW])
    mended, changes = mend(text, rules)
    if rules.remove_lines:
        mended, removed = without_boilerplate(mended, rules.remove_lines)
        for name, lines in removed.items():
            size = sum(map(_size, lines))
            changes += (Change(f"line_{name}", len(lines), size, lines[0][:RAW].rstrip("\n")),)
    language = rules.language or ""
    if language == "identify":
        language = identify(mended)
    if changes or language:
        seen = Measured(mended, language)
    rule = broken(seen, rules, RULES)
    if rule is not None:
        return Cleaned(None, rule, mended[:RAW], language=language)
    return Cleaned(mended, changes=changes, language=language)


def mend(text: str, rules: Clean) -> tuple[str, tuple[Change, ...]]:
    """Only what is changed inside lines: also for the fields of an example, which aren't judged as documents are."""
    changes: list[Change] = []
    before = None
    while text is not before:  # again after a change: a control character may have parted what is wrongly decoded
        before = text
        for name, setting, change in _CHARACTERS:
            if getattr(rules, setting):
                after, lines, shown = change(text)
                if lines:
                    changes.append(Change(name, lines, _size(text) - _size(after), shown[:RAW]))
                    text = after
    changes = list(combined(changes))
    if rules.pii:
        text, told = pii.masked(text, rules.pii)
        for kind, held in told.items():
            around = (text[max(0, held.at - RAW) : held.at], text[held.at : held.at + RAW])
            before, after = (pii.masked(part, pii.KINDS)[0] for part in around)  # all kinds, before they are cut
            shown = before[-SHOWN // 2 :] + after[: SHOWN // 2]
            changes.append(Change(f"pii_{kind}", held.count, held.bytes, shown))
    return text, tuple(changes)


def combined(changes: Iterable[Change]) -> tuple[Change, ...]:
    """One change for each rule, where there were some of the same."""
    found: dict[str, Change] = {}
    for change in changes:
        first = found.get(change.rule)
        if first is not None:
            change = replace(first, items=first.items + change.items, bytes=first.bytes + change.bytes)
        found[change.rule] = change
    return tuple(found.values())


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


_FIRST = tuple(rule for rule in RULES if rule[1] in _BEFORE_CHANGES)
