"""A run that holds a checkpoint, without training: its weights drawn, its record written as a run would have."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.ranks import alone
from tests.trainer.conftest import CONTEXT, ROWS, FakeRun
from tests.trainer.saving import save
from trainer import checkpoint
from trainer.adapters.adapt import begin_adapter, model_of
from trainer.checkpoint import Checkpoint, Span
from trainer.inputs import open_inputs
from trainer.models.initialize import initialize
from trainer.objectives.choose import objective_of

SIZES = {
    "model.context": CONTEXT, "model.hidden_size": 32, "model.num_hidden_layers": 2, "model.num_attention_heads": 2,
    "train.batch_rows": ROWS, "train.steps": 60, "schedule.warmup_steps": 4,
}  # fmt: skip


def held_run(folder: Path, dataset: Path, step: int = 4, **overrides: object) -> tuple[Path, Any]:
    """The run's folder, and the model whose weights its checkpoint of `step` holds."""
    run = FakeRun(folder, **{"data.dataset": str(dataset), **SIZES, **overrides})
    run.attempt()
    run.steps(1, step)
    run.evaluation(step, 2.5)
    inputs = open_inputs(run.recipe)
    model = model_of(run.recipe, inputs.vocab_size, objective_of(run.recipe, inputs.dataset).head)
    initialize(model, 3)
    begin_adapter(model, run.recipe, [])
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)  # attention that is nearly uniform would hide mistakes
            if parameter.dim() == 1 or "lora_B" in name or name == "final_logits_bias":
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=draw))
    frozen = {name: each.data for name, each in model.named_parameters() if not each.requires_grad}
    name = checkpoint.folder_name(step, 1)
    state = {
        "step": step, "attempt": 1, "zero_stage": 2, "tokenizer": inputs.tokenizer.fingerprint,
        "vocab_size": inputs.vocab_size, "order": inputs.order.describe(),
        "progress": {"consumed": step * ROWS, "tokens": step * ROWS * CONTEXT, "skipped": []},
    }  # fmt: skip
    spans = []
    for key, each in model.named_parameters():
        if each.requires_grad:
            flat = each.detach().view(-1)
            moments = {moment: torch.zeros_like(flat) for moment in checkpoint.MOMENTS}
            spans.append(Span(key, tuple(each.shape), 0, {checkpoint.WEIGHT: flat, **moments}))
    save(folder, name, state, spans, checkpoint.save_frozen(folder, frozen), alone())
    digest = checkpoint.digest_of(Checkpoint(folder / checkpoint.FOLDER / name).manifest)
    run.event("checkpoint", step=step, name=name, seconds=0.4, bytes=1, manifest=digest, clock=run.spent.seconds())
    run.outcome("done", "all steps")
    return folder, model.eval()


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object."""
    return json.loads(path.read_text("utf-8"))
