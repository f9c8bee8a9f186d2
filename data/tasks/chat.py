"""Conversations: messages with roles -> turns, and templates that mark them; the loss sees assistants' turns only.

    luban    <|system|>...<|end|><|user|>...<|end|><|assistant|>...<|end|><|eos|>      control pieces
    chatml   <|im_start|>user\\n...<|im_end|>\\n ...                                      the same as text
    jinja    what a Hugging Face tokenizer's chat template makes of it (data/tasks/jinja.py)

With `luban` no message can forge a turn, because text never yields a control piece. `chatml` is for models that were
trained on it with a tokenizer that has no such pieces: a message that holds its marks is a bad row.
"""

from contextlib import suppress
from typing import Any

from data.clean.characters import normalised
from data.corpus import Document
from data.errors import UserError
from data.tasks.example import BadRow
from data.tasks.jinja import jinja_asked_parts, jinja_parts
from data.tasks.part import Part, control_id
from data.tasks.task import Task
from data.tokenizer.tokenizer import Tokenizer

START, END = "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")


def conversation(document: Document, task: Task) -> list[tuple[str, str]]:
    """(role, text) of each turn of a row, checked.

    Raises:
        BadRow: no messages, an unknown role, an empty text, roles out of turn, or no turn of the assistant's.
    """
    fields = document.fields or {}
    if "messages" in fields:
        turns = _messages(fields, task)
    else:
        turns = [(role, fields.get(role)) for role in ("user", "assistant")]
        if fields.get("system"):
            turns.insert(0, ("system", fields["system"]))
    checked = [(role, _text(role, text, task)) for role, text in turns]
    if task.system and checked[0][0] != "system":
        checked.insert(0, ("system", task.system))
    spoken = [role for role, _ in checked if role != "system"]
    if any(role == "system" for role, _ in checked[1:]):
        raise BadRow("roles_out_of_turn", "a system message stands after the first message")
    if any(role != ("user", "assistant")[number % 2] for number, role in enumerate(spoken)):
        raise BadRow("roles_out_of_turn", f"user and assistant don't take turns: {', '.join(spoken[:8])}")
    if "assistant" not in spoken:
        raise BadRow("no_assistant", "has no turn of the assistant's, so there is nothing to learn")
    return checked


def _messages(fields: Any, task: Task) -> list[tuple[str, Any]]:
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadRow("bad_messages", f"messages is {str(messages)[:60]!r}, not a list of messages")
    role_key, text_key = task.role_key, task.content_key
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or role_key not in message or text_key not in message:
            raise BadRow(
                "bad_messages", f"message {number} is {str(message)[:60]!r}: it needs {role_key!r} and {text_key!r}"
            )
        role = task.roles.get(str(message[role_key]), message[role_key])
        if role not in ROLES:
            raise BadRow(
                "unknown_role",
                f"message {number} has the role {str(role)[:40]!r}, not {', '.join(ROLES)}; name others in task.roles",
            )
        turns.append((role, message[text_key]))
    return turns


def _text(role: str, text: Any, task: Task) -> str:
    if not isinstance(text, str):
        raise BadRow("bad_messages", f"a message of {role} is {str(text)[:60]!r}, not a string")
    if not text.strip():
        raise BadRow("empty_message", f"a message of {role} is empty")
    if task.layout == "chatml" and (START in text or END in text):
        raise BadRow("forged_turn", f"a message of {role} holds {START} or {END}, which mark turns in chatml")
    return normalised(text)


def chat_parts(turns: list[tuple[str, str]], task: Task, tokenizer: Tokenizer) -> list[Part]:
    """The parts of a conversation."""
    if task.layout == "jinja":
        return jinja_parts(turns, task.chat_template, _names(tokenizer))
    parts: list[Part] = []
    for role, text in turns:
        learn = role == "assistant"
        if task.layout == "chatml":
            parts += [Part(role, f"{START}{role}\n"), Part(role, text, in_loss=learn)]
            parts += [Part(role, f"{END}\n", in_loss=learn)]
        else:
            parts += [Part(role, control=role), Part(role, text, in_loss=learn)]
            parts += [Part(role, control="end", in_loss=learn)]
    last = turns[-1][0]
    return [*parts, Part(last, control="eos", in_loss=last == "assistant")]


def asked_parts(turns: list[tuple[str, str]], task: Task, tokenizer: Tokenizer) -> list[Part]:
    """A conversation so far, the user's turn last, and the mark that asks the assistant for its own."""
    if task.layout == "jinja":
        return jinja_asked_parts(turns, task.chat_template, _names(tokenizer))
    parts = chat_parts(turns, task, tokenizer)[:-1]
    if task.layout == "chatml":
        return [*parts, Part("assistant", f"{START}assistant\n")]
    return [*parts, Part("assistant", control="assistant")]


def closing_part(task: Task, tokenizer: Tokenizer) -> Part | None:
    """What the template writes right behind an assistant's text; None where it writes nothing."""
    if task.layout == "luban":
        return Part("assistant", control="end")
    if task.layout == "chatml":
        return Part("assistant", f"{END}\n")
    parts = jinja_parts([("user", "?"), ("assistant", "!")], task.chat_template, _names(tokenizer))
    behind = parts[next(number for number, part in enumerate(parts) if part.text == "!" and not part.markup) + 1 :]
    return behind[0] if behind else None


def _names(tokenizer: Tokenizer) -> dict[str, str]:
    """The special pieces that Hugging Face's templates may name."""
    found = {}
    for role in ("bos", "eos"):
        with suppress(UserError):  # it has none
            found[f"{role}_token"] = tokenizer.pieces[control_id(tokenizer, role)]
    return found
