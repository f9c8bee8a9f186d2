"""Minimal pairs: does a model find the grammatical sentence of two likelier? Files of BLiMP (arXiv:1912.00582).

A sentence's score is the sum of its tokens' log-probabilities after an EOS, without one at its end, as in the paper;
a pair is right if the good sentence scores strictly higher. Chance is 0.5.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import UserError
from trainer.likelihood import Passage, refuse_others, sums_of
from trainer.scores import Loaded, load_model


@dataclass(frozen=True)
class Pair:
    """One line of a file."""

    good: str
    bad: str
    phenomenon: str
    """BLiMP's linguistics_term, else its UID, else the file's name."""
    where: str
    """File and line, for messages."""


def read_pairs(place: str) -> list[Pair]:
    """The pairs of a JSONL file, or of all of a folder's in the order of their names.

    Raises:
        UserError: there is none, or a line isn't a pair.
    """
    path = Path(place)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    pairs = [pair for file in files for pair in _pairs(file)]
    if not pairs:
        raise UserError(
            f"{place} holds no pair: it should be JSONL with sentence_good and sentence_bad, or a folder of it"
        )
    return pairs


def _pairs(file: Path) -> Iterator[Pair]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the pairs in {file}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            good, bad = row["sentence_good"], row["sentence_bad"]
            if not (isinstance(good, str) and isinstance(bad, str) and good and bad):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"line {number} of {file} is {line[:60]!r}: it needs sentence_good and sentence_bad, both text"
            ) from None
        if good == bad:
            raise UserError(f"line {number} of {file}: sentence_good and sentence_bad are the same, {good[:60]!r}")
        term = row.get("linguistics_term") or row.get("UID") or file.stem
        yield Pair(good, bad, str(term), f"line {number} of {file}")


def judged(loaded: Loaded, pairs: list[Pair]) -> np.ndarray:
    """(pairs,) bool: whether the good sentence is the likelier one.

    Raises:
        UserError: the model is no decoder, or a sentence is longer than its context.
    """
    refuse_others(loaded, "a minimal pair")
    tokenizer, context = loaded.inputs.tokenizer, loaded.recipe.model.context
    encoded = tokenizer.encode_many([text for pair in pairs for text in (pair.good, pair.bad)])
    passages = []
    for number, tokens in enumerate(encoded):
        if len(tokens) > context:
            raise UserError(f"{pairs[number // 2].where}: {len(tokens)} tokens, and the model's context is {context}")
        passages.append(Passage(np.concatenate([[tokenizer.eos_id], tokens]).astype(np.int64)))
    losses = sums_of(loaded, passages)[:, 0].reshape(-1, 2)
    return losses[:, 0] < losses[:, 1]


def evaluate_pairs(point: str, place: str) -> str:
    """What `luban evaluate --pairs` prints: accuracy by phenomenon, its mean over them, and over all pairs."""
    pairs = read_pairs(place)
    loaded = load_model(point)
    right = judged(loaded, pairs)
    terms = np.array([pair.phenomenon for pair in pairs])
    shares = {term: (int((terms == term).sum()), float(right[terms == term].mean())) for term in sorted(set(terms))}
    width = max(len("phenomenon"), *map(len, shares))
    lines = [
        f"{point} at step {loaded.step} on {len(pairs):,} minimal pairs of {place}; chance is 0.5",
        f"  {'phenomenon':{width}} {'pairs':>8} {'accuracy':>9}",
    ]
    lines += [f"  {term:{width}} {count:8,} {share:9.4f}" for term, (count, share) in shares.items()]
    mean = float(np.mean([share for _, share in shares.values()]))
    lines.append(f"  {'mean of these':{width}} {'':8} {mean:9.4f}")
    lines.append(f"  {'all pairs':{width}} {len(pairs):8,} {right.mean():9.4f}")
    return "\n".join(lines)
