"""Packed rows and the model: a document's loss is the one it has alone."""

import numpy as np
import pytest
import torch

from data.build.workplace import InProcess
from data.order.order import Order
from data.order.pack import pack
from data.reader import LocalReader, Rows, layout
from data.shard_writer import TokenDocument
from tests.splits import write_split
from trainer.models.decoder import Decoder
from trainer.models.initialize import initialize
from trainer.models.loss import IGNORED
from trainer.objectives.causal import Causal
from trainer.recipe import Model

CPU = torch.device("cpu")
CONTEXT = 64
CONFIG = Model(context=CONTEXT, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3)
LENGTHS = [5, 17, 64, 3, 65, 1, 30, 30, 2, 12, 41, 9, 22, 7, 60, 4]


def token_losses(model: Decoder, rows: Rows) -> np.ndarray:
    """(rows, context + 1) loss of each token as a label; 0 where it is none."""
    batch = Causal().batch(rows, CPU)
    with torch.no_grad():
        logits = model(batch.input_ids, None, batch.documents)
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
    assert int((batch.labels != IGNORED).sum()) == batch.label_tokens
    out = np.zeros(rows.tokens.shape)
    out[:, 1 : 1 + losses.shape[1]] = losses.numpy()
    return out


@pytest.mark.parametrize("kind", ["text", "examples"])
def test_a_packed_document_has_the_loss_it_has_alone(tmp_path, kind):
    draw = np.random.default_rng(0)
    documents = []
    for number, length in enumerate(LENGTHS):
        tokens = np.concatenate(([number + 1], draw.integers(20, 128, length - 1)))  # the first tells which it is
        uses = draw.integers(0, 2, length).astype(np.uint8) if kind == "examples" else None
        documents.append(TokenDocument(f"d{number}", "made", tokens, 1, "0" * 32, uses))
    index = write_split(tmp_path, "train", documents, np.dtype("<u2"), "t" * 64, kind)
    pack([index], [CONTEXT], InProcess(), 1)
    order = Order(layout(index, CONTEXT, "best_fit"), 1, 1)
    rows = LocalReader(index, order, CONTEXT).rows(np.arange(order.rows_per_epoch))
    assert len(rows.tokens) < len(LENGTHS) / 2
    assert max(len(starts) for starts in rows.starts) > 3

    model = Decoder(CONFIG, 128)
    initialize(model, 1)
    together = token_losses(model, rows)
    seen = 0
    for slot, (starts, length) in enumerate(zip(rows.starts, rows.lengths, strict=True)):
        for begin, end in zip(starts, [*starts[1:], length], strict=True):
            number = int(rows.tokens[slot, begin]) - 1
            alone = Rows(
                np.pad(documents[number].tokens, (0, CONTEXT + 1 - LENGTHS[number]))[None],
                np.array([LENGTHS[number]]), (np.zeros(1, np.int64),),
                None if kind == "text" else np.pad(documents[number].uses, (0, CONTEXT + 1 - LENGTHS[number]))[None],
                np.zeros(1, np.int64),
            )  # fmt: skip
            expected = token_losses(model, alone)[0, : LENGTHS[number]]
            np.testing.assert_allclose(together[slot, begin:end], expected, atol=1e-5)
            labels = LENGTHS[number] - 1 if alone.use is None else (alone.use[0, 1:] & 1).sum()
            assert (expected > 0).sum() == labels
            seen += 1
        assert not together[slot, length:].any()
    assert seen == len(LENGTHS)


def test_full_attention_over_a_packed_row_is_another_loss(tmp_path):
    """So that the test above would notice documents that see each other."""
    documents = [TokenDocument(f"d{n}", "made", np.arange(20, 52) + n, 1, "0" * 32) for n in range(2)]
    index = write_split(tmp_path, "train", documents, np.dtype("<u2"), "t" * 64)
    pack([index], [CONTEXT], InProcess(), 1)
    rows = LocalReader(index, Order(layout(index, CONTEXT, "best_fit"), 1, 1), CONTEXT).rows(np.arange(1))
    model = Decoder(CONFIG, 128)
    initialize(model, 1)
    apart, mixed = (Causal(attention).batch(rows, CPU) for attention in ("document", "full"))
    assert torch.equal(apart.labels, mixed.labels)
    with torch.no_grad():
        losses = [Causal().loss(model, batch).item() for batch in (apart, mixed)]
    assert abs(losses[0] - losses[1]) > 1e-3
