"""Chat templates in Jinja, as Hugging Face tokenizers bring them: messages -> parts.

A template sees each message's text as a placeholder, and the texts are put in afterwards as text. So no message can
forge a control piece, and where each text stands, hence what the loss looks at, needs no search: an assistant's text
and what the template writes right behind it. In the template's own words, the tokenizer's control pieces are found by
name. Jinja runs in its sandbox: a template comes from outside.
"""

import re
from collections.abc import Mapping
from typing import Any

from data.errors import UserError
from data.tasks.part import Part

_MARK = "\ue000{}\ue001"
_MARKED = re.compile("\ue000(\\d+)\ue001")


def jinja_parts(turns: list[tuple[str, str]], template: str, names: Mapping[str, str]) -> list[Part]:
    """The parts of a conversation.

    Args:
        turns: (role, text) of each message.
        template: the Jinja text.
        names: what else it may use, such as bos_token.

    Raises:
        UserError: not a Jinja template, one that refuses the conversation, leaves out a message or changes order.
    """
    roles = [role for role, _ in turns]
    whole = _rendered(roles, template, names, ask=False)
    if [int(number) for number in _MARKED.findall(whole)] != list(range(len(turns))):
        raise UserError(
            f"the chat template doesn't write each message once and in order: {', '.join(roles)} gave "
            f"{_MARKED.sub('...', whole)[:200]!r}"
        )
    between = _MARKED.split(whole)[::2]
    parts = [Part(roles[0], between[0], markup=True)]
    for number, (role, text) in enumerate(turns):
        after = between[number + 1]
        learn = role == "assistant"
        parts.append(Part(role, text, in_loss=learn))
        closing = ""
        if learn:
            until = _rendered(roles[: number + 1], template, names, ask=False)
            closing = _common(_MARKED.split(until)[-1], after)
            parts.append(Part(role, closing, in_loss=True, markup=True))
        parts.append(Part(roles[min(number + 1, len(roles) - 1)], after[len(closing) :], markup=True))
    return [part for part in parts if part.text]


def jinja_asked_parts(turns: list[tuple[str, str]], template: str, names: Mapping[str, str]) -> list[Part]:
    """Messages, and what asks the assistant for its turn."""
    between = _MARKED.split(_rendered([role for role, _ in turns], template, names, ask=True))[::2]
    parts = []
    for number, text in enumerate(between):
        parts.append(Part("user", text, markup=True))
        if number < len(turns):
            parts.append(Part(*turns[number]))
    return [part for part in parts if part.text]


def _rendered(roles: list[str], template: str, names: Mapping[str, str], ask: bool) -> str:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(why: str) -> Any:
        raise TemplateError(why)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    messages = [{"role": role, "content": _MARK.format(number)} for number, role in enumerate(roles)]
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=ask, **names)
    except (TemplateError, TypeError) as error:
        raise UserError(f"the chat template refuses the messages {', '.join(roles)}: {error}") from None


def _common(one: str, other: str) -> str:
    """What both begin with."""
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
