"""A conversation in the terminal: laid out as the training rows were, within the context, each cut said."""

import json
from pathlib import Path

import pytest

from data.errors import UserError
from data.tasks.task import Task
from tests.trainer.generation.speaker import loaded
from trainer.generation.chat import chat
from trainer.generation.settings import Decoding
from trainer.scores import Loaded

JINJA = (
    "{%- for message in messages %}{{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"
)
TEMPLATES = {
    "luban": ("<|user|>Hi?<|end|><|assistant|>", "<|end|>"),
    "chatml": ("<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"),
    "jinja": ("<|user|>\nHi?<|end|>\n<|assistant|>\n", "<|end|>"),
}
CONTEXT = {"luban": 64, "chatml": 224, "jinja": 64}


@pytest.fixture(scope="module", params=TEMPLATES)
def talker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Loaded]:
    task = Task(
        kind="chat", template=request.param, system="Be kind.", max_tokens=CONTEXT[request.param],
        chat_template=JINJA if request.param == "jinja" else "",
    )  # fmt: skip
    rows = [json.dumps({"q": f"Is {n} odd?", "a": "Yes." if n % 2 else "No."}) for n in range(60)]
    return request.param, loaded(
        tmp_path_factory.mktemp("chat"), task, rows, {"user": "q", "assistant": "a"}, CONTEXT[request.param]
    )


def talk(held: Loaded, questions: list[str], answers: list[list[int]], tokens: int = 12, system: str | None = None):
    """What was written and noted, and the prompts that the model was given, as text with control pieces."""
    model = held.model
    model.says, model.heard = answers, []
    asked, written, notes = iter([*questions, None]), [], []
    chat(held, Decoding(tokens), system, lambda: next(asked), written.append, notes.append)
    prompts = [held.inputs.tokenizer.decode(tokens, control=True) for tokens in model.heard]
    return written, notes, prompts


def mark(held: Loaded, template: str) -> list[int]:
    """What ends an answer."""
    tokenizer = held.inputs.tokenizer
    text = TEMPLATES[template][1]
    return tokenizer.encode(text).tolist() if template == "chatml" else [tokenizer.piece_id(text)]


def test_answers_are_part_of_the_next_question(talker):
    template, held = talker
    tokenizer, end = held.inputs.tokenizer, mark(*reversed(talker))
    said = [[*tokenizer.encode(text).tolist(), *end] for text in ("No.", "Yes.")]
    written, notes, prompts = talk(held, ["Hi?", "", "Odd?"], said, system="")
    assert "".join(written) == "No.\nYes.\n"
    assert not notes
    opening = TEMPLATES[template][0]
    assert prompts[0] == opening
    assert prompts[1].startswith(opening + "No.")
    assert prompts[1].endswith(opening.replace("Hi?", "Odd?"))
    assert len(prompts) == 2


def test_the_system_prompt_is_the_datasets_unless_another_is_given(talker):
    _, held = talker
    [first] = talk(held, ["Hi?"], [mark(*reversed(talker))])[2]
    assert "Be kind." in first
    [second] = talk(held, ["Hi?"], [mark(*reversed(talker))], system="Be brief.")[2]
    assert first.replace("kind", "brief") == second


def test_turns_that_do_not_fit_are_cut_from_the_beginning_and_it_is_said(talker):
    template, held = talker
    tokenizer, end = held.inputs.tokenizer, mark(held, template)
    questions = [f"Is {n} odd?" for n in range(9)]
    answers = [[*tokenizer.encode("Yes.").tolist(), *end] for _ in questions]
    written, notes, prompts = talk(held, questions, answers)
    assert "".join(written) == "Yes.\n" * 9
    assert notes
    assert all("its first 2 turns were cut" in note for note in notes)
    for heard in held.model.heard:
        assert len(heard) <= CONTEXT[template] - 12
    assert "Is 0 odd?" in prompts[1]
    assert "Is 0 odd?" not in prompts[-1]
    assert all("Be kind." in prompt for prompt in prompts)
    assert prompts[-1].count("Is 8 odd?") == 1


def test_a_message_longer_than_the_context_is_refused_and_the_talk_goes_on(talker):
    template, held = talker
    _, notes, prompts = talk(held, ["odd? " * 99, "Hi?"], [mark(held, template)])
    assert len(prompts) == 1
    [note] = notes
    assert f"tokens, and beside an answer the context has room for {CONTEXT[template] - 12}" in note


def test_a_system_prompt_longer_than_the_context_is_refused_before_the_talk(talker):
    _, held = talker
    with pytest.raises(UserError, match=r"the system prompt of --system and an empty message make \d+ tokens, and"):
        talk(held, ["Hi?"], [], system="Be kind. " * 99)


def test_an_answer_that_does_not_end_is_cut_and_still_a_turn(talker):
    _, held = talker
    endless = held.inputs.tokenizer.encode("No. " * 20).tolist()
    written, _, prompts = talk(held, ["Hi?", "Odd?"], [endless, mark(*reversed(talker))], tokens=6)
    answer = "".join(written).splitlines()[0]
    assert answer.startswith("No. No")
    assert answer.strip() in prompts[1]


def test_who_has_learned_no_conversations_is_refused(tmp_path: Path, talker):
    rows = [json.dumps({"p": f"Is {n} odd?", "c": "Yes."}) for n in range(40)]
    task = Task(kind="prompt_completion", max_tokens=65)
    held = loaded(tmp_path, task, rows, {"prompt": "p", "completion": "c"})
    with pytest.raises(UserError, match=r"has learned examples of kind prompt_completion, .*task.kind=chat"):
        talk(held, ["Hi?"], [[1]])
    with pytest.raises(UserError, match=r"up to 224 tokens leaves no room in a context of \d+"):
        talk(talker[1], ["Hi?"], [[1]], tokens=224)
