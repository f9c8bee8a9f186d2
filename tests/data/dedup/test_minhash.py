import numpy as np

from data.dedup.minhash import band_keys, shingles
from data.recipe import Dedup
from tests.data.conftest import english

RULES = Dedup()


def test_band_keys_do_not_depend_on_what_else_is_in_the_part():
    texts = [english(seed, 100) for seed in range(6)]
    together = band_keys(texts, RULES)
    assert np.array_equal(together, np.concatenate([band_keys([text], RULES) for text in texts]))


def test_texts_without_words_and_nothing_at_all_are_no_trouble():
    keys = band_keys(["+++", "---", "+++", "", "one"], RULES)
    assert (keys[0] == keys[2]).all()
    assert len(np.unique(keys[:, 0])) == 4
    assert band_keys([], RULES).shape == (0, 16)
    assert band_keys(["a b c"], Dedup(bands=3, rows=2)).shape == (1, 3)


def test_a_cjk_character_is_a_word_and_letters_have_no_case():
    assert len(shingles("鲁班造木鸢", 2)) == 4
    assert np.array_equal(shingles("One two THREE", 2), shingles("one Two, three!", 2))
