"""Each kind of bad row is named with its file and line and says how to mend it; by recipe it is dropped by rule."""

import json

import pytest

from data import corpus
from data.errors import UserError
from data.recipe import Source
from data.tasks.make import make_examples
from data.tasks.task import Task

CLASSIFY = ({"text": "t", "label": "l"}, {"kind": "classification", "labels": ["a", "b"]})
PAIR = ({"text_a": "t", "text_b": "u", "label": "l"}, {"kind": "pair", "regression": True})
TRANSLATE = ({"source": "t", "target": "u"}, {"kind": "seq2seq"})
REFERRED = ({**TRANSLATE[0], "references": "r"}, TRANSLATE[1])
COMPLETE = ({"prompt": "t", "completion": "u"}, {"kind": "prompt_completion"})
CHAT = ({"messages": "m"}, {"kind": "chat"})


def said(role, text="hello"):
    return {"role": role, "content": text}


BAD = [
    (CLASSIFY, {"t": "x"}, "missing_column", "has no 'l' for label; it has t"),
    (CLASSIFY, {"t": "x", "l": None}, "missing_column", "has no 'l' for label"),
    (CLASSIFY, {"t": "x", "l": "c"}, "unknown_label", "label 'c' is not one of a, b"),
    (CLASSIFY, {"t": "x", "l": [1]}, "bad_label", r"label is \[1\], not a class's name or number"),
    (CLASSIFY, {"t": " \n", "l": "a"}, "empty_text", "text is empty"),
    (CLASSIFY, {"t": 3, "l": "a"}, "bad_text", "text is 3, not a string"),
    (CLASSIFY, {"t": "half \ud800", "l": "a"}, "bad_text", "half a character"),
    (CLASSIFY, {"t": "nul \0", "l": "a"}, "bad_text", "NUL"),
    (PAIR, {"t": "x", "u": "y", "l": "much"}, "bad_number", "label is 'much', not a number"),
    (PAIR, {"t": "x", "u": "y", "l": "nan"}, "bad_number", "not a number"),
    (PAIR, {"t": "x", "u": "", "l": 1}, "empty_text_b", "text_b is empty"),
    (TRANSLATE, {"t": "x", "u": " "}, "empty_target", "target is empty"),
    (COMPLETE, {"t": "", "u": "x"}, "empty_prompt", "prompt is empty"),
    (CHAT, {"m": "hello"}, "bad_messages", "messages is 'hello', not a list"),
    (CHAT, {"m": [said("user"), {"text": "x"}]}, "bad_messages", "message 1 is .* it needs 'role' and 'content'"),
    (CHAT, {"m": [said("user"), said("robot")]}, "unknown_role", "message 1 has the role 'robot', not system, user"),
    (CHAT, {"m": [said("user")]}, "no_assistant", "no turn of the assistant's"),
    (CHAT, {"m": [said("user"), said("user"), said("assistant")]}, "roles_out_of_turn", "don't take turns: user, user"),
    (CHAT, {"m": [said("user"), said("system"), said("assistant")]}, "roles_out_of_turn", "a system message stands"),
    (CHAT, {"m": [said("user", ""), said("assistant")]}, "empty_message", "a message of user is empty"),
    (CLASSIFY, {"t": "x", "l": "\ud800"}, "bad_label", "label holds half a character"),
    (CHAT, {"m": [said("user", "\ud800"), said("assistant")]}, "bad_messages", "messages holds half a character"),
    (CHAT, {"m": [said("user"), said("assistant", "\0")]}, "bad_messages", "messages holds a NUL character"),
    (REFERRED, {"t": "x", "u": "y", "r": ["y", "\udfff"]}, "bad_references", "references holds half a character"),
    (CHAT, {"m": [said("user"), said("assistant", 3)]}, "bad_messages", "a message of assistant is '3', not a string"),
]  # fmt: skip
GOOD = {"t": "good", "u": "good", "r": ["good"], "l": "a", "m": [said("user"), said("assistant")]}


def examples(source, task):
    return [example for document in corpus.documents([source]) for example in make_examples(document, task) or []]


@pytest.mark.parametrize(("setting", "row", "rule", "message"), BAD, ids=[f"{row[2]}-{n}" for n, row in enumerate(BAD)])
def test_a_bad_row_is_named_by_file_and_line_or_dropped_by_rule(tmp_path, setting, row, rule, message):
    columns, task = setting
    good = GOOD | ({"l": 1} if task.get("regression") else {})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in (good, good, row, good)) + "\n")
    source = Source(kind="jsonl", path=path, columns=columns)
    with pytest.raises(UserError, match=rf"rows\.jsonl:3: .*{message}.*on_bad_row=drop"):
        examples(source, Task(**task))
    made = examples(source, Task(**task, on_bad_row="drop"))
    assert [example.fault for example in made] == [None, None, rule, None]
    assert made[2].id == "rows.jsonl:000000003"


@pytest.mark.parametrize(
    ("kind", "content", "line", "message"),
    [
        ("jsonl", '{"t": "x", "l": "a"}\n{"t": ', 2, "is not a JSON line"),
        ("jsonl", '{"t": "x", "l": "a"}\n\n[1]\n', 3, "should hold a JSON object, not list"),
        ("json", '[\n {"t": "x", "l": "a"},\n 7]', r"3 \(object 2\)", "should hold a JSON object, not int"),
        ("csv", 't,l\n"two\nlines",a\nx,a,b\n', 4, "has 3 cells, but there are 2 columns: t, l"),
        ("tsv", 't\tl\n"x\ta\ny\n', 3, "has 1 cells, but there are 2 columns"),
    ],
)
def test_a_line_that_is_no_row_is_a_bad_row_too(tmp_path, kind, content, line, message):
    path = tmp_path / f"rows.{kind}"
    path.write_text(content)
    columns, task = CLASSIFY
    source = Source(kind=kind, path=path, columns=columns)
    with pytest.raises(UserError, match=rf"rows\.{kind}:{line}: .*{message}"):
        examples(source, Task(**task))
    made = examples(source, Task(**task, on_bad_row="drop"))
    assert [example.fault for example in made] == [None, "unreadable_row"]


def squad(tmp_path, **change):
    question = {"id": "q1", "question": "Who?", "answers": [{"text": "Denver", "answer_start": 3}], **change}
    first = {"id": "q0", "question": "What?", "answers": [{"text": "In", "answer_start": 0}]}
    context = change.pop("context", "In Denver it rained.")
    paragraphs = [{"context": context, "qas": [first, question]}]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"title": "x", "paragraphs": paragraphs}]}, indent=1))
    return Source(kind="squad", path=path), path.read_text().split('"q1"')[0].count("\n") + 1


@pytest.mark.parametrize(
    ("change", "rule", "message"),
    [
        ({"answers": [{"text": "Denver", "answer_start": 4}]}, "answer_not_in_context", "it stands at 3"),
        ({"answers": [{"text": "Paris", "answer_start": 3}]}, "answer_not_in_context", "it is nowhere in the context"),
        ({"answers": [{"text": "Denver", "answer_start": -17}]}, "answer_not_in_context", "not at character -17"),
        ({"answers": [{"text": " ", "answer_start": 2}]}, "empty_answer", "an answer is empty"),
        ({"answers": ["Denver"]}, "bad_answers", "an answer is 'Denver'"),
        ({"answers": None}, "bad_answers", "answers is None, not a list"),
        ({"question": None}, "bad_question", "question is None, not a string"),
        ({"question": " "}, "empty_question", "question is empty"),
        ({"question": "\ud800"}, "bad_question", "question holds half a character"),
    ],
)
def test_a_bad_question_is_named_by_line_and_place(tmp_path, change, rule, message):
    source, line = squad(tmp_path, **change)
    place = r"\(data\[0\]\.paragraphs\[0\]\.qas\[1\]\)"
    with pytest.raises(UserError, match=rf"squad\.json:{line} {place}: .*{message}"):
        examples(source, Task(kind="qa"))
    made = examples(source, Task(kind="qa", on_bad_row="drop"))
    assert [example.fault for example in made] == [None, rule]


def test_a_question_whose_id_is_no_text_is_found_by_its_line_and_dropped(tmp_path):
    source, _ = squad(tmp_path, id="\ud800")
    lines = (tmp_path / "squad.json").read_text().splitlines()
    line = next(number for number, held in enumerate(lines, 1) if "ud800" in held)
    with pytest.raises(UserError, match=rf"squad\.json:{line} .*id holds half a character"):
        examples(source, Task(kind="qa"))
    made = examples(source, Task(kind="qa", on_bad_row="drop"))
    assert [example.fault for example in made] == [None, "bad_id"]
    assert made[1].id.isascii()


def test_a_chatml_message_that_holds_the_marks_of_a_turn_is_a_bad_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"m": [said("user", "x<|im_end|>"), said("assistant")]}))
    source = Source(kind="jsonl", path=path, columns={"messages": "m"})
    with pytest.raises(UserError, match=r"rows\.jsonl:1: .*holds <\|im_start\|> or <\|im_end\|>"):
        examples(source, Task(kind="chat", template="chatml"))
    assert examples(source, Task(kind="chat"))[0].fault is None


def test_other_names_of_roles_and_keys_are_declared(tmp_path):
    path = tmp_path / "rows.jsonl"
    messages = [{"from": "human", "value": "hi"}, {"from": "bot", "value": "hello"}]
    path.write_text(json.dumps({"m": messages}))
    source = Source(kind="jsonl", path=path, columns={"messages": "m"})
    roles = {"human": "user", "bot": "assistant"}
    (example,) = examples(source, Task(kind="chat", roles=roles, role_key="from", content_key="value"))
    assert example.texts == (("user", "hi"), ("assistant", "hello"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "qa", "labels": ["a"]}, "labels means something only with kind classification or pair"),
        ({"kind": "chat", "template": "encoder"}, "kind chat has no template 'encoder': luban, chatml"),
        ({"kind": "qa", "max_tokens": 128, "doc_stride": 100}, "lower doc_stride"),
        ({"kind": "pair", "truncate": "text"}, "kind pair can't truncate 'text': no, longest, text_a, text_b"),
        ({"kind": "pair", "regression": True, "labels": ["a"]}, "regression predicts a number"),
        ({"kind": "classification", "labels": ["a", "a"]}, "listed twice"),
        ({"kind": "chat", "roles": {"x": "robot"}}, "'robot' is no role"),
    ],
)
def test_settings_of_a_task_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Task(**settings)
