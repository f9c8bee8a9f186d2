"""From positions to the documents in their rows."""

import numpy as np
import pytest

from data.dataset import Dataset
from data.errors import UserError
from data.order.layout import Layout
from data.order.order import Order, Source, Stage
from data.reader import LocalReader, layout
from data.trace import documents_at, find, sightings

CONTEXT = 32


@pytest.fixture
def order(small_dataset: Dataset) -> Order:
    return Order(layout(small_dataset.index("train"), CONTEXT), seed=5, window=2)


def test_the_documents_of_rows_are_those_whose_tokens_are_in_them(small_dataset: Dataset, order: Order) -> None:
    """Against the slow way: each row's tokens must be found in the documents named, at the places they imply."""
    rows = {row.id: row for row in small_dataset.rows("train")}
    urls = [shard.url for shard in small_dataset.index("train").shards]
    positions = np.arange(17, 60)
    found = list(documents_at([small_dataset], "train", order, positions))
    assert len({each.id for each in found}) == len(found)
    places = order.places(positions)
    expected = {position: set() for position in positions.tolist()}
    for position, shard, start in zip(positions.tolist(), places.shard.tolist(), places.start.tolist(), strict=True):
        for row in rows.values():
            if row.shard == shard and row.start < start + CONTEXT + 1 and start < row.start + row.tokens:
                expected[position].add(row.id)
    named = {position: {each.id for each in found if position in each.positions} for position in positions.tolist()}
    assert named == expected
    for each in found:
        row = rows[each.id]
        assert (each.source, each.shard, each.start, each.tokens) == (
            row.source,
            urls[row.shard],
            row.start,
            row.tokens,
        )


def test_a_row_that_is_a_document_is_that_document(small_dataset: Dataset) -> None:
    index = small_dataset.index("train")
    whole = Order(Layout.documents(index.fingerprint, (shard.documents for shard in index.shards)), 3, 2)
    position = 4
    (found,) = documents_at([small_dataset], "train", whole, np.array([position]))
    place = whole.places(np.array([position]))
    here = [row for row in small_dataset.rows("train") if row.shard == place.shard[0]]
    assert found.id == here[int(place.row[0])].id
    assert found.positions == (position,)


def test_a_missing_table_is_named(small_dataset: Dataset, order: Order, tmp_path, monkeypatch) -> None:
    import shutil

    copy = Dataset(shutil.copytree(small_dataset.folder, tmp_path / "copy"), small_dataset.info)
    (copy.folder / "train-000000.docs.parquet").unlink()
    with pytest.raises(UserError, match=r"cannot read the document table .*train-000000\.docs\.parquet"):
        list(documents_at([copy], "train", order, np.arange(order.rows_per_epoch)))


def test_every_row_has_a_document_and_every_read_token_its_owner(small_dataset: Dataset, order: Order) -> None:
    positions = np.arange(order.rows_per_epoch)
    held = {p for each in documents_at([small_dataset], "train", order, positions) for p in each.positions}
    assert held == set(positions.tolist())
    assert LocalReader(small_dataset.index("train"), order, CONTEXT).rows(positions).lengths.min() > 0


@pytest.fixture
def staged(small_dataset: Dataset) -> Order:
    """Two stages of two row lengths over two lanes."""
    index = small_dataset.index("train")
    stages = [
        Stage(start, {"small": 1.0}, {"small": layout(index, context)}, 2)
        for start, context in ((0, CONTEXT), (130, CONTEXT // 2))
    ]
    return Order.staged([Source("small", index.fingerprint)], stages, 5, min(2, len(index.shards)))


def test_a_document_is_seen_where_its_tokens_are_read_and_nowhere_else(small_dataset: Dataset, staged: Order) -> None:
    """Over epochs, lanes and stages, against what the rows hold the other way round."""
    stop = 2 * staged.rows_per_epoch
    there = {each.id: each.positions for each in documents_at([small_dataset], "train", staged, np.arange(stop))}
    for row in list(small_dataset.rows("train"))[::3]:
        (document,) = find([small_dataset], "train", row.id)
        assert (document.shard, document.start, document.tokens) == (row.shard, row.start, row.tokens)
        seen = sightings(document, [small_dataset], "train", staged, stop)
        positions = sorted(position for sighting in seen for position in sighting.positions)
        assert tuple(positions) == there.get(row.id, ())
        for sighting in seen:
            assert set(staged.places(np.array(sighting.positions)).epoch.tolist()) == {sighting.epoch}


def test_a_document_is_found_by_the_end_of_its_id_and_a_missing_one_is_an_error(small_dataset: Dataset) -> None:
    row = next(row for row in small_dataset.rows("train") if "/" in row.id)
    assert [each.id for each in find([small_dataset], "train", row.id.partition("/")[2])] == [row.id]
    with pytest.raises(UserError, match="has the id 'nobody', nor one that ends with it"):
        find([small_dataset], "train", "nobody")


def test_an_example_is_seen_in_its_row(small_dataset: Dataset) -> None:
    index = small_dataset.index("train")
    whole = Order(Layout.documents(index.fingerprint, (shard.documents for shard in index.shards)), 3, 2)
    (traced,) = documents_at([small_dataset], "train", whole, np.array([7]))
    (document,) = find([small_dataset], "train", traced.id)
    (first, second) = sightings(document, [small_dataset], "train", whole, 2 * whole.rows_per_epoch)
    assert (first.epoch, first.positions, second.epoch, len(second.positions)) == (0, (7,), 1, 1)
