"""How a run's inputs are laid out, as a Hugging Face tokenizer is told it: control pieces around a text, or a chat.

With it `tokenizer(text)` gives what the model learned to read, `tokenizer(text, second)` a pair with its token types,
and `apply_chat_template` a conversation up to the answer. Luban puts control pieces in by id; where transformers, which
renders a conversation to text and cuts that, comes to other ids, the export leaves the template out and says so.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from data.tasks.chat import END, ROLES, START
from data.tasks.encode import encode_examples
from data.tasks.example import Example
from data.tasks.part import control_id
from data.tasks.task import Task
from data.tasks.template import encode_chat, encode_parts, encode_prompt, is_causal, parts_of
from data.tokenizer.tokenizer import Tokenizer

TEXT, SECOND = "$A", "$B"
_CLASSED = ("classification", "pair")


@dataclass(frozen=True)
class Layout:
    """Of one run's inputs; empty: a text is its tokens and nothing else."""

    single: tuple[str, ...] = ()
    """Roles of control pieces around the text."""
    pair: tuple[str, ...] = ()
    """The same of two texts."""
    chat_template: str = ""
    """Jinja."""
    prefix: str = ""
    """What a person has to put before a text: a tokenizer can't."""

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.single or self.chat_template)

    def described(self, tokenizer: Tokenizer) -> str:
        """For the model card."""
        if self.is_plain:
            return "Control pieces are put in by templates, by their ids."
        if self.chat_template:
            return "`tokenizer.apply_chat_template(messages, add_generation_prompt=True)` is what the run learned from."
        shown = [self._shown(each, tokenizer) for each in (self.single, self.pair) if each]
        said = f"`tokenizer(text)` is laid out as the run's rows were: {', or of two texts '.join(shown)}."
        return said + (f" Texts began with {self.prefix!r}: put it there." if self.prefix else "")

    @staticmethod
    def _shown(roles: Sequence[str], tokenizer: Tokenizer) -> str:
        names = {TEXT: "text", SECOND: "second"}
        return f"`{' '.join(names.get(role) or _piece(tokenizer, role) for role in roles)}`"

    def post_processor(self, tokenizer: Tokenizer, theirs: Any) -> Any:
        """The `post_processor` of a tokenizer.json that has `theirs` so far."""
        from tokenizers.processors import TemplateProcessing

        if not self.single:
            return theirs
        end = self.single.index(TEXT) + 1
        pair = self.pair or (*self.single[:end], SECOND, *self.single[end:])
        second = pair.index(SECOND) if self.pair else len(pair)  # where token type 1 begins
        roles = sorted({*self.single, *pair} - {TEXT, SECOND})
        names = {TEXT: TEXT, SECOND: SECOND} | {role: _piece(tokenizer, role) for role in roles}
        made = TemplateProcessing(
            single=[f"{names[role]}:0" for role in self.single],
            pair=[f"{names[role]}:{int(place >= second)}" for place, role in enumerate(pair)],
            special_tokens=[(names[role], control_id(tokenizer, role)) for role in roles],
        )
        ours = json.loads(made.__getstate__())
        if theirs and theirs.get("type") == "ByteLevel":  # it trims offsets, and no ids
            return {"type": "Sequence", "processors": [theirs, ours]}
        return ours


def layout_of(task: Task | None, objective: str, tokenizer: Tokenizer) -> Layout:
    """The layout of a run's inputs.

    Args:
        task: None: of plain text.
        objective: its name.
    """
    if task is None:
        if objective == "masked":
            return Layout(("cls", TEXT, "sep"), ("cls", TEXT, "sep", SECOND, "sep"))
        return Layout((TEXT, "eos") if objective == "span" else ())
    if task.kind == "chat":
        return Layout(chat_template=_chat_template(task, tokenizer))
    if task.kind == "qa" or (task.kind in _CLASSED and task.layout == "encoder"):
        together = task.kind != "classification" and objective != "contrastive"
        return Layout(("cls", TEXT, "sep"), ("cls", TEXT, "sep", SECOND, "sep") if together else ())
    if task.kind in _CLASSED:
        end = "cls" if task.layout == "decoder" else "completion"
        return Layout((TEXT, end), (TEXT, "sep", SECOND, end) if task.kind == "pair" else ())
    end = "eos" if task.layout == "encoder_decoder" else "completion"
    return Layout((TEXT, end), prefix=task.prefix if task.kind == "seq2seq" else "")


def _piece(tokenizer: Tokenizer, role: str) -> str:
    return tokenizer.pieces[control_id(tokenizer, role)]


def _chat_template(task: Task, tokenizer: Tokenizer) -> str:
    """What `data.tasks.chat` makes of messages, in Jinja."""
    first = ""
    if task.system:
        first = (
            "{%- if messages[0]['role'] != 'system' %}{%- set messages = [{'role': 'system', 'content': "
            f"{json.dumps(task.system, ensure_ascii=False)}}}] + messages %}}{{%- endif %}}"
        )
    if task.layout == "jinja":
        return first + task.chat_template
    if task.layout == "chatml":
        marks, end = {role: f"{START}{role}\n" for role in ROLES}, f"{END}\n"
    else:
        marks, end = {role: _piece(tokenizer, role) for role in ROLES}, _piece(tokenizer, "end")
    return (
        f"{first}{{%- set marks = {json.dumps(marks)} %}}"
        f"{{%- for message in messages %}}{{{{ marks[message['role']] + message['content'] + {json.dumps(end)} }}}}"
        f"{{%- endfor %}}{{%- if add_generation_prompt %}}{{{{ marks['assistant'] }}}}"
        f"{{%- else %}}{{{{ {json.dumps(_piece(tokenizer, 'eos'))} }}}}{{%- endif %}}"
    )


def examples_of(
    layout: Layout, task: Task | None, objective: str, tokenizer: Tokenizer, texts: Sequence[str]
) -> list[dict[str, Any]]:
    """Questions to a tokenizer: `texts`, one or two, or `messages`; and the ids and token types that Luban gives them.

    Args:
        texts: plain ones of the run's own data.
    """
    if layout.is_plain or not texts:
        return []
    if layout.chat_template:
        assert task is not None
        short, system = [text[:300] for text in texts], [("system", task.system)] if task.system else []
        talks = [[("user", text)] for text in short]
        talks.append([("user", short[0]), ("assistant", short[-1]), ("user", short[0][::-1])])
        return [
            {
                "messages": [{"role": role, "content": text} for role, text in talk],
                "ids": encode_chat(tokenizer, [*system, *talk], task).tolist(),
            }
            for talk in talks
        ]
    found = [_of_one(task, objective, tokenizer, text) for text in texts]
    if layout.pair and task is not None:
        found += [_of_two(task, tokenizer, one[:100], two[:300]) for one, two in pairwise(texts)]
    return [each for each in found if each["ids"]]


def _of_one(task: Task | None, objective: str, tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    if task is not None and (task.kind not in (*_CLASSED, "qa") or is_causal(task)):
        prefix = task.prefix if task.kind == "seq2seq" else ""
        return {"texts": [prefix + text], "ids": encode_prompt(tokenizer, text, task).tolist()}
    if task is not None and task.kind in _CLASSED:
        example = Example("", "", "", (("text" if task.kind == "classification" else "text_a", text),))
        ids = encode_parts(tokenizer, parts_of(example, task, tokenizer)).tolist()
        return {"texts": [text], "ids": ids, "types": [0] * len(ids)}
    before, after = ((), ("eos",)) if objective == "span" else (("cls",), ("sep",))
    pieces = [[control_id(tokenizer, role) for role in roles] for roles in (before, after)]
    ids = [*pieces[0], *tokenizer.encode(text).tolist(), *pieces[1]]
    return {"texts": [text], "ids": ids, "types": [0] * len(ids)}


def _of_two(task: Task, tokenizer: Tokenizer, one: str, two: str) -> dict[str, Any]:
    """Without ids where the two make no row, or several windows."""
    fields = ("question", "context") if task.kind == "qa" else ("text_a", "text_b")
    about = {"context": two} if task.kind == "qa" else {}
    example = Example("", "", "", ((fields[0], one), (fields[1], two)), about=about)
    if task.kind == "pair" and is_causal(task):
        return {"texts": [one, two], "ids": []}  # its parts hold an answer
    if task.kind == "pair":
        parts = parts_of(example, task, tokenizer)
        ids = encode_parts(tokenizer, parts).tolist()
    else:
        rows = encode_examples([example], tokenizer, task, ()).tokens
        ids = rows[0].tolist() if len(rows) == 1 else []
    if task.layout == "decoder":
        return {"texts": [one, two], "ids": ids}
    first = ids.index(control_id(tokenizer, "sep")) + 1 if ids else 0
    return {"texts": [one, two], "ids": ids, "types": [int(place >= first) for place in range(len(ids))]}
