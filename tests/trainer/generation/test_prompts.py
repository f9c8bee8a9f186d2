"""Prompts from a file, and texts as they leave: order, other fields, mistakes with their line."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from data.errors import UserError
from data.tasks.task import Task
from tests.trainer.generation.speaker import loaded
from trainer.generation import prompts
from trainer.generation.prompts import answered, continued, rows_of, write_texts
from trainer.generation.settings import Decoding


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory):
    rows = [json.dumps({"p": f"Is {n} odd?", "c": "Yes."}) for n in range(60)]
    task = Task(kind="prompt_completion", max_tokens=65)
    held = loaded(tmp_path_factory.mktemp("prompts"), task, rows, {"prompt": "p", "completion": "c"})
    held.model.says = [[]] * 1000
    return held


def test_a_line_is_a_prompt_and_a_row_of_json_keeps_its_fields(tmp_path, monkeypatch):
    (tmp_path / "lines.txt").write_bytes("one\r\n你好\r\n".encode())
    assert rows_of(str(tmp_path / "lines.txt")) == [{"prompt": "one"}, {"prompt": "你好"}]
    (tmp_path / "marked.txt").write_bytes("\ufeffone\n".encode())
    assert rows_of(str(tmp_path / "marked.txt")) == [{"prompt": "one"}]
    given = '{"prompt": "a\\nb", "id": 7}\n{"prompt": "c"}\n'
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given.encode())))
    assert rows_of("-") == [{"prompt": "a\nb", "id": 7}, {"prompt": "c"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: it should hold a prompt a line"),
        (b"one\n\ntwo\n", "line 2 of .* is empty"),
        (b"one\n\xff\n", "not valid UTF-8: byte 4"),
        (b'{"prompt": "a"}\nb\n', "line 2 of .* is 'b', not a JSON object with a \"prompt\""),
        (b'{"prompt": "a"}\n{"prompt": 3}\n', 'line 2 of .*, not a JSON object with a "prompt" of text'),
        (b'{"prompt": "a\\ud83d"}\n', "line 1 of .* holds half of a surrogate pair"),
        (b'{"prompt": "a", "texts": []}\n', 'line 1 of .* holds "texts" already'),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, content, message):
    (tmp_path / "prompts").write_bytes(content)
    with pytest.raises(UserError, match=message):
        rows_of(str(tmp_path / "prompts"))
    (tmp_path / "prompts.jsonl").write_text('{"promt": "a"}\n')
    with pytest.raises(UserError, match=r'line 1 of .* is .*, not a JSON object with a "prompt"'):
        rows_of(str(tmp_path / "prompts.jsonl"))
    with pytest.raises(UserError, match="cannot read the prompts"):
        rows_of(str(tmp_path / "nowhere"))


def test_rows_are_answered_in_their_order_whatever_is_batched(writer, monkeypatch):
    monkeypatch.setattr(prompts, "AT_ONCE", 3)
    rows = [{"prompt": text, "id": number} for number, text in enumerate(["Is it?", "A", "Odd, is it?", "B", "CC"])]
    sampled = Decoding(5, temperature=1.0, num_return_sequences=2)
    lines = [json.loads(line) for line in answered(writer, rows, sampled)]
    assert [line["id"] for line in lines] == [0, 1, 2, 3, 4]
    for line in lines:
        assert line["texts"] == continued(writer, [line["prompt"]], sampled)[0]
    assert len({tuple(line["texts"]) for line in lines}) == 5


def test_a_prompt_too_long_is_named_by_its_line_before_any_is_answered(writer, monkeypatch):
    monkeypatch.setattr(prompts, "AT_ONCE", 2)
    rows = [{"prompt": text} for text in ("A", "B", "C", "Is 5 odd? " * 40)]
    with pytest.raises(UserError, match=r"prompt 4 has \d+ tokens"):
        next(answered(writer, rows, Decoding(5)))


def test_one_text_is_written_as_it_is_made(writer):
    writer.model.says[len(writer.model.heard)] = writer.inputs.tokenizer.encode("Yes, it is odd").tolist()
    written: list[str] = []
    write_texts(writer, ["Is it?"], Decoding(6), written.append)
    assert len(written) > 3
    assert "".join(written).startswith("Is it?Yes, it")
    beams: list[str] = []
    write_texts(writer, ["A"], Decoding(6, num_beams=2, num_return_sequences=2), beams.append)
    assert [text[:5] for text in beams] == ["--- A"] * 2
    with pytest.raises(UserError, match="context holds 64"):
        write_texts(writer, ["A"], Decoding(64), written.append)
