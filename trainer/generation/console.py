"""What `luban generate` does with standard input and output: prompts, files of them, and a conversation.

Control characters that a model utters reach a file as they are; on a terminal they are shown as dots.
"""

import sys
from contextlib import suppress

from data.errors import UserError
from trainer.generation.chat import chat
from trainer.generation.prompts import answered, rows_of, write_texts
from trainer.generation.settings import Decoding
from trainer.scores import load_model
from trainer.units import printable


def generate_text(
    point: str, decoding: Decoding, prompts: list[str], file: str | None, talk: bool, system: str | None
) -> None:
    """Continue `prompts`, or those in `file`, or talk, with the model of RUN[@STEP].

    Raises:
        UserError: not exactly one of the three is asked for, or what the model can't do.
    """
    if (bool(prompts) + (file is not None) + talk) != 1:
        raise UserError("say what to continue: texts, or --prompts FILE, or --chat for a conversation; one of them")
    if system is not None and not talk:
        raise UserError("--system is the system prompt of a conversation: it goes with --chat")
    if any("\udc80" <= character <= "\udcff" for text in prompts for character in text):
        raise UserError("a prompt is not valid UTF-8")
    if talk and (decoding.num_beams > 1 or decoding.num_return_sequences > 1):
        raise UserError("--chat gives one answer as it is made: it goes with neither --num-beams nor --samples")
    rows = rows_of(file) if file is not None else []
    loaded = load_model(point)
    if talk:
        chat(loaded, decoding, system, _ask, _write, _note)
    elif rows:
        for line in answered(loaded, rows, decoding):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    else:
        write_texts(loaded, prompts, decoding, _write)


def _ask() -> str | None:
    """The next line of standard input; None at its end."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  gives `input` a history and a line editor
        sys.stdout.flush()
        try:
            return input("> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return None
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _write(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _note(text: str) -> None:
    print(f"luban: {text}", file=sys.stderr, flush=True)
