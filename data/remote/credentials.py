"""Secrets never stand in a URL, because the URL is in recipes, records and logs.

`${NAME}` in it is replaced by that variable of the environment when a file is asked for, and an error that would show
its value shows `${NAME}`.
"""

import os
import re
from urllib.parse import quote

from data.errors import UserError

_SHOWN = (
    r"://[^/@\s]*:(?!\$\{)[^/@\s]+@",
    r"^https?://(?!\$\{)[^/@:\s]+@",
    r"[?&][^=&]*(?:sig|token|key|secret|password|credential|auth)[^=&]*=(?!\$\{)[^&]",
    r"authorization\s*:\s*(?:(?:bearer|basic|token)\s+)?(?!(?:bearer|basic|token)\s|\$\{)[^\s'\"]",
    r"(?:\s-u|\s--user)[ =]?['\"]?[^\s:]+:(?!\$\{)\S",
)
_SECRET = re.compile("|".join(_SHOWN), re.IGNORECASE)
"""A password, a token as the user, a signature in the query, and a command's header or user."""
_NAMED = re.compile(r"\$\{(\w+)\}")


def refuse_secrets(url: str) -> None:
    """Raise UserError where a URL or command shows a password or a signature: it would be in every record."""
    if _SECRET.search(url):
        shown = re.sub(r"(://)[^/@\s]*@", r"\1...@", url).partition("?")[0]
        shown = f"{url.split()[0]} ..." if url.startswith("pipe:") else shown
        raise UserError(
            f"{shown}: a password or signature stands in the URL, and recipes and records would keep it. Write "
            "${NAME} in its place, and set that variable of the environment wherever ranks run"
        )


class Secrets:
    """`${NAME}` -> the environment's value, and back."""

    def __init__(self, text: str):
        """Raises UserError where `text` names a variable that isn't set."""
        self._values = {}
        for name in _NAMED.findall(text):
            value = os.environ.get(name)
            if not value:
                raise UserError(f"{text}: the variable {name} of the environment is not set")
            self._values[name] = value
        self.text = _NAMED.sub(lambda match: self._values[match[1]], text)
        """With the values in it."""

    def hide(self, text: object) -> str:
        """`text` with names in the values' places, also where they are percent-encoded."""
        said = str(text)
        for name, value in self._values.items():
            for shown in (value, quote(value), quote(value, safe="")):
                said = said.replace(shown, f"${{{name}}}")
        return said
