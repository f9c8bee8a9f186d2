"""Next-token prediction: which tokens are labels, and what their loss is."""

import numpy as np
import torch

from data.reader import Rows
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.objectives.base import Batch, Objective
from trainer.objectives.causal import Causal
from trainer.recipe import Model

CPU = torch.device("cpu")
CONFIG = Model(context=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3)


def model() -> Decoder:
    built = Decoder(CONFIG, 128)
    initialize(built, 1)
    return built


def text(*rows: list[int], length: int, starts: list[list[int]] | None = None) -> Rows:
    return Rows(
        tokens=np.array([row + [0] * (length - len(row)) for row in rows]),
        lengths=np.array([len(row) for row in rows]),
        starts=tuple(np.array(begin) for begin in starts or [[0] if row else [] for row in rows]),
        use=None,
        positions=np.array([index if row else -1 for index, row in enumerate(rows)]),
    )


def examples(*rows: list[tuple[int, int]], context: int) -> Rows:
    plain = text(*([token for token, _ in row] for row in rows), length=context + 1)
    use = np.zeros(plain.tokens.shape, np.uint8)
    for index, row in enumerate(rows):
        use[index, : len(row)] = [mark for _, mark in row]
    return Rows(plain.tokens, plain.lengths, plain.starts, use, plain.positions)


def test_labels_of_text_are_its_tokens_but_the_first():
    objective: Objective = Causal()
    batch = objective.batch(text([5, 6, 7, 8, 9], [1, 2, 3], [], length=5), CPU)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [1, 2, 3, 0], [0, 0, 0, 0]]
    assert batch.labels.tolist() == [[6, 7, 8, 9], [2, 3, -100, -100], [-100] * 4]
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert (batch.label_tokens, batch.rows, batch.documents) == (6, 2, None)
    assert objective.name == "causal"


def test_rows_that_overlap_by_one_make_each_token_a_label_once():
    stream = list(range(1, 22))
    rows = [stream[begin : begin + 6] for begin in range(0, 20, 5)]
    labels = Causal().batch(text(*rows, length=6), CPU).labels
    assert labels.flatten().tolist() == stream[1:]


def test_a_documents_first_token_is_predicted_from_the_end_of_the_one_before():
    rows = text([5, 6, 2, 7, 2, 8], length=6, starts=[[0, 3, 5]])
    batch = Causal("document").batch(rows, CPU)
    assert batch.labels.tolist() == [[6, 2, 7, 2, 8]]
    assert batch.documents is not None
    assert batch.documents.cumulative.tolist() == [0, 3, 5]
    assert Causal("full").batch(rows, CPU).documents is None


def test_only_marked_tokens_of_an_example_are_labels():
    batch = Causal().batch(examples([(5, 0), (6, 2), (7, 3), (8, 1)], [(9, 1), (3, 4)], [], context=64), CPU)
    assert batch.labels.tolist() == [[-100, 7, 8], [-100] * 3, [-100] * 3]
    assert batch.input_ids[:2].tolist() == [[5, 6, 7], [9, 3, 0]]
    assert (batch.label_tokens, batch.rows, batch.documents) == (2, 2, None)


def test_examples_are_as_wide_as_the_longest():
    for length, width in ((2, 1), (9, 8), (10, 9), (65, 64), (81, 80)):
        batch = Causal().batch(examples([(4, 1)] * length, [], context=80), CPU)
        assert batch.input_ids.shape == (2, width)
        assert batch.label_tokens == length - 1
    assert Causal().batch(examples([], context=80), CPU).input_ids.shape == (1, 1)


def by_hand(decoder: Decoder, ids: list[int], labels: dict[int, int]) -> float:
    """The sum of -log p(label) after each place, from the logits of the row read alone."""
    with torch.no_grad():
        chances = decoder(torch.tensor([ids]))[0].double().log_softmax(-1)
    return -sum(chances[place, label].item() for place, label in labels.items())


def test_masked_loss_is_the_one_computed_by_hand():
    decoder = model()
    rows = examples([(5, 0), (6, 0), (7, 1), (8, 1)], [(9, 0), (3, 1), (4, 0)], [], context=64)
    batch = Causal().batch(rows, CPU)
    expected = by_hand(decoder, [5, 6, 7, 8], {1: 7, 2: 8}) + by_hand(decoder, [9, 3, 4], {0: 3})
    assert abs(Causal().loss(decoder, batch).item() / expected - 1) < 1e-5


def test_document_loss_is_that_of_each_document_read_alone():
    decoder = model()
    rows = text([5, 6, 2, 7, 9, 2, 8], [4, 4, 4], length=7, starts=[[0, 3], [0]])
    batch = Causal("document").batch(rows, CPU)
    expected = by_hand(decoder, [5, 6, 2], {0: 6, 1: 2, 2: 7}) + by_hand(decoder, [7, 9, 2], {0: 9, 1: 2, 2: 8})
    expected += by_hand(decoder, [4, 4, 4], {0: 4, 1: 4})
    assert abs(Causal().loss(decoder, batch).item() / expected - 1) < 1e-5
    full = Causal("full").loss(decoder, Causal("full").batch(rows, CPU)).item()
    assert abs(full / expected - 1) > 1e-4


def test_a_micro_batch_of_filler_rows_weighs_nothing():
    batch: Batch = Causal().batch(text([], [], length=65), CPU)
    assert (batch.label_tokens, batch.rows) == (0, 0)
    decoder = model()
    loss = Causal().loss(decoder, batch)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in decoder.parameters())
