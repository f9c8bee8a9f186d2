"""Ranks share a batch; nodes read only their lanes; micro-batches don't depend on either."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.order.deal import classes, deal, lanes_read, reading_groups

NODES = {"nodes": st.integers(1, 6), "per_node": st.integers(1, 4), "lanes": st.integers(1, 24)}


@settings(deadline=None)
@given(rows=st.integers(1, 120), micro_batch=st.integers(1, 9), start=st.integers(0, 10**9), **NODES)
def test_any_ranks_and_nodes_share_a_batch_each_position_once(rows, micro_batch, start, nodes, per_node, lanes):
    world = nodes * per_node
    groups = reading_groups(rows, micro_batch, world, nodes, lanes)
    dealt = [deal(start, start + rows, micro_batch, rank, world, lanes, groups) for rank in range(world)]
    assert {held.shape for held in dealt} == {(-(-rows // (micro_batch * world)), micro_batch)}
    everything = np.concatenate([held.ravel() for held in dealt])
    assert sorted(everything[everything != -1].tolist()) == list(range(start, start + rows))


@settings(deadline=None)
@given(rows=st.integers(1, 120), micro_batch=st.integers(1, 9), batch=st.integers(0, 10**6), **NODES)
def test_a_group_of_nodes_reads_nothing_but_its_own_lanes(rows, micro_batch, batch, nodes, per_node, lanes):
    world, start = nodes * per_node, batch * rows
    groups = reading_groups(rows, micro_batch, world, nodes, lanes)
    assert nodes % groups == lanes % groups == 0
    taken = [lanes_read(rank, world, lanes, groups) for rank in range(world)]
    assert len(set(taken)) == groups
    assert sorted(lane for part in set(taken) for lane in part) == list(range(lanes))
    for rank in range(world):
        positions = deal(start, start + rows, micro_batch, rank, world, lanes, groups)
        assert {int(position) % lanes for position in positions[positions >= 0]} <= set(taken[rank])


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_where_nodes_divide_lanes_and_lanes_the_batch_no_two_nodes_share_a_lane(nodes, a, per_node, micro_batch, b):
    lanes = nodes * a
    rows = micro_batch * lanes * per_node * b
    assert reading_groups(rows, micro_batch, nodes * per_node, nodes, lanes) == nodes


@settings(deadline=None)
@given(rows=st.integers(1, 120), micro_batch=st.integers(1, 9), **NODES)
def test_micro_batches_and_their_order_are_the_same_on_any_nodes(rows, micro_batch, nodes, per_node, lanes):
    """Round after round, each group's first rank, then each group's second: what `exact: any` adds gradients by."""
    world = nodes * per_node
    groups = reading_groups(rows, micro_batch, world, nodes, lanes)
    alone = deal(0, rows, micro_batch, 0, 1, lanes).tolist()
    by_turn = sorted(range(world), key=lambda rank: (rank % (world // groups), rank // (world // groups)))
    dealt = {rank: deal(0, rows, micro_batch, rank, world, lanes, groups).tolist() for rank in range(world)}
    merged = [dealt[rank][number] for number in range(len(dealt[0])) for rank in by_turn]
    assert merged[: len(alone)] == alone
    assert all(set(held) == {-1} for held in merged[len(alone) :])


@settings(deadline=None)
@given(rows=st.integers(1, 60), micro_batch=st.integers(1, 9), lanes=st.integers(1, 24))
def test_a_batch_that_lanes_or_micro_batches_do_not_divide_goes_round_the_ranks_as_it_comes(rows, micro_batch, lanes):
    assume(rows % lanes or rows % micro_batch)
    assert classes(rows, micro_batch, lanes) == 1
    dealt = deal(0, rows, micro_batch, 0, 1, lanes).ravel()
    assert dealt[dealt >= 0].tolist() == list(range(rows))


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_by_hand(nodes):
    """8 lanes, 16 rows in micro-batches of 2: row p goes to node (p mod lanes) mod nodes."""
    groups = reading_groups(16, 2, nodes, nodes, 8)
    for rank in range(nodes):
        dealt = deal(32, 48, 2, rank, nodes, 8, groups)
        assert {int(position) % 8 % nodes for position in dealt.ravel()} == {rank}
    assert deal(32, 48, 2, 0, 1, 8).tolist()[:3] == [[32, 40], [33, 41], [34, 42]]
