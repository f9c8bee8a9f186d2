"""The verbs that use a model, or hand it over: generate, export."""

import re
from pathlib import Path
from typing import Annotated

import typer

from luban.arguments import PointArgument


def generate(
    run: PointArgument,
    prompt: Annotated[list[str] | None, typer.Argument(help="Texts to continue.", show_default=False)] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A file of prompts (-: stdin), one a line or JSONL with a prompt each; JSONL with texts comes."
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Talk with a model that was fine-tuned on chats.")] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: instead of the dataset's system prompt.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a continuation.")] = 64,
    min_tokens: Annotated[int, typer.Option(min=0, help="Fewest tokens of a continuation.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the K likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest tokens of this mass.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample among tokens this times as likely as the likeliest; 0: all.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens said already get less likely.")] = 1.0,
    no_repeat_ngram_size: Annotated[int, typer.Option(min=0, help="No N tokens come twice in a row; 0: may.")] = 0,
    num_beams: Annotated[int, typer.Option(min=1, help="Beam search with so many.")] = 1,
    early_stopping: Annotated[
        str, typer.Option(help="When beam search ends: false, true or never, as in transformers.")
    ] = "false",
    length_penalty: Annotated[float, typer.Option(help="With beams: above 0 favours longer texts.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
) -> None:
    """Continue prompts with a run's model, or talk with it.

    A continuation by itself is printed as it is made.
    """
    from data.errors import UserError
    from trainer.generation.console import generate_text
    from trainer.generation.settings import Decoding, early_stopping_of

    try:
        decoding = Decoding(
            tokens, min_tokens, temperature, top_k, top_p, min_p, repetition_penalty, no_repeat_ngram_size, num_beams,
            early_stopping_of(early_stopping), length_penalty, samples, seed,
        )  # fmt: skip
    except UserError as error:
        raise UserError(_in_options(str(error))) from None
    generate_text(run, decoding, prompt or [], prompts, chat, system)


def _in_options(text: str) -> str:
    """What is said of a `Decoding`, in the words of the command line."""
    from dataclasses import fields

    from trainer.generation.settings import Decoding

    called = {"max_new_tokens": "tokens", "min_new_tokens": "min-tokens", "num_return_sequences": "samples"}
    for field in fields(Decoding):
        text = re.sub(rf"\b{field.name}\b", "--" + called.get(field.name, field.name.replace("_", "-")), text)
    return text


def export(
    run: PointArgument,
    out: Annotated[Path, typer.Argument(help="The directory to write; it must not be there.", show_default=False)],
    gguf: Annotated[
        Path | None, typer.Option(help="Also write this file, for llama.cpp and what is built on it (llama only).")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: fp32 or bf16.")] = "fp32",
    adapter: Annotated[bool, typer.Option("--adapter", help="The run's adapter alone, in PEFT's format.")] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare logits with transformers, and refuse a wrong export.")
    ] = True,
) -> None:
    """Write a run's weights as a Hugging Face directory, with tokenizer, model card and data provenance.

    A LoRA adapter is merged into the weights. The directory appears when transformers has loaded it and given the
    logits of Luban's model on validation rows.
    """
    from data.errors import UserError

    if adapter:
        from trainer.adapters.save import save_adapter

        for file in save_adapter(run, out):
            typer.echo(file)
        return
    from trainer.hf.export import export as write

    if dtype not in ("fp32", "bf16"):
        raise UserError(f"--dtype {dtype}: weights are written in fp32 or bf16")
    write(run, out, dtype, check, gguf, typer.echo)
