"""Personal data and secrets, masked by what they are: `[EMAIL]`, `[IP]`, `[PHONE]`, `[SECRET]`.

Masks are plain text, which no pattern here matches again. Precision comes before recall: a version number is no
address, a digest no key, a number no telephone's unless it is written as one. Each kind looks for a cheap sign of
itself first. Addresses of documentation and of private networks stay, as they are nobody's.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.clean.words import codes_of

_EMAIL = re.compile(
    r"(?<![\w.%+/:@\\-])[A-Za-z0-9](?:[\w.%+-]{0,62}[\w%+-])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"[A-Za-z]{2,24}(?![\w@]|[-.][\w@]|\()",
    re.ASCII,
)
_EXAMPLES = re.compile(
    r"(?:^|[@.])(?:example|test|invalid|localhost|local|localdomain|domain)(?:\.[a-z]+)?$|^git@", re.IGNORECASE
)
_FILE_ENDS = frozenset(
    ("py", "js", "ts", "c", "h", "cc", "cpp", "go", "rs", "rb", "java", "png", "jpg", "jpeg", "gif", "svg", "webp",
     "css", "html", "htm", "txt", "md", "json", "so", "dll")
)  # fmt: skip
# The look behind comes after the first digit: a pattern that begins with a set of characters is searched for faster.
_DIGITS = re.compile(r"[+(\d][\d ().-]{8,}", re.ASCII)
"""What an address or a number to call is a part of."""
_APART = 40
"""Characters between what are two such, at least."""
_IPV4 = re.compile(r"\d(?<![\w.:/-].)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\w)", re.ASCII)
_IPV6 = re.compile(
    r"[0-9A-Fa-f](?<![\w:.].)[0-9A-Fa-f]{0,3}:(?:[0-9A-Fa-f]{1,4}:){1,6}(?::|(?::?[0-9A-Fa-f]{1,4}){1,6})(?![\w:.])",
    re.ASCII,
)
_COLONS = re.compile(r":(?::|[0-9A-Fa-f]{1,4}:)", re.ASCII)
_VERSION_BEFORE = re.compile(
    r"(?:version|release|ver|v|build|oid|section|chapter|firmware|driver|patch)\W{0,3}$", re.IGNORECASE
)
_PHONE = re.compile(
    r"(?<![\w.+,/=$€£#-])(?:"
    r"\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]\d{2,4}){1,4}"  # +44 20 7946 0123
    r"|(?:1[ .-])?\([2-9]\d{2}\) ?[2-9]\d{2}[ .-]\d{4}"  # (212) 555-0123
    r"|(?:1[-.])?[2-9]\d{2}([-.])[2-9]\d{2}\1\d{4}"  # 212-555-0123
    r"|(?:86[ -]?)?1[3-9]\d([ -])\d{4}\2\d{4}"  # 138 1234 5678
    r"|0\d{2,3}-[2-9]\d{6,7}"  # 010-62345678
    r"|(\+?[1-9]\d{9,13})"  # where a word before it says so
    r")(?![\w-]|[.,/=]\d)",
    re.ASCII,
)
_CALLED = re.compile(
    r"(?:\b(?:tel|phone|mobile|call|fax|cell|whatsapp|telephone)|电话|電話|手机|手機|传真|热线|联系方式)\W{0,4}(?:\w+\W{1,3})?$",
    re.IGNORECASE,
)
_KEYS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("-----BEGIN", re.compile(
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[\s\S]{0,300}?[A-Za-z0-9+/=]{40}[\s\S]{0,10000}?"
        r"-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    )),
    ("AKIA", re.compile(r"AKIA[0-9A-Z]{16}\b")),
    ("ASIA", re.compile(r"ASIA[0-9A-Z]{16}\b")),
    *((sign, re.compile(r"gh[pousr]_[A-Za-z0-9]{36,251}\b")) for sign in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    ("github_pat_", re.compile(r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}\b")),
    ("xox", re.compile(r"xox[abposr]-(?:\d+-)+[A-Za-z0-9]{10,}\b")),
    ("hooks.slack.com", re.compile(r"hooks\.slack\.com/services/T\w{8,}/B\w{8,}/\w{24}\b")),
    ("AIza", re.compile(r"AIza[0-9A-Za-z_-]{35}(?![\w-])")),
    ("sk_live_", re.compile(r"sk_live_[0-9A-Za-z]{24,}\b")),
    ("rk_live_", re.compile(r"rk_live_[0-9A-Za-z]{24,}\b")),
    ("sk-", re.compile(r"sk-(?:proj-|ant-)?(?=[A-Za-z_-]*\d)(?=[a-z0-9_-]*[A-Z])[A-Za-z0-9_-]{32,}(?![\w-])")),
    ("eyJ", re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}(?![\w-])")),
)  # fmt: skip
"""What a key of each kind begins with, and its form."""
_ASSIGNED_TO = ("secret", "token", "passw", "api", "access")
_ASSIGNED = re.compile(
    r"(?:secret|token|passw(?:or)?d|(?:api|access)[_-]?key)[\w-]{0,24}[\"']?\s{0,4}(?:=>?|:)\s{0,4}[\"']?"
    r"([A-Za-z0-9+/_-]{20,200}={0,2})(?![\w.(\[/+-])",
    re.ASCII | re.IGNORECASE,
)
"""A name that a key is assigned to, which begins with one of the words, and the key."""
_BITS = 3.7
"""Entropy of a random key, bits a character, at least: 20 characters of words have some 3.5."""


Runs = list[tuple[int, int]]
"""Where runs of digits and of what parts them are."""


@dataclass
class Masked:
    """What was masked of one kind in a text."""

    count: int = 0
    bytes: int = 0
    """UTF-8 bytes fewer than before; negative: more."""
    at: int = -1
    """Where the first mask is in the new text."""


def masked(text: str, kinds: Sequence[str]) -> tuple[str, dict[str, Masked]]:
    """The text with every find of these kinds (out of `KINDS`) masked, and what that was, by kind."""
    told: dict[str, Masked] = {}
    while found := _found(text, kinds):  # again, as what stood beside an address may be one now that it ends there
        text = _with_masks(text, found, told)
    for kind, held in told.items():
        held.at = text.index(_MASKS[kind])
    return text, told


def _found(text: str, kinds: Sequence[str]) -> list[tuple[int, int, str]]:
    """First character, one after the last, and kind of each find, in order; of those that start together the longest
    first."""
    runs = _runs(text) if "ip" in kinds or "phone" in kinds else []
    found = [(start, stop, kind) for kind in KINDS if kind in kinds for start, stop in _FINDERS[kind](text, runs)]
    return sorted(found, key=lambda each: (each[0], -each[1]))


def _with_masks(text: str, found: list[tuple[int, int, str]], told: dict[str, Masked]) -> str:
    parts: list[str] = []
    at = 0
    for start, stop, kind in found:
        if start >= at:  # else inside of what is masked already
            held = told.setdefault(kind, Masked())
            held.count += 1
            held.bytes += len(text[start:stop].encode("utf-8", "surrogatepass")) - len(_MASKS[kind])
            parts += [text[at:start], _MASKS[kind]]
            at = stop
    return "".join([*parts, text[at:]])


def _runs(text: str) -> Runs:
    """Where digits stand close together, six within fourteen characters, and what parts them."""
    codes = codes_of(text)
    at = np.flatnonzero((codes >= ord("0")) & (codes <= ord("9")))
    dense = at[:-5][at[5:] - at[:-5] < 14]
    breaks = np.flatnonzero(np.diff(dense) > _APART)
    firsts, lasts = dense[np.append(0, breaks + 1)[: len(dense)]], dense[np.append(breaks, -1)[: len(dense)]]
    return [
        run.span()
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
        for run in _DIGITS.finditer(text, max(0, first - 8), last + _APART)
    ]


def _emails(text: str, runs: Runs) -> Iterator[tuple[int, int]]:
    for at in _places("@", text):
        if text[at - 1 : at].isalnum() and text[at + 1 : at + 2].isalnum():  # no decorator, no handle
            near = _EMAIL.finditer(text, max(0, at - 66), at + 330)
            match = next((match for match in near if match.start() < at < match.end()), None)
            if match is not None and not _is_example(match.group()):
                yield match.span()


def _is_example(address: str) -> bool:
    domain = address.rpartition("@")[2].lower()
    return domain.rpartition(".")[2] in _FILE_ENDS or _EXAMPLES.search(domain) is not None or address.startswith("git@")


def _addresses(text: str, runs: Runs) -> Iterator[tuple[int, int]]:
    for start, stop in runs:
        for match in _IPV4.finditer(text, start, stop + 2):
            public = match.end() <= stop and _is_public(match.group())
            if public and not _VERSION_BEFORE.search(text, max(0, match.start() - 12), match.start()):
                yield match.span()
    after = 0
    for colons in _COLONS.finditer(text):
        at = colons.start()
        match = _IPV6.search(text, max(0, at - 5), at + 48) if at >= after else None
        if match is not None and match.start() <= at:
            after = match.end()
            if len(match.group()) > 6 and _is_public(match.group()):
                yield match.span()


def _is_public(address: str) -> bool:
    try:
        held = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not held.is_global or held.is_multicast:
        return False
    # 1.2.3.4, 8.8.8.8: public resolvers and made-up examples, section and version numbers
    return held.version == 6 or len(address) > 8


def _phones(text: str, runs: Runs) -> Iterator[tuple[int, int]]:
    for start, stop in runs:
        for match in _PHONE.finditer(text, start, stop + 2):
            called = match.group(3) is None or _CALLED.search(text, max(0, match.start() - 24), match.start())
            if called and 9 <= sum(map(str.isdigit, match.group())) <= 15:
                yield match.span()


def _secrets(text: str, runs: Runs) -> Iterator[tuple[int, int]]:
    for sign, pattern in _KEYS:
        for at in _places(sign, text):
            if at == 0 or not (text[at - 1].isalnum() or text[at - 1] == "_"):
                match = pattern.match(text, at)
                if match is not None:
                    yield match.span()
    small = text.replace("İ", "I").lower()  # the one letter that isn't as long when it is small
    for name in _ASSIGNED_TO:
        for at in _places(name, small):
            match = _ASSIGNED.match(text, at)
            if match is not None and _is_random(match.group(1)):
                yield match.span(1)


def _places(sign: str, text: str) -> Iterator[int]:
    at = text.find(sign)
    while at >= 0:
        yield at
        at = text.find(sign, at + 1)


def _is_random(value: str) -> bool:
    """Letters of both cases and digits, mixed as chance does."""
    if not (any(map(str.isdigit, value)) and any(map(str.isupper, value)) and any(map(str.islower, value))):
        return False
    counts = Counter(value).values()
    bits = -sum(count / len(value) * math.log2(count / len(value)) for count in counts)
    return bits >= _BITS


_FINDERS: dict[str, Callable[[str, Runs], Iterator[tuple[int, int]]]] = {
    "secret": _secrets,
    "email": _emails,
    "ip": _addresses,
    "phone": _phones,
}
KINDS = tuple(_FINDERS)
"""Every kind, in the order in which a report tells them."""
_MASKS = {kind: f"[{kind.upper()}]" for kind in KINDS}
