"""One input as a run's model reads it, and the figure of its answer that can be taken apart.

The input is laid out as the run's own rows are. The figure follows the model: of a decoder the log-probability of the
likeliest next token, of an encoder-decoder that of its own answer, of a masked model that at the mask; of classes a
logit; of numbers the number; of questions the logits of both ends of the answer, added.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from data.tasks.encode import encode_examples
from data.tasks.example import Example
from trainer.generate import generate
from trainer.generation.passes import prefix
from trainer.generation.settings import Decoding
from trainer.objectives.examples import SECOND
from trainer.qa_scores import best_span
from trainer.scores import Loaded

MOST = 128
"""Tokens of an input: what a picture can still show."""
ANSWER = 32
"""Most tokens of the answer that an encoder-decoder makes by itself."""
TEXTS = {"classification": ("text",), "pair": ("text_a", "text_b"), "qa": ("question", "context")}
"""Kind of task -> the texts of an example that a head reads."""


@dataclass(frozen=True)
class Reading:
    """Tokens, what the model makes of them, and what is asked of that."""

    ids: list[int]
    """What the encoder reads, or the decoder where there is no encoder."""
    given: int
    """How many of them are the input; those after it are a target's, being read."""
    run: Callable[[Tensor], Any]
    """(rows, T) int64 ids of this length -> what the model gives."""
    figure: str = ""
    """What is asked, in words; empty: nothing is."""
    value: Callable[[Any], Tensor] = lambda found: found
    """What the model gives -> the figure, (rows,)."""
    target: str = ""
    """The class, text or answer that the figure is of."""
    decoder_ids: tuple[int, ...] = ()
    """What an encoder-decoder's decoder reads."""


def read_as_trained(loaded: Loaded, texts: Sequence[str], target: str | None) -> Reading:
    """The reading of one text, of the two of a pair, or of a question and its context.

    Args:
        target: a class's name, or a text whose log-probability is asked; None: what the model says itself.

    Raises:
        UserError: the model doesn't read such texts, they are too long, or it can't give such a target.
    """
    if not all(each.strip() for each in texts):
        raise UserError("the text is empty: give the input that is to be explained")
    name = loaded.objective.name
    if name in ("classification", "regression", "qa", "contrastive"):
        return _by_head(loaded, name, texts, target)
    if len(texts) != 1:
        raise UserError("the model reads one text: leave --second out")
    if name == "masked":
        return _masked(loaded, texts[0], target)
    if loaded.recipe.model.is_encoder_decoder:
        return _encoder_decoder(loaded, texts[0], target)
    return _decoder(loaded, texts[0], target)


def log_probability(logits: Tensor, wanted: Sequence[int]) -> Tensor:
    """(rows,) fp64: of the tokens `wanted`, predicted by (rows, tokens, vocabulary)."""
    index = torch.tensor(wanted, device=logits.device)[None, :, None].expand(len(logits), -1, 1)
    return logits.double().log_softmax(-1).gather(-1, index).sum((1, 2))


def _decoder(loaded: Loaded, text: str, target: str | None) -> Reading:
    model: Any = loaded.model
    ids = [*prefix(model), *loaded.inputs.encode_prompt(text)]
    _refuse_long(loaded, len(ids))
    wanted = _wanted(loaded, target)
    asked = torch.tensor([len(ids)], device=loaded.device)

    def run(rows: Tensor) -> Tensor:
        if loaded.recipe.model.attention == "prefix":
            return model(rows, prefixes=asked.expand(len(rows)))
        return model(rows)

    if not wanted:
        with torch.no_grad():
            wanted = [int(run(torch.tensor([ids], device=loaded.device))[0, -1].argmax())]
    whole = [*ids, *wanted[:-1]]
    _refuse_long(loaded, len(whole))
    figure = "log-probability of the text that follows" if target else "log-probability of the likeliest next token"
    first = len(ids) - 1
    return Reading(
        whole, len(ids), run, figure, lambda logits: log_probability(logits[:, first:], wanted),
        _said(loaded, wanted),
    )  # fmt: skip


def _encoder_decoder(loaded: Loaded, text: str, target: str | None) -> Reading:
    model: Any = loaded.model
    inputs, start = loaded.inputs, loaded.inputs.start_id(loaded.recipe.model)
    assert start is not None
    asked = inputs.encode_prompt(text)
    ids = [*prefix(model), *asked]
    _refuse_long(loaded, len(ids))
    wanted = _wanted(loaded, target)
    if not wanted:
        decoding = Decoding(ANSWER, at_context="stop")
        [[wanted]] = generate(model, [asked], decoding, eos_id=inputs.ends, start_id=start)
        wanted = wanted or [inputs.tokenizer.eos_id]
    read = (start, *wanted[:-1])
    _refuse_long(loaded, len(read))
    decoder_ids = torch.tensor([read], device=loaded.device)
    return Reading(
        ids, len(ids), lambda rows: model(rows, decoder_ids.expand(len(rows), -1)),
        f"log-probability of {'the text asked for' if target else 'its answer'}",
        lambda logits: log_probability(logits, wanted), _said(loaded, wanted), read,
    )  # fmt: skip


def _masked(loaded: Loaded, text: str, target: str | None) -> Reading:
    model, tokenizer = loaded.model, loaded.inputs.tokenizer
    mask, cls, sep = (tokenizer.piece_id(f"<|{role}|>") for role in ("mask", "cls", "sep"))
    before, *after = text.split(tokenizer.pieces[mask])
    if len(after) != 1:
        raise UserError(
            f"the model says what stands at a mask, and the text holds {len(after)}: put one {tokenizer.pieces[mask]} "
            "where a token should be"
        )
    first, second = (each.tolist() for each in tokenizer.encode_many([before, *after]))
    ids = [cls, *first, mask, *second, sep]
    _refuse_long(loaded, len(ids))
    at = 1 + len(first)

    def logits(found: Any) -> Tensor:
        return (found[0] if isinstance(found, tuple) else found)[:, at : at + 1]

    wanted = _wanted(loaded, target)
    if len(wanted) > 1:
        pieces = " ".join(repr(tokenizer.decode([each])) for each in wanted)
        raise UserError(f"--target {target!r} is {len(wanted)} tokens ({pieces}), and a mask stands for one")
    if not wanted:
        with torch.no_grad():
            wanted = [int(logits(model(torch.tensor([ids], device=loaded.device))).argmax())]
    return Reading(
        ids, len(ids), model, "log-probability of the token at the mask",
        lambda found: log_probability(logits(found), wanted), _said(loaded, wanted),
    )  # fmt: skip


def _by_head(loaded: Loaded, name: str, texts: Sequence[str], target: str | None) -> Reading:
    """An example without its label, read by a head on one of its tokens or on all."""
    model, task = loaded.model, loaded.inputs.task
    assert task is not None
    fields = TEXTS[task.kind][:1] if name == "contrastive" else TEXTS[task.kind]
    if len(texts) != len(fields):
        raise UserError(
            f"the model was trained on {' and '.join(fields)}: give {len(fields)} text{'s' * (len(fields) > 1)}, "
            + ("the second by --second" if len(fields) > 1 else "and leave --second out")
        )
    held = tuple(zip(fields, texts, strict=True))
    example = Example("", "", "", held, about=dict(held))
    encoded = encode_examples([example], loaded.inputs.tokenizer, task, ())
    if len(encoded.tokens) != 1:
        raise UserError(
            f"the input is longer than the dataset's task.max_tokens, {task.max_tokens}, lets an example be: shorten it"
        )
    virtual, uses = prefix(model), encoded.uses[0]
    ids = [*virtual, *encoded.tokens[0].tolist()]
    _refuse_long(loaded, len(ids))
    whole = np.concatenate([np.zeros(len(virtual), np.uint8), uses])
    marked = (whole & 1).astype(bool)
    types = torch.from_numpy(np.isin(whole >> 1, SECOND).astype(np.int64))[None].to(loaded.device)
    if loaded.recipe.model.type_vocab_size < 2 or len(fields) < 2:
        types = torch.zeros_like(types)
    at = torch.tensor([int(marked.argmax())], device=loaded.device)

    def run(rows: Tensor) -> Any:
        if loaded.recipe.model.is_decoder:
            return model(rows, at=at.expand(len(rows)))
        return model(rows, token_types=types.expand(len(rows), -1))

    reading = Reading(ids, len(ids), run)
    if name == "contrastive":
        _refuse_target(target, "its vectors say nothing in words")
        return reading
    with torch.no_grad():
        found = run(torch.tensor([ids], device=loaded.device))[0].float()
    if name == "regression":
        _refuse_target(target, "it gives a number")
        return Reading(ids, len(ids), run, "the number", lambda rows: rows[:, 0])
    if name == "qa":
        _refuse_target(target, "it answers with a part of the context")
        scores = found.cpu().masked_fill(~torch.from_numpy(marked)[:, None], -np.inf).numpy()
        (begin, end), _ = best_span(scores)
        said = loaded.inputs.tokenizer.decode(ids[begin : end + 1]).strip() if begin else "no answer"
        figure = "logits of the answer's first and last token, added"
        return Reading(ids, len(ids), run, figure, lambda rows: rows[:, begin, 0] + rows[:, end, 1], said)
    classes = loaded.inputs.dataset.info["task"]["classes"]
    if target is not None and target not in classes:
        raise UserError(f"--target {target!r} is no class of the model: {', '.join(classes)}")
    chosen = int(found.argmax()) if target is None else classes.index(target)
    return Reading(ids, len(ids), run, "logit of the class", lambda rows: rows[:, chosen], classes[chosen])


def _wanted(loaded: Loaded, target: str | None) -> list[int]:
    """The tokens of a text asked for; none: none was."""
    if target == "":
        raise UserError("--target is empty: say which text, or leave it out for what the model says itself")
    return loaded.inputs.tokenizer.encode(target).tolist() if target else []


def _said(loaded: Loaded, tokens: Sequence[int]) -> str:
    return loaded.inputs.tokenizer.decode(tokens, control=True)


def _refuse_target(target: str | None, why: str) -> None:
    if target is not None:
        raise UserError(f"--target can't be asked of this model: {why}")


def _refuse_long(loaded: Loaded, count: int) -> None:
    """Raise UserError where so many tokens are too many for the model, or for a picture."""
    room = min(MOST, loaded.recipe.model.context)
    if count > room:
        why = "the model's context holds" if room < MOST else "a picture shows"
        raise UserError(f"the input and its target are {count} tokens, and {why} {room}: shorten them")
