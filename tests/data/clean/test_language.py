import builtins
import sys

import pytest

from data.clean import language
from data.clean.language import UNKNOWN, identify
from data.clean.needs import library_versions
from data.clean.rules import Clean
from data.errors import UserError
from tests.corpora import texts

SENTENCES = {
    "en": "The committee met on Tuesday to discuss what should be done about the old bridge over the river.",
    "de": "Der Ausschuss traf sich am Dienstag, um zu besprechen, was mit der alten Brücke geschehen soll.",
    "fr": "Le comité s'est réuni mardi pour discuter de ce qu'il fallait faire du vieux pont sur la rivière.",
    "ru": "Комитет собрался во вторник, чтобы обсудить, что делать со старым мостом через реку.",
    "zh": "委员会于星期二开会，讨论如何处理河上的那座旧桥。",
    "ja": "委員会は火曜日に集まり、川にかかる古い橋をどうするかを話し合いました。",
    "ko": "위원회는 화요일에 모여 강 위의 낡은 다리를 어떻게 할지 논의했다.",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_and_a_page_of_it_are_identified(code):
    assert identify(SENTENCES[code]) == code
    assert identify((SENTENCES[code] + "\n") * 30) == code


def test_classical_chinese_is_chinese(chinese_texts):
    poems = [text for text in chinese_texts if len(text) > 20][:300]
    assert sum(identify(poem) == "zh" for poem in poems) >= 0.99 * len(poems)


def test_english_pages_are_english():
    pages = texts(300_000)
    assert sum(identify(page) == "en" for page in pages) >= 0.9 * len(pages)


def test_what_has_no_letters_has_no_language():
    assert identify("1 + 2 = 3\n") == identify("") == UNKNOWN


def test_a_library_that_is_missing_is_named_with_what_to_install(monkeypatch):
    found = library_versions(Clean(preset="web", language="identify"))
    assert set(found) == {"ftfy", "resiliparse", "py3langid"}
    assert library_versions(Clean(preset="code", language="code")) == {}

    def missing(name, *given):
        if name.split(".")[0] == "py3langid":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name, *given)

    imported = builtins.__import__
    language._identifiers.cache_clear()
    monkeypatch.delitem(sys.modules, "py3langid", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"language: identify needs py3langid.*pip install 'luban\[web\]'"):
        identify(SENTENCES["en"])
