import itertools
import random
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.build.parts import Rows, part_file, write_part
from data.dedup.copies import connect, equal_rows, exact_copies, near_copies, write_edges
from data.dedup.minhash import band_keys
from data.recipe import Dedup
from tests.data.conftest import chinese, english

RULES = Dedup()
MEMORY = 100_000_000


def parts(folder, sizes, columns):
    """Rows in parts of these sizes, with these numeric columns."""
    starts = np.cumsum([0, *sizes])
    for part, (first, last) in enumerate(itertools.pairwise(starts)):
        held = {name: np.ascontiguousarray(column[first:last]) for name, column in columns.items()}
        write_part(part_file(folder, part), held, {}, [])
    return Rows.of(folder, sizes)


def near(folder, keys, memory=MEMORY, sizes=None, rows=None):
    """Which rows (bool) are near copies, from band keys [rows, bands]."""
    names = [f"band_{band:02d}" for band in range(keys.shape[1])]
    if rows is None:
        rows = parts(folder, sizes or [len(keys)], dict(zip(names, keys.T, strict=True)))
    edges = [write_edges(rows, name, memory) for name in names]
    found = np.zeros(len(keys), bool)
    for numbers in near_copies(rows, edges, memory):
        found[numbers] = True
    return found


def edited(text, share, seed):
    """A copy in which a share of the words (or characters, where words aren't divided) is another one."""
    found = list(re.finditer(r"[a-zA-Z0-9_]+|[\u4e00-\u9fff]", text))
    draw = random.Random(seed)
    for match in sorted(draw.sample(found, max(1, round(share * len(found)))), key=lambda m: -m.start()):
        text = text[: match.start()] + ("changed" if match[0].isascii() else "变") + text[match.end() :]
    return text


@pytest.fixture(scope="module")
def originals(code_texts, english_texts, chinese_texts, tmp_path_factory):
    made = [english(seed, 600) for seed in range(100)] + [chinese(seed, 500) for seed in range(100)]
    texts = [*made, *(text for text in (*code_texts, *english_texts, *chinese_texts) if len(text) > 1000)]
    copies = near(tmp_path_factory.mktemp("originals"), band_keys(texts, RULES))
    return [text for text, copy in zip(texts, copies, strict=True) if not copy]


def test_planted_copies_with_one_percent_of_edits_are_found(originals, tmp_path):
    copies = [edited(text, 0.01, seed) for seed, text in enumerate(originals)]
    found = near(tmp_path, band_keys([*originals, *copies], RULES))
    assert not found[: len(originals)].any()
    assert found[len(originals) :].mean() >= 0.98


def test_different_texts_are_not_taken_for_copies(tmp_path):
    texts = [english(seed, 300) for seed in range(200)] + [chinese(seed, 300) for seed in range(200)]
    assert not near(tmp_path, band_keys(texts, RULES)).any()


def test_half_edited_copies_stay(tmp_path):
    text = english(7, 800)
    assert not near(tmp_path, band_keys([text, edited(text, 0.5, 1)], RULES)).any()


def test_a_chain_of_copies_leaves_the_first(tmp_path):
    keys = np.array([[1, 2], [1, 3], [4, 3], [4, 5], [9, 9]], np.uint64)
    assert near(tmp_path, keys, sizes=[2, 0, 3]).tolist() == [False, True, True, True, False]


def test_exact_copies_leave_the_first_and_need_both_halves_of_the_digest(tmp_path):
    high, low = np.array([7, 8, 7, 7, 7], np.uint64), np.array([1, 1, 1, 2, 1], np.uint64)
    rows = parts(tmp_path, [3, 2], {"digest_high": high, "digest_low": low})
    assert sorted(np.concatenate([*exact_copies(rows, MEMORY)])) == [2, 4]


def test_rows_that_are_gone_make_no_copies_of_others(tmp_path):
    keys = np.array([[1], [1], [1], [5]], np.uint64)
    rows = parts(tmp_path, [2, 2], {"band_00": keys[:, 0]}).without([np.array([0])], "mask")
    assert near(tmp_path, keys, rows=rows).tolist() == [False, False, True, False]


@settings(max_examples=50, deadline=None)
@given(
    edges=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=80),
    batches=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_components_are_those_of_the_graph_whatever_the_order_and_batches_of_edges(edges, batches, seed):
    groups = {node: {node} for node in range(40)}
    for left, right in edges:
        if groups[left] is not groups[right]:
            joined = groups[left] | groups[right]
            groups.update(dict.fromkeys(joined, joined))
    random.Random(seed).shuffle(edges)
    links = np.arange(40)
    for batch in np.array_split(np.array(edges, np.int64).reshape(-1, 2), batches):
        connect(links, batch[:, 0], batch[:, 1])
    assert [node for node in range(40) if links[node] == node] == sorted({min(group) for group in groups.values()})


def test_half_a_million_short_documents_fit_in_a_tenth_of_their_keys(tmp_path):
    count, bands = 500_000, 16
    budget = count * bands * 8 // 10
    draw = np.random.default_rng(0)
    keys = draw.integers(0, 2**64, (bands, count), np.uint64)
    copies = np.arange(count - 50_000, count)
    origins = draw.integers(5000, count - 50_000, len(copies))
    for row, origin in zip(copies, origins, strict=True):  # each copy shares three bands with its origin
        shared = draw.integers(0, bands, 3)
        keys[shared, row] = keys[shared, origin]
    digests = draw.integers(0, 2**64, (2, count), np.uint64)
    digests[:, 3000:5000] = digests[:, :2000]
    columns = {f"band_{band:02d}": keys[band] for band in range(bands)}
    columns |= {"digest_high": digests[0], "digest_low": digests[1]}
    rows = parts(tmp_path, [20_000] * 25, columns)
    del keys, digests, columns
    tracemalloc.start()
    try:
        left = rows.without(exact_copies(rows, budget), "exact")
        edges = [write_edges(left, f"band_{band:02d}", budget) for band in range(bands)]
        final = left.without(near_copies(left, edges, budget), "near")
        assert not sum(len(first) for first, _ in equal_rows(left, "digest_high", budget))
        _, peak = tracemalloc.get_traced_memory()
        exact_copied = sum(int((~left.there(part)).sum()) for part in rows.parts)
        near_copied = sum(int((left.there(part) & ~final.there(part)).sum()) for part in rows.parts)
    finally:
        tracemalloc.stop()
    assert exact_copied == 2000
    assert near_copied == len(copies)
    assert peak < budget
