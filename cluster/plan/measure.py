"""`luban plan --measure`: a few real updates of a recipe's own shape, on ranks of this machine.

The engine, the model, the micro-batches and the accumulation are the recipe's; the tokens are random, one document a
row, and the ranks are as many of the recipe's as this machine has GPUs or cores for. What a network between nodes adds
isn't in it. `python -P -m cluster.plan.measure REQUEST` is one rank.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.job import Job
from cluster.on_local import LocalRanks
from cluster.plan.memory import Setup
from cluster.supervisor import Life
from data import settings
from data.errors import UserError
from trainer.recipe import Recipe

WARM, TIMED = 2, 5  # updates
SAMPLE = 64 << 20  # bytes written to learn the disk's speed
LONGEST_S = 540.0


@dataclass(frozen=True)
class Measured:
    """What rank 0 saw."""

    ranks: int
    """Of this machine."""
    step_s: float
    """Median of an update."""
    peak_bytes: int
    """Most that it held in an update: allocated on a GPU, resident on a CPU, without what it held before the model."""
    copied_gb_s: float
    """State copied to host memory, as a save's stall does."""
    written_gb_s: float
    """To the disk of the working folder, flushed."""
    device: str


def local_ranks(recipe: Recipe) -> int:
    """How many of the recipe's ranks this machine has a GPU, or cores, for."""
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return max(1, min(recipe.launch.ranks, gpus or (os.cpu_count() or 1) // recipe.launch.threads))


def measure(setup: Setup, folder: Path) -> Measured:
    """Run them; `folder` is where runs go, for the disk's speed.

    Raises:
        UserError: a rank fell, or it takes too long.
    """
    ranks = local_ranks(setup.recipe)
    with tempfile.TemporaryDirectory(prefix="luban-measure-") as scratch:
        request, answer = Path(scratch) / "request.json", Path(scratch) / "answer.json"
        asked = {
            "recipe": str(Path(scratch) / "recipe.yaml"), "vocab_size": setup.vocab_size, "answer": str(answer),
            "micro_batch": setup.shape.micro_batch, "accumulation": setup.shape.accumulation, "folder": str(folder),
        }  # fmt: skip
        Path(asked["recipe"]).write_text(settings.dump(setup.recipe))
        request.write_text(json.dumps(asked))
        job = Job(
            argv=(sys.executable, "-P", "-m", "cluster.plan.measure", str(request)), run=Path(scratch),
            steps=WARM + TIMED, ranks_per_node=ranks,
            environment=(("OMP_NUM_THREADS", str(setup.recipe.launch.threads)),),
        )  # fmt: skip
        started = LocalRanks(job)
        deadline = time.monotonic() + LONGEST_S
        try:
            started.start(Life("measure", 1, Path(scratch), ()))
            while started.running() and not started.fallen():
                if time.monotonic() > deadline:
                    raise UserError(f"--measure took longer than {LONGEST_S:.0f} s: take a smaller train.batch_rows")
                time.sleep(0.05)
            if fallen := started.fallen():
                log = "\n".join((Path(scratch) / "rank-0.log").read_text("utf-8", "replace").splitlines()[-5:])
                raise UserError(f"--measure: {fallen.partition(' (see ')[0]}\n{log}")
        finally:
            started.end()
        return Measured(**json.loads(answer.read_text()))


def rank(asked: dict[str, Any]) -> None:
    """One rank: train a little, and as rank 0 write down what was seen."""
    import torch

    from trainer.adapters.adapt import model_of
    from trainer.engine import Engine
    from trainer.meters import peak_memory_gib
    from trainer.models.depth import rate_scales
    from trainer.models.head import LM
    from trainer.models.initialize import initialize
    from trainer.optimizer import parameter_groups
    from trainer.world import join, leave

    recipe = settings.load(Recipe, Path(asked["recipe"]))
    world = join(recipe.engine.timeout_s)
    torch.set_num_threads(recipe.launch.threads)
    if recipe.engine.exact != "samples":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    cuda = world.device.type == "cuda"
    before = 0 if cuda else round(peak_memory_gib("cpu") * 2**30)
    rows, accumulation, context = asked["micro_batch"], asked["accumulation"], recipe.model.context
    model = model_of(recipe, asked["vocab_size"], LM, recipe.engine.activation_checkpointing)
    initialize(model, recipe.seed)
    groups = parameter_groups(model.named_parameters(), recipe.optimizer.weight_decay, rate_scales(recipe))
    bf16 = recipe.engine.bf16(cuda)
    engine = Engine(model.to(world.device), groups, recipe, world, rows, accumulation, bf16)
    inputs = torch.randint(0, asked["vocab_size"], (rows, context), device=world.device)
    arguments = [inputs] * (3 if recipe.model.is_encoder_decoder else 2)  # what is read, what is written, labels
    seconds = []
    for _ in range(WARM + TIMED):
        world.total([0])
        began = time.perf_counter()
        for number in range(1, accumulation + 1):
            loss = engine.model(*arguments)
            engine.backward(loss, rows * context * accumulation * world.size, last=number == accumulation)
        float(engine.step(1e-9).grad_norm)
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if cuda else round(peak_memory_gib("cpu") * 2**30) - before
    state = [tensor for span in engine.spans() for tensor in span.tensors.values()]
    copied = _copied_gb_s(state, cuda)
    if world.rank == 0:
        name = torch.cuda.get_device_name(world.device) if cuda else "cpu"
        disk = _written_gb_s(Path(asked["folder"]))
        found = Measured(world.size, statistics.median(seconds[WARM:]), peak, copied, disk, name)
        Path(asked["answer"]).write_text(json.dumps(asdict(found)))
    leave()


def _copied_gb_s(state: list[Any], cuda: bool) -> float:
    """The saver's copy: each tensor into a host buffer whose pages are there."""
    import torch

    host = torch.zeros(sum(tensor.numel() for tensor in state), pin_memory=cuda)
    began, at = time.perf_counter(), 0
    for tensor in state:
        host[at : at + tensor.numel()].copy_(tensor, non_blocking=True)
        at += tensor.numel()
    if cuda:
        torch.cuda.synchronize()
    return host.numel() * host.element_size() / (time.perf_counter() - began) / 1e9


def _written_gb_s(folder: Path) -> float:
    data = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".luban-measure-") as file:
        began = time.perf_counter()
        for _ in range(SAMPLE // len(data)):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return SAMPLE / (time.perf_counter() - began) / 1e9


if __name__ == "__main__":
    rank(json.loads(Path(sys.argv[1]).read_text()))
