"""Rows read through the order are the tokens of the shards; reading ahead changes nothing but the waiting."""

import threading
import time
from functools import cache, cached_property

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import reader as reading
from data.order.order import Order
from data.reader import LocalReader, Prefetch, Rows, layout
from tests.data.test_shards import written

CONTEXT = 16
LENGTHS = [7, 90, 1, 1, 40, 33, 128, 200, 5, 17, 16, 2, 64, 1, 150, 31, 80, 12, 3, 99] * 2


RESOLVED = reading.RESOLVED


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """A corpus this small has a hundred epochs in a chunk of the usual size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "RESOLVED", 64)
        yield


class Corpus:
    """A written split with all that a test needs to know of it."""

    def __init__(self, folder, kind: str) -> None:
        self.documents, self.index = written(folder, LENGTHS, kind, shard_tokens=300, block_tokens=64)
        assert len(self.index.shards) > 4
        self.order = Order(layout(self.index, CONTEXT), seed=11, window=3)
        ends = np.cumsum([shard.documents for shard in self.index.shards])
        self.by_shard = [
            self.documents[end - shard.documents : end] for end, shard in zip(ends, self.index.shards, strict=True)
        ]

    def reader(self) -> LocalReader:
        return LocalReader(self.index, self.order, CONTEXT)

    def epoch(self, number: int) -> np.ndarray:
        rows = self.order.rows_per_epoch
        return np.arange(number * rows, (number + 1) * rows)

    @cache  # noqa: B019  (it lives as long as the module)
    def tokens(self, shard: int) -> np.ndarray:
        """A shard's tokens, from the documents that were written."""
        return np.concatenate([document.tokens for document in self.by_shard[shard]])

    @cached_property
    def three_epochs(self) -> Rows:
        """Read in one go."""
        return self.reader().rows(np.arange(3 * self.order.rows_per_epoch))

    def starts(self, shard: int) -> list[int]:
        """Where its documents start."""
        return [0, *np.cumsum([len(document.tokens) for document in self.by_shard[shard]])[:-1].tolist()]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("text"), "text")


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("examples"), "examples")


def same(one: Rows, slot: int, other: Rows, place: int) -> bool:
    """Whether row `slot` of one is row `place` of the other."""
    arrays = ("tokens", "lengths", "starts", "positions") + (("use",) if one.use is not None else ())
    return all(np.array_equal(getattr(one, name)[slot], getattr(other, name)[place]) for name in arrays)


# -- rows of text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_rows_are_the_tokens_of_the_shards_with_the_documents_that_start_in_them(text, epoch):
    positions = text.epoch(epoch)
    places = text.order.places(positions)
    rows = text.reader().rows(positions)
    assert rows.tokens.dtype == np.int64 and rows.tokens.shape == (len(positions), CONTEXT + 1)
    assert rows.use is None
    assert (rows.lengths == CONTEXT + 1).all()
    assert np.array_equal(rows.positions, positions)
    several = 0
    for slot, (shard, start) in enumerate(zip(places.shard, places.start, strict=True)):
        assert np.array_equal(rows.tokens[slot], text.tokens(int(shard))[start : start + CONTEXT + 1])
        inside = [at - start for at in text.starts(int(shard)) if start < at <= start + CONTEXT]
        assert rows.starts[slot].tolist() == [0, *inside]
        several += len(inside) > 1
    assert several > 3  # the corpus does have rows of many documents


def test_consecutive_rows_overlap_by_one_token_so_that_each_is_a_label_once(text):
    epoch = 2
    rows_of = text.order.layout.rows
    for shard, count in enumerate(rows_of):
        row = np.arange(count)
        rows = text.reader().rows(text.order.positions(epoch, np.full(count, shard), row))
        assert np.array_equal(rows.tokens[1:, 0], rows.tokens[:-1, -1])
        labels = rows.tokens[:, 1:].ravel()
        tokens = text.tokens(shard)
        phase = int(text.order.places(rows.positions[:1]).start[0])
        assert np.array_equal(labels, tokens[phase + 1 : phase + 1 + count * CONTEXT])
        assert len(tokens) - 1 - len(labels) < CONTEXT


@pytest.mark.parametrize("kind", ["text", "examples"])
def test_filler_rows_are_empty_and_disturb_no_other(kind, request):
    corpus = request.getfixturevalue(kind)
    alone = corpus.reader().rows(np.array([3, 8]))
    among = corpus.reader().rows(np.array([-1, 3, -1, 8]))
    assert same(alone, 0, among, 1) and same(alone, 1, among, 3)
    for slot in (0, 2):
        assert not among.tokens[slot].any()
        assert among.lengths[slot] == 0
        assert len(among.starts[slot]) == 0
        assert among.positions[slot] == -1
        assert among.use is None or not among.use[slot].any()
    nothing = corpus.reader().rows(np.array([-1, -1]))
    assert not nothing.tokens.any() and not nothing.lengths.any()


@pytest.mark.parametrize("kind", ["text", "examples"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_reading_in_any_order_and_any_portions_gives_the_same_rows(text, examples, kind, data):
    corpus = {"text": text, "examples": examples}[kind]
    whole = corpus.three_epochs
    wanted = st.lists(st.integers(-1, len(whole.positions) - 1), min_size=1, max_size=12)
    reader = corpus.reader()
    for portion in data.draw(st.lists(wanted, min_size=1, max_size=4)):
        rows = reader.rows(np.array(portion))
        assert all(same(rows, slot, whole, place) for slot, place in enumerate(portion) if place >= 0)
        assert rows.positions.tolist() == portion


@pytest.mark.parametrize("chunk", [1, 7, RESOLVED])
def test_places_resolved_in_chunks_are_those_of_the_order(text, monkeypatch, chunk):
    monkeypatch.setattr(reading, "RESOLVED", chunk)
    positions = np.array([chunk - 1, chunk, 3 * chunk + 5, -1, max(chunk - 2, 0), 0, chunk + 1])
    found = text.reader().rows(positions)
    real = positions >= 0
    places = text.order.places(positions[real])
    for tokens, shard, start in zip(found.tokens[real], places.shard, places.start, strict=True):
        assert np.array_equal(tokens, text.tokens(int(shard))[start : start + CONTEXT + 1])


# -- rows of examples ------------------------------------------------------------------------------------------------


def test_an_example_is_one_row_with_its_use_bits_cut_at_the_context(examples):
    positions = examples.epoch(1)
    places = examples.order.places(positions)
    reader = examples.reader()
    rows = reader.rows(positions)
    assert examples.order.rows_per_epoch == len(LENGTHS)
    assert rows.use is not None and rows.use.dtype == np.uint8 and rows.use.shape == rows.tokens.shape
    for slot, (shard, number) in enumerate(zip(places.shard, places.start, strict=True)):
        document = examples.by_shard[shard][number]
        length = min(len(document.tokens), CONTEXT + 1)
        assert rows.lengths[slot] == length
        assert np.array_equal(rows.tokens[slot, :length], document.tokens[:length])
        assert np.array_equal(rows.use[slot, :length], document.uses[:length])
        assert not rows.tokens[slot, length:].any() and not rows.use[slot, length:].any()
        assert rows.starts[slot].tolist() == [0]
    assert set(np.unique(rows.use)) == {0, 1, 2, 3}
    reader.rows(np.array([-1, -1]))


def test_every_example_is_read_once_in_an_epoch(examples):
    rows = examples.reader().rows(examples.epoch(0))
    read = sorted(tuple(tokens[:length]) for tokens, length in zip(rows.tokens, rows.lengths, strict=True))
    assert read == sorted(tuple(document.tokens[: CONTEXT + 1]) for document in examples.documents)


# -- reading ahead ---------------------------------------------------------------------------------------------------


def until(condition, seconds: float = 5.0) -> bool:
    """Wait for `condition`."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_reading_ahead_keeps_the_order_and_ends(ahead):
    prefetch = Prefetch(lambda number: number * number, 20, ahead)
    assert list(prefetch) == [number * number for number in range(20)]
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(prefetch)
    assert until(lambda: not prefetch_threads())


def test_reading_ahead_goes_on_while_nobody_asks():
    made = []
    prefetch = Prefetch(made.append, 20, 3)
    assert until(lambda: len(made) >= 3)
    prefetch.close()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_is_raised_where_its_result_would_have_come_and_again_after_it(error):
    def produce(number: int) -> int:
        if number == 3:
            raise error("at 3")
        return number

    prefetch = Prefetch(produce, 10, 2)
    assert [next(prefetch) for _ in range(3)] == [0, 1, 2]
    for _ in range(3):
        with pytest.raises(error, match="at 3"):
            next(prefetch)
    prefetch.close()


@pytest.mark.parametrize("taken", [0, 2])
def test_closing_ends_the_thread_and_may_be_done_twice(taken):
    made = []
    prefetch = Prefetch(made.append, 10**9, 2)
    for _ in range(taken):
        next(prefetch)
    assert until(lambda: len(made) > taken)
    began = time.monotonic()
    prefetch.close()
    assert not prefetch_threads()
    assert time.monotonic() - began < 30
    count = len(made)
    prefetch.close()
    time.sleep(0.05)
    assert len(made) == count


def test_never_more_results_are_made_ahead_than_asked_for():
    made = []
    prefetch = Prefetch(made.append, 100, 3)
    for taken in range(6):
        time.sleep(0.05)
        assert len(made) - taken <= 3
        next(prefetch)
    prefetch.close()
