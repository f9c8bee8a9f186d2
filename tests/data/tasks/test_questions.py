"""Extractive QA on XQuAD, English and Chinese: windows cover every context, answers come back from token targets."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.corpus import Document
from data.errors import UserError
from data.shards import FIELDS, IN_LOSS
from data.tasks.encode import encode_examples
from data.tasks.make import make_examples
from data.tasks.span import answer_text, pieces, token_span, words
from data.tasks.task import Task
from data.tasks.window import windows
from data.tokenizer.tokenizer import Tokenizer
from tests.data.conftest import english
from tests.data.tokenizer.test_import import wordpiece

SMALL = {"kind": "qa", "max_tokens": 120, "max_question_tokens": 84, "doc_stride": 25}


@given(tokens=st.integers(1, 500), room=st.integers(1, 120), data=st.data())
def test_windows_cover_the_context_overlap_and_end_with_it(tokens, room, data):
    stride = data.draw(st.integers(1, room))
    found = windows(tokens, room, stride)
    covered = np.zeros(tokens, int)
    for start, stop in found:
        assert 0 < stop - start <= room
        covered[start:stop] += 1
    assert covered.all()
    assert found[-1].stop == tokens
    assert [window.start for window in found] == [stride * number for number in range(len(found))]
    for before, after in itertools.pairwise(found):
        assert before.stop - after.start == room - stride
    assert len(found) == 1 or found[-2].stop < tokens  # none is inside another


@given(tokens=st.integers(1, 300), room=st.integers(1, 80), data=st.data())
def test_a_short_enough_answer_is_whole_in_some_window(tokens, room, data):
    stride = data.draw(st.integers(1, room))
    first = data.draw(st.integers(0, tokens - 1))
    last = data.draw(st.integers(first, min(tokens - 1, first + room - stride)))
    assert any(start <= first and last < stop for start, stop in windows(tokens, room, stride))


@pytest.mark.parametrize(("room", "stride"), [(4, 5), (4, 0)])
def test_a_stride_that_leaves_a_gap_is_no_stride(room, stride):
    with pytest.raises(ValueError, match="stride"):
        windows(10, room, stride)


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))))
def test_words_put_together_are_the_text(text):
    assert "".join(words(text)) == text


def test_words_are_what_answers_begin_and_end_at():
    assert words("In 1998, Denver's 第一次 won.") == [
        "In",
        " 1998",
        ",",
        " Denver",
        "'",
        "s",
        " 第",
        "一",
        "次",
        " won",
        ".",
    ]


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), data=st.data())
def test_any_span_of_characters_is_covered_by_its_tokens(tokenizer, text, data):
    first = data.draw(st.integers(0, len(text) - 1))
    count = data.draw(st.integers(1, len(text) - first))
    for by_word in (False, True):
        tokens, starts, ends = pieces(tokenizer, text, by_word)
        assert tokenizer.decode_bytes(tokens).decode() == text
        a, b = token_span(starts, ends, [first, count])
        assert starts[a] <= first < ends[a]
        assert starts[b] < first + count <= ends[b]


@pytest.fixture(scope="module", params=["en", "zh"])
def questions(request, examples_of):
    return examples_of(Task(**SMALL), kind="squad", path=f"xquad.{request.param}.json")


def window_rows(encoded):
    rows = {}
    for row, owner in enumerate(encoded.owners):
        rows.setdefault(owner, []).append(row)
    return rows


def test_windows_of_real_contexts_cover_them_and_every_answer_comes_back(tokenizer, questions):
    task = Task(**SMALL)
    encoded = encode_examples(questions, tokenizer, task, ())
    assert not encoded.faults
    assert len(encoded.tokens) > 2 * len(questions)
    context = FIELDS.index("context") << 1 | IN_LOSS
    for owner, rows in window_rows(encoded).items():
        texts = dict(questions[owner].texts)
        whole = np.zeros(0, np.int32)
        found = 0
        for number, row in enumerate(rows):
            tokens, uses = encoded.tokens[row], encoded.uses[row]
            shown = tokenizer.decode(tokens, control=True)
            assert len(tokens) <= task.max_tokens
            assert shown.startswith(f"<|cls|>{texts['question']}<|sep|>")
            assert shown.endswith("<|sep|>")
            inside, begin = tokens[uses == context], number * task.doc_stride
            assert np.array_equal(whole[begin:], inside[: len(whole) - begin])
            whole = np.concatenate([whole[:begin], inside])
            start, end = (int(each) for each in encoded.targets[row])
            about = json.loads(encoded.abouts[row])
            assert (about["window"], about["windows"]) == (number, len(rows))
            if (start, end) != (0, 0):
                found += 1
                assert (uses[start : end + 1] == context).all()
                answer = answer_text(tokenizer, tokens, uses, about, task.doc_stride, (start, end))
                assert answer == about["answers"][0].strip()
        assert tokenizer.decode(whole) == texts["context"]
        assert found or encoded.notes[owner]["answers_in_no_window"]
    notes = sum(encoded.notes.values(), start=Counter())
    assert notes["answers_between_tokens"] == 0
    assert notes["answers_in_no_window"] <= 0.02 * len(questions)
    assert notes["windows"] == len(encoded.tokens)


def test_answers_come_back_as_the_context_writes_them_from_a_tokenizer_that_changes_text(questions, tmp_path):
    made, config = wordpiece([text for question in questions for _, text in question.texts], "bert")
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    bert = Tokenizer.load(tmp_path, {"eos": "[SEP]"})
    assert bert.losses
    task = Task(**SMALL | {"max_tokens": 160, "max_question_tokens": 120})
    encoded = encode_examples(questions, bert, task, ())
    found = set()
    for row, owner in enumerate(encoded.owners):
        tokens, uses, span = encoded.tokens[row], encoded.uses[row], encoded.targets[row]
        assert (tokens[0], tokens[-1]) == (bert.piece_id("<|cls|>"), bert.piece_id("<|sep|>"))
        about = json.loads(encoded.abouts[row])
        answer = answer_text(bert, tokens, uses, about, task.doc_stride, span)
        if span != (0, 0):
            found.add(owner)
            assert answer == about["answers"][0].strip()
        else:
            assert answer == ""
    assert len(found) >= 0.97 * (len(questions) - len(encoded.faults))
    with pytest.raises(UserError, match="context_pieces=words"):
        encode_examples(questions, bert, Task(**SMALL, context_pieces="tokenizer"), ())


def test_a_question_without_an_answer_points_at_cls(tokenizer):
    context = english(1, 40)
    fields = {"id": "q", "question": "Why?", "context": context, "answers": [], "is_impossible": True}
    task = Task(**SMALL)
    (example,) = make_examples(Document("q", "x", None, fields=fields), task)
    encoded = encode_examples([example], tokenizer, task, ())
    assert set(encoded.targets) == {(0, 0)}
    assert encoded.notes[0]["no_answer"] == 1
    for tokens, uses in zip(encoded.tokens, encoded.uses, strict=True):
        assert tokens[0] == tokenizer.piece_id("<|cls|>")
        assert uses[0] & IN_LOSS


def test_normalising_a_context_moves_its_answers_along(tokenizer):
    context = "cafe\u0301 bar\r\nand here it is"
    fields = {"id": "q", "question": "?", "context": context, "answers": [{"text": "here", "answer_start": 15}]}
    (example,) = make_examples(Document("q", "x", None, fields=fields), Task(kind="qa"))
    assert dict(example.texts)["context"] == "caf\u00e9 bar\nand here it is"
    encoded = encode_examples([example], tokenizer, Task(kind="qa"), ())
    start, end = encoded.targets[0]
    assert tokenizer.decode(encoded.tokens[0][start : end + 1]).strip() == "here"
