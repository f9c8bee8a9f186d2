"""A conversation with a model in the terminal, by the chat template of the dataset that it learned from.

Each answer is made from the whole conversation, laid out as its training rows were. What no longer fits the context
beside the answer's room is cut from its beginning, a question and its answer at a time, as `task.truncate: first_turns`
does when the dataset is built; the system prompt stays, and each cut is said.
"""

from collections.abc import Callable, Iterator
from contextlib import closing

from data.errors import UserError
from data.tasks.task import Task
from data.tasks.template import answer_end, encode_chat
from data.tokenizer.tokenizer import Tokenizer
from trainer.generate import stream
from trainer.generation.settings import Decoding
from trainer.generation.text import spoken, until
from trainer.scores import Loaded


class Conversation:
    """Turns so far, and their tokens."""

    def __init__(self, tokenizer: Tokenizer, task: Task, system: str | None = None) -> None:
        """`system` stands in for the dataset's own system prompt."""
        said = task.system if system is None else system
        self._system = [("system", said)] if said else []
        self._tokenizer, self._task = tokenizer, task
        self.turns: list[tuple[str, str]] = []
        """(role, text), without the system prompt."""

    def ask(self, text: str, room: int) -> tuple[list[int], int]:
        """Adds a message of the user's.

        Args:
            room: tokens that the conversation may take.
        Returns:
            The tokens up to where the answer begins, and how many turns were cut from the beginning.

        Raises:
            UserError: the message doesn't fit by itself, or the template refuses it; it is not added.
        """
        turns, cut = [*self.turns, ("user", text)], 0
        while len(tokens := self._tokens(turns[cut:])) > room:
            if cut + 1 == len(turns):
                raise UserError(
                    f"that message makes {len(tokens)} tokens, and beside an answer the context has room for {room}"
                )
            cut += 2
        self.turns = turns[cut:]
        return tokens, cut

    @property
    def least(self) -> int:
        """Tokens of an empty message after the system prompt."""
        return len(self._tokens([("user", "")]))

    def _tokens(self, turns: list[tuple[str, str]]) -> list[int]:
        return encode_chat(self._tokenizer, [*self._system, *turns], self._task).tolist()

    def answer(self, text: str) -> None:
        """Adds the assistant's turn; without any text, the message that it would have answered is dropped."""
        if text.strip():
            self.turns.append(("assistant", text))
        else:
            self.turns.pop()


def chat(
    loaded: Loaded,
    decoding: Decoding,
    system: str | None,
    read: Callable[[], str | None],
    write: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    """Questions and answers until there are no more questions.

    Args:
        system: instead of the dataset's system prompt; None: that one.
        read: the next message; None ends the conversation.
        write: takes the answer's text as it comes.
        note: takes what isn't the model's: cuts, and messages that can't be asked.

    Raises:
        UserError: the model has learned no conversations, or its context has no room beside an answer.
    """
    task = loaded.inputs.task
    if task is None or task.kind != "chat":
        what = "plain text" if task is None else f"examples of kind {task.kind}"
        raise UserError(
            f"this model has learned {what}, not conversations: without --chat it continues a prompt; fine-tune it on "
            "a dataset of task.kind=chat to talk with it"
        )
    context = loaded.recipe.room
    room = context - decoding.max_new_tokens
    if room < 1:
        raise UserError(
            f"an answer of up to {decoding.max_new_tokens} tokens leaves no room in a context of {context}: lower "
            "--tokens"
        )
    conversation = Conversation(loaded.inputs.tokenizer, task, system)
    if system is not None and (least := conversation.least) > room:
        raise UserError(
            f"the system prompt of --system and an empty message make {least} tokens, and beside an answer of up to "
            f"{decoding.max_new_tokens} the context has room for {room}: shorten it, or lower --tokens"
        )
    while (text := read()) is not None:
        if not text.strip():
            continue
        try:
            tokens, cut = conversation.ask(text, room)
        except UserError as error:
            note(str(error))
            continue
        if cut:
            note(f"the conversation is longer than the context of {context} tokens: its first {cut} turns were cut")
        said = ""
        try:
            for piece in _answer(loaded, tokens, decoding, task):
                write(piece)
                said += piece
        except KeyboardInterrupt:
            write("\n")
            note("stopped")
        else:
            write("\n")
        conversation.answer(said)


def _answer(loaded: Loaded, tokens: list[int], decoding: Decoding, task: Task) -> Iterator[str]:
    tokenizer = loaded.inputs.tokenizer
    ends, stop = answer_end(tokenizer, task)
    with closing(stream(loaded.model, tokens, decoding, eos_id=ends)) as made:
        yield from until(spoken(made, tokenizer), stop)
