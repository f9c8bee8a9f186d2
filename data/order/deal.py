"""Which rank reads which rows of a global batch.

The batch is cut into micro-batches that don't depend on the ranks, and they go round the ranks in turn. With lanes,
micro-batch c holds positions that are equal modulo `classes` (a divisor of the lanes), those of lanes c, c + classes,
...; ranks are counted across the nodes, the first of each node, then the second of each. So row p goes to node
(p mod lanes) mod nodes, a node reads nothing but its own lanes, and the micro-batches and their order are the same for
any number of nodes, which `exact: any` adds gradients by.
"""

from math import gcd

import numpy as np


def deal(start: int, stop: int, micro_batch: int, rank: int, world: int, lanes: int = 1, groups: int = 1) -> np.ndarray:
    """The positions of one rank's micro-batches of the global batch [start, stop): (accumulation, micro_batch) int64.

    Every rank gets equally many; -1 marks a filler row, which has no weight.

    Args:
        lanes: of the order.
        groups: of ranks that read the same lanes, as `reading_groups` counts them.
    """
    rows = stop - start
    apart = classes(rows, micro_batch, lanes)
    rounds = -(-rows // (micro_batch * world))
    number = np.arange(rounds)[:, None] * world + turn(rank, world, groups)
    inside, within = number % apart, number // apart * micro_batch + np.arange(micro_batch)
    slots = inside + apart * within
    return np.where(slots < rows, slots + start, -1)


def classes(rows: int, micro_batch: int, lanes: int) -> int:
    """How many kinds of micro-batches a batch has, each with lanes of its own; 1: rows go round the ranks as they come.

    More than 1 only where lanes divide the batch and micro-batches need no filler.
    """
    return gcd(lanes, rows // micro_batch) if rows % lanes == rows % micro_batch == 0 else 1


def reading_groups(rows: int, micro_batch: int, world: int, nodes: int, lanes: int) -> int:
    """Into how many groups with lanes of their own the nodes fall: `nodes` at best, 1 where each node reads all.

    Args:
        nodes: machines, each with as many consecutive ranks.
    """
    return gcd(nodes, gcd(world, classes(rows, micro_batch, lanes)))


def lanes_read(rank: int, world: int, lanes: int, groups: int) -> range:
    """The lanes that a rank's group reads."""
    return range(rank // (world // groups), lanes, groups)


def turn(rank: int, world: int, groups: int) -> int:
    """The rank's turn in each round: the first rank of each group, then the second of each."""
    each = world // groups
    return rank % each * groups + rank // each
