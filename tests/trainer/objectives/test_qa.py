"""Answers as spans: where one may stand, and what a window costs."""

import math

import pytest
import torch

from tests.trainer.families import built
from tests.trainer.objectives.rows import CPU, question, rows
from trainer.models.head import Head
from trainer.objectives.base import Objective
from trainer.objectives.qa import QuestionAnswering

OBJECTIVE: Objective = QuestionAnswering(48)
WINDOWS = [question((7, 8), (10, 11, 12, 13)), question((9,), (20, 21))]


def test_an_answer_may_stand_in_the_context_or_at_the_first_token():
    batch = OBJECTIVE.batch(rows(*WINDOWS, [], targets=[[5, 6], [0, 0]]), CPU)
    assert batch.allowed is not None and batch.padding is not None and batch.token_types is not None
    assert batch.allowed[:, :10].nonzero().tolist() == [
        [0, 0], [0, 4], [0, 5], [0, 6], [0, 7], [1, 0], [1, 3], [1, 4], [2, 0]
    ]  # fmt: skip
    assert batch.labels.tolist() == [[5, 6], [0, 0], [-100, -100]]
    assert batch.token_types.sum(1).tolist() == [5, 3, 0]
    assert batch.padding.real.sum(1).tolist() == [9, 6, 0]
    assert (batch.label_tokens, batch.rows) == (2, 2)


def test_the_loss_is_the_mean_of_both_ends_among_the_places_allowed():
    network = built("bert", Head("span")).eval()
    batch = OBJECTIVE.batch(rows(*WINDOWS, [], targets=[[5, 6], [0, 0]]), CPU)
    expected = 0.0
    for window, places, label in ((0, [0, 4, 5, 6, 7], (5, 6)), (1, [0, 3, 4], (0, 0))):
        ids = torch.tensor([[token for token, _, _ in WINDOWS[window]]])
        types = torch.tensor([[int(name == "context") for _, name, _ in WINDOWS[window]]])
        logits = network(ids, token_types=types)[0].double()
        for end in (0, 1):
            expected -= 0.5 * float(logits[places, end].log_softmax(0)[places.index(label[end])])
    loss = OBJECTIVE.loss(network, batch)
    loss.backward()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert all(torch.isfinite(each.grad).all() for each in network.parameters() if each.grad is not None)


def test_figures_count_windows_whose_two_ends_are_right():
    network = built("bert", Head("span")).eval()
    with torch.no_grad():
        scores = OBJECTIVE.scores(network, OBJECTIVE.batch(rows(*WINDOWS, targets=[[5, 6], [0, 0]]), CPU))
        best = scores.argmax(1)[:, :].tolist()
        targets = [best[0], [best[1][0], (best[1][1] + 1) % 3]]
        batch = OBJECTIVE.batch(rows(*WINDOWS, [], targets=targets), CPU)
        sums = dict(zip(OBJECTIVE.sums, OBJECTIVE.measure(network, batch), strict=True))
    found = OBJECTIVE.figures(sums)
    assert (found["accuracy"], found["windows"]) == (0.5, 2)
    assert sums["guess"] == pytest.approx(math.log(5) + math.log(3), abs=2e-6)
