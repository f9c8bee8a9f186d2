"""Answers to questions, and their exact match and F1 (SQuAD 1.1 and 2.0, arXiv:1606.05250, 1806.03822).

A question's context is one window or several; of each window's likeliest first and last tokens the best span counts,
and of all its windows the best of these. "No answer" is the score of <|cls|>, of the window where it is least (BERT,
section 4.3); it is an answer only where the training split has questions without one.
"""

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data.dataset import Dataset, DocumentRow
from data.order.deal import deal
from data.tasks.span import answer_text
from trainer.evaluate import FixedSet
from trainer.objectives.qa import QuestionAnswering

LIKELIEST = 20  # first and last tokens of a window that are combined (n_best_size in BERT's run_squad.py)
LONGEST = 30  # tokens of an answer at most (max_answer_length there)
_CHINESE = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


@dataclass
class Answered:
    """A question, what it should be answered with, and what it was."""

    question: str
    """Its id."""
    answers: list[str]
    """Any of these; none: it has no answer."""
    said: str = ""
    """Empty: no answer."""
    score: float = -np.inf
    """Of the best span so far."""
    none: float = np.inf
    """The least score of no answer so far."""
    first_sentence: str = field(default="", repr=False)
    """Of its context: what the baseline says."""


def normalised_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: SQuAD's evaluate-v2.0.py. Chinese and Japanese characters
    are words of their own, as in MLQA's evaluation (arXiv:1910.07475)."""
    text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    text = _CHINESE.sub(r" \1 ", text)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


_PUNCTUATION = {*string.punctuation, *"，。、；：？！“”‘’（）《》【】…—·「」『』"}


def exact_match(said: str, answers: Sequence[str]) -> float:
    """1 where what was said is one of the answers, normalised; no answers: where nothing was said."""
    return float(normalised_answer(said) in {normalised_answer(answer) for answer in answers or [""]})


def f1(said: str, answers: Sequence[str]) -> float:
    """The best overlap of words with one of the answers, as the harmonic mean of precision and recall."""
    words = normalised_answer(said).split()
    return max(_overlap(words, normalised_answer(answer).split()) for answer in answers or [""])


def _overlap(said: list[str], answer: list[str]) -> float:
    if not said or not answer:
        return float(said == answer)
    same = sum((Counter(said) & Counter(answer)).values())
    return 2 * same / (len(said) + len(answer))


def best_span(scores: np.ndarray) -> tuple[tuple[int, int], float]:
    """The span (first, last token) of the highest score, and it; of `scores` (T, 2), -inf where none may stand.

    The first place is "no answer" and left out. ((0, 0), -inf) where there is no span.
    """
    begin, end = scores[1:, 0], scores[1:, 1]
    firsts, lasts = (np.argsort(-each, kind="stable")[:LIKELIEST] for each in (begin, end))
    together = begin[firsts][:, None] + end[lasts]
    length = lasts - firsts[:, None]
    together = np.where((length >= 0) & (length < LONGEST), together, -np.inf)
    row, column = np.unravel_index(int(together.argmax()), together.shape)
    if not np.isfinite(together[row, column]):
        return (0, 0), -np.inf
    return (int(firsts[row]) + 1, int(lasts[column]) + 1), float(together[row, column])


def answered(model: Any, objective: QuestionAnswering, fixed: FixedSet, dataset: Dataset) -> list[Answered]:
    """Every question that has a window among the rows of `fixed`, the validation split of `dataset`."""
    may_be_none = bool(dataset.info["task"]["splits"]["train"].get("no_answer"))
    stride = dataset.info["recipe"]["task"]["doc_stride"]
    found: dict[str, Answered] = {}
    for row, tokens, uses, scores in _windows(model, objective, fixed, dataset):
        asked = row.about["question"]
        if asked not in found:
            found[asked] = Answered(asked, row.about["answers"])
        held = found[asked]
        if row.about["window"] == 0:
            held.first_sentence = _first_sentence(fixed, tokens, uses, row)
        held.none = min(held.none, float(scores[0].sum()))
        span, score = best_span(scores)
        if score > held.score:
            held.score = score
            held.said = answer_text(fixed.tokenizer, tokens, uses, row.about, stride, span)
    for held in found.values():
        if may_be_none and held.none > held.score:
            held.said = ""
    return list(found.values())


def _windows(
    model: Any, objective: QuestionAnswering, fixed: FixedSet, dataset: Dataset
) -> Iterator[tuple[DocumentRow, np.ndarray, np.ndarray, np.ndarray]]:
    """(document table's row, tokens, use bytes, scores) of each window."""
    table: dict[int, list[DocumentRow]] = {}
    for row in dataset.rows("valid"):
        table.setdefault(row.shard, []).append(row)
    device = next(model.parameters()).device
    for positions in deal(0, fixed.rows, fixed.micro_batch, 0, 1):
        rows = fixed.reader.rows(positions)
        assert rows.use is not None
        with torch.no_grad():
            scores = objective.scores(model, objective.batch(rows, device)).cpu().numpy()
        real = np.flatnonzero(positions >= 0)
        places = fixed.reader.order.places(positions[real])
        for slot, shard, number in zip(real, places.shard.tolist(), places.start.tolist(), strict=True):
            length = int(rows.lengths[slot])
            yield table[shard][number], rows.tokens[slot, :length], rows.use[slot, :length], scores[slot, :length]


def _first_sentence(fixed: FixedSet, tokens: np.ndarray, uses: np.ndarray, row: DocumentRow) -> str:
    context = row.about.get("context")
    if context is None:
        inside = np.flatnonzero(uses & 1)[1:]
        context = fixed.tokenizer.decode(tokens[inside])
    return re.split(r"(?<=[.!?])\s|(?<=[。！？])", context.strip(), maxsplit=1)[0]


def averages(questions: Sequence[Answered]) -> dict[str, float]:
    """exact and f1, and those of answering with the context's first sentence, in percent; over `questions`."""
    scored = {
        "exact": [exact_match(each.said, each.answers) for each in questions],
        "f1": [f1(each.said, each.answers) for each in questions],
        "exact_baseline": [exact_match(each.first_sentence, each.answers) for each in questions],
        "f1_baseline": [f1(each.first_sentence, each.answers) for each in questions],
    }
    return {name: 100 * float(np.mean(values)) if values else float("nan") for name, values in scored.items()}
