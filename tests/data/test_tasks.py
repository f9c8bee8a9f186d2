import ast

import numpy as np
import pytest

from data.corpus import Document
from data.recipe import Task
from data.tasks import COMPLETION, encode_prompt, example_uses, join_example, make_examples
from data.tokenizer_training import train

SOURCE = '''
import os

class Thing:
    """A class has no example."""

    @property
    def size(self):
        """The size
        of the thing.

        A second paragraph, left out.
        """
        text = """not
indented"""
        return len(text)

    async def grow(self, by: int) -> int:
        "Grow by so much."  # a remark
        def inner(x):
            r"""Do \\d nothing."""
            return x
        return inner(by)

def bare(): return 1
def only():
    """Nothing but this docstring."""
def same(): "On the same line."; return 2
def undocumented():
    x = "no docstring"
    return x
def 中文(字):
    """说明文字。"""
    return 字
'''


@pytest.fixture(scope="module")
def tokenizer(code_texts):
    return train(code_texts[:10], 1024)


def examples(text, **settings):
    return make_examples(Document("lib/x.py", "lib", text), Task(**settings))


def test_every_function_with_a_docstring_and_a_body_is_an_example():
    made = {example.id: example for example in examples(SOURCE)}
    names = ("Thing.size:8", "Thing.grow:18", "Thing.grow.inner:20", "中文:32")
    assert list(made) == [f"lib/x.py#{name}" for name in names]
    size = made["lib/x.py#Thing.size:8"]
    assert size.completion == "The size of the thing."
    assert size.prompt == '@property\ndef size(self):\n    text = """not\nindented"""\n    return len(text)\n'
    assert (size.origin, size.source, size.fault) == ("lib/x.py", "lib", None)
    grow = made["lib/x.py#Thing.grow:18"]
    assert grow.completion == "Grow by so much."
    assert grow.prompt.startswith("async def grow(self, by: int) -> int:\n    def inner(x):\n")
    assert made["lib/x.py#中文:32"].completion == "说明文字。"


def test_prompts_of_real_code_parse_and_hold_no_docstring_of_their_own(code_texts):
    made = [example for text in code_texts for example in examples(text) or []]
    assert len(made) > 100
    for example in made:
        (function,) = ast.parse(example.prompt).body
        assert ast.get_docstring(function) is None
        assert "\n" not in example.completion


def test_bounds_are_named_faults():
    faults = {
        example.id.split("#")[1]: example.fault
        for example in examples(SOURCE, min_completion_characters=6, max_completion_characters=16)
    }
    assert faults == {
        "Thing.size:8": "completion_too_long",
        "Thing.grow:18": None,
        "Thing.grow.inner:20": None,
        "中文:32": "completion_too_short",
    }


@pytest.mark.parametrize("text", ["def broken(:\n", "print 'python 2'", "x = '\0'"])
def test_what_is_not_python_yields_no_list(text):
    assert examples(text) is None


def test_prompt_and_completion_fields_are_taken_as_they_are():
    task = Task(kind="prompt_completion")
    (example,) = make_examples(Document("x:1", "x", " What? ", "Yes"), task) or []
    assert (example.prompt, example.completion, example.fault) == (" What? ", "Yes", None)
    (empty,) = make_examples(Document("x:2", "x", " \n", "Yes"), task) or []
    assert empty.fault == "empty_prompt"
    assert make_examples(Document("x:3", "x", "no completion"), task) is None


def test_generation_asks_with_the_tokens_that_training_saw(tokenizer):
    prompt, completion = "def f(x):\n    return x\n", "Give x back. <|completion|>"
    asked = encode_prompt(tokenizer, prompt)
    tokens = join_example(tokenizer, tokenizer.encode(prompt), tokenizer.encode(completion))
    assert np.array_equal(tokens[: len(asked)], asked)
    assert asked[-1] == tokenizer.piece_id(COMPLETION)
    assert (tokens == tokenizer.piece_id(COMPLETION)).sum() == 1
    assert tokenizer.decode(tokens[len(asked) :], control=True) == completion + "<|eos|>"
    uses = example_uses(len(asked), len(tokens))
    assert uses.tolist() == [0] * len(asked) + [0b11] * (len(tokens) - len(asked))
