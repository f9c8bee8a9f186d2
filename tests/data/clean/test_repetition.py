"""The runs of words counted by buckets against the same counts in plain Python."""

from collections import Counter

import numpy as np
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


def test_words_of_any_length_and_script_are_told_apart_and_case_is_not():
    def hashes(text: str) -> list[int]:
        return Measured(text).words.hashes.tolist()

    words = ["a", "b", "ab", "ba", "abcdefgh", "abcdefghi", "x" * 90, "x" * 91, "x" * 89 + "y", "a_1", "1"]
    assert len(set(hashes(" ".join(words)))) == len(words)
    assert hashes("The THE the, (the)") == [hash_word("the", np.dtype(np.uint8))] * 4
    assert hashes("Ärger ärger the") == [*hashes("ärger") * 2, hash_word("the", np.dtype(np.uint32))]
    assert len(set(hashes("世界 世 界 βήτα β ήτα"))) == 5
    assert len(hashes("世界abc界")) == 4
    assert Measured("ab  世c").words.starts.tolist() == [0, 4, 5]
    assert hashes("") == hashes("!?") == []
