"""Sentences by contrast: the loss against its formula, groups that no topology tears, gradients across ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from data.order.deal import deal
from tests.ranks import launch
from tests.trainer import toy
from tests.trainer.families import built
from tests.trainer.lives import begun, life
from tests.trainer.objectives.datasets import built as dataset
from tests.trainer.objectives.rows import CPU, decoded, encoded, rows
from trainer import record
from trainer.models.head import Head
from trainer.objectives.base import Objective
from trainer.objectives.classification import Texts
from trainer.objectives.contrastive import Contrastive
from trainer.shape import Shape
from trainer.world import World

ENCODER, DECODER = Texts(decoder=False, context=48), Texts(decoder=True, context=48)
SENTENCES = [[6, 7, 8], [9], [10, 11, 12, 13], [14, 15], [16], [17, 18, 19]]
PAIRS = [([6, 7], [30, 31, 32]), ([8], [33]), ([9, 10, 11], [34]), ([12], [35, 36])]


def model(texts: Texts, **changes: Any):
    return built("llama" if texts.decoder else "bert", Head("sentence"), **changes)


def by_hand(first: torch.Tensor, second: torch.Tensor, group: int, asked: list[int], temperature: float) -> float:
    """Equation 1 of the paper, a group at a time."""
    loss = 0.0
    for row in asked:
        begin = row // group * group
        cosines = F.cosine_similarity(first[row, None].double(), second[begin : begin + group].double())
        loss -= float((cosines / temperature).log_softmax(0)[row - begin])
    return loss


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("texts", [ENCODER, DECODER])
def test_pairs_are_told_from_the_others_of_their_group(texts, pooling):
    objective: Objective = Contrastive(texts, 2, 0.1, pooling, positive_class=1, cls_id=3)
    network, made = model(texts).eval(), decoded if texts.decoder else encoded
    examples = [made(*first, second=second) for first, second in PAIRS]
    batch = objective.batch(rows(*examples, targets=[[1], [0], [1], [1]]), CPU)
    assert batch.labels.tolist() == [0, -100, 0, 1]
    assert batch.label_tokens == 3
    read = [
        torch.stack([_vector(network, texts, pooling, each[side], side) for each in PAIRS]).detach() for side in (0, 1)
    ]
    loss = objective.loss(network, batch)
    assert float(loss) == pytest.approx(by_hand(*read, 2, [0, 2, 3], 0.1), rel=1e-4)
    with torch.no_grad():
        sums = dict(zip(objective.sums, objective.measure(network, batch), strict=True))
    found = objective.figures(sums)
    assert found["loss"] == pytest.approx(float(loss) / 3, rel=1e-5)
    own = [float(F.cosine_similarity(read[0][row], read[1][row], 0)) for row in (0, 2, 3)]
    assert found["cosine"] == pytest.approx(sum(own) / 3, rel=1e-3)


def _vector(network: Any, texts: Texts, pooling: str, ids: list[int], side: int) -> torch.Tensor:
    """Of one text read alone, with a <|cls|> (3) of its own."""
    if texts.decoder:
        tokens = [*ids, *([] if side else [4]), 3]
        hidden = network(torch.tensor([tokens]))[0]
        return hidden[-1] if pooling == "cls" else hidden.mean(0)
    hidden = network(torch.tensor([[3, *ids, 4]]))[0]
    return hidden[0] if pooling == "cls" else hidden.mean(0)


def test_a_text_read_twice_meets_other_dropout_and_is_its_own_positive():
    objective, network = Contrastive(ENCODER, 3), model(ENCODER, residual_dropout=0.2)
    batch = objective.batch(rows(*(encoded(*ids) for ids in SENTENCES)), CPU)
    assert torch.equal(*batch.input_ids.chunk(2))
    assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2]
    torch.manual_seed(1)
    first, second = objective.vectors(network, batch).detach().chunk(2)
    assert (first - second).abs().max() > 1e-3
    torch.manual_seed(1)
    loss = objective.loss(network, batch)
    assert float(loss) == pytest.approx(by_hand(first, second, 3, list(range(6)), 0.05), rel=1e-4)


def test_filler_is_nobodys_negative():
    objective, network = Contrastive(ENCODER, 4, 1.0), model(ENCODER).eval()
    some = [encoded(*ids) for ids in SENTENCES[:3]]
    batch = objective.batch(rows(*some, [], [], [], [], []), CPU)
    loss = objective.loss(network, batch)
    loss.backward()
    assert batch.labels.tolist() == [0, 1, 2, *[-100] * 5]
    first, second = objective.vectors(network, batch).detach().chunk(2)
    assert float(loss) == pytest.approx(by_hand(first[:3], second[:3], 3, [0, 1, 2], 1.0), rel=1e-4)
    assert all(torch.isfinite(each.grad).all() for each in network.parameters() if each.grad is not None)


@given(
    st.integers(2, 6), st.integers(1, 30), st.integers(1, 9), st.none() | st.integers(1, 5),
    st.sampled_from(["any", "topology"]),
)  # fmt: skip
def test_a_group_is_never_torn_apart(group, groups, ranks, micro_groups, exact):
    chosen = toy.recipe(
        objective__kind="contrastive", objective__group=group, train__batch_rows=group * groups,
        engine__micro_batch=micro_groups and group * micro_groups, engine__exact=exact,
    )  # fmt: skip
    shape = Shape.of(chosen, ranks)
    assert shape.micro_batch % group == 0
    start = 3 * group * groups
    dealt = [deal(start, start + group * groups, shape.micro_batch, rank, ranks) for rank in range(ranks)]
    seen = [part for mine in dealt for each in mine for part in each.reshape(-1, group).tolist()]
    expected = [list(range(first, first + group)) for first in range(start, start + group * groups, group)]
    assert sorted(part for part in seen if part[0] >= 0) == expected
    assert all(part == [-1] * group for part in seen if part[0] < 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__batch_rows": 12}, r"train.batch_rows 12 does not divide by objective.group 8.*take 8 or 16"),
        ({"engine__micro_batch": 12}, r"engine.micro_batch 12 does not divide by objective.group 8.*take 8 or 16"),
        ({"data__lanes": 2}, r"data.lanes 2 deals consecutive rows apart"),
        ({"objective__gather": True, "engine__exact": "any"}, r"objective.gather makes the loss depend on the ranks"),
        ({"objective__gather": True, "launch__ranks": 4, "launch__min_ranks": 2}, r"set launch.min_ranks 2 to 0"),
    ],
)
def test_what_would_tear_groups_apart_is_refused_with_the_numbers(changes, message):
    from data.errors import UserError

    with pytest.raises(UserError, match=message):
        toy.recipe(**{"objective__kind": "contrastive", "train__batch_rows": 16} | changes)


def gathered(world: World, share: int) -> Any:
    """The loss and gradients of this rank's rows among those of all, gradients summed over ranks."""
    objective, network = Contrastive(ENCODER, share, 0.1, gather=True), model(ENCODER).eval()
    mine = SENTENCES[share * world.rank : share * (world.rank + 1)]
    batch = objective.batch(rows(*(encoded(*ids) for ids in mine)), CPU)
    loss = objective.loss(network, batch)
    loss.backward()
    flat = torch.cat([each.grad.flatten() for each in network.parameters() if each.grad is not None])
    if world.size > 1:
        torch.distributed.all_reduce(flat)
    return world.total_floats([loss.item()])[0], flat


@pytest.mark.slow
def test_gathered_negatives_have_the_loss_and_gradients_of_one_batch(tmp_path: Path):
    objective, network = Contrastive(ENCODER, 6, 0.1), model(ENCODER).eval()
    loss = objective.loss(network, objective.batch(rows(*(encoded(*ids) for ids in SENTENCES)), CPU))
    loss.backward()
    flat = torch.cat([each.grad.flatten() for each in network.parameters() if each.grad is not None])
    for ranks in (2, 3):
        for found, gradient in launch(gathered, ranks, 6 // ranks, folder=tmp_path):
            assert found == pytest.approx(float(loss), rel=1e-5)
            assert torch.allclose(gradient, flat, atol=1e-5)


@pytest.mark.slow
def test_a_run_with_gathered_negatives_goes_on_with_as_many_ranks_only(tmp_path: Path):
    run = begun(
        tmp_path / "run",
        [f"data.dataset={dataset(tmp_path, 'classification', 'encoder')}", "model.family=bert", "model.context=64",
         "model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2", "objective.gather=true",
         "objective.kind=contrastive", "objective.group=4", "engine.micro_batch=4", "launch.ranks=2",
         "train.batch_rows=8", "train.steps=4", "schedule.warmup_steps=1", "checkpoint.every_steps=0",
         "evaluate.every_steps=0", "log.wandb=off", "guard.enabled=false", "model.residual_dropout=0.1"],
    )  # fmt: skip
    launch(life, 2, [run], "start", 1, 2, folder=tmp_path)
    with pytest.raises(AssertionError, match=r"UserError.*2 rank\(s\) with a micro-batch of 4, and this start has 1"):
        launch(life, 1, [run], "restart", 3, folder=tmp_path)
    launch(life, 2, [run], "restart", 3, folder=tmp_path)
    assert record.load(run).attempts[-1].start["step"] == 1
