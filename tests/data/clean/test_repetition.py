"""The runs of words counted by buckets against the same counts in plain Python."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from data.clean.measured import Measured
from data.clean.repetition import copied_ngrams, top_ngram
from data.clean.words import hash_word

texts = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "Émile", "zwölf"]), min_size=1, max_size=60).map(" ".join)


def top_share(words: list[str], width: int) -> float:
    runs = Counter(tuple(words[at : at + width]) for at in range(len(words) - width + 1))
    most = max(runs.values(), default=0)
    if most < 2:
        return 0.0
    longest = max(sum(map(len, run)) for run in runs if runs[run] == most)
    return most * longest / sum(map(len, words))


def copied_share(words: list[str], width: int) -> float:
    seen, covered = set(), set()
    for at in range(len(words) - width + 1):
        run = tuple(words[at : at + width])
        if run in seen:
            covered.update(range(at, at + width))
        seen.add(run)
    return sum(len(words[at]) for at in covered) / sum(map(len, words))


@settings(deadline=None)
@given(texts, st.floats(0.01, 0.99))
def test_the_most_frequent_run_is_the_one_that_counting_finds(text, limit):
    words = text.lower().split()
    for limits in ((limit,), (1.0, limit), (1.0, 1.0, limit)):
        expected = any(top_share(words, width) > each for width, each in enumerate(limits, 2))
        assert top_ngram(Measured(text), limits) == expected


@settings(deadline=None)
@given(texts, st.floats(0.01, 0.99))
def test_copied_runs_cover_what_a_search_for_each_finds(text, limit):
    words = text.lower().split()
    for more in range(6):
        expected = copied_share(words, 5 + more) > limit
        assert copied_ngrams(Measured(text), (*[1.0] * more, limit)) == expected


def test_a_long_text_has_its_words_hashed_as_a_short_one_has():
    draw = random.Random(1)
    for stock in (["alpha", "beta", "gamma", "x" * 90], ["alpha", "βήτα", "世界"]):
        words = [draw.choice(stock) for _ in range(40_000)]
        hashes = Measured(" ".join(words)).words.hashes
        expected = [hash_word(part) for word in words for part in (word if word == "世界" else [word])]
        assert hashes.tolist() == expected
    assert hash_word("Ärger") == hash_word("ärger") != hash_word("rägre")
