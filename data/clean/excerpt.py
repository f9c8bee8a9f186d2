"""Excerpts of text for reports: short, on one line, with personal data masked whatever the rules say."""

import re

from data.clean import pii

SHOWN = 120
"""Characters of an excerpt, at most."""
RAW = 4 * SHOWN
"""Characters that an excerpt is made of, at most."""
_KEY_THAT_GOES_ON = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[\s\S]*")


def excerpt(text: str) -> str:
    """The beginning of a text, white space as single spaces and what can't be printed escaped."""
    masked = _KEY_THAT_GOES_ON.sub("[SECRET]", pii.masked(text[:RAW], pii.KINDS)[0])
    line = " ".join(masked.split())[:SHOWN]
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
