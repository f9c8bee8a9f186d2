"""Which rows are copies, over the whole dataset and in bounded memory: sorted keys, then connected components.

What grows with the dataset is on disk: keys go through `data/build/external.py` a band at a time, and the links that
they make through a mapped array of 8 bytes a row, whose pages the system may drop. Bands are independent, so workers
share them. Of a set of copies the first stays: the one whose source stands first in the recipe, and there the first
in the order of ids.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.build.external import buckets
from data.build.parts import Rows
from data.publish import published

_DIGESTS = np.dtype([("key", "<u8"), ("low", "<u8"), ("row", "<i8")])
_KEYS = np.dtype([("key", "<u8"), ("row", "<i8")])
_EDGE_BYTES = 128  # of working memory that `connect` takes for an edge


def equal_rows(rows: Rows, column: str, memory: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (earlier row, later row) of rows there whose uint64 `column` is equal: of each set, its first with each.

    Args:
        memory: bytes to work in.
    """
    with buckets(rows.work, _KEYS, len(rows), memory) as sorting:
        for numbers, keys in rows.columns(column):
            sorting.add(_records(_KEYS, row=numbers, key=keys))
        last_key, last_first = None, 0
        for records in sorting.sorted():
            keys = records["key"]
            begins = np.append(True, keys[1:] != keys[:-1])
            begins[0] = last_key is None or keys[0] != last_key
            firsts = np.append(last_first, records["row"][begins])[np.cumsum(begins)]
            last_key, last_first = keys[-1], firsts[-1]
            yield firsts[~begins], records["row"][~begins]


def exact_copies(rows: Rows, memory: int) -> Iterator[np.ndarray]:
    """Numbers of rows whose digest an earlier row has."""
    with buckets(rows.work, _DIGESTS, len(rows), memory) as sorting:
        for numbers, high, low in rows.columns("digest_high", "digest_low"):
            sorting.add(_records(_DIGESTS, row=numbers, key=high, low=low))
        last = None
        for records in sorting.sorted():
            records = records[np.lexsort((records["low"], records["key"]))]
            same = np.append(
                False, (records["key"][1:] == records["key"][:-1]) & (records["low"][1:] == records["low"][:-1])
            )
            same[0] = last is not None and last == (records["key"][0], records["low"][0])
            last = (records["key"][-1], records["low"][-1])
            yield records["row"][same]


def write_edges(rows: Rows, column: str, memory: int) -> Path:
    """Publish the pairs of rows that agree in one band, int64 [pairs, 2]; where they are. Not made again if there."""
    path = rows.work / f"{column}.edges"
    if not path.exists():
        with published(path) as temporary, temporary.open("wb") as file:
            for pair in equal_rows(rows, column, memory):
                file.write(np.stack(pair, axis=1).tobytes())
    return path


def near_copies(rows: Rows, edges: list[Path], memory: int) -> Iterator[np.ndarray]:
    """Numbers of rows that edges connect to an earlier row."""
    linked = rows.work / "links"
    some = max(1, memory // _EDGE_BYTES)
    links = np.memmap(linked, np.int64, "w+", shape=(len(rows),))
    for start in range(0, len(rows), some):
        links[start : start + some] = np.arange(start, min(len(rows), start + some))
    for path in edges:
        count = path.stat().st_size // 16
        for start in range(0, count, some):
            pairs = np.fromfile(path, np.int64, 2 * some, offset=16 * start).reshape(-1, 2)
            connect(links, pairs[:, 0], pairs[:, 1])
    for start in range(0, len(rows), some):
        mine = np.arange(start, min(len(rows), start + some))
        yield mine[links[start : start + some] != mine]
    linked.unlink()


def connect(links: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Join the trees of `left[i]` and `right[i]` for every i, all at once; roots are the smallest of their trees.

    Union-find with a batch of edges at a time: the edges between roots are a graph whose components scipy finds,
    and each component's roots are linked to its smallest.

    Args:
        links: each node's parent, at a root the node itself; changed in place. Shape [nodes].
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = _roots(links, left), _roots(links, right)
    apart = left != right
    nodes, places = np.unique(np.concatenate([left[apart], right[apart]]), return_inverse=True)
    if not len(nodes):
        return
    half = len(places) // 2
    graph = coo_array((np.ones(half, bool), (places[:half], places[half:])), shape=(len(nodes), len(nodes)))
    groups = connected_components(graph, directed=False)[1]
    _, firsts = np.unique(groups, return_index=True)  # nodes ascend, so a group's first is its smallest
    links[nodes] = nodes[firsts][groups]


def _roots(links: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The root of each node's tree; the nodes are linked to it, so that the way is short next time."""
    roots = links[nodes]
    while len(roots) and ((above := links[roots]) != roots).any():
        roots = above
    links[nodes] = roots
    return roots


def _records(dtype: np.dtype, **columns: np.ndarray) -> np.ndarray:
    records = np.empty(len(columns["row"]), dtype)
    for name, values in columns.items():
        records[name] = values
    return records
