"""Small datasets of examples, built for real: 120 rows of made-up English, of any kind of task."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data.build.build import build
from data.recipe import DatasetRecipe, Dedup, Source, Split, TokenizerTraining
from data.tasks.task import Task

WORDS = [f"{first}{second}" for first in ("ca", "tre", "mou", "hou") for second in ("t", "e", "se", "nd", "rs")]
ROWS = 120
COLUMNS = {
    "classification": ("text", "label"), "pair": ("text_a", "text_b", "label"), "seq2seq": ("source", "target"),
    "prompt_completion": ("prompt", "completion"),
}  # fmt: skip


def source(folder: Path, kind: str, seed: int = 1) -> Source:
    """A file of such rows, and what is read from it. A label is 0, 1 or 2, by the number of words modulo 3."""
    draw = np.random.default_rng(seed)
    if kind == "qa":
        path = folder / f"qa-{seed}.json"
        path.write_text(json.dumps({"version": "2.0", "data": [_article(n, draw) for n in range(ROWS // 4)]}))
        return Source(kind="squad", path=path)
    texts = [[" ".join(draw.choice(WORDS, 3 + (n + shift) % 9)) for n in range(ROWS)] for shift in (0, 4)]
    columns = COLUMNS[kind]
    rows = [[*(text[n] for text in texts), str(n % 3)] for n in range(ROWS)]
    kept = [[*row[: len(columns) - 1], row[-1]] if "label" in columns else row[:2] for row in rows]
    path = folder / f"{kind}-{seed}.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in kept))
    return Source(kind="tsv", path=path, header=columns, columns={name: name for name in columns})


def _article(number: int, draw: np.random.Generator) -> dict[str, Any]:
    """One context and four questions, the last without an answer."""
    words = draw.choice(WORDS, 30).tolist()
    context, asked = " ".join(words), []
    for place in range(4):
        first = 7 * place
        answer = {"text": " ".join(words[first : first + 2]), "answer_start": len(" ".join([*words[:first], ""]))}
        answers = [] if place == 3 else [answer]
        asked.append({"id": f"{number}-{place}", "question": f"which {words[first]}", "answers": answers})
    return {"title": f"article {number}", "paragraphs": [{"context": context, "qas": asked}]}


def built(
    folder: Path, kind: str, template: str = "", tokenizer: Path | None = None, seed: int = 1, **task: Any
) -> Path:
    """The dataset's folder, in `folder`.

    Args:
        tokenizer: of another dataset; None: one of 600 pieces is trained.
    """
    name = "-".join([kind, template, str(seed), *map(str, task.values())])
    wanted = DatasetRecipe(
        name="rows", kind="examples", sources=(source(folder, kind, seed),), split=Split(valid=0.2),
        task=Task.model_validate({"kind": kind, "template": template, **task}), dedup=Dedup(exact=False, near=False),
        tokenizer=TokenizerTraining.model_validate({"reuse": tokenizer} if tokenizer else {"vocab_size": 600}),
        workers=1,
    )  # fmt: skip
    return build(wanted, folder / name).folder
