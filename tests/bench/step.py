"""One training step at 1 and 2 ranks against plain PyTorch: the same model and kernels, and what one would write.

Ours is the engine with the loop's two agreements on the CPU. "Same kernels" is our decoder in a DDP loop with torch's
fused AdamW: what the engine costs. "As shipped" is transformers' Llama in a DDP loop, full logits, torch's default
AdamW: what a user gains. fp32, whole-row attention, clipping on, the shipped recipe's model; one thread a rank.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data import settings
from tests.bench.rounds import median, ratio, turns
from tests.ranks import launch
from trainer.engine import Engine
from trainer.hf.config import hugging_face_config
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.optimizer import parameter_groups
from trainer.recipe import RECIPES, Recipe
from trainer.world import World

ROWS, VOCAB, ROUNDS = 8, 4096, 7


def contend(world: World, stage: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender's steps, by round."""
    recipe = settings.load(
        Recipe, RECIPES / "stdlib.yaml", [f"engine.zero_stage={stage}", "model.attention=full", "optimizer.lr=1e-4"]
    )
    context = recipe.model.context
    generator = torch.Generator().manual_seed(world.rank)
    inputs = torch.randint(0, VOCAB, (ROWS, context), generator=generator)
    labels = torch.randint(0, VOCAB, (ROWS, context), generator=generator)
    tokens = ROWS * context * world.size

    def decoder() -> Decoder:
        model = Decoder(recipe.model, VOCAB)
        initialize(model, 1)
        return model

    model = decoder()
    groups = parameter_groups(model.named_parameters(), recipe.optimizer.weight_decay)
    engine = Engine(model, groups, recipe, world, ROWS, 1, bf16=False)

    def ours() -> None:
        world.total([tokens // world.size, 0, 0, 0, 12345])
        loss = engine.model(inputs, labels, None)
        engine.backward(loss, tokens, last=True)
        verdict = engine.step(1e-4)
        world.total_floats([float(loss.detach())])
        float(verdict.grad_norm)

    def plain(model: nn.Module, loss_of: Any, **adamw: Any) -> Any:
        wrapped = DistributedDataParallel(model) if world.size > 1 else model
        optimizer = torch.optim.AdamW(
            parameter_groups(model.named_parameters(), recipe.optimizer.weight_decay), lr=1e-4, **adamw
        )

        def step() -> None:
            loss = loss_of(wrapped)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            float(loss.detach())

        return step

    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaForCausalLM(LlamaConfig(**hugging_face_config(recipe.model, VOCAB, eos_id=0)))

    def full_logits(wrapped: nn.Module) -> torch.Tensor:
        logits = wrapped(input_ids=inputs, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    contenders = {
        "ours": ours,
        "same kernels": plain(decoder(), lambda wrapped: wrapped(inputs, labels, None) / (ROWS * context), fused=True),
        "as shipped": plain(theirs, full_logits),
    }
    return turns(contenders, rounds)


def main() -> None:
    """Print milliseconds and ratios."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    print(f"{'ranks':>5} {'ZeRO':>4} {'ours':>9} {'same kernels':>13} {'as shipped':>11}   ratio to each")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            for stage in (1, 2, 3):
                seconds = launch(contend, ranks, stage, rounds, folder=Path(folder), timeout_s=900)[0]
                ours, same, shipped = (seconds[name] for name in ("ours", "same kernels", "as shipped"))
                print(
                    f"{ranks:5} {stage:4} {1000 * median(ours):6.0f} ms {1000 * median(same):10.0f} ms "
                    f"{1000 * median(shipped):8.0f} ms   {ratio(ours, same):.2f}x {ratio(ours, shipped):.2f}x",
                    flush=True,
                )


if __name__ == "__main__":
    main()
