"""Our engine against HF Trainer: the same weights, batches and rates give the same losses, update by update.

`tests/bench/trainer_parity.py` holds 200 updates of real models to it, in real runs.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import settings
from tests.ranks import launch
from tests.trainer.families import VOCABULARY, built, config, padded, real, tokens
from trainer.engine import Engine
from trainer.hf.config import hugging_face_config
from trainer.models.head import LM, Head
from trainer.optimizer import parameter_groups
from trainer.recipe import Recipe
from trainer.schedule import learning_rate
from trainer.world import World

UPDATES, ROWS, WIDTH = 8, 6, 24
HEADS = {"bert": Head("classes", 2), "gpt2": LM}


@pytest.fixture(scope="session")
def hf() -> Any:
    import transformers

    return transformers


def recipe(stage: int) -> Recipe:
    """Rates that move the weights far in a few updates; every gradient is clipped."""
    return settings.load(
        Recipe, None,
        [f"train.steps={UPDATES}", f"train.batch_rows={ROWS}", "optimizer.lr=3e-3", "optimizer.weight_decay=0.1",
         "optimizer.clip=0.2", "schedule.warmup_steps=2", "schedule.kind=linear", f"engine.zero_stage={stage}"],
    )  # fmt: skip


def rows(family: str, update: int) -> dict[str, Tensor]:
    """A batch as transformers names it."""
    ids = tokens(ROWS, WIDTH, seed=update)
    if family == "gpt2":
        return {"input_ids": ids, "labels": ids.roll(-1, 1), "shift_labels": ids.roll(-1, 1)}
    inside = real([WIDTH, 20, 13, 9, 7, 3], WIDTH)
    types = (torch.arange(WIDTH) > 5).long() * inside
    labels = ids[:, 1] % 2
    return {"input_ids": ids * inside, "attention_mask": inside.long(), "token_type_ids": types, "labels": labels}


def summed(family: str, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    if family == "gpt2":
        return model(batch["input_ids"], batch["labels"])
    padding = padded(batch["attention_mask"].bool())
    said = model(batch["input_ids"], padding=padding, token_types=batch["token_type_ids"])
    return F.cross_entropy(said, batch["labels"], reduction="sum")


def ours(world: World, chosen: Recipe, family: str) -> list[float]:
    model = built(family, HEADS[family])
    engine = Engine(model, parameter_groups(model.named_parameters(), 0.1), chosen, world, ROWS, 1, bf16=False)
    losses = []
    for update in range(UPDATES):
        batch = rows(family, update)
        count = batch["labels"].numel()
        loss = summed(family, engine.model, batch)
        engine.backward(loss, count, last=True)
        verdict = engine.step(learning_rate(update, chosen.schedule, chosen.optimizer.lr, UPDATES))
        assert verdict.applied
        assert float(verdict.grad_norm) > 0.2
        losses.append(float(loss.detach()) / count)
    return losses


def theirs(hf: Any, chosen: Recipe, family: str, folder: Path) -> list[float]:
    from tests.bench.trainer_parity_hf import Theirs, arguments

    wanted = hugging_face_config(config(family), VOCABULARY, HEADS[family], eos_id=0, pad_id=0)
    kind = {"bert": hf.BertForSequenceClassification, "gpt2": hf.GPT2LMHeadModel}[family]
    model = kind(kind.config_class(**wanted))
    model.load_state_dict(built(family, HEADS[family]).state_dict(), strict=False)
    examples = [
        {name: part[row] for name, part in rows(family, update).items()}
        for update in range(UPDATES)
        for row in range(ROWS)
    ]
    trainer = Theirs(
        chosen, model=model, args=arguments(chosen, folder), train_dataset=examples,
        data_collator=hf.default_data_collator,
    )  # fmt: skip
    trainer.train()
    return [float(loss) for loss in trainer.losses]


@pytest.mark.parametrize(("family", "stage"), [("bert", 0), ("bert", 2), ("gpt2", 2)])
def test_the_losses_are_those_of_hugging_face_s_trainer(hf: Any, family: str, stage: int, tmp_path: Path) -> None:
    chosen = recipe(stage)
    (found,) = launch(ours, 1, chosen, family, folder=tmp_path)
    assert found == pytest.approx(theirs(hf, chosen, family, tmp_path), abs=2e-5)
    assert max(found) - min(found) > 0.02
