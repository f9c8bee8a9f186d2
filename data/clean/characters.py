"""Changes to single characters: line ends, text decoded with the wrong table, control characters, composed form.

Each function returns the text, how many lines it changed (0: none, the text is the same object) and the first of them
as it was.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Any

from data.errors import UserError

_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufeff]")
_LINE_ENDS = re.compile("[\x0b\x1c-\x1e\x85]")
# UTF-8 read as Latin-1 or Windows-1252: a letter that is a lead byte, then what a continuation byte looks like.
_MOJIBAKE = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d"
    "\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178]"
)
_ENCODING_ONLY = {
    "unescape_html": False,
    "remove_terminal_escapes": False,
    "fix_latin_ligatures": False,
    "fix_character_width": False,
    "uncurl_quotes": False,
    "fix_line_breaks": False,
    "fix_surrogates": False,
    "remove_control_chars": False,
    "normalization": None,
    "explain": False,
}


def normalise(text: str) -> tuple[str, int, str]:
    """Line ends as newlines, then NFC: one way to write each character (2 GB/s where nothing changes)."""
    after = text.replace("\r\n", "\n") if "\r" in text else text
    return _compared(text, unicodedata.normalize("NFC", after))


def without_controls(text: str) -> tuple[str, int, str]:
    """No control characters but tab, newline, carriage return and form feed, and no byte order mark. Those that end a
    line become newlines."""
    if _CONTROLS.search(text) is None:
        return text, 0, ""
    first = next(line for line in text.split("\n") if _CONTROLS.search(line))
    lines = sum(1 for line in text.split("\n") if _CONTROLS.search(line))
    return _CONTROLS.sub("", _LINE_ENDS.sub("\n", text)), lines, first


def mended_encoding(text: str) -> tuple[str, int, str]:
    """Lines that look as if UTF-8 had been decoded as something else, decoded rightly by ftfy, where it can.

    ftfy runs at 1 MB/s, so a search for the pairs of characters that such text is full of comes first.
    """
    if text.isascii() or _MOJIBAKE.search(text) is None:
        return text, 0, ""
    fix, config = _ftfy()
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if _MOJIBAKE.search(line):
            lines[number] = fix(line, config)
    return _compared(text, "\n".join(lines))


@lru_cache(maxsize=1)
def _ftfy() -> tuple[Any, Any]:
    try:
        import ftfy
    except ImportError:
        raise UserError(
            "clean.mojibake needs ftfy, which is not installed: pip install 'luban[web]', or set clean.mojibake=false"
        ) from None
    return ftfy.fix_text, ftfy.TextFixerConfig(**_ENCODING_ONLY)


def _compared(before: str, after: str) -> tuple[str, int, str]:
    if after == before:
        return before, 0, ""
    pairs = zip(before.split("\n"), after.split("\n"), strict=False)
    changed = [old for old, new in pairs if old != new]
    return after, max(1, len(changed)), changed[0] if changed else before


def normalised(text: str) -> str:
    """Only the text of `normalise`, for rows of tasks, which it is no finding in."""
    return normalise(text)[0]
