import random
import re

import numpy as np
import pytest

from data.dedup import band_keys, exact_copies, exact_digest, near_copies
from data.recipe import Dedup
from tests.data.conftest import chinese, english

RULES = Dedup()


def edited(text, share, seed):
    """A copy in which a share of the words (or characters, where words aren't divided) is another one."""
    found = list(re.finditer(r"[a-zA-Z0-9_]+|[\u4e00-\u9fff]", text))
    draw = random.Random(seed)
    for match in sorted(draw.sample(found, max(1, round(share * len(found)))), key=lambda m: -m.start()):
        text = text[: match.start()] + ("changed" if match[0].isascii() else "变") + text[match.end() :]
    return text


@pytest.fixture(scope="module")
def originals(code_texts, english_texts, chinese_texts):
    made = [english(seed, 600) for seed in range(100)] + [chinese(seed, 500) for seed in range(100)]
    real = [text for text in (*code_texts, *english_texts, *chinese_texts) if len(text) > 1000]
    kept = near_copies(band_keys([*made, *real], RULES), [f"{n:05d}" for n in range(len(made) + len(real))])
    return [text for text, copy in zip([*made, *real], kept, strict=True) if not copy]


def test_planted_copies_with_one_percent_of_edits_are_found(originals):
    copies = [edited(text, 0.01, seed) for seed, text in enumerate(originals)]
    ids = [f"a{number:05d}" for number in range(len(originals))] + [f"b{number:05d}" for number in range(len(copies))]
    found = near_copies(band_keys([*originals, *copies], RULES), ids)
    assert not found[: len(originals)].any()
    assert found[len(originals) :].mean() >= 0.98


def test_different_texts_are_not_taken_for_copies():
    texts = [english(seed, 300) for seed in range(200)] + [chinese(seed, 300) for seed in range(200)]
    assert not near_copies(band_keys(texts, RULES), [f"{number:03d}" for number in range(400)]).any()


def test_half_edited_copies_stay():
    text = english(7, 800)
    assert not near_copies(band_keys([text, edited(text, 0.5, 1)], RULES), ["a", "b"]).any()


def test_the_smallest_id_survives_in_any_order():
    texts = [english(seed, 300) for seed in range(5)]
    pairs = [(copy, number) for number in range(5) for copy in (3, 1, 2)]
    rows = [(f"{copy}{number}", edited(texts[number], 0.01, 9 * copy)) for copy, number in pairs]
    for seed in range(4):
        random.Random(seed).shuffle(rows)
        ids = [id_ for id_, _ in rows]
        dropped = near_copies(band_keys([text for _, text in rows], RULES), ids)
        assert {id_ for id_, gone in zip(ids, dropped, strict=True) if not gone} == {"10", "11", "12", "13", "14"}


def test_a_chain_of_copies_leaves_one():
    keys = np.array([[1, 2], [1, 3], [4, 3], [4, 5], [9, 9]], np.uint64)
    assert near_copies(keys, ["d", "c", "b", "a", "e"]).tolist() == [True, True, True, False, False]


def test_exact_copies_leave_the_smallest_id():
    digests = [exact_digest(text) for text in ("x", "y", "x", "x")]
    assert exact_copies(digests, ["c", "d", "a", "b"]).tolist() == [True, False, False, True]


def test_texts_without_words_and_nothing_at_all_are_no_trouble():
    keys = band_keys(["+++", "---", "+++", "", "one"], RULES)
    assert near_copies(keys, list("abcde")).tolist() == [False, False, True, False, False]
    assert near_copies(band_keys([], RULES), []).tolist() == []
    assert band_keys(["a b c"], Dedup(bands=3, rows=2)).shape == (1, 3)


def test_band_keys_do_not_depend_on_what_else_is_in_the_chunk():
    texts = [english(seed, 100) for seed in range(6)]
    together = band_keys(texts, RULES)
    assert np.array_equal(together, np.concatenate([band_keys([text], RULES) for text in texts]))
