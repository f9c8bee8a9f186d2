"""A run whose documents are poisoned heals itself, says what it did, and proves it; without the guard it does not.

The poison is a fault in the ranks, not in the guard: the loss of a batch in which a marked passage occurs becomes NaN,
or its gradient ten thousand times too large and of the wrong sign, whenever and wherever that passage is read.
"""

import json
import random
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data.dataset import load_dataset
from data.order.order import Order
from data.reader import LocalReader, layout
from tests.conftest import CommandLine, kill_rank
from tests.trainer.test_tracker import records
from trainer import record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BATCH, CONTEXT, MARK = 12, 64, 24
WATCHED = (
    "data.window=16", "train.steps=48", "checkpoint.every_steps=8", "evaluate.every_steps=48", "evaluate.rows=0",
    "guard.window=8", "guard.warmup=8", "optimizer.clip=null", "optimizer.lr=1e-2", "schedule.kind=constant",
)  # fmt: skip
EARLY, LATE, SPIKE = range(1, 5), range(15, 24), range(40, 41)  # updates, counted from 0
FAULT = """
import json, os
if "RANK" in os.environ and "POISON" in os.environ:
    import torch
    from trainer.objectives.causal import Causal
    poison = [(torch.tensor(mark), kind) for mark, kind in json.loads(os.environ["POISON"])]
    plain = Causal.loss
    def loss(self, model, batch):
        value = plain(self, model, batch)
        for mark, kind in poison:
            if model.training and (batch.input_ids[:, : len(mark)] == mark).all(1).any():
                value = value * float("nan") if kind == "nan" else value - 1e4 * (value - value.detach())
        return value
    Causal.loss = loss
"""


@dataclass(frozen=True)
class Poison:
    """Marked passages, by update, and the documents they are in."""

    command: CommandLine
    positions: dict[int, int]
    """Of the row that begins with the passage."""
    marks: dict[int, list[int]]
    """Its first tokens."""
    documents: dict[int, str]
    """The id of the document that it begins in."""

    def environment(self, **kinds: range) -> dict[str, str]:
        """For ranks in which the given updates are poisoned, as kind=updates."""
        chosen = [(self.marks[update], name.rstrip("_")) for name, updates in kinds.items() for update in updates]
        return self.command.environment | {
            "POISON": json.dumps(chosen),
            "PYTHONPATH": f"{self.command.home}/fault:{Path(__file__).parent.parent}",
        }


@pytest.fixture(scope="module")
def poison(luban: CommandLine) -> Poison:
    """A dataset that is soon learnt, and passages found through its order; each begins one row and no other."""
    (luban.home / "fault").mkdir()
    (luban.home / "fault" / "sitecustomize.py").write_text(FAULT)
    draw = random.Random(7)
    with (luban.home / "boxes.jsonl").open("w") as file:
        for number in range(1400):
            text = f"Box {number} holds {draw.randrange(100)} {draw.choice(('red', 'green'))} apples."
            for _ in range(3):
                text += f" {draw.choice(('Anna', 'Otto', 'Emma'))} took {draw.randrange(100)} of them to the market."
            file.write(json.dumps({"text": text}) + "\n")
    luban(
        "data", "build", "folder", "name=boxes", "dedup.near=false", "tokenizer.reuse=datasets/tiny",
        f"sources=[{{kind: jsonl, path: {luban.home}/boxes.jsonl, text_field: text}}]", "split.valid=0.05",
        "shard_tokens=20000",
    )  # fmt: skip
    dataset = load_dataset(luban.home / "datasets" / "boxes")
    index = dataset.index("train")
    order = Order(layout(index, CONTEXT), 1, 16)
    reader = LocalReader(index, order, CONTEXT)
    first = [tuple(row) for row in reader.rows(np.arange(order.rows_per_epoch)).tokens[:, :MARK].tolist()]
    assert order.rows_per_epoch > 80 * BATCH
    often, rows = Counter(first), list(dataset.rows("train"))
    positions, documents = {}, {}
    for update in (*EARLY, *LATE, *SPIKE):
        mine = range(update * BATCH, (update + 1) * BATCH)
        positions[update] = next(position for position in mine if often[first[position]] == 1)
        places = order.places(np.array([positions[update]]))
        here = [row for row in rows if row.shard == places.shard[0]]
        documents[update] = here[bisect_right([row.start for row in here], places.start[0]) - 1].id
    marks = {update: list(first[position]) for update, position in positions.items()}
    return Poison(luban, positions, marks, documents)


def watched(poison: Poison) -> list[str]:
    return [f"data.dataset={poison.command.home}/datasets/boxes", *WATCHED]


def pretrain(poison: Poison, name: str, *more: str, code: int = 0, **kinds: range) -> str:
    poisoned = CommandLine(poison.command.home)
    poisoned.environment = poison.environment(**kinds)
    return poisoned.pretrain(name, *watched(poison), *more, code=code)


def final_loss(poison: Poison, name: str) -> float:
    history = record.load(poison.command.run(name))
    (loss,) = [event["metrics"]["loss"] for attempt in history.attempts for event in attempt.of("evaluation")]
    return loss


def rollbacks(poison: Poison, name: str) -> list[dict]:
    history = record.load(poison.command.run(name))
    return [attempt.start for attempt in history.attempts if attempt.start.get("rollback")]


@pytest.fixture(scope="module")
def clean(poison: Poison) -> float:
    """The validation loss of a run without poison, in which the guard never stirred."""
    pretrain(poison, "clean")
    assert len(record.load(poison.command.run("clean")).attempts) == 1
    return final_loss(poison, "clean")


@pytest.fixture(scope="module")
def healed(poison: Poison) -> str:
    """What a run printed that met all three poisons."""
    return pretrain(poison, "healed", "log.wandb=offline", nan=EARLY, nan_=LATE, spike=SPIKE)


def test_a_poisoned_run_heals_and_ends_as_well_as_a_clean_one(poison: Poison, clean: float, healed: str) -> None:
    assert final_loss(poison, "healed") < clean + 0.05
    text = poison.command("verify", "healed")
    assert "everything holds" in text
    history = record.load(poison.command.run("healed"))
    assert history.attempts[-1].outcome == "done"
    assert [event["step"] for event in history.lineage() if event["verdict"] == "applied"] == list(range(1, 49))
    assert sum(last - first + 1 for _, first, last in history.lost) > 0
    status = poison.command("status", "healed")
    assert "rolled back at step" in status
    assert "killed" not in status


def test_it_goes_back_behind_the_trouble_and_round_it_and_names_the_documents(poison: Poison, healed: str) -> None:
    history = record.load(poison.command.run("healed"))
    passed = [event for event in history.lineage() if (event["reason"] or "").startswith("guard: ")]
    assert all((event["rows"], event["labels"], event["verdict"]) == (None, 0, "skipped") for event in passed)
    gone = {position for event in passed for position in range(*event["positions"])}
    read = {p for event in history.lineage() if event["verdict"] == "applied" for p in range(*event["positions"])}
    assert not gone & read
    for update in (*EARLY, *LATE, *SPIKE):
        assert poison.positions[update] not in read
    first, *_, last = rollbacks(poison, "healed")
    assert (first["adopts"], first["step"]) == (None, 0)  # no checkpoint yet: the initial weights
    assert [start["avoid"][-1]["times"] for start in rollbacks(poison, "healed")] == [1, 1, 2, 1]
    assert last["rollback"]["positions"][0] == 40 * BATCH
    assert last["rollback"]["skip"] == [39 * BATCH, last["rollback"]["positions"][1] + BATCH]
    for start in rollbacks(poison, "healed"):
        assert start["adopts"] is None or start["consumed"] <= start["rollback"]["positions"][0]
        (event,) = history.attempt(start["attempt"]).of("rollback")
        file = poison.command.run("healed") / event["file"]
        named = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        assert [document["id"] for document in named][:50] == event["ids"]
        assert event["documents"] == len(named)
        for update in (*EARLY, *LATE, *SPIKE):
            position = poison.positions[update]
            if event["positions"][0] <= position < event["positions"][1]:
                (holder,) = [each for each in named if each["id"] == poison.documents[update]]
                assert position in holder["positions"]


def test_a_document_that_was_set_aside_is_traced_as_skipped(poison: Poison, healed: str) -> None:
    """By its id, to the rows that the guard passed over, and to the lost updates that had read them."""
    said = poison.command("data", "trace", "healed", "--document", poison.documents[SPIKE[0]])
    (skipped,) = [line for line in said.splitlines() if "skipped, in no weights" in line]
    assert f"{poison.positions[SPIKE[0]]:,}" in skipped
    assert "in lost updates, whose weights are gone: steps" in said


def test_the_owner_is_told(poison: Poison, healed: str) -> None:
    assert healed.count("ROLLBACK") == len(rollbacks(poison, "healed"))
    sent = [each.alert for each in records(poison.command.run("healed")) if each.WhichOneof("record_type") == "alert"]
    assert len(sent) == len(rollbacks(poison, "healed"))
    for alert, start in zip(sent, rollbacks(poison, "healed"), strict=True):
        first, last = start["rollback"]["skip"]
        assert f"rolled back to step {start['step']}" in alert.title
        assert start["rollback"]["reason"] in alert.text
        assert f"positions [{first}, {last}) are passed over" in alert.text


def test_without_the_guard_it_ends_in_an_error(poison: Poison) -> None:
    text = pretrain(poison, "nan-unguarded", "guard.enabled=false", code=2, nan=LATE)
    assert "5 updates in a row had a non-finite gradient" in text


def test_without_the_guard_it_ends_with_damaged_weights(poison: Poison, clean: float) -> None:
    pretrain(poison, "spike-unguarded", "guard.enabled=false", spike=SPIKE)
    assert final_loss(poison, "spike-unguarded") > clean + 0.2


def test_a_rank_killed_after_a_rollback_changes_nothing(poison: Poison, healed: str) -> None:
    poisoned = CommandLine(poison.command.home)
    poisoned.environment = poison.environment(nan=EARLY, nan_=LATE, spike=SPIKE)
    process = poisoned.start_pretrain("killed-healing", *watched(poison))
    count = len(rollbacks(poison, "healed"))
    events = poisoned.wait_for("killed-healing", count + 1, lambda event: event["event"] == "step")
    kill_rank(events, 1)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    starts = [attempt.start for attempt in record.load(poisoned.run("killed-healing")).attempts]
    assert starts[-1]["supervisor"] == "restart"
    assert starts[-1]["avoid"] == starts[-2]["avoid"]
    assert len(starts[-1]["avoid"]) == count
    assert "everything holds" in poisoned("verify", "killed-healing", "--against", "healed")


def test_trouble_that_comes_back_too_often_is_an_error_that_says_where(poison: Poison) -> None:
    text = pretrain(poison, "hopeless", "guard.max_rollbacks=1", code=2, nan=LATE)
    assert "after 1 rollbacks within 8 updates of one another" in text
    assert "Lower optimizer.lr" in text
    assert len(rollbacks(poison, "hopeless")) == 1
