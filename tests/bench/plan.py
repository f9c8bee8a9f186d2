"""What `luban plan` says of a rank's memory, against real ranks on CPUs: at rest exactly, at its peak by the kernel.

At rest: the bytes of every tensor that the process holds (the garbage collector knows them all), without those from
before the model. At its peak: the kernel's high-water mark of resident pages over one update, above what the process
held between updates, which is taken as the base together with the state; every larger allocation is mapped by itself
(mallopt), so that what was freed is not counted. Beside it, the largest sum of what torch's allocator handed out in an
update: a bucket that is allocated and not filled counts there, as it would on a GPU, and not for the kernel.
"""

import ctypes
import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from cluster.plan import memory
from cluster.plan.memory import Setup
from data import settings
from tests.bench.resident import peak_growth
from tests.ranks import launch
from trainer.engine import Engine
from trainer.models.build import build
from trainer.models.head import LM
from trainer.models.initialize import initialize
from trainer.optimizer import parameter_groups
from trainer.recipe import Recipe
from trainer.shape import Shape
from trainer.world import World

M_MMAP_THRESHOLD = -3
MB = 1e6
WIDE = ("model.hidden_size=512", "model.num_attention_heads=8", "model.num_key_value_heads=4")
FAMILIES = ("gpt2", "bert", "t5", "transformer")
SIZES: dict[str, tuple[tuple[str, ...], int, int]] = {
    "57 M, 512 tokens": ((*WIDE, "model.num_hidden_layers=8", "model.context=256"), 65536, 2),
    "88 M, 128 tokens": (
        ("model.hidden_size=768", "model.num_attention_heads=12", "model.num_key_value_heads=4",
         "model.num_hidden_layers=12", "model.context=64"), 16384, 2,
    ),
    **{
        f"{family}, 1024 tokens": (
            (f"model.family={family}", "model.hidden_size=256", "model.num_attention_heads=8",
             "model.num_hidden_layers=6", "model.context=256"), 8192, 4,
        ) for family in FAMILIES
    },
}  # fmt: skip
"""(model, vocabulary, rows of a forward)."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "": (),
    "checkpointing": ("engine.activation_checkpointing=true",),
    "2 forwards": (),
    "exact any": ("engine.exact=any",),
}


def recipe_of(size: str, stage: int, ranks: int, variant: str = "") -> tuple[Recipe, int]:
    """(recipe, vocabulary)."""
    model, vocab_size, rows = SIZES[size]
    forwards = 2 if variant == "2 forwards" else 1
    whole_rows = () if any(f"family={family}" in model[0] for family in FAMILIES[1:]) else ("model.attention=full",)
    recipe = settings.load(
        Recipe, None,
        [*model, *whole_rows, *VARIANTS[variant], f"engine.zero_stage={stage}", f"engine.micro_batch={rows}",
         f"train.batch_rows={rows * ranks * forwards}", f"launch.ranks={ranks}"],
    )  # fmt: skip
    return recipe, vocab_size


def held() -> dict[int, torch.UntypedStorage]:
    """The memory of all tensors of this process, by address; whoever keeps it keeps it from being used again."""
    gc.collect()
    found = {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor):  # isinstance would ask lazy modules for their class
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage
    return found


def held_since(before: dict[int, torch.UntypedStorage]) -> int:
    """Bytes of the tensors of this process that are in none of the storages of `before`."""
    return sum(storage.nbytes() for address, storage in held().items() if address not in before)


def trained(world: World, recipe: Recipe, vocab_size: int, updates: int, watch: bool) -> dict[str, float]:
    """Bytes of one rank: `rest`, and where `watch` is asked `grown` (resident) and `allocated` in an update."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    before = held()
    model = build(recipe.model, vocab_size, LM, recipe.engine.activation_checkpointing)
    initialize(model, 1)
    groups = parameter_groups(model.named_parameters(), 0.1)
    shape = Shape.of(recipe, world.size)
    engine = Engine(model, groups, recipe, world, shape.micro_batch, shape.accumulation, bf16=recipe.engine.bf16(False))
    inputs = torch.randint(0, vocab_size, (shape.micro_batch, recipe.model.context))

    def update() -> None:
        for number in range(1, shape.accumulation + 1):
            loss = engine.model(*[inputs] * (3 if recipe.model.is_encoder_decoder else 2))
            engine.backward(loss, inputs.numel() * world.size * shape.accumulation, last=number == shape.accumulation)
        float(engine.step(1e-4).grad_norm)

    for _ in range(updates):
        update()
    del model
    found = {"rest": float(held_since(before) - inputs.untyped_storage().nbytes())}
    if watch:
        found["grown"] = float(peak_growth(update))
        found["allocated"] = float(_allocated(update))
    return found


def _allocated(update: Any) -> int:
    """Most bytes that torch's allocator had handed out during an update, above what it had before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        update()
    most = held = 0
    kineto: Any = profile.profiler
    for event in kineto.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def compare(size: str, stage: int, ranks: int, variant: str, folder: Path) -> str:
    """A line of the table."""
    recipe, vocab_size = recipe_of(size, stage, ranks, variant)
    seen = launch(trained, ranks, recipe, vocab_size, 2, True, folder=folder, timeout_s=900)[0]
    setup = Setup.of(recipe, vocab_size, ranks, gpu=False)
    rest, worst = sum(memory.at_rest(setup).values()), memory.peak(setup)
    grown = worst.total - rest
    off = worst.total / (rest + seen["grown"]) - 1
    return (
        f"| {size} | {variant} | {ranks} | {stage} | {seen['rest'] / MB:.1f} | {(rest - seen['rest']) / MB:+.1f} | "
        f"{(rest + seen['grown']) / MB:.0f} | {off:+.1%} | {grown / seen['grown'] - 1:+.0%} | "
        f"{seen['allocated'] / MB:.0f} | {worst.name} |"
    )


def main() -> None:
    """Print the table; with words, only the lines that hold them all."""
    cases = [(size, stage, ranks, "") for ranks in (2, 1) for size in list(SIZES)[:2] for stage in (0, 1, 2, 3)]
    cases += [(size, 2, 2, "") for size in list(SIZES)[2:]]
    second = list(SIZES)[1]
    cases += [(second, stage, 2, variant) for variant in list(VARIANTS)[1:] for stage in (2, 3)]
    print(
        "| model, tokens of a forward | | ranks | ZeRO | at rest, MB | predicted, off by | peak, MB | predicted peak | "
        "growth alone | allocated in an update, MB | predicted to be at |"
    )
    with tempfile.TemporaryDirectory() as folder:
        for size, stage, ranks, variant in cases:
            if all(word in f"{size} {variant} ranks={ranks} zero={stage}" for word in sys.argv[1:]):
                print(compare(size, stage, ranks, variant, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
