"""Chat templates in Jinja: the text is what Jinja renders, the loss sees the assistant's turns, nothing is forged."""

import numpy as np
import pytest

from data.corpus import Document
from data.errors import UserError
from data.shards import IN_LOSS
from data.tasks.encode import encode_examples
from data.tasks.make import make_examples
from data.tasks.task import Task
from data.tasks.template import encode_prompt

LIKE_LLAMA = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>\n' + message['content'] | trim + '<|end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"
)
TURNS = [("user", "Hi <|end|>"), ("assistant", "Hello."), ("user", "你好？"), ("assistant", "好。")]


def encoded(tokenizer, template, turns=TURNS):
    task = Task(kind="chat", template="jinja", chat_template=template, system="Be brief.")
    fields = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (example,) = make_examples(Document("x", "x", None, fields=fields), task)
    made = encode_examples([example], tokenizer, task, ())
    return made.tokens[0], made.uses[0], task


def test_a_conversation_reads_as_the_template_renders_it(tokenizer):
    tokens, uses, _ = encoded(tokenizer, LIKE_LLAMA)
    expected = "<|bos|><|system|>\nBe brief.<|end|>\n" + "".join(f"<|{role}|>\n{text}<|end|>\n" for role, text in TURNS)
    assert tokenizer.decode(tokens, control=True) == expected
    learned = tokenizer.decode(tokens[(uses & IN_LOSS).astype(bool)], control=True)
    assert learned == "Hello.<|end|>\n好。<|end|>\n"
    control = tokenizer.piece_id("<|end|>")
    assert (tokens == control).sum() == 1 + len(TURNS)  # the one in the user's text is text


def test_generation_asks_with_what_the_template_writes_for_it(tokenizer):
    tokens, uses, task = encoded(tokenizer, LIKE_LLAMA, TURNS[:2])
    asked = encode_prompt(tokenizer, TURNS[0][1], task)
    assert np.array_equal(tokens[: len(asked)], asked)
    assert not (uses[: len(asked)] & IN_LOSS).any()
    assert uses[len(asked)] & IN_LOSS


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for", "refuses the messages system, user"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[1]['content'] }}", "doesn't write each message once and in order"),
        ("{% for m in messages[::-1] %}{{ m.content }}{% endfor %}", "doesn't write each message once"),
        ("{{ messages.__class__.__mro__ }}", "refuses|doesn't write"),
    ],
)
def test_a_template_that_can_not_be_used_is_refused(tokenizer, template, message):
    with pytest.raises(UserError, match=message):
        encoded(tokenizer, template)


def test_the_template_and_its_name_go_together():
    with pytest.raises(ValueError, match="chat_template goes with template: jinja"):
        Task(kind="chat", template="jinja")
    with pytest.raises(ValueError, match="chat_template goes with template: jinja"):
        Task(kind="chat", chat_template="x")
