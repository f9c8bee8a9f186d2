"""Whole documents: order of the rules, what is told of them, and that real text survives."""

import json
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.clean.characters import mended_encoding, normalise, without_controls
from data.clean.document import clean, combined, mend
from data.clean.rules import PRESETS, Clean
from tests.data.conftest import CORPORA, chinese, english

WEB = Clean(preset="web")
PAGE = english(1, 300) + "\nThat is to be the end of it.\n"
EVERYTHING = Clean(
    preset="off", nfc=True, mojibake=True, remove_controls=True, pii=WEB.pii, remove_lines=WEB.remove_lines
)
pieces = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            ["jane@corp.de", "93.184.216.34", "+44 20 7946 0123", "Home | About | Contact", "All rights reserved", "\n",
             "Page 12 of 20\n", "\r\n", "e\u0301", "\x01", "\x0b", "\ufeff", "schÃ¶n", "â€™", "[EMAIL]",
             "Privacy Policy\n", "API_KEY = x9Kf3mQz7TbW2vLpR8sN", "©", "2019", "Skip to content\n", " ", "你好。",
             "1" * 11]
        ),
    ),
    max_size=40,
).map("".join)  # fmt: skip


@settings(deadline=None)
@given(pieces)
def test_cleaning_what_was_cleaned_changes_nothing(text):
    for rules in (EVERYTHING, *(Clean(preset=preset) for preset in PRESETS)):
        once = clean(text, rules)
        if once.text is not None:
            assert clean(once.text, rules) == type(once)(once.text)


@pytest.mark.parametrize("text", ["Â\x1b\xa0x", "A\u0302\xa0x", "0@0.AA+44 20 7946 0123"])
def test_what_one_change_brings_to_light_another_sees(text):
    once = clean(text, EVERYTHING)
    assert once.text is not None
    assert clean(once.text, EVERYTHING).changes == ()


@pytest.mark.parametrize("preset", PRESETS)
def test_real_text_is_cleaned_once_and_for_all(preset, english_texts, chinese_texts, code_texts):
    rules = Clean(preset=preset)
    for text in (*english_texts[:40], *chinese_texts[:100], *code_texts):
        once = clean(text, rules)
        if once.text is not None:
            assert clean(once.text, rules).text == once.text


@settings(deadline=None)
@given(pieces)
def test_the_bytes_told_add_up(text):
    told = clean(text, EVERYTHING)
    assert told.text is not None
    assert len(text.encode()) - sum(change.bytes for change in told.changes) == len(told.text.encode())
    assert all(change.items > 0 for change in told.changes)
    fields, changes = mend(text, EVERYTHING)
    assert len(text.encode()) - sum(change.bytes for change in changes) == len(fields.encode())


def test_changes_are_told_in_their_order_with_what_was_there():
    page = f"schÃ¶n e\u0301\x01\n{PAGE}© 2019 The Site\nwrite to jane@corp.de\n"
    told = clean(page, WEB)
    assert told.text == f"schön é\n{PAGE}write to [EMAIL]\n"
    assert [change.rule for change in told.changes] == ["mojibake", "controls", "nfc", "pii_email", "line_rights"]
    assert [change.items for change in told.changes] == [1] * 5
    assert told.changes[0].sample == "schÃ¶n e\u0301\x01"
    assert told.changes[4].sample == "© 2019 The Site"
    assert "[EMAIL]" in told.changes[3].sample


def test_a_dropped_document_is_told_by_its_first_fault_alone():
    told = clean("short jane@corp.de\x01", WEB)
    assert (told.text, told.rule, told.changes) == (None, "control_characters", ())
    assert clean("it is not so short, jane@corp.de", WEB).rule == "few_sentences"


def test_characters_removed_later_are_counted_before():
    text = PAGE + "\x01" * 20
    assert clean(text, Clean(preset="web", max_control_characters=None)).text == PAGE
    assert clean(text, WEB).rule == "control_characters"


def test_fields_of_an_example_are_mended_line_by_line_and_not_judged():
    assert mend("a\r\njane@corp.de\n© 2019 X", WEB)[0] == "a\n[EMAIL]\n© 2019 X"
    both = mend("jane@corp.de", WEB)[1] + mend("bob@corp.de bob@corp.de", WEB)[1]
    assert [(change.rule, change.items) for change in combined(both)] == [("pii_email", 3)]


def test_line_ends_and_composed_characters_are_written_one_way():
    assert normalise("e\u0301\r\nx\rface\u0301") == ("\u00e9\nx\rfac\u00e9", 2, "e\u0301\r")
    assert normalise("한글") == ("한글", 0, "")


def test_control_characters_go_and_those_that_end_lines_become_newlines():
    assert without_controls("a\x00b\tc\x0bd\x85e\ufeff\n\x0cf") == (
        "ab\tc\nd\ne\n\x0cf",
        1,
        "a\x00b\tc\x0bd\x85e\ufeff",
    )
    assert without_controls("plain\ttext\n") == ("plain\ttext\n", 0, "")


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("schÃ¶n", "schön"),
        ("itâ€™s", "it’s"),
        ("ä½ å¥½ä¸–ç•Œ".replace(" ", "\xa0"), "你好世界"),
        ("fine\nCafÃ© au lait\nfine", "fine\nCafé au lait\nfine"),
    ],
)
def test_text_decoded_with_the_wrong_table_is_decoded_rightly(broken, mended):
    assert mended_encoding(broken)[0] == mended


@pytest.mark.parametrize("text", ["naïve café über", "Çok güzel — “quoted”", "你好，世界。", "x² ± ½ ©", "¿Qué? ¡Sí!"])
def test_text_that_is_right_is_not_mended(text):
    assert mended_encoding(text) == (text, 0, "")


def survivors(texts: list[str], preset: str) -> float:
    rules = Clean(preset=preset)
    return sum(clean(text, rules).text is not None for text in texts) / len(texts)


def articles(language: str) -> list[str]:
    """Paragraphs of Wikipedia by article, or made-up ones."""
    path = CORPORA / "xquad" / f"xquad.{language}.json"
    if not path.is_file():
        return [english(seed, 400) + " to be of" for seed in range(40)] if language == "en" else [
            chinese(seed, 400) for seed in range(40)
        ]  # fmt: skip
    held = json.loads(path.read_text("utf-8"))["data"]
    return ["\n\n".join(paragraph["context"] for paragraph in article["paragraphs"]) for article in held]


@pytest.mark.parametrize("preset", ["general", "books", "web"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_articles_survive(preset, language):
    assert survivors(articles(language), preset) >= 0.95


@pytest.mark.parametrize("preset", ["general", "books"])
def test_poems_and_plays_survive(preset, chinese_texts):
    assert survivors([text for text in chinese_texts if len(text) > 30], preset) >= 0.98
    play = CORPORA / "tinyshakespeare" / "input.txt"
    text = play.read_text("utf-8")[:200_000] if play.is_file() else english(1, 30_000)
    cut = [text[at : at + 10_000] for at in range(0, len(text), 10_000)]
    assert survivors(cut, preset) == 1
    if preset == "general":
        assert all(clean(part, Clean()).text == part for part in cut)


@pytest.mark.parametrize("preset", ["general", "code"])
def test_code_survives(preset):
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text("utf-8") for path in files]
    assert survivors([text for text in texts if len(text) > 100], preset) >= 0.97


def test_planted_junk_is_dropped_from_the_web():
    shelf = "\n".join(f"Buy shoes size {size} cheap shoes best price" for size in range(60))
    table = "\n".join(f"{number} | {number * 7} | {number % 9} ." for number in range(200))
    script = "\n".join(f"var a{n} = function() {{ return {{ x: {n} }}; }}; the and of. " for n in range(60))
    menu = "Home\nShop\nCart\nNew in\nSale\n" * 12
    for junk in (shelf, table, script, menu, "word " * 400, "购物车。便宜。快买。" * 40, "#tag " * 100):
        assert clean(junk, WEB).text is None
