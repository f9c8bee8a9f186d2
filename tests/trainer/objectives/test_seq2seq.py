"""Source and target of encoder-decoders: what each side reads, and what is asked."""

import pytest
import torch
import torch.nn.functional as F

from tests.trainer.families import built
from tests.trainer.objectives.rows import CPU, pair, rows
from trainer.models.padding import rounded
from trainer.objectives.base import Objective
from trainer.objectives.seq2seq import Seq2Seq

PAIRS = [pair((7, 8, 9), (20, 21)), pair((6,), (30, 31, 32, 33))]


def test_the_decoder_reads_the_target_shifted_right():
    objective: Objective = Seq2Seq(48, start_id=2, pad_id=1)
    batch = objective.batch(rows(*PAIRS, []), CPU)
    assert batch.decoder_input_ids is not None and batch.padding is not None
    assert batch.input_ids.tolist() == [[7, 8, 9, 5], [6, 5, 1, 1], [1] * 4]
    assert batch.padding.real.sum(1).tolist() == [4, 2, 0]
    assert batch.decoder_padding is not None and batch.decoder_padding.real.sum(1).tolist() == [3, 5, 0]
    assert batch.labels.tolist() == [[20, 21, 5, -100, -100], [30, 31, 32, 33, 5], [-100] * 5]
    assert batch.decoder_input_ids.tolist() == [[2, 20, 21, 5, 1], [2, 30, 31, 32, 33], [2] + [1] * 4]
    assert (batch.label_tokens, batch.rows) == (8, 2)


def test_sides_are_as_wide_as_their_longest_and_on_a_gpu_a_multiple_of_8_up_to_the_context():
    objective = Seq2Seq(48, 0, 0)
    assert [rounded(longest, 45, torch.device("cuda")) for longest in (0, 1, 8, 9, 41)] == [8, 8, 8, 16, 45]
    for source, target, widths in ((15, 15, (16, 16)), (16, 5, (17, 6)), (3, 45, (4, 46))):
        batch = objective.batch(rows(pair([6] * source, [7] * target), pair([6], [7])), CPU)
        assert (batch.input_ids.shape[1], batch.labels.shape[1]) == widths
        assert batch.label_tokens == target + 1 + 2


@pytest.mark.parametrize("family", ["t5", "transformer"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_sum_over_target_tokens_of_pairs_read_alone(family, smoothing):
    network = built(family).eval()
    objective = Seq2Seq(48, 2, 1, smoothing=smoothing)
    batch = objective.batch(rows(*PAIRS, []), CPU)
    loss, expected, plain = objective.loss(network, batch), 0.0, 0.0
    for source, target in (([7, 8, 9, 5], [20, 21, 5]), ([6, 5], [30, 31, 32, 33, 5])):
        logits = network(torch.tensor([source]), torch.tensor([[2, *target[:-1]]]))[0].double()
        wanted = torch.tensor(target)
        expected += float(F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing))
        plain += float(F.cross_entropy(logits, wanted, reduction="sum"))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        sums = dict(zip(objective.sums, objective.measure(network, batch), strict=True))
    assert sums["loss"] == pytest.approx(plain, rel=1e-5)
    assert sums["labels"] == 8
    loss.backward()
    assert all(torch.isfinite(each.grad).all() for each in network.parameters() if each.grad is not None)
