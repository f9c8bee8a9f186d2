"""The recipe's `task`: what an example is, where its control pieces stand, what happens to one that is wrong.

Control pieces are put in when the dataset is built, not when it is read: a row's length, its packing and its digest
are then facts of the dataset, and a trained model's input can be read in it. Another template is another build, which
for fine-tuning data takes seconds.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data.settings import Fixed, Section

TEMPLATES: dict[str, tuple[str, ...]] = {
    "docstring": ("completion",),
    "prompt_completion": ("completion",),
    "classification": ("encoder", "decoder", "generate"),
    "pair": ("encoder", "decoder", "generate"),
    "qa": ("encoder",),
    "seq2seq": ("encoder_decoder", "decoder"),
    "chat": ("luban", "chatml", "jinja"),
}
"""Kind of task -> its templates, the default first."""
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "docstring": ((), ()),
    "prompt_completion": (("prompt", "completion"), ()),
    "classification": (("text", "label"), ()),
    "pair": (("text_a", "text_b", "label"), ()),
    "qa": ((), ()),
    "seq2seq": (("source", "target"), ("references",)),
    "chat": ((), ("messages", "system", "user", "assistant")),
}
"""Kind of task -> the columns it must be given, and those it may be."""
TRUNCATE: dict[str, tuple[str, ...]] = {
    "classification": ("text",),
    "pair": ("longest", "text_a", "text_b"),
    "seq2seq": ("source",),
    "chat": ("first_turns",),
}
_ONLY: dict[str, tuple[str, ...]] = {
    "labels": ("classification", "pair"),
    "regression": ("pair",),
    "truncate": tuple(TRUNCATE),
    "min_completion_characters": ("docstring", "prompt_completion"),
    "max_completion_characters": ("docstring", "prompt_completion"),
    "doc_stride": ("qa",),
    "max_question_tokens": ("qa",),
    "context_pieces": ("qa",),
    "prefix": ("seq2seq",),
    "system": ("chat",),
    "roles": ("chat",),
    "chat_template": ("chat",),
    "role_key": ("chat",),
    "content_key": ("chat",),
}


class Task(Section):
    """How documents, or rows of declared columns, become examples."""

    kind: Fixed[Literal["docstring", "prompt_completion", "classification", "pair", "qa", "seq2seq", "chat"]] = (
        "docstring"
    )
    """docstring: from Python source, a function without its docstring -> the docstring's first paragraph;
    prompt_completion: prompt, completion; classification: text, label; pair: text_a, text_b and a label or, with
    `regression`, a number; qa: questions of SQuAD JSON, the answer a span of the context; seq2seq: source, target
    (translation, summarisation); chat: messages with roles, or columns user and assistant."""
    template: Fixed[str] = ""
    """Where control pieces stand, and what the loss looks at; empty: the first of the kind's.
    classification, pair: `encoder` <|cls|> text <|sep|> [text_b <|sep|>], a head reads <|cls|>; `decoder` text
    [<|sep|> text_b] <|cls|>, a head reads <|cls|>; `generate` text [<|sep|> text_b] <|completion|> label <|eos|>, the
    label's name in the loss. qa: `encoder` <|cls|> question <|sep|> context <|sep|>. seq2seq: `encoder_decoder`
    source <|eos|> target <|eos|>; `decoder` source <|completion|> target <|eos|>; the target in the loss.
    chat: `luban` <|user|>...<|end|><|assistant|>...<|end|> and <|eos|> last; `chatml` the same turns as text between
    <|im_start|> and <|im_end|>; `jinja` as `chat_template` says. prompt_completion, docstring: `completion`
    prompt <|completion|> completion <|eos|>."""
    max_tokens: Fixed[Annotated[int, Field(ge=8)]] = 512
    """Longer examples are dropped (`example_too_long`) or cut as `truncate` says; qa: tokens of a window."""
    truncate: Fixed[Literal["no", "text", "text_a", "text_b", "longest", "source", "first_turns"]] = "no"
    """What an example that is too long loses, counted in dataset.json. text, text_a, text_b, source: that text's end;
    longest: the longer text's end, token by token; first_turns: the oldest turns of a chat, its system prompt kept."""
    on_bad_row: Fixed[Literal["error", "drop"]] = "error"
    """A row with a missing column, an unknown label, an answer that isn't in its context ...: end the build naming
    file and line, or drop it, counted by rule."""
    labels: Fixed[dict[str, str]] = Field(default={})
    """classification, pair: value in the file -> the class's name, in the order of the class ids; a list where they
    are the same. Empty: the values found, sorted. Another value is a bad row."""
    regression: Fixed[bool] = False
    """pair: the label is a number, such as a similarity."""
    min_completion_characters: Fixed[Annotated[int, Field(ge=1)]] = 1
    """docstring, prompt_completion: a shorter completion is dropped: `completion_too_short`."""
    max_completion_characters: Fixed[Annotated[int, Field(ge=1)]] = 1000
    """docstring, prompt_completion: a longer completion is dropped: `completion_too_long`."""
    doc_stride: Fixed[Annotated[int, Field(ge=1)]] = 128
    """qa: tokens from the start of one window of a context to the next (BERT's doc_stride)."""
    max_question_tokens: Fixed[Annotated[int, Field(ge=1)]] = 64
    """qa: an example whose question is longer is dropped: `question_too_long`."""
    context_pieces: Fixed[Literal["words", "tokenizer"]] = "words"
    """qa: `words` encodes a context word by word (a Chinese character, a punctuation mark is one), so that answers
    begin and end where tokens do; `tokenizer` as pretraining did. Answers that don't are counted in dataset.json."""
    prefix: Fixed[str] = ""
    """seq2seq: stands before every source, such as "translate English to German: ". """
    system: Fixed[str] = ""
    """chat: the system prompt of conversations that have none; empty: they get none."""
    roles: Fixed[dict[str, str]] = Field(default={"human": "user", "gpt": "assistant"})
    """chat: other names of the roles system, user and assistant."""
    chat_template: Fixed[str] = ""
    """chat with template jinja: the Jinja text, such as a Hugging Face tokenizer brings in its chat_template."""
    role_key: Fixed[str] = "role"
    """chat: where a message says whose it is."""
    content_key: Fixed[str] = "content"
    """chat: where a message holds its text."""

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_as_mapping(cls, labels: Any) -> Any:
        if isinstance(labels, list | tuple):
            if len({str(label) for label in labels}) < len(labels):
                raise ValueError("a label is listed twice")
            return {str(label): str(label) for label in labels}
        if isinstance(labels, dict):
            return {str(value): str(name) for value, name in labels.items()}
        return labels

    @model_validator(mode="after")
    def _settings_fit_kind(self) -> "Task":
        for setting, kinds in _ONLY.items():
            default = type(self).model_fields[setting].default
            if self.kind not in kinds and getattr(self, setting) != default:
                raise ValueError(f"{setting} means something only with kind {' or '.join(kinds)}, not {self.kind}")
        if self.template and self.template not in TEMPLATES[self.kind]:
            raise ValueError(f"kind {self.kind} has no template {self.template!r}: {', '.join(TEMPLATES[self.kind])}")
        if self.truncate != "no" and self.truncate not in TRUNCATE[self.kind]:
            raise ValueError(
                f"kind {self.kind} can't truncate {self.truncate!r}: {', '.join(('no', *TRUNCATE[self.kind]))}"
            )
        if (self.layout == "jinja") != bool(self.chat_template):
            raise ValueError("chat_template goes with template: jinja, and that needs it")
        if self.regression and (self.labels or self.layout == "generate"):
            raise ValueError("regression predicts a number: it takes no labels and no template generate")
        room = self.max_tokens - self.max_question_tokens - 3
        if self.kind == "qa" and room < self.doc_stride:
            raise ValueError(
                f"a window of {self.max_tokens} tokens with a question of {self.max_question_tokens} holds {room} of "
                f"its context: lower doc_stride ({self.doc_stride}) to that at most, so that windows leave no gap"
            )
        if strange := sorted(set(self.roles.values()) - {"system", "user", "assistant"}):
            raise ValueError(f"roles: {strange[0]!r} is no role; there are system, user and assistant")
        return self

    @property
    def layout(self) -> str:
        """The template, the default resolved."""
        return self.template or TEMPLATES[self.kind][0]

    @property
    def has_classes(self) -> bool:
        """Whether its examples are labelled with classes."""
        return self.kind in ("classification", "pair") and not self.regression

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the declared classes in the order of their ids, each once."""
        return tuple(dict.fromkeys(self.labels.values()))

    def check_columns(self, given: dict[str, Any], where: str) -> None:
        """See that a source's declared columns are those that the task reads.

        Raises:
            ValueError: one is missing or unknown; `where` names the source.
        """
        needed, may = COLUMNS[self.kind]
        if self.kind == "chat":
            needed = ("messages",) if "messages" in given else ("user", "assistant")
        missing = [name for name in needed if name not in given]
        if missing:
            example = ", ".join(f"{name}: {name.upper()}" for name in needed)
            raise ValueError(
                f"task {self.kind} needs the column of its {missing[0]}: {where}.columns={{{example}}}, with the "
                "file's own names"
            )
        if strange := sorted(set(given) - {*needed, *may}):
            raise ValueError(
                f"{where}.columns: task {self.kind} has no {strange[0]!r}; it reads "
                f"{', '.join((*needed, *may)) or 'no columns'}"
            )
