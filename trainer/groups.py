"""Texts of several groups compared: one template filled with each group's words, and what a model makes of them.

A first look at bias, no verdict: it tells whether the groups lie further apart than the same texts do when their groups
are dealt at random (a permutation test, within each template where the file names them). Decoders give a text's mean
loss a token, models of classes the share of texts that get each class, models of numbers their mean.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.errors import UserError
from data.reader import Rows
from data.tasks.encode import encode_examples
from data.tasks.example import Example
from trainer.likelihood import Passage, refuse_others, sums_of
from trainer.objectives.classification import Classification, Regression
from trainer.objectives.examples import read
from trainer.scores import Loaded, load_model
from trainer.sizes import MOST_ROWS

DRAWS = 2000
"""Deals of the permutation test: a share of 0.05 is then known to about 0.01 (two standard errors)."""


@dataclass(frozen=True)
class Text:
    """One line of a file."""

    texts: tuple[str, ...]
    """One, or the two of a pair."""
    group: str
    template: str
    where: str


def read_texts(place: str) -> list[Text]:
    """The texts of a JSONL file: `text` (or `text_a` and `text_b`), `group`, and by choice `template`.

    Raises:
        UserError: it can't be read, a line isn't a text of a group, or there are fewer than two groups.
    """
    try:
        lines = Path(place).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the texts in {place}: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number} of {place}"
        try:
            row = json.loads(line)
            names = ("text",) if "text" in row else ("text_a", "text_b")
            held = (*(row[name] for name in names), row["group"])
            if not all(isinstance(each, str) and each for each in held):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{where} is {line[:60]!r}: it needs text, or text_a and text_b, and group") from None
        found.append(Text(held[:-1], held[-1], str(row.get("template", "")), where))
    if len({text.group for text in found}) < 2:
        raise UserError(f"{place} holds {len({text.group for text in found})} group(s): a comparison needs two")
    return found


def values_of(loaded: Loaded, texts: Sequence[Text]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of what is compared, and its value for each text, (texts, names) fp64.

    Raises:
        UserError: the model has neither classes, numbers nor likelihoods, or a text is too long for it or of another
            form.
    """
    if not isinstance(loaded.objective, Classification | Regression):
        return ("loss, nats/token",), _losses(loaded, texts)
    logits = _logits(loaded, loaded.objective, texts)
    if isinstance(loaded.objective, Regression):
        return ("number",), logits
    return loaded.objective.classes, np.eye(logits.shape[1])[logits.argmax(1)]


def _losses(loaded: Loaded, texts: Sequence[Text]) -> np.ndarray:
    refuse_others(loaded, "a comparison of groups")
    tokenizer, context = loaded.inputs.tokenizer, loaded.recipe.model.context
    passages = []
    for text, tokens in zip(texts, tokenizer.encode_many([" ".join(text.texts) for text in texts]), strict=True):
        if len(tokens) > context:
            raise UserError(f"{text.where}: {len(tokens)} tokens, and the model's context is {context}")
        passages.append(Passage(np.concatenate([[tokenizer.eos_id], tokens]).astype(np.int64)))
    sums = sums_of(loaded, passages)
    return sums[:, :1] / sums[:, 1:2]


def _logits(loaded: Loaded, objective: Classification | Regression, texts: Sequence[Text]) -> np.ndarray:
    """(texts, outputs), each text laid out as the dataset's own examples are."""
    task = loaded.inputs.task
    assert task is not None
    fields = ("text_a", "text_b") if task.kind == "pair" else ("text",)
    for text in texts:
        if len(text.texts) != len(fields):
            raise UserError(
                f"{text.where}: the model was trained on {' and '.join(fields)}, and the line holds another"
            )
    examples = [Example(text.where, text.where, "", tuple(zip(fields, text.texts, strict=True))) for text in texts]
    encoded = encode_examples(examples, loaded.inputs.tokenizer, task, ())
    context = loaded.recipe.model.context
    long = [owner for owner, tokens in zip(encoded.owners, encoded.tokens, strict=True) if len(tokens) > context]
    if long := [*encoded.faults, *long]:
        raise UserError(
            f"{texts[min(long)].where}: the text is too long for the dataset's task.max_tokens, {task.max_tokens}, or "
            f"the model's context, {context}"
        )
    found = []
    for first in range(0, len(texts), MOST_ROWS):
        rows = _rows(encoded.tokens[first : first + MOST_ROWS], encoded.uses[first : first + MOST_ROWS])
        batch = objective.texts.batch(rows, np.zeros(len(rows.lengths), np.int64), loaded.device)
        with torch.no_grad():
            found.append(read(loaded.model, batch).double().cpu().numpy())
    return np.concatenate(found)


def _rows(tokens: Sequence[np.ndarray], uses: Sequence[np.ndarray]) -> Rows:
    lengths = np.array([len(each) for each in tokens])
    held, use = np.zeros((len(tokens), lengths.max()), np.int64), np.zeros((len(tokens), lengths.max()), np.uint8)
    for row, (some, marks) in enumerate(zip(tokens, uses, strict=True)):
        held[row, : len(some)], use[row, : len(some)] = some, marks
    return Rows(held, lengths, (np.zeros(1, np.int64),) * len(tokens), use, np.arange(len(tokens)))


def gap(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """How far the groups' means lie apart at most, by column: (columns,).

    Args:
        values: (texts, columns).
        groups: (texts,) ids 0 .. groups - 1, each at least once.
    """
    counts = np.bincount(groups)
    means = np.stack([np.bincount(groups, column) / counts for column in values.T], 1)
    return means.max(0) - means.min(0)


def chance(values: np.ndarray, groups: np.ndarray, templates: np.ndarray, seed: int = 0) -> np.ndarray:
    """The share of random deals of the groups, within templates, whose gap is at least the real one: (columns,).

    The real deal counts as one of them, so that it is never 0 (Phipson and Smyth 2010, arXiv:1603.05766).
    """
    real, generator = gap(values, groups), np.random.default_rng(seed)
    order = np.argsort(templates, kind="stable")  # texts of one template side by side
    values, groups, templates = values[order], groups[order], templates[order]
    at_least = np.ones(len(real))
    for _ in range(DRAWS):
        dealt = groups[np.lexsort((generator.random(len(groups)), templates))]
        at_least += gap(values, dealt) >= real - 1e-12
    return at_least / (DRAWS + 1)


def evaluate_groups(point: str, place: str) -> str:
    """What `luban evaluate --groups` prints."""
    texts = read_texts(place)
    loaded = load_model(point)
    names, values = values_of(loaded, texts)
    labels, groups = np.unique([text.group for text in texts], return_inverse=True)
    templates = np.unique([text.template for text in texts], return_inverse=True)[1]
    apart, by_chance = gap(values, groups), chance(values, groups, templates)
    width, columns = max(len("of random deals"), *map(len, labels)), [max(10, len(name)) for name in names]

    def line(label: str, count: str, cells: Sequence[str]) -> str:
        return f"  {label:{width}} {count:>7} " + " ".join(f"{c:>{w}}" for c, w in zip(cells, columns, strict=True))

    what = "share of each class" if isinstance(loaded.objective, Classification) else "mean"
    lines = [f"{point} at step {loaded.step} on {len(texts):,} texts of {place}: {what}, by group"]
    lines.append(line("group", "texts", names))
    for number, label in enumerate(labels):
        held = values[groups == number]
        lines.append(line(str(label), f"{len(held):,}", [f"{mean:.4f}" for mean in held.mean(0)]))
    lines.append(line("furthest apart", "", [f"{each:.4f}" for each in apart]))
    lines.append(line("of random deals", "", [f"{each:.4f}" for each in by_chance]))
    lines.append(
        "  the last line: the share of random deals of the groups that lie as far apart; small ones are no chance"
    )
    return "\n".join(lines)
