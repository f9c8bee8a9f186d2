"""HF Trainer's side of `trainer_parity`: `RUN MODEL OUT MINE OTHERS`, losses and seconds to OUT as JSON.

It reads our run's positions in their order through our reader, into the lists that a tokenizer of transformers gives;
its own loader and collator make the batches of them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from tests.bench.tasks_by_trainer import examples
from tests.bench.turns import Turns
from trainer.inputs import open_inputs
from trainer.models.shapes import decays
from trainer.recipe import Recipe
from trainer.run import read_recipe
from trainer.schedule import learning_rate


class Theirs(Trainer):
    """Trainer with our rates and our choice of what decays; it keeps the losses."""

    def __init__(self, recipe: Recipe, **more: Any):
        super().__init__(**more)
        self.recipe, self.losses = recipe, []

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices, but no embeddings."""
        return [name for name, parameter in model.named_parameters() if decays(name, parameter.dim())]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Ours."""
        schedule, optimizer = self.recipe.schedule, optimizer or self.optimizer
        self.lr_scheduler = LambdaLR(optimizer, lambda step: learning_rate(step, schedule, 1.0, num_training_steps))
        return self.lr_scheduler

    def training_step(self, *args: Any, **more: Any) -> torch.Tensor:
        """As it is."""
        loss = super().training_step(*args, **more)
        self.losses.append(loss)
        return loss


class TakingTurns(TrainerCallback):
    """Takes turns after updates."""

    def __init__(self, turns: Turns):
        self.turns = turns

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.turns.begin()

    def on_step_end(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:
        self.turns.stepped(last=state.global_step == args.max_steps)


def texts(reader: Any, rows: int) -> list[dict[str, Any]]:
    """Rows [0, rows) of text: what the model reads, and what comes next."""
    found = []
    for position in range(rows):
        tokens = reader.rows(np.array([position])).tokens[0].tolist()
        found.append({"input_ids": tokens[:-1], "labels": tokens[1:], "shift_labels": tokens[1:]})
    return found


def arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    """What our recipe is to Trainer."""
    return TrainingArguments(
        output_dir=str(folder), max_steps=recipe.train.steps, seed=recipe.seed, use_cpu=True,
        per_device_train_batch_size=recipe.train.batch_rows, train_sampling_strategy="sequential",
        remove_unused_columns=False, learning_rate=recipe.optimizer.lr, weight_decay=recipe.optimizer.weight_decay,
        adam_beta1=recipe.optimizer.betas[0], adam_beta2=recipe.optimizer.betas[1], adam_epsilon=recipe.optimizer.eps,
        max_grad_norm=recipe.optimizer.clip or 0.0, save_strategy="no", report_to=[],
        logging_steps=recipe.log.every_steps, disable_tqdm=True,
    )  # fmt: skip


def main(run: Path, model: str, out: Path, turns: Turns) -> None:
    """Train and write."""
    recipe = read_recipe(run)
    inputs, rows = open_inputs(recipe), recipe.train.steps * recipe.train.batch_rows
    if inputs.dataset.kind == "text":
        held, collate, auto = texts(inputs.reader(), rows), default_data_collator, AutoModelForCausalLM
    else:
        held = examples(inputs.reader(), rows, recipe.model.context)
        collate = DataCollatorWithPadding(AutoTokenizer.from_pretrained(model))
        auto = AutoModelForSequenceClassification
    no_dropout = dict.fromkeys(
        ("attn_pdrop", "embd_pdrop", "resid_pdrop") if recipe.model.family == "gpt2"
        else ("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0,
    )  # fmt: skip
    trainer = Theirs(
        recipe, model=auto.from_pretrained(model, **no_dropout), args=arguments(recipe, out.with_suffix("")),
        train_dataset=held, data_collator=collate, callbacks=[TakingTurns(turns)],
    )  # fmt: skip
    trainer.train()
    out.write_text(json.dumps({"losses": [float(loss) for loss in trainer.losses], "seconds": turns.seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Turns(int(sys.argv[4]), int(sys.argv[5])))
