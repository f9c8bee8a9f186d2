"""HF Trainer on the weights, rows, rates and steps of one of our runs: `RUN MODEL OUT`, figures to OUT as JSON.

It reads the run's positions in their order through our reader, and sees the same batches; dropout is drawn otherwise.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.reader import LocalReader
from trainer.inputs import Inputs, open_inputs
from trainer.objectives.examples import Sequences
from trainer.run import read_recipe


def examples(reader: LocalReader, rows: int, context: int) -> list[dict[str, Any]]:
    """Rows [0, rows) as a tokenizer of transformers would give them, unpadded."""
    found = []
    for position in range(rows):
        read = reader.rows(np.array([position]))
        length = int(read.lengths[0])
        held = Sequences.of(read, context, torch.device("cpu"))
        assert read.targets is not None
        found.append(
            {
                "input_ids": held.tokens[0, :length].tolist(),
                "token_type_ids": held.types[0, :length].tolist(),
                "attention_mask": [1] * length,
                "labels": int(read.targets[0, 0]),
            }
        )
    return found


def scores(said: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """accuracy, and the second class's F1."""
    right = int(((said == 1) & (labels == 1)).sum())
    return {
        "accuracy": float((said == labels).mean()),
        "f1": 2 * right / max(1, int((said == 1).sum() + (labels == 1).sum())),
    }


def train(inputs: Inputs, run: Path, model: str) -> dict[str, float]:
    """Figures on all validation rows, and those of always saying the training set's larger class."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    recipe = read_recipe(run)
    rows, context = recipe.train.steps * recipe.train.batch_rows, recipe.model.context
    reader, held = next(iter(inputs.fixed.values()))
    train, valid = examples(inputs.reader(), rows, context), examples(reader, held, context)
    set_seed(recipe.seed)
    arguments = TrainingArguments(
        output_dir=str(run / "hf-trainer"), max_steps=recipe.train.steps, seed=recipe.seed, use_cpu=True,
        per_device_train_batch_size=recipe.train.batch_rows, per_device_eval_batch_size=recipe.train.batch_rows,
        train_sampling_strategy="sequential", learning_rate=recipe.optimizer.lr, lr_scheduler_type="linear",
        warmup_steps=recipe.schedule.warmup_steps, weight_decay=recipe.optimizer.weight_decay,
        adam_beta1=recipe.optimizer.betas[0], adam_beta2=recipe.optimizer.betas[1],
        max_grad_norm=recipe.optimizer.clip or 0.0, save_strategy="no", report_to=[], logging_steps=20,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=2), args=arguments,
        train_dataset=train,  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(model)),
    )  # fmt: skip
    trainer.train()
    predicted = trainer.predict(valid)  # pyright: ignore[reportArgumentType]
    labels = np.array([each["labels"] for each in valid])
    larger = np.bincount([each["labels"] for each in train]).argmax()
    trivial = scores(np.full_like(labels, larger), labels)
    found = scores(np.asarray(predicted.predictions).argmax(-1), labels)
    return {**found, **{f"baseline_{name}": value for name, value in trivial.items()}}


def main(run: Path, model: str, out: Path) -> None:
    """Train and write."""
    figures = train(open_inputs(read_recipe(run)), run, model)
    out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
