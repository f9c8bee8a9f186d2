"""A model of 30 thousand parameters with batches of unequal label counts, for tests of the engine."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from data import settings
from data.order.deal import deal
from trainer.engine import Engine
from trainer.exact import addable
from trainer.models.build import build
from trainer.models.depth import rate_scales
from trainer.models.initialize import initialize
from trainer.objectives.base import Batch
from trainer.optimizer import parameter_groups
from trainer.recipe import Recipe
from trainer.schedule import learning_rate
from trainer.world import World

ROWS, CONTEXT, VOCAB, STEPS = 12, 24, 96, 20


def recipe(**changes: Any) -> Recipe:
    """The toy's recipe with `section__name=value` changes."""
    base = {
        "model.context": CONTEXT, "model.hidden_size": 32, "model.num_hidden_layers": 2,
        "model.num_attention_heads": 4, "model.num_key_value_heads": 2, "train.steps": STEPS,
        "train.batch_rows": ROWS, "schedule.warmup_steps": 3, "optimizer.lr": 1e-3, "optimizer.clip": None,
    }  # fmt: skip
    base |= {name.replace("__", "."): value for name, value in changes.items()}
    return settings.load(Recipe, None, [f"{key}={'null' if value is None else value}" for key, value in base.items()])


def new_model(chosen: Recipe) -> nn.Module:
    """The toy with its initial weights."""
    model = build(chosen.model, VOCAB)
    initialize(model, chosen.seed)
    return model


def rows(step: int) -> tuple[Tensor, Tensor]:
    """(ROWS, CONTEXT) inputs and labels of a step; later rows have ever fewer labels."""
    generator = torch.Generator().manual_seed(1000 + step)
    start = torch.randint(0, VOCAB, (ROWS, 1), generator=generator)
    stride = torch.randint(1, 5, (ROWS, 1), generator=generator)
    text = (start + stride * torch.arange(CONTEXT + 1)) % VOCAB
    labels = text[:, 1:].clone()
    for row in range(ROWS):
        labels[row, CONTEXT - 2 * row :] = -100
    return text[:, :-1], labels


def micro_batches(step: int, size: int, world: World) -> list[Batch]:
    """This rank's part of a step."""
    inputs, labels = rows(step)
    found = []
    for positions in deal(0, ROWS, size, world.rank, world.size):
        index = torch.from_numpy(positions)
        mine = labels[index.clamp(min=0)].clone()
        mine[index < 0] = -100
        found.append(Batch(inputs[index.clamp(min=0)], mine, None, int((mine != -100).sum()), int((index >= 0).sum())))
    return found


def label_tokens(step: int) -> int:
    """Labels of the whole step."""
    return int((rows(step)[1] != -100).sum())


class Training:
    """An engine on the toy, driven as the loop drives it."""

    def __init__(
        self,
        world: World,
        chosen: Recipe,
        micro_batch: int,
        model: nn.Module | None = None,
        bf16: bool = False,
        prepare: Callable[[Batch], Batch] = lambda batch: batch,
    ):
        self.world, self.recipe, self.micro_batch, self.prepare = world, chosen, micro_batch, prepare
        accumulation = -(-ROWS // (micro_batch * world.size))
        model = model or new_model(chosen)
        groups = parameter_groups(model.named_parameters(), chosen.optimizer.weight_decay, rate_scales(chosen))
        self.engine = Engine(model, groups, chosen, world, micro_batch, accumulation, bf16=bf16)

    def step(self, number: int, poison: float = 1.0) -> tuple[float, float, bool]:
        """One update: (mean loss, gradient norm before clipping, applied)."""
        total = torch.zeros((), dtype=torch.float64)
        count = label_tokens(number)
        batches = micro_batches(number, self.micro_batch, self.world)
        for index, batch in enumerate(map(self.prepare, batches), 1):
            torch.manual_seed(1000 * number + (index - 1) * self.world.size + self.world.rank)  # its number in the step
            loss = self.engine.model(batch.input_ids, batch.labels, batch.documents)
            self.engine.backward(loss * (poison if self.world.rank == 0 else 1.0), count, last=index == len(batches))
            total += addable(loss)
        lr = learning_rate(number, self.recipe.schedule, self.recipe.optimizer.lr, self.recipe.train.steps)
        verdict = self.engine.step(lr)
        (whole,) = self.world.total_floats([float(total)])
        return whole / count, float(verdict.grad_norm), verdict.applied

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Weights and moments, whole, by parameter: gathered from every rank's spans."""
        pieces = [(s.name, s.shape, s.start, {k: v.clone() for k, v in s.tensors.items()}) for s in self.engine.spans()]
        whole: dict[str, dict[str, Tensor]] = {}
        for part in self.world.gather(pieces):
            for name, shape, start, tensors in part:
                held = whole.setdefault(name, {key: torch.full(shape, float("nan")).view(-1) for key in tensors})
                for key, tensor in tensors.items():
                    held[key][start : start + len(tensor)] = tensor
        return whole
