"""A model that says what a test wants, for what is built around generation: a real one, its next tokens pushed."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import settings
from data.build.build import build
from data.corpus.source import Source
from data.recipe import DatasetRecipe, Dedup, Split, TokenizerTraining
from data.tasks.task import Task
from tests.conftest import MODEL
from trainer.inputs import open_inputs
from trainer.models.cache import Cache
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.objectives.causal import Causal
from trainer.recipe import Recipe
from trainer.scores import Loaded


class Speaker(Decoder):
    """Answers each prompt with the tokens of `says`, given by the number of the prompt, then goes on by itself."""

    says: list[list[int]]
    heard: list[list[int]]

    def forward(self, input_ids: Tensor, *args: Any, cache: Cache | None = None, **more: Any) -> Tensor:
        assert cache is not None
        if not cache.filled:
            self.heard.append(input_ids[0].tolist())
            self.begun = input_ids.size(1)
        logits = super().forward(input_ids, *args, cache=cache, **more)
        said, script = cache.width - self.begun, self.says[len(self.heard) - 1]
        if said < len(script):
            logits[..., script[said]] += 1e4
        return logits


def loaded(folder: Path, task: Task, rows: list[str], columns: dict[str, str], context: int = 64) -> Loaded:
    """A speaker, silent so far, with a dataset of `rows` of JSONL."""
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    source = Source(kind="jsonl", path=folder / "rows.jsonl", columns=columns)
    wanted = DatasetRecipe(
        name="rows", kind="examples", sources=(source,), task=task, tokenizer=TokenizerTraining(vocab_size=600),
        dedup=Dedup(near=False), split=Split(valid=0.2), workers=1,
    )  # fmt: skip
    place = build(wanted, folder / "dataset").folder
    given = [*MODEL, f"model.context={context}", "train.batch_rows=12", "train.steps=24", f"data.dataset={place}"]
    recipe = settings.load(Recipe, None, [*given, "schedule.warmup_steps=1"])
    inputs = open_inputs(recipe)
    model = Speaker(recipe.model, inputs.vocab_size)
    initialize(model, 1)
    model.says, model.heard = [], []
    objective = Causal(recipe.model.attention, np.asarray(inputs.tokenizer.piece_bytes))
    return Loaded(model.eval(), recipe, inputs, objective, 0, torch.device("cpu"))
