"""Stages, sources and lanes: every row once an epoch, nothing moved by what is appended, everything found again."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.order import mixture
from data.order.departure import departure
from data.order.layout import Layout
from data.order.order import Order, Source, Stage

SEEDS = st.integers(0, 2**63 - 1)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "BLOCK", 8)
        yield


@st.composite
def staged(draw, stages: int = 4, capped: bool = True) -> Order:
    """Sources of text in stages with changing weights, row lengths and windows."""
    lanes = draw(st.integers(1, 3))
    names = [f"s{number}" for number in range(draw(st.integers(1, 3)))]
    tokens = {name: draw(st.lists(st.integers(13, 60), min_size=lanes, max_size=8)) for name in names}
    caps = {name: draw(st.none() | st.floats(1.5, 6)) if capped else None for name in names}
    start, made = 0, []
    for _ in range(draw(st.integers(1, stages))):
        inside = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        context, window = draw(st.sampled_from([4, 4, 8, 12])), draw(st.sampled_from([2, 2, 3]))
        layouts = {name: Layout.chopped(name, tokens[name], context) for name in inside}
        made.append(Stage(start, {name: draw(st.floats(0.1, 9)) for name in inside}, layouts, window))
        start += lanes * draw(st.integers(1, 25))
    try:
        return Order.staged([Source(name, name, caps[name]) for name in names], made, draw(SEEDS), lanes)
    except UserError as error:
        assume("max_epochs" not in str(error))
        raise


def asked(order: Order, count: int = 200) -> np.ndarray:
    return np.arange(count if order.end is None else min(count, order.end))


def seen(order: Order, positions: np.ndarray) -> list[tuple[int, ...]]:
    """(source, epoch, shard, first token, tokens) at each position."""
    places = order.places(positions)
    strides = [order.walks[walk].layout.stride for walk in places.walk.tolist()]
    columns = (places.source, places.epoch, places.shard, places.start)
    return list(zip(*(column.tolist() for column in columns), strides, strict=True))


@settings(max_examples=25, deadline=None)
@given(staged())
def test_no_token_is_a_label_twice_in_an_epoch_of_its_source(order):
    read: set[tuple[int, ...]] = set()
    for source, epoch, shard, start, stride in seen(order, asked(order)):
        labels = {(source, epoch, shard, token) for token in range(start + 1, start + stride + 1)}
        assert not labels & read
        read |= labels


@settings(max_examples=25, deadline=None)
@given(staged(stages=1, capped=False))
def test_each_lane_reads_each_row_of_its_shards_exactly_once_an_epoch(order):
    positions = asked(order, 400)
    places = order.places(positions)
    for number, walk in enumerate(order.walks):
        for lane in range(order.lanes):
            mine = (places.walk == number) & (positions % order.lanes == lane)
            rows = list(zip(places.shard[mine].tolist(), places.row[mine].tolist(), strict=True))
            every = sorted((s, r) for s, n in enumerate(walk.layout.rows) if s % order.lanes == lane for r in range(n))
            for epoch in range(len(rows) // len(every)):
                assert sorted(rows[epoch * len(every) : (epoch + 1) * len(every)]) == every
            assert (places.epoch[mine] == np.arange(mine.sum()) // len(every)).all()


@settings(max_examples=25, deadline=None)
@given(staged())
def test_a_shard_belongs_to_one_lane_for_ever(order):
    positions = asked(order)
    assert (order.places(positions).shard % order.lanes == positions % order.lanes).all()


@settings(max_examples=25, deadline=None)
@given(staged())
def test_appending_a_stage_moves_no_earlier_position(order):
    for count in range(1, len(order.stages)):
        shorter = Order.staged(order.sources, order.stages[:count], order.seed, order.lanes)
        before = asked(order, order.stages[count].start)
        assert seen(shorter, before) == seen(order, before)
        assert departure(shorter.describe(), order.describe(), order.stages[count].start) is None
        words = departure(shorter.describe(), order.describe(), order.stages[count].start + 1)
        assert words is not None and "begins now" in words


@settings(max_examples=25, deadline=None)
@given(staged(capped=False))
def test_a_stage_with_the_same_rows_begins_exactly_where_the_one_before_ended(order):
    """Each lane's rows of a walk follow each other through all stages, whatever lies between."""
    positions = asked(order)
    places = order.places(positions)
    for number, walk in enumerate(order.walks):
        if sum(other.source == walk.source for other in order.walks) > 1:
            continue
        for lane in range(order.lanes):
            mine = (places.walk == number) & (positions % order.lanes == lane)
            there = walk.locate(np.full(mine.sum(), lane), np.arange(mine.sum()))
            assert np.array_equal(there[1], places.shard[mine]) and np.array_equal(there[2], places.row[mine])


@settings(max_examples=25, deadline=None)
@given(staged())
def test_a_source_with_other_rows_goes_on_at_a_window_that_was_not_begun(order):
    positions = asked(order)
    places = order.places(positions)
    held = {}
    for slot, position in enumerate(positions.tolist()):
        shard = (int(places.source[slot]), int(places.epoch[slot]), int(places.shard[slot]))
        assert held.setdefault(shard, int(places.walk[slot])) == int(places.walk[slot]), position


@settings(max_examples=25, deadline=None)
@given(staged())
def test_positions_are_the_inverse_of_places(order):
    positions = asked(order)
    places = order.places(positions)
    stop = len(positions)
    for walk in range(len(order.walks)):
        mine = np.flatnonzero(places.walk == walk)
        found = order.positions(places.epoch[mine], places.shard[mine], places.row[mine], walk, stop)
        assert np.array_equal(found, positions[mine])
        for shard, rows in enumerate(order.walks[walk].layout.rows):
            epochs = order.epochs(walk, shard, stop)
            here = mine[places.shard[mine] == shard]
            assert set(places.epoch[here].tolist()) <= set(epochs)
            for epoch in epochs:
                again = order.positions(epoch, np.full(rows, shard), np.arange(rows), walk, stop)
                assert sorted(again[again >= 0].tolist()) == positions[here[places.epoch[here] == epoch]].tolist()


@settings(max_examples=25, deadline=None)
@given(staged(), st.data())
def test_a_place_depends_on_its_position_alone(order, data):
    everything = asked(order)
    positions = np.array(data.draw(st.lists(st.integers(0, len(everything) - 1), min_size=1, max_size=20)))
    together = seen(order, positions)
    fresh = Order.staged(order.sources, order.stages, order.seed, order.lanes)
    assert [seen(fresh, positions[slot : slot + 1])[0] for slot in range(len(positions))] == together


@settings(max_examples=25, deadline=None)
@given(staged(), st.data())
def test_windows_are_told_in_the_order_in_which_rows_need_them(order, data):
    positions = asked(order)
    start = data.draw(st.integers(0, len(positions)))
    lanes = data.draw(st.none() | st.sets(st.integers(0, order.lanes - 1), min_size=1))
    told = list(order.windows(start, len(positions), lanes))
    wanted = {window.first: window for window in told}
    assert [window.first for window in told] == sorted(wanted)
    current: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}
    places = order.places(positions[start:])
    for slot, position in enumerate(positions[start:].tolist()):
        lane, source = position % order.lanes, int(places.source[slot])
        if lanes is not None and lane not in lanes:
            continue
        if position in wanted:
            window = wanted.pop(position)
            assert (window.source, window.lane) == (source, lane)
            current[source, lane] = window.epoch, window.shards
        epoch, shards = current[source, lane]
        assert epoch == places.epoch[slot] and int(places.shard[slot]) in shards
    assert not wanted


@settings(max_examples=25, deadline=None)
@given(staged())
def test_no_source_is_read_more_often_than_it_may(order):
    positions = asked(order, 300)
    places = order.places(positions)
    for number, walk in enumerate(order.walks):
        most = order.sources[walk.source].max_epochs
        mine = places.walk == number
        numbers = walk.numbers(places.epoch[mine], places.shard[mine], places.row[mine])
        assert most is None or (numbers < most * walk.rows[positions[mine] % order.lanes]).all()


TEXT = {name: Layout.chopped(name, [90, 77, 101, 64], 8) for name in "ab"}
SOURCES = [Source("a", "a"), Source("b", "b", 2.0)]


def two(start: int = 40, weights: dict[str, float] | None = None, window: int = 2) -> list[Stage]:
    weights = weights or {"a": 1.0, "b": 3.0}
    return [Stage(0, {"a": 1.0}, TEXT, window), Stage(start, weights, TEXT, 2)]


def test_a_departure_from_a_stage_that_has_begun_is_named():
    then = Order.staged(SOURCES, two(), 1).describe()

    def words(consumed: int, sources=SOURCES, seed=1, lanes=1, **changed) -> str | None:
        return departure(then, Order.staged(sources, two(**changed), seed, lanes).describe(), consumed)

    assert words(90) is None
    assert words(40, weights={"a": 1.0, "b": 1.0}) is None  # not begun
    assert words(40, start=44) is None
    assert words(41, weights={"a": 1.0, "b": 1.0}) == "weight of source b in stage 1 was 3.0, and is 1.0 now"
    assert words(41, start=44) == "a stage began then at position 40, and the run has read 41"
    assert words(50, start=44) == "start of stage 1 was 40, and is 44 now"
    assert words(1, window=3) == "window of stage 0 was 2, and is 3 now"
    assert words(1, seed=2) == "seed 1 then, 2 now"
    assert words(1, lanes=2) == "data.lanes 1 then, 2 now"
    assert words(90, sources=[SOURCES[0], Source("b", "b", 9.0)]) == (
        "max_epochs of source b in stage 1 was 2.0, and is 9.0 now"
    )
    assert words(90, sources=[Source("a", "x"), SOURCES[1]]) == (
        "source a held the shards a, and holds x now: restore them"
    )
    assert words(90, weights={"a": 1.0}) == "stage 1, from position 40, read source b"


def test_sources_that_end_before_the_next_stage_are_an_error_with_both_positions():
    rows = TEXT["b"].total
    stages = [Stage(0, {"b": 1.0}, TEXT, 2), Stage(2 * rows + 1, {"a": 1.0}, TEXT, 2)]
    with pytest.raises(UserError, match=rf"at position {2 * rows}, before the next stage at {2 * rows + 1}"):
        Order.staged(SOURCES, stages, 1)
    order = Order.staged(SOURCES, stages[:1], 1)
    assert order.end == 2 * rows
    with pytest.raises(UserError, match=rf"position {2 * rows} is asked for, .* max_epochs"):
        order.places(np.array([2 * rows]))


def test_what_stays_unread_and_which_source_ends_is_said_beforehand():
    layouts = TEXT | {"a": Layout.chopped("a", [90, 77, 101, 64], 16)}
    stages = [*two()[:1], Stage(13, {"a": 1.0, "b": 1.0}, layouts, 2)]
    order = Order.staged(SOURCES, stages, 1)
    notes = order.notes(10**6)
    assert len(notes) == 2
    assert "source b reaches its max_epochs 2 within the 512 rows from position" in notes[0]
    assert "source a has another row length or window from position 13: it goes on with its next window" in notes[1]
    assert order.notes(13) == []


def test_more_lanes_than_shards_is_an_error_that_names_the_source():
    with pytest.raises(UserError, match=r"a has 4 shards and data\.lanes is 5"):
        Order.staged(SOURCES, [Stage(0, {"a": 1.0}, TEXT, 2)], 1, 5)
    with pytest.raises(UserError, match=r"lane 1 of a holds no row"):
        Order.staged(SOURCES, [Stage(0, {"a": 1.0}, {"a": Layout.chopped("a", [90, 7, 101, 3], 8)}, 2)], 1, 2)
    with pytest.raises(UserError, match=r"middle of a round of the 2 lanes.*take 12 or 14"):
        Order.staged(SOURCES, two(start=13), 1, 2)


def test_sources_of_the_same_shape_are_shuffled_differently():
    def shards(name: str) -> list[int]:
        layout = Layout.documents("same shape", [5] * 16)
        order = Order.staged([Source(name, name)], [Stage(0, {name: 1.0}, {name: layout}, 4)], 1)
        return order.places(np.arange(80)).shard.tolist()

    assert shards("a") != shards("b")
