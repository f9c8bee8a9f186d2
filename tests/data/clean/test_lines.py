import pytest

from data.clean.lines import without_boilerplate
from data.clean.rules import LINES

STORY = "She had read about cookies for an hour.\nThen she learnt JavaScript, and liked it.\n"
NUMBERED = "\n".join(
    f"{page} THE LONG VOYAGE\n" + "\n".join(f"On day {page * 40 + day} they sailed on." for day in range(24))
    for page in range(9, 15)
)


def page(head: str, count: int, lines: int = 15) -> str:
    """A text with a line at the head of each page."""
    return "\n".join(
        f"{head}\n"
        + "\n".join(f"unlike any other is line {'abcdefghijklmnopqrst'[at]}{number}." for at in range(lines))
        for number in range(count)
    )


@pytest.mark.parametrize(
    ("rule", "line", "neighbour"),
    [
        ("lorem_ipsum", "Lorem ipsum dolor sit amet, consectetur", "Ipsum is Latin."),
        ("javascript", "Please enable JavaScript in your browser to view this page.", "JavaScript is ten days' work."),
        ("javascript", "This site requires JavaScript.", "We require additional JavaScript code."),
        ("javascript", "请启用JavaScript以继续浏览", "本书介绍JavaScript语言"),
        ("cookies", "We use cookies to improve your experience.", "She baked cookies for us."),
        ("cookies", "By continuing you consent to our use of cookies.", "We never accept cookies from strangers."),
        ("cookies", "本网站使用cookies", "http cookie 是一种机制"),
        ("rights", "© 2019 Example Media Ltd.", "The © sign stands for copyright."),
        ("rights", "Copyright (c) 2001-2020 The Authors. All rights reserved.", "The copyright of 1976 was an act."),
        ("rights", "版权所有 2020 某某公司", "请通知版权所有者"),
        ("policy", "Privacy Policy", f"The court read the privacy policy aloud, {'slowly ' * 10}to its end."),
        ("menu", "Home | About Us | Products | Contact", "| Header | Value | Register |"),
        ("menu", "首页 > 新闻 > 国内", "甲 > 乙 > 丙"),
        ("menu", "  Skip to main content  ", "Skip it, and go to the main content."),
        ("menu", "返回顶部", "返回山顶"),
    ],
)  # fmt: skip
def test_a_line_goes_and_its_neighbour_stays(rule, line, neighbour):
    text = f"{STORY}{line}\n{neighbour}\n{STORY}"
    assert without_boilerplate(text, [rule]) == (f"{STORY}{neighbour}\n{STORY}", {rule: [line + "\n"]})
    assert without_boilerplate(text, [each for each in LINES if each != rule])[0] == text
    assert without_boilerplate(text, []) == (text, {})


def test_the_first_rule_that_a_line_breaks_is_told():
    line = "© 2020 All rights reserved | Privacy Policy | Terms of Use"
    assert without_boilerplate(line, LINES) == ("", {"rights": [line]})


def test_numbered_heads_of_pages_go():
    kept, removed = without_boilerplate(NUMBERED, ["running_head"])
    # pages 9, and 10 to 14: a number's length counts, so the one page of a digit stays
    assert removed == {"running_head": [f"{number} THE LONG VOYAGE\n" for number in range(10, 15)]}
    assert kept.count("THE LONG VOYAGE") == 1
    assert kept.count("they sailed on.") == NUMBERED.count("they sailed on.")


def test_an_equal_head_of_each_page_stays_once():
    text = page("The Daily Gazette Weekend Edition", 6)
    kept, removed = without_boilerplate(text, ["running_head"])
    assert len(removed["running_head"]) == 5
    assert kept == "The Daily Gazette Weekend Edition\n" + text.replace("The Daily Gazette Weekend Edition\n", "")


@pytest.mark.parametrize(
    "text",
    [
        page("KING RICHARD:", 9),
        page("        self._closed = False", 9),
        page("Chapter 12", 9),
        page("# ", 9),
        page("and so the river runs to the sea", 9, lines=3),  # a refrain
        page("The Daily Gazette Weekend Edition", 4),
        "\n".join(f"Step {number}\nmore" for number in range(10, 30)),
    ],
)
def test_what_is_no_head_of_a_page_stays(text):
    assert without_boilerplate(text, ["running_head"]) == (text, {})


def test_letters_that_grow_when_they_are_small_move_no_line():
    text = "İstanbul İzmir\nHome | About | Contact\nİyi günler\n"
    assert without_boilerplate(text, LINES)[0] == "İstanbul İzmir\nİyi günler\n"
