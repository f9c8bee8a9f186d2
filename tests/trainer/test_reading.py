"""A rank reads its own share of a checkpoint from the files that hold it, and takes no more memory than a piece."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.bench.resident import peak_growth, resident
from tests.ranks import alone, launch
from tests.trainer import toy
from tests.trainer.saving import save
from trainer import checkpoint
from trainer.checkpoint import MOMENTS, WEIGHT, Checkpoint, Span, folder_name
from trainer.engine import Engine
from trainer.manifest import file_of
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.optimizer import parameter_groups
from trainer.place import Folder
from trainer.saver import Saver
from trainer.world import World

BYTES = 12  # of an element: its weight and two moments, in fp32
MB = 1_000_000


class Counted(Folder):
    """A folder that remembers what was read from it."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.opened: set[str] = set()
        self.read: Counter[str] = Counter()

    def read_into(self, name: str, offset: int, out: np.ndarray) -> None:
        self.opened.add(name)
        self.read[name] += out.nbytes
        super().read_into(name, offset, out)


def place_of(root: Path, ranks: int, stage: int) -> Path:
    """Where `save_stages` puts a checkpoint."""
    return root / f"{ranks}-{stage}" / checkpoint.FOLDER / folder_name(1, 1)


def save_stages(world: World, root: Path, stages: list[int]) -> None:
    for stage in stages:
        training = toy.Training(world, toy.recipe(engine__zero_stage=stage), micro_batch=1)
        training.step(0)
        state = {"step": 1, "attempt": 1, "adam_step": 1, "zero_stage": stage}
        run = place_of(root, world.size, stage).parent.parent
        save(run, folder_name(1, 1), state, training.engine.spans(), None, world)


def count_reading(world: World, root: Path, wanted: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """Of each (ranks that saved, their stage, ours): what this rank opened and read, and what it owns."""
    told = []
    for ranks, saved, stage in wanted:
        training = toy.Training(world, toy.recipe(engine__zero_stage=stage), micro_batch=1)
        place = Counted(place_of(root, ranks, saved))
        training.engine.load(Checkpoint(place).read, 1)
        heads = sum(8 + int.from_bytes((place.path / name).read_bytes()[:8], "little") for name in place.opened)
        owned = sum(span.count for span in training.engine.spans())
        told.append({"opened": place.opened, "bytes": place.read.total() - heads, "owned": owned})
    return told


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("saved")
    launch(save_stages, 2, root, [0, 1, 2, 3], folder=root)
    launch(save_stages, 8, root, [2, 3], folder=root)
    return root


@pytest.mark.slow
def test_at_the_same_topology_a_rank_reads_its_own_file_alone(saved):
    wanted = [(2, stage, stage) for stage in (1, 2, 3)]
    for rank, cases in enumerate(launch(count_reading, 2, saved, wanted, folder=saved)):
        for told in cases:
            assert told["opened"] == {file_of(rank)}
            assert told["bytes"] == BYTES * told["owned"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3])
def test_at_any_other_topology_the_state_is_read_once_from_the_files_that_hold_a_share(saved, size):
    wanted = [(2, 0, 3), (2, 3, 1), (8, 2, 1), (8, 3, 3), (2, 1, 0)]
    elements = sum(parameter.numel() for parameter in toy.new_model(toy.recipe()).parameters())
    ranks = launch(count_reading, size, saved, wanted, folder=saved)
    for number, (before, _, stage) in enumerate(wanted):
        told = [cases[number] for cases in ranks]
        assert sum(each["bytes"] for each in told) == BYTES * elements * (size if stage == 0 else 1)
        if before == 8:  # the same cut, made finer: a rank finds its share in neighbouring files
            for rank, each in enumerate(told):
                assert each["opened"] <= neighbours(rank, size)
                assert len(each["opened"]) < 8 or size == 1


def neighbours(rank: int, size: int) -> set[str]:
    """Files of 8 ranks that can hold a share of a rank of fewer; padding may shift a border by one file."""
    first, last = 8 * rank // size, -(-8 * (rank + 1) // size)
    return {file_of(number) for number in range(max(0, first - 1), min(8, last + 1))}


# -- memory ----------------------------------------------------------------------------------------------------------


def measure_memory(world: World, root: Path, stage: int, vocab: int) -> dict[str, int]:
    """Bytes that the buffer takes, and by which a save and a load let this rank grow, beside 12 an element it owns."""
    recipe = toy.recipe(engine__zero_stage=stage, model__hidden_size=128, model__tie_word_embeddings=False)
    model = Decoder(recipe.model, vocab)
    initialize(model, 1)
    groups = parameter_groups(model.named_parameters(), 0.1)
    engine = Engine(model, groups, recipe, world, 1, 1, bf16=False)
    spans, run = engine.spans(), root / f"memory-{stage}-{vocab}"
    state = {"step": 1, "attempt": 1, "adam_step": 0, "zero_stage": stage}
    before = resident()
    saver = Saver(Folder(run), world, spans)
    buffer = resident() - before

    def whole() -> None:
        saver.begin(folder_name(1, 1), state, engine.spans(), None)
        saver.finish()

    found = run / checkpoint.FOLDER / folder_name(1, 1)
    return {
        "owned": BYTES * sum(span.count for span in spans),
        "planned": saver.host_bytes,
        "buffer": buffer,
        "saving": peak_growth(whole),
        "again": peak_growth(whole),
        "loading": peak_growth(lambda: engine.load(Checkpoint(found).read, 0)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_save_takes_its_planned_buffer_and_nothing_that_grows_beside_it(tmp_path, stage):
    """So does a load: a piece of the rank's share at a time, however large the parameter."""
    vocab = 131_072
    for told in launch(measure_memory, 2, tmp_path, stage, vocab, folder=tmp_path):
        assert told["planned"] == told["owned"] > BYTES * vocab * 128  # half of two embeddings: 201 MB
        assert told["buffer"] < told["planned"] + 4 * MB
        assert max(told["saving"], told["again"]) < 16 * MB, told
        assert told["loading"] < 0.8 * told["owned"], told  # at stage 2 gloo copies the new weights it then gathers


def test_what_a_save_copies_into_is_taken_before_any_step_waits_for_it(tmp_path):
    elements = 8 * MB
    span = Span("w", (elements,), 0, {part: torch.zeros(elements) for part in (WEIGHT, *MOMENTS)})
    before = resident()
    saver = Saver(Folder(tmp_path), alone(), [span])
    assert saver.host_bytes == BYTES * elements
    assert resident() - before > 0.95 * saver.host_bytes
