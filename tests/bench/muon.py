"""Whether DeepSpeed's Muon is torch's: the toy's 6 updates by `torch.optim.Muon`, against ZeRO 1 to 3 on two ranks.

Without clipping it is, within the bf16 of Newton-Schulz. But DeepSpeed takes the gradient's norm after it has
orthogonalised the update, and clips that: its norm hardly moves, and with clipping the runs part. So `optimizer.kind`
refuses muon.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # DeepSpeed compiles its Newton-Schulz, for minutes on a CPU

import torch
from torch import nn

from tests.ranks import launch
from tests.trainer import toy
from trainer.world import World

RATE, STEPS, CLIP = 0.02, 6, 0.2


def _orthogonal(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() == 2 and "embed" not in name


def plain(clip: float | None) -> tuple[list[float], list[float]]:
    """Losses, and gradient norms before clipping."""
    model = toy.new_model(toy.recipe())
    named = list(model.named_parameters())
    muon = torch.optim.Muon([p for n, p in named if _orthogonal(n, p)], lr=RATE, weight_decay=0.1, momentum=0.95)
    adam = torch.optim.AdamW([p for n, p in named if not _orthogonal(n, p)], lr=1e-3, betas=(0.9, 0.95), weight_decay=0)
    losses, norms = [], []
    for step in range(STEPS):
        inputs, labels = toy.rows(step)
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip or 1e9)))
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


def sharded(world: World, stage: int, clip: float | None) -> tuple[list[float], list[float]]:
    """The same by DeepSpeed's own optimizer."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = toy.new_model(toy.recipe())
    for name, parameter in model.named_parameters():
        vars(parameter)["use_muon"] = _orthogonal(name, parameter)
    rows = toy.ROWS // world.size
    rates = {"lr": 1e-3, "adam_lr": 1e-3, "muon_lr": RATE, "momentum": 0.95, "weight_decay": 0.1, "betas": [0.9, 0.95]}
    told = {
        "train_micro_batch_size_per_gpu": rows, "train_batch_size": toy.ROWS, "gradient_clipping": clip or 0.0,
        "zero_optimization": {"stage": stage, "reduce_scatter": False},
        "optimizer": {"type": "Muon", "params": rates | {"ns_method": "standard"}},
    }  # fmt: skip
    parameters: Any = list(model.parameters())
    engine: Any = deepspeed.initialize(model=model, model_parameters=parameters, config=told)[0]
    losses, norms = [], []
    for step in range(STEPS):
        (batch,) = toy.micro_batches(step, rows, world)
        loss = engine(batch.input_ids, batch.labels)
        engine.backward(loss * (world.size / toy.label_tokens(step)))
        engine.step()
        losses.append(world.total_floats([float(loss.detach())])[0] / toy.label_tokens(step))
        norms.append(float(engine.get_global_grad_norm()))
    return losses, norms


def main() -> None:
    print("clip | ZeRO | largest difference of a loss | first norm, torch's and DeepSpeed's")
    with tempfile.TemporaryDirectory() as folder:
        for clip in (None, CLIP):
            losses, norms = plain(clip)
            for stage in (1, 2, 3):
                ours, measured = launch(sharded, 2, stage, clip, folder=Path(folder))[0]
                apart = max(abs(a - b) for a, b in zip(ours, losses, strict=True))
                print(f"{clip} | {stage} | {apart:.1e} | {norms[0]:.3f}, {measured[0]:.3f}", flush=True)


if __name__ == "__main__":
    main()
