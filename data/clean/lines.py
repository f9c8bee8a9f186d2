"""Boilerplate lines, taken out of a document that stays: notices, menus, running heads.

C4 (Raffel et al. 2020, section 2.2) drops every line with "javascript" and every page with "lorem ipsum"; its code
drops lines with "terms of use", "privacy policy" or "cookie policy" in them. Here a line has to be short, or say more
than the one word, so that an article about JavaScript or cookies keeps its sentences.

Lines are found by searching the whole text for tell-tale strings; only those that hold one are looked at.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from statistics import fmean, pstdev

_NOTICE = 300
"""Characters in a line that is a notice, at most."""
_MENU = 30
"""Characters in an entry of a menu, at most."""
_HEAD = 80
"""Bytes in a head or foot of a page, at most."""
_HEAD_TIMES = 5
_HEAD_APART = 10
_HEAD_SPREAD = 0.4
_HEAD_TEXT = re.compile(r"[^\W_][\w .,'’&:/|()·—–-]*")
_JAVASCRIPT = re.compile(
    r"\b(?:enable|activate|turn on|allow|requires?|need) javascript\b"
    r"|\bjavascript (?:\w+ ){0,4}(?:enabled?|disabled|required|turned o(?:n|ff))\b|n[o']t support javascript"
    r"|(?:启用|啟用|开启|開啟|打开|支持).{0,6}javascript|javascript.{0,6}(?:禁用|停用|关闭|未启用)",
    re.IGNORECASE,
)
_COOKIES = re.compile(
    r"\bus(?:es?|ing) (?:of )?(?:\w+ ){0,3}cookies\b|\baccept (?:all|our) cookies\b|使用.{0,10}cookies?\b"
    r"|\bcookie (?:policy|settings|preferences|consent|notice)\b"
    r"|\bconsent\b.{0,60}\bcookies\b|\bcookies\b.{0,60}\b(?:consent|you agree)\b",
    re.IGNORECASE,
)
_RIGHTS = re.compile(
    r"\ball rights reserved\b|^\W*(?:copyright\b|©|\(c\)).{0,40}\b(?:19|20)\d\d\b"
    r"|(?:版权|版權|著作权)所有(?!者)|保留所有(?:权利|權利)|未经授权.{0,10}转载",
    re.IGNORECASE,
)
_POLICY = re.compile(
    r"\b(?:privacy policy|terms of (?:use|service)|terms (?:and|&) conditions)\b|隐私政策|隱私政策|服务条款",
    re.IGNORECASE,
)
_LOREM = re.compile(r"lorem ipsum", re.IGNORECASE)
_MENU_CUT = re.compile(r"\s*[|»›>·•]\s*")
_MENU_WORDS = frozenset(
    (
        "home", "about", "about us", "contact", "contact us", "login", "log in", "sign in", "sign up", "register",
        "search", "menu", "help", "faq", "faqs", "blog", "news", "sitemap", "site map", "privacy", "privacy policy",
        "terms", "terms of use", "terms of service", "careers", "jobs", "products", "services", "support",
        "subscribe", "next", "previous", "prev", "top", "archives", "categories", "store", "shop", "cart",
        "my account", "logout", "log out", "press", "advertise", "首页", "首頁", "登录", "登錄", "登入", "注册",
        "註冊", "搜索", "搜尋", "关于我们", "關於我們", "联系我们", "聯繫我們", "网站地图", "網站地圖", "帮助",
        "幫助", "新闻", "新聞", "产品", "產品", "服务", "服務", "购物车", "購物車",
    )
)  # fmt: skip
_MENU_LINES = frozenset(
    line.encode()
    for line in (
        "skip to content", "skip to main content", "skip to navigation", "jump to navigation", "back to top",
        "return to top", "read more", "read more...", "read more »", "continue reading", "continue reading →",
        "learn more", "click here", "share this", "share this:", "share on facebook", "share on twitter",
        "tweet this", "share on linkedin", "share via email", "email this", "print this page", "leave a comment",
        "leave a reply", "post a comment", "add a comment", "no comments yet", "view all comments",
        "follow us on twitter", "follow us on facebook", "like us on facebook", "sign up for our newsletter",
        "subscribe to our newsletter", "previous post", "next post", "previous article", "next article",
        "related posts", "related articles", "recent posts", "recent comments", "all categories", "main menu",
        "toggle navigation", "site map", "log in", "sign in", "forgot your password?", "add to cart", "loading...",
        "please wait...", "advertisement", "sponsored content", "powered by wordpress", "返回顶部", "返回頂部",
        "返回首页", "回到顶部", "阅读更多", "閱讀更多", "阅读全文", "查看更多", "点击查看", "上一篇", "下一篇",
        "相关文章", "相關文章", "分享到微信", "分享到微博", "发表评论", "發表評論", "加入收藏", "设为首页",
        "跳到主要内容",
    )
)  # fmt: skip
_CHAPTER = re.compile(r"\W*(?:chapter|section|part|book|act|scene|volume|canto|article|figure|table|第)\b|\W*第", re.I)
_NUMBER = re.compile(r"[0-9]+")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_TERMINAL = tuple(".!?:;,\"'”’)]。！？：；，」』…")

_Test = Callable[[str], bool]


def _notice(pattern: re.Pattern[str]) -> _Test:
    return lambda line: len(line) <= _NOTICE and pattern.search(line) is not None


def _is_policy(line: str) -> bool:
    """A short line, not a sentence of an article, that names the policy."""
    return len(line) <= 3 * _MENU and _POLICY.search(line) is not None


def _is_menu(line: str) -> bool:
    entries = [entry for entry in _MENU_CUT.split(line.lower()) if entry]
    known = len(_MENU_WORDS.intersection(entries))
    return known >= 2 and 3 * known >= len(entries) and max(map(len, entries)) <= _MENU


_RULES: dict[str, tuple[_Test, tuple[str, ...]]] = {
    "lorem_ipsum": (_notice(_LOREM), ("lorem ipsum",)),
    "javascript": (_notice(_JAVASCRIPT), ("javascript",)),
    "cookies": (_notice(_COOKIES), ("cookie",)),
    "rights": (
        _notice(_RIGHTS),
        ("rights reserved", "copyright", "©", "(c)", "版权所有", "版權所有", "保留所有", "著作权所有", "转载"),
    ),
    "policy": (_is_policy, ("privacy policy", "terms ", "隐私政策", "隱私政策", "服务条款")),
    "menu": (_is_menu, ("|", "»", "›", " > ", "·", "•")),
}
"""By rule: the test of a line, and strings of which a line that passes it holds one (in small letters)."""


def without_boilerplate(text: str, rules: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """The text without its boilerplate lines.

    Args:
        rules: names of rules, in the order of `rules.LINES`.

    Returns:
        The text, and the lines taken out with their newlines, by rule.
    """
    small = text.replace("İ", "I").lower()  # the one letter that isn't as long when it is small
    found: dict[int, tuple[int, str]] = {}
    for name, (test, signs) in _RULES.items():
        if name in rules:
            for start, stop in _lines_with(signs, small):
                if start not in found and test(text[start:stop].strip()):
                    found[start] = (stop, name)
    if "menu" in rules or "running_head" in rules:
        folded = _folded(small)
        different = set(folded)
        gone: dict[int, str] = {}
        if "menu" in rules and not _MENU_LINES.isdisjoint(different):
            gone = {number: "menu" for number, line in enumerate(folded) if line in _MENU_LINES}
        if "running_head" in rules and len(folded) - folded.count(b"") - len(different) > _HEAD_TIMES - 3:
            gone |= dict.fromkeys(_running_heads(small, folded), "running_head")
        if gone:
            starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
            for number, name in gone.items():
                found.setdefault(starts[number], (starts[number + 1] - 1, name))
    return _cut(text, found)


def _folded(text: str) -> list[bytes]:
    """The lines of a text in UTF-8, without white space at their ends, every digit a zero."""
    content = text.encode("utf-8", "surrogatepass").translate(_DIGITS)
    lines = content.split(b"\n")
    indented = (
        any(sign in content for sign in (b"\n ", b" \n", b"\t", b"\r"))
        or lines[0][:1] == b" "
        or lines[-1][-1:] == b" "
    )
    return list(map(bytes.strip, lines)) if indented else lines


def _lines_with(signs: Sequence[str], text: str) -> Iterator[tuple[int, int]]:
    """First character, and one after the last, of each line that holds one of the signs and isn't long."""
    for sign in signs:
        at = text.find(sign)
        while at >= 0:
            start = text.rfind("\n", 0, at) + 1
            stop = text.find("\n", at)
            stop = len(text) if stop < 0 else stop
            if stop - start <= 2 * _NOTICE:
                yield start, stop
            at = text.find(sign, stop)


def _cut(text: str, found: dict[int, tuple[int, str]]) -> tuple[str, dict[str, list[str]]]:
    removed: dict[str, list[str]] = {}
    if not found:
        return text, removed
    parts, at = [], 0
    for start, (stop, name) in sorted(found.items()):
        parts.append(text[at:start])
        at = min(stop + 1, len(text))
        removed.setdefault(name, []).append(text[start:at])
    parts.append(text[at:])
    return "".join(parts), removed


def _running_heads(text: str, folded: list[bytes]) -> Iterator[int]:
    """Numbers of the lines that recur as the heads and feet of pages do: five times at least, at even distances of
    ten written lines or more.

    Two kinds: lines equal but for numbers of which one grows ("Page 3 of 20"), all of them; and equal lines of three
    words or more, all but the first. What ends in punctuation, numbers its parts (Chapter 3) or holds the signs of code
    stays.
    """
    if len(folded) < _HEAD_TIMES * _HEAD_APART:
        return
    often = {
        line: held
        for line, count in Counter(folded).items()
        if count >= _HEAD_TIMES and 3 < len(line) <= _HEAD and _is_head(held := line.decode("utf-8", "surrogatepass"))
    }
    if not often:
        return
    groups: dict[str, list[int]] = {}
    for number, line in enumerate(folded):
        if line in often:
            groups.setdefault(often[line], []).append(number)
    written = list(accumulate(map(bool, folded)))
    lines = text.split("\n")
    for line, where in groups.items():
        apart = [written[b] - written[a] for a, b in pairwise(where)]
        if min(apart) >= _HEAD_APART and pstdev(apart) <= _HEAD_SPREAD * fmean(apart):
            yield from _growing(line, where, lines) if "0" in line else _repeated(line, where)


def _is_head(line: str) -> bool:
    return _HEAD_TEXT.fullmatch(line) is not None and not _CHAPTER.match(line)


def _growing(folded: str, where: list[int], lines: list[str]) -> list[int]:
    if folded.endswith(_TERMINAL) or sum(map(str.isalpha, folded)) < 3:
        return []
    numbers = [[int(held) for held in _NUMBER.findall(lines[n])] for n in where]
    columns = list(zip(*numbers, strict=True))
    grows = [all(a < b for a, b in pairwise(column)) for column in columns]
    still = [len(set(column)) == 1 for column in columns]
    return where if sum(grows) == 1 and sum(still) == len(columns) - 1 else []


def _repeated(line: str, where: list[int]) -> list[int]:
    wide = sum(1 for letter in line if letter >= "\u2e80")
    if line.endswith(_TERMINAL) or (len(line.split()) < 3 and wide < 6):
        return []
    return where[1:]
