"""Classes and numbers: what the head reads, what counts in the loss, and the figures against their definitions."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.trainer.families import built
from tests.trainer.objectives.rows import CPU, decoded, encoded, rows
from trainer.models.head import Head
from trainer.objectives.base import Objective
from trainer.objectives.classification import Classification, Regression, Texts

ENCODER, DECODER = Texts(decoder=False, context=48), Texts(decoder=True, context=48)
NAMES = ("no", "yes", "maybe")


def model(texts: Texts, outputs: int):
    return built("llama" if texts.decoder else "bert", Head("classes", outputs)).eval()


def test_an_encoder_reads_pairs_with_token_types_and_padding():
    objective: Objective = Classification(NAMES, ENCODER)
    held = rows(encoded(7, 8, second=(9,)), encoded(6), [], targets=[[2], [0]])
    batch = objective.batch(held, CPU)
    assert batch.input_ids.tolist() == [[3, 7, 8, 4, 9, 4], [3, 6, 4, 0, 0, 0], [0] * 6]
    assert batch.token_types is not None and batch.padding is not None
    assert batch.token_types.tolist() == [[0, 0, 0, 0, 1, 1], [0] * 6, [0] * 6]
    assert batch.padding.real.sum(1).tolist() == [6, 3, 0]
    assert batch.labels.tolist() == [2, 0, -100]
    assert (batch.label_tokens, batch.rows, objective.head) == (2, 2, Head("classes", 3))


def test_a_decoder_reads_its_last_token():
    batch = Classification(NAMES, DECODER).batch(rows(decoded(7, 8, second=(9,)), decoded(6), targets=[[1], [0]]), CPU)
    assert batch.at is not None
    assert batch.input_ids[torch.arange(2), batch.at].tolist() == [3, 3]
    assert batch.padding is None


@pytest.mark.parametrize("texts", [ENCODER, DECODER])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_sum_over_examples_each_read_alone(texts, smoothing):
    made = decoded if texts.decoder else encoded
    examples, targets = [made(7, 8, 9, 10), made(6), made(30, 31, second=(32, 33))], [[1], [2], [0]]
    objective, network = Classification(NAMES, texts, smoothing), model(texts, 3)
    loss = objective.loss(network, objective.batch(rows(*examples, [], targets=targets), CPU)).detach()
    alone = 0.0
    for example, target in zip(examples, targets, strict=True):
        logits = network(torch.tensor([[token for token, _, _ in example]]), **_places(example, texts))
        chances = logits[0].detach().double().log_softmax(-1)
        alone -= float((1 - smoothing) * chances[target[0]] + smoothing * chances.mean())
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(alone, rel=1e-5)


def _places(example, texts):
    if texts.decoder:
        return {"at": torch.tensor([len(example) - 1])}
    return {"token_types": torch.tensor([[int(name == "text_b") for _, name, _ in example]])}


@pytest.mark.parametrize("texts", [ENCODER, DECODER])
def test_a_batch_of_filler_has_no_loss_and_finite_gradients(texts):
    objective, network = Classification(NAMES, texts), model(texts, 3)
    loss = objective.loss(network, objective.batch(rows([], [], targets=[]), CPU))
    loss.backward()
    assert float(loss) == 0
    assert all(torch.isfinite(each.grad).all() for each in network.parameters() if each.grad is not None)


def test_accuracy_and_f1_are_those_counted_by_hand():
    objective = Classification(NAMES, ENCODER)
    draw = np.random.default_rng(1)
    labels, said = draw.integers(0, 3, 40), draw.integers(0, 3, 40)
    sums = {"loss": 80.0, "labels": 40.0}
    for number in range(3):
        sums[f"right {number}"] = float(((labels == number) & (said == number)).sum())
        sums[f"said {number}"], sums[f"held {number}"] = (float((each == number).sum()) for each in (said, labels))
    f1 = []
    for number in range(3):
        precision = np.mean(labels[said == number] == number)
        recall = np.mean(said[labels == number] == number)
        f1.append(2 * precision * recall / (precision + recall))
    found = objective.figures(sums)
    assert found["accuracy"] == pytest.approx(np.mean(labels == said))
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert (found["loss"], found["examples"]) == (2.0, 40)
    assert "f1" not in found
    assert [row[0] for row in objective.table(sums)] == list(NAMES)
    assert [row[3] for row in objective.table(sums)] == pytest.approx(f1)
    assert [row[4] for row in objective.table(sums)] == [(labels == number).sum() for number in range(3)]


def test_of_two_classes_f1_is_the_second_ones_and_saying_it_always_has_a_known_one():
    objective = Classification(("no", "yes"), ENCODER)
    sums = {
        "loss": 1.0, "labels": 10.0, "right 0": 1.0, "right 1": 5.0, "said 0": 3.0, "said 1": 7.0, "held 0": 3.0,
        "held 1": 7.0,
    }  # fmt: skip
    assert objective.figures(sums)["f1"] == pytest.approx(10 / 14)
    always = objective.constant(sums, 1, np.array([0.4, 0.6]))
    assert always["f1"] == pytest.approx(2 * 7 / 17)
    assert always["accuracy"] == pytest.approx(0.7)
    assert always["macro_f1"] == pytest.approx(7 / 17)
    assert always["loss"] == pytest.approx(-(3 * math.log(0.4) + 7 * math.log(0.6)) / 10)


def test_measured_sums_are_those_of_the_logits():
    objective, network = Classification(NAMES, ENCODER, smoothing=0.3), model(ENCODER, 3)
    examples, targets = [encoded(*range(6, 7 + n)) for n in range(9)], [[n % 3] for n in range(9)]
    batch = objective.batch(rows(*examples, [], targets=targets), CPU)
    with torch.no_grad():
        sums = dict(zip(objective.sums, objective.measure(network, batch), strict=True))
        logits = network(batch.input_ids, padding=batch.padding, token_types=batch.token_types)[:9]
    labels = torch.tensor(targets)[:, 0]
    assert sums["loss"] == pytest.approx(float(F.cross_entropy(logits, labels, reduction="sum")), rel=1e-5)
    assert sum(sums[f"right {n}"] for n in range(3)) == float((logits.argmax(-1) == labels).sum())
    assert sum(sums[f"said {n}"] for n in range(3)) == sum(sums[f"held {n}"] for n in range(3)) == sums["labels"] == 9


def test_regression_learns_squared_errors_and_correlates_as_numpy_does():
    objective, network = Regression(ENCODER), model(ENCODER, 1)
    examples, targets = [encoded(*range(6, 7 + n)) for n in range(7)], [[0.5 * n - 1] for n in range(7)]
    batch = objective.batch(rows(*examples, [], targets=targets, kind="<f4"), CPU)
    with torch.no_grad():
        said = network(batch.input_ids, padding=batch.padding, token_types=batch.token_types)[:7, 0].double().numpy()
        sums = dict(zip(objective.sums, objective.measure(network, batch), strict=True))
        loss = float(objective.loss(network, batch))
    wanted = np.array(targets)[:, 0]
    assert loss == pytest.approx(float(((said - wanted) ** 2).sum()), rel=1e-5)
    assert objective.figures(sums)["loss"] == pytest.approx(loss / 7, rel=1e-5)
    assert objective.figures(sums)["pearson"] == pytest.approx(np.corrcoef(said, wanted)[0, 1], rel=1e-5)
    best = objective.constant(sums)
    assert best["loss"] == pytest.approx(wanted.var())
    assert math.isnan(best["pearson"])
    assert batch.label_tokens == 7
