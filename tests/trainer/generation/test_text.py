"""Text as it comes: whole characters, nothing lost, nothing past the stop."""

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizer.tokenizer import Tokenizer
from data.tokenizer.training import train
from trainer.generation.text import spoken, until


@cache
def tokenizer() -> Tokenizer:
    return train(["Is it odd? The model says: yes. 你好，世界！ Größe naïve"] * 40, 600)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_a_text_comes_in_whole_characters_as_soon_as_they_are_whole(text):
    tokens = tokenizer().encode(text).tolist()
    fed = 0

    def count():
        nonlocal fed
        for token in tokens:
            fed += 1
            yield token

    told = ""
    for piece in spoken(count(), tokenizer()):
        told += piece
        so_far = b"".join(tokenizer().spellings[token] for token in tokens[:fed]).decode("utf-8", "ignore")
        if fed < len(tokens) and "\ufffd" not in text:
            assert told == so_far
    assert told == text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 640), max_size=30))
def test_whatever_a_model_says_the_pieces_make_the_whole(tokens):
    assert "".join(spoken(tokens, tokenizer())) == tokenizer().decode(tokens)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab<>", max_size=4), max_size=8), st.text("ab<>", max_size=4))
def test_pieces_end_before_the_stop_wherever_it_is_cut(pieces, stop):
    whole = "".join(pieces)
    taken = []

    def count():
        for piece in pieces:
            taken.append(piece)
            yield piece

    assert "".join(until(count(), stop)) == (whole.partition(stop)[0] if stop else whole)
    if stop and stop in whole:
        assert stop in "".join(taken)
        assert stop not in "".join(taken[:-1])


def test_what_can_not_be_the_stop_is_not_held_back():
    pieces = iter(["one ", "two <", "|im", " three"])
    told = until(pieces, "<|im_end|>")
    assert [next(told), next(told), next(told)] == ["one ", "two ", "<|im three"]
