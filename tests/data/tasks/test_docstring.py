import ast

import pytest

from data.corpus import Document
from data.tasks.make import make_examples
from data.tasks.task import Task

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


def examples(text, **settings):
    return make_examples(Document("lib/x.py", "lib", text), Task(**settings))


def text(example, place):
    return example.texts[place][1]


def test_every_function_with_a_docstring_and_a_body_is_an_example():
    made = {example.id: example for example in examples(SOURCE)}
    names = ("Thing.size:8", "Thing.grow:18", "Thing.grow.inner:20", "中文:32")
    assert list(made) == [f"lib/x.py#{name}" for name in names]
    size = made["lib/x.py#Thing.size:8"]
    assert text(size, 1) == "The size of the thing."
    assert text(size, 0) == '@property\ndef size(self):\n    text = """not\nindented"""\n    return len(text)\n'
    assert (size.origin, size.source, size.fault) == ("lib/x.py", "lib", None)
    grow = made["lib/x.py#Thing.grow:18"]
    assert text(grow, 1) == "Grow by so much."
    assert text(grow, 0).startswith("async def grow(self, by: int) -> int:\n    def inner(x):\n")
    assert text(made["lib/x.py#中文:32"], 1) == "说明文字。"


def test_prompts_of_real_code_parse_and_hold_no_docstring_of_their_own(code_texts):
    made = [example for text in code_texts for example in examples(text) or []]
    assert len(made) > 100
    for example in made:
        (function,) = ast.parse(text(example, 0)).body
        assert ast.get_docstring(function) is None
        assert "\n" not in text(example, 1)


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
