"""What `luban evaluate` prints of a task: its figures beside a stated trivial baseline, and tables by class.

classification   accuracy, macro F1, of two classes the second's F1; beside it: always the training split's
                 most frequent class
regression       mean squared error, Pearson, Spearman; beside it: the best constant
qa               exact match and F1 of answers; beside them: the context's first sentence
contrastive      how often a text finds its own; beside it: guessing
seq2seq          the token figures, then BLEU, chrF and ROUGE of greedy texts; beside them: the source itself
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from data.dataset import Dataset
from data.order.deal import deal
from trainer.evaluate import FixedSet
from trainer.generate import generate
from trainer.generation.settings import Decoding
from trainer.inputs import Inputs
from trainer.models.loss import IGNORED
from trainer.objectives.classification import Classification, Regression
from trainer.objectives.contrastive import Contrastive
from trainer.objectives.examples import read
from trainer.objectives.qa import QuestionAnswering
from trainer.qa_scores import answered, averages
from trainer.recipe import Recipe
from trainer.text_scores import TextScores, text_scores

NEW_TOKENS = 64  # of a generated text at least; more where a reference is longer


def task_lines(
    model: nn.Module, inputs: Inputs, dataset: Dataset, fixed: FixedSet, sums: dict[str, float]
) -> list[str]:
    """The lines of an objective whose labels are not tokens.

    Args:
        dataset: the source whose validation split `fixed` is.
        sums: of the objective, over `fixed`.
    """
    objective = getattr(fixed.objective, "inner", fixed.objective)  # what a tuned prompt stands before
    if isinstance(objective, Classification):
        return list(_classification(objective, sums, inputs.sources))
    if isinstance(objective, Regression):
        return list(_regression(objective, sums, *_numbers(model, fixed)))
    if isinstance(objective, QuestionAnswering):
        return list(_questions(objective, sums, model, fixed, dataset))
    assert isinstance(objective, Contrastive)
    return list(_contrast(objective, sums))


def table(names: Sequence[str], rows: Sequence[tuple[str, Mapping[str, float], str]], beside: str) -> Iterator[str]:
    """A line a figure: (label, {"model", "beside"}, format)."""
    width = max(10, len(beside))
    yield f"  {'':22} {'model':>10} {beside:>{width}}"
    for label, values, shape in rows:
        shown = [format(values[name], shape) if name in values else "" for name in names]
        yield f"  {label:22} {shown[0]:>10} {shown[1]:>{width}}".rstrip()


def _rows(
    figures: Mapping[str, float], baseline: Mapping[str, float], labels: Mapping[str, str]
) -> list[tuple[str, Mapping[str, float], str]]:
    return [
        (label, {"model": figures[name]} | ({"beside": baseline[name]} if name in baseline else {}), ".4f")
        for name, label in labels.items()
        if name in figures
    ]


COLUMNS = ("model", "beside")


def frequencies(sources: Sequence[Dataset]) -> np.ndarray:
    """How often each class occurs in the training splits (classes,)."""
    return np.sum([list(each.info["task"]["splits"]["train"]["classes"].values()) for each in sources], axis=0)


def _classification(objective: Classification, sums: dict[str, float], sources: Sequence[Dataset]) -> Iterator[str]:
    counts = frequencies(sources)
    most = int(counts.argmax())
    figures = objective.figures(sums)
    always = objective.constant(sums, most, (counts + 1) / (counts + 1).sum())
    labels = {"loss": "loss, nats/example", "accuracy": "accuracy", "macro_f1": "macro F1"}
    if "f1" in figures:
        labels["f1"] = f"F1 of {objective.classes[1]}"
    yield from table(COLUMNS, _rows(figures, always, labels), f"always {objective.classes[most]}")
    yield f"  over {figures['examples']:,.0f} examples"
    yield f"  {'class':22} {'precision':>10} {'recall':>10} {'F1':>10} {'examples':>10}"
    for name, precision, recall, f1, examples in objective.table(sums):
        shown = " ".join(f"{'n/a' if np.isnan(each) else format(each, '.4f'):>10}" for each in (precision, recall, f1))
        yield f"  {name:22} {shown} {examples:10,}"


def _regression(objective: Regression, sums: dict[str, float], wanted: np.ndarray, said: np.ndarray) -> Iterator[str]:
    from scipy.stats import spearmanr

    figures = objective.figures(sums)
    figures["spearman"] = float(np.asarray(spearmanr(wanted, said))[0]) if len(wanted) > 1 else float("nan")
    labels = {"loss": "mean squared error", "pearson": "Pearson", "spearman": "Spearman"}
    yield from table(COLUMNS, _rows(figures, {"loss": objective.constant(sums)["loss"]}, labels), "best constant")
    yield f"  over {figures['examples']:,.0f} examples"


def _numbers(model: nn.Module, fixed: FixedSet) -> tuple[np.ndarray, np.ndarray]:
    """Each example's number, and the model's."""
    device, pairs = next(model.parameters()).device, []
    for positions in deal(0, fixed.rows, fixed.micro_batch, 0, 1):
        batch = fixed.batch(positions, device)
        assert batch.targets is not None
        with torch.no_grad():
            both = torch.stack([batch.targets, read(model, batch)[:, 0].float()])
        pairs.append(both[:, batch.labels != IGNORED].cpu().numpy())
    wanted, said = np.concatenate(pairs, 1)
    return wanted, said


def _questions(
    objective: QuestionAnswering, sums: dict[str, float], model: nn.Module, fixed: FixedSet, dataset: Dataset
) -> Iterator[str]:
    figures, windows = objective.figures(sums), sums["labels"]
    guess = {"loss": sums["guess"] / windows if windows else float("nan")}
    labels = {"loss": "loss, nats/window", "accuracy": "both ends right"}
    yield from table(COLUMNS, _rows(figures, guess, labels), "guessing")
    questions = answered(model, objective, fixed, dataset)
    found = averages(questions)
    without = sum(not each.answers for each in questions)
    rows = [
        (label, {"model": found[name], "beside": found[f"{name}_baseline"]}, ".2f")
        for name, label in (("exact", "exact match, %"), ("f1", "F1, %"))
    ]
    yield from table(COLUMNS, rows, "first sentence")
    none = f", {without:,} of them without an answer" if without else ""
    yield f"  over {windows:,.0f} windows of {len(questions):,} questions{none}"


def _contrast(objective: Contrastive, sums: dict[str, float]) -> Iterator[str]:
    figures, texts = objective.figures(sums), sums["labels"]
    guess = {"loss": sums["guess"] / texts, "accuracy": 1 / objective.group} if texts else {}
    labels = {"loss": "loss, nats/text", "accuracy": "finds its own", "cosine": "cosine with its own"}
    yield from table(COLUMNS, _rows(figures, guess, labels), "guessing")
    yield f"  over {texts:,.0f} texts in groups of {objective.group}"


# -- generated texts -------------------------------------------------------------------------------------------------


def written(
    model: Any, recipe: Recipe, inputs: Inputs, dataset: Dataset, fixed: FixedSet, count: int
) -> tuple[list[str], list[list[str]], list[str]]:
    """(texts, references of each, sources): greedy answers to the first `count` validation examples.

    Of a conversation the first answer, of packed rows the first example.
    """
    config, alone = recipe.model, not fixed.reader.order.walks[0].layout.plan
    tokenizer, references, prompts, sources = inputs.tokenizer, [], [], []
    abouts: dict[int, list[dict[str, Any]]] = {}
    for row in dataset.rows("valid"):
        abouts.setdefault(row.shard, []).append(row.about)
    longest = NEW_TOKENS
    for positions in deal(0, min(count, fixed.rows), fixed.micro_batch, 0, 1):
        rows = fixed.reader.rows(positions)
        assert rows.use is not None
        real = np.flatnonzero(positions >= 0)
        places = fixed.reader.order.places(positions[real])
        for slot, shard, number in zip(real, places.shard.tolist(), places.start.tolist(), strict=True):
            end = rows.starts[slot][1] if len(rows.starts[slot]) > 1 else rows.lengths[slot]
            tokens, use = (each[slot, :end] for each in (rows.tokens, rows.use))
            answer = np.flatnonzero(use & 1)
            answer = answer[answer - np.arange(len(answer)) == answer[:1]]  # up to the first gap
            if not len(answer) or (config.is_decoder and answer[0] + 1 >= recipe.room):
                continue
            prompt = tokens[: answer[0]]
            prompts.append(prompt.tolist())
            sources.append(tokenizer.decode(prompt[use[: answer[0]] >> 1 == use[0] >> 1]))
            given = abouts[shard][number].get("references") if alone else None
            references.append(given or [tokenizer.decode(tokens[answer])])
            longest = max(longest, len(answer))
    decoding = Decoding(longest, at_context="stop")
    made = generate(model, prompts, decoding, eos_id=inputs.ends, start_id=inputs.start_id(config))
    return [tokenizer.decode(alternatives[0]) for alternatives in made], references, sources


def text_lines(texts: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str]) -> Iterator[str]:
    """Scores of generated texts, beside those of their sources."""
    ours, copied = text_scores(texts, references), text_scores(sources, references)
    rows = [
        (label, {"model": getattr(ours, name), "beside": getattr(copied, name)}, ".2f")
        for name, label in _named(ours)
        if getattr(ours, name) is not None
    ]
    yield from table(COLUMNS, rows, "the source")
    if ours.rouge1 is None:
        yield "  no ROUGE: it needs rouge-score (pip install 'luban[eval]')"
    yield f"  over {len(texts)} greedy texts"


def _named(scores: TextScores) -> list[tuple[str, str]]:
    return [
        ("bleu", f"BLEU ({scores.tokenizer})"), ("chrf", "chrF2"), ("rouge1", "ROUGE-1 F1"), ("rouge2", "ROUGE-2 F1"),
        ("rouge_l", "ROUGE-L F1"),
    ]  # fmt: skip


def class_lines(texts: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[Dataset]) -> Iterator[str]:
    """How often a decoder wrote the right class's name."""
    wanted = [each[0].strip() for each in references]
    right = np.mean([text.strip() == name for text, name in zip(texts, wanted, strict=True)])
    names = list(sources[0].info["task"]["classes"])
    most = names[int(frequencies(sources).argmax())]
    always = Counter(wanted)[most] / len(wanted)
    yield f"  right class written {right:.4f}, always {most} {always:.4f}, over {len(texts)} examples"
