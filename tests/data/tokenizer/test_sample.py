import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizer.sample import Sampler


def corpus(seed, documents, sources=3):
    random = np.random.default_rng(seed)
    names = np.array([f"s{number}" for number in random.integers(0, sources, documents)], object)
    return names, random.random(documents), random.integers(1, 20_000, documents)


def taken(limit, names, draws, sizes, batches=1):
    sampler = Sampler(limit)
    for part in np.array_split(np.arange(len(names)), batches):
        sampler.count(names[part], draws[part], sizes[part])
    return sampler.taken(names, draws, sizes)


def test_each_source_gives_its_share_and_the_limit_is_nearly_used_up():
    names, draws, sizes = corpus(0, 60_000)
    sizes = sizes // 4 + 1
    sizes[names == "s1"] *= 9
    for limit in (1_000_000, 50_000_000):
        got = taken(limit, names, draws, sizes)
        assert 0.97 * limit < got.sum() <= limit
        for source in ("s0", "s1", "s2"):
            mine = names == source
            assert abs(got[mine].sum() / got.sum() - sizes[mine].sum() / sizes.sum()) < 0.01


def test_a_small_limit_takes_the_same_documents_and_fewer():
    names, draws, sizes = corpus(1, 5_000)
    small, large = taken(1_000_000, names, draws, sizes) > 0, taken(5_000_000, names, draws, sizes) > 0
    assert (large | ~small).all()
    assert small.sum() < large.sum()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 400), st.integers(1, 3_000_000), st.integers(1, 5))
def test_the_sample_keeps_to_its_limit_and_knows_no_order(seed, documents, limit, batches):
    names, draws, sizes = corpus(seed, documents)
    got = taken(limit, names, draws, sizes)
    assert got.sum() <= limit or (got <= 1).all()  # a byte of a document is the least
    assert (got <= sizes).all()
    assert all(got[names == source].any() for source in set(names))
    if sizes.sum() <= limit and sizes.max() <= 1 << 16:
        assert np.array_equal(got, sizes)
    order = np.random.default_rng(seed).permutation(documents)
    assert np.array_equal(taken(limit, names[order], draws[order], sizes[order], batches), got[order])


def test_a_book_gives_its_beginning_only():
    names, draws, sizes = corpus(2, 2_000, sources=1)
    draws[0], sizes[0] = 0.0, 100_000_000
    got = taken(5_000_000, names, draws, sizes)
    assert got[0] == 5_000_000 // 64
    assert (got > 0).sum() > 100
    assert taken(100, names[:1], draws[:1], sizes[:1]).tolist() == [100]
    assert taken(100, names[:2], draws[[0, 0]], sizes[[0, 0]]).tolist() == [50, 50]
