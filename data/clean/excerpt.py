"""Excerpts of text for reports: short, on one line, with personal data masked whatever the rules say."""

import re

from data.clean import pii

SHOWN = 120
"""Characters of an excerpt, at most."""
RAW = 4 * SHOWN
"""Characters that an excerpt is made of, at most."""
_MAYBE_CUT = re.compile(r"\S{1,80}\Z")
_KEY_THAT_GOES_ON = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[\s\S]*")


def excerpt(text: str) -> str:
    """The beginning of a text, white space as single spaces and what can't be printed escaped."""
    if len(text) >= RAW:
        text = _MAYBE_CUT.sub("", text[:RAW])  # half an address wouldn't be known for one
    masked = _KEY_THAT_GOES_ON.sub("[SECRET]", pii.masked(text, pii.KINDS)[0])
    line = " ".join(masked.split())[:SHOWN]
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
