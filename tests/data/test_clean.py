import pytest

from data.clean.characters import normalise
from data.clean.measured import Measured
from data.clean.quality import broken
from data.clean.rules import PRESETS
from data.recipe import Clean
from tests.data.conftest import chinese, english

RULES = Clean()
TABLE = "\n".join(f"    (0x{number:04x}, '\\x{number % 256:02x}', {number * 7})," for number in range(200))
PROSE = "The quick brown fox jumps over the lazy dog, and nobody minds."


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("too_short", " \n a b c \t\n", "import os\n\nprint(os.name)\n"),
        ("too_short", "", "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。\n"),
        ("too_long", "word " * 1_600_001, english(1, 2000)),
        ("long_line", "word " * 20_001 + "\n" + PROSE, "word " * 19_000 + ("\n" + PROSE) * 40),
        ("long_lines", ("word " * 1500 + "\n") * 5, ("word " * 500 + "\n") * 5),
        ("few_letters", "+-=*/ " * 20 + PROSE[:40], "x = {'a': [b, c], 'd': (e, f)}  # a comment\n" * 2),
        ("few_letters", "。，！？、；" * 10 + "你好", chinese(1, 100)),
        ("many_digits", PROSE + " 123456789 987654321 123456789 123456789", PROSE + " In 1984 it was 42.\n"),
        ("data_table", "# a table with a long comment at its head, so that letters abound\n" * 30 + TABLE, PROSE),
        ("repeated_lines", "the same line of text again\n" * 30, "\n".join(f"line {PROSE[n:]}" for n in range(30))),
        ("control_characters", PROSE + "\x01\x02\x03", PROSE + "\n\x0c\t\n"),
        ("broken_encoding", PROSE + "\ufffd\ufffd", PROSE * 40 + "\ufffd"),
    ],
)
def test_a_rule_drops_what_it_is_for_and_keeps_its_neighbour(rule, bad, good):
    only = Clean(**{name: None for name in PRESETS["off"] if name not in ("nfc", RULE_SETTINGS[rule])})
    assert broken(Measured(bad), only) == rule
    assert broken(Measured(good), only) is None
    assert broken(Measured(bad), Clean(preset="off")) is None


RULE_SETTINGS = {
    "too_short": "min_characters",
    "too_long": "max_characters",
    "long_line": "max_line_characters",
    "long_lines": "max_mean_line_characters",
    "few_letters": "min_letters",
    "many_digits": "max_digits",
    "data_table": "max_table_lines",
    "repeated_lines": "max_repeated_lines",
    "control_characters": "max_control_characters",
    "broken_encoding": "max_replacement_characters",
}


def test_good_text_in_three_languages_passes(code_texts, english_texts, chinese_texts):
    for texts in (code_texts, english_texts, chinese_texts):
        long_enough = [text for text in texts if len(text) > 100]
        passed = [broken(Measured(normalise(text)[0]), RULES) is None for text in long_enough]
        assert sum(passed) >= 0.98 * len(passed)


def test_normalising_composes_characters_and_ends_lines_one_way():
    assert normalise("e\u0301\r\nx\rface\u0301")[0] == "\u00e9\nx\rfac\u00e9"
    assert normalise("한글")[0] == "한글"
