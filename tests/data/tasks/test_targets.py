"""Targets: what examples predict beside tokens, in shards, through a stock reader, and by position."""

from dataclasses import replace

import numpy as np
import pytest

from data.build.workplace import InProcess
from data.order.order import Order
from data.order.pack import pack
from data.reader import LocalReader, layout
from data.shard_writer import TokenDocument
from data.shards import Index, MappedShard, Targets
from tests.splits import write_split

U16 = np.dtype("<u2")
SPAN = Targets(("start", "end"), np.dtype("<i4"))
SCORE = Targets(("label",), np.dtype("<f4"))
LENGTHS = [7, 300, 1, 64, 64, 128, 90, 33, 2, 260]


def written(folder, targets, lengths=LENGTHS):
    draw = np.random.default_rng(1)
    made = []
    for number, length in enumerate(lengths):
        held = (10 * draw.random(len(targets.names))).astype(targets.dtype)
        uses = draw.integers(0, 4, length).astype(np.uint8)
        tokens = draw.integers(4, 60_000, length)
        made.append(
            TokenDocument(
                f"doc{number}", "made", tokens, 3 * length, f"{number:032x}", uses, held, f'{{"n": {number}}}'
            )
        )
    return made, write_split(folder, "train", made, U16, "t" * 64, "examples", 400, 64, targets)


@pytest.mark.parametrize("targets", [SPAN, SCORE])
def test_every_example_finds_its_targets_in_any_block_and_shard(tmp_path, targets):
    made, _ = written(tmp_path, targets)
    index = Index.load(tmp_path, "train")
    assert index.targets == targets
    assert len(index.shards) > 1
    mapped = [MappedShard(tmp_path, shard, U16) for shard in index.shards]
    found = [shard.target(number, targets) for shard in mapped for number in range(shard.entry.documents)]
    assert np.array_equal(np.stack(found), np.stack([document.targets for document in made]))
    for shard in mapped:
        for number, start in enumerate(shard.document_starts().tolist()):
            assert shard.document_at(start) == number


def test_stock_webdataset_reads_the_targets(tmp_path):
    import webdataset

    made, index = written(tmp_path, SPAN)
    urls = [str(tmp_path / shard.url) for shard in index.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert any(len(sample["doc.npy"]) == 0 for sample in samples)  # a block inside a long example
    got = np.concatenate([sample["tgt.npy"] for sample in samples])
    assert got.dtype == SPAN.dtype
    assert np.array_equal(got, np.stack([document.targets for document in made]))


def test_rows_carry_the_targets_of_their_examples_and_fillers_none(tmp_path):
    made, index = written(tmp_path, SCORE)
    known = {tuple(document.tokens[:8]): document for document in made}
    reader = LocalReader(index, Order(layout(index, 512), 3, 4), 512)
    rows = reader.rows(np.array([0, -1, 5, 17, 3]))
    assert rows.targets is not None and rows.targets.dtype == np.float32
    real = [slot for slot in range(5) if slot != 1]
    assert rows.targets.shape == (4, 1)
    for slot, target in zip(real, rows.targets, strict=True):
        document = known[tuple(rows.tokens[slot, : min(8, rows.lengths[slot])])]
        assert np.array_equal(target, document.targets)
    assert reader.rows(np.array([-1])).targets.shape == (0, 1)


def test_packed_examples_have_their_targets_row_after_row(tmp_path):
    made, index = written(tmp_path, SPAN)
    pack([index], [320], InProcess(), 2)
    laid = layout(index, 320, "best_fit")
    order = Order(laid, 3, 4)
    assert order.rows_per_epoch < len(made)
    positions = np.array([*range(order.rows_per_epoch), -1])
    rows = LocalReader(index, order, 320).rows(positions)
    assert rows.packed and rows.targets is not None
    begins = [(slot, start) for slot, starts in enumerate(rows.starts) for start in starts.tolist()]
    assert rows.targets.shape == (len(begins), 2) and len(begins) == len(made)
    known = {tuple(document.tokens[:2]): document for document in made if len(document.tokens) > 1}
    for (slot, start), target in zip(begins, rows.targets, strict=True):
        document = known.pop(tuple(rows.tokens[slot, start : start + 2]), made[2])
        assert np.array_equal(target, document.targets)
    assert not known


def test_what_an_example_predicts_belongs_to_the_identity_of_the_order(tmp_path):
    _, index = written(tmp_path, SPAN)
    renamed = replace(index, targets=Targets(("first", "last"), SPAN.dtype))
    assert renamed.fingerprint != index.fingerprint
