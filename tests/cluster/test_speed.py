"""Who meets whom, what the figures mean, and who is named as slow: pure functions."""

from itertools import combinations

import pytest

from cluster.doctor.speed import ALL_PAIRS, bus_bandwidth, rounds, slow

FAIR = 0.5


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 16, 17, 64, 1000])
def test_no_rank_has_two_partners_in_a_round(ranks: int) -> None:
    for pairs in rounds(ranks):
        busy = [rank for pair in pairs for rank in pair]
        assert len(busy) == len(set(busy))
        assert all(0 <= low < high < ranks for low, high in pairs)


@pytest.mark.parametrize("ranks", range(1, ALL_PAIRS + 1))
def test_a_few_ranks_all_meet_each_other_once(ranks: int) -> None:
    assert sorted(pair for pairs in rounds(ranks) for pair in pairs) == list(combinations(range(ranks), 2))


@pytest.mark.parametrize("ranks", [17, 100, 1000, 4096])
def test_many_ranks_meet_in_as_many_rounds_as_their_number_has_bits_and_none_is_left_out(ranks: int) -> None:
    found = rounds(ranks)
    assert len(found) == (ranks - 1).bit_length()
    pairs = [pair for each in found for pair in each]
    assert {rank for pair in pairs for rank in pair} == set(range(ranks)) and len(pairs) == len(set(pairs))


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    assert bus_bandwidth("all_reduce", 8 * 10**9, 2.0, 8) == pytest.approx(4e9 * 2 * 7 / 8)
    assert bus_bandwidth("all_gather", 8 * 10**9, 2.0, 8) == pytest.approx(4e9 * 7 / 8)
    assert bus_bandwidth("all_reduce", 1 << 20, 1.0, 2) == 1 << 20


def all_links(ranks: int, speed: float = 10.0) -> dict[tuple[int, int], float]:
    return dict.fromkeys(combinations(range(ranks), 2), speed)


def test_a_rank_all_of_whose_links_are_slow_is_named_and_its_partners_are_not() -> None:
    links = {pair: 2.0 if 2 in pair else speed for pair, speed in all_links(4).items()}
    found = slow([1.0] * 4, links, [0] * 4, FAIR)
    assert (found.ranks, found.links) == ((2,), ())
    assert found.why[2] == "talks within its node at 20% of the usual speed"


def test_one_slow_link_between_fast_ranks_is_the_link_s() -> None:
    found = slow([1.0] * 4, all_links(4) | {(1, 3): 2.0}, [0] * 4, FAIR)
    assert (found.ranks, found.links) == ((), ((1, 3),))


def test_a_node_s_slow_network_is_not_hidden_by_fast_links_within_it() -> None:
    nodes = [0, 0, 1, 1, 2, 2]
    links = {
        (low, high): 100.0 if nodes[low] == nodes[high] else 1.0 if 2 in (nodes[low], nodes[high]) else 10.0
        for low, high in all_links(6)
    }
    found = slow([1.0] * 6, links, nodes, FAIR)
    assert (found.ranks, found.links) == ((4, 5), ())
    assert found.why[4] == "talks to other nodes at 10% of the usual speed"


def test_links_between_nodes_are_not_slow_for_being_slower_than_those_within() -> None:
    nodes = [0, 0, 1, 1]
    links = {pair: 300.0 if nodes[pair[0]] == nodes[pair[1]] else 20.0 for pair in all_links(4)}
    assert slow([1.0] * 4, links, nodes, FAIR).ranks == ()


def test_of_two_ranks_the_one_that_computes_slowly_is_named() -> None:
    found = slow([10.0, 3.0], {(0, 1): 1.0}, [0, 0], FAIR)
    assert found.why == {1: "computes at 30% of the usual speed"}


def test_ranks_that_differ_by_a_little_are_all_well() -> None:
    found = slow([10.0, 8.0, 12.0, 7.0], all_links(4) | {(0, 1): 7.0, (2, 3): 14.0}, [0] * 4, FAIR)
    assert (found.ranks, found.links) == ((), ())


def test_one_rank_alone_is_neither_fast_nor_slow() -> None:
    assert slow([10.0], {}, [0], FAIR).ranks == ()
