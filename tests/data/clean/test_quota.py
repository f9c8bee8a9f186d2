import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.clean.quota import Quota, Quotas, within_shares
from data.errors import UserError
from data.recipe import DatasetRecipe
from data.settings import validate

DOCUMENTS = 20_000


def kept(quotas: dict[str, Quota | None], sizes: dict[str, np.ndarray], parts: int = 1) -> dict[str, np.ndarray]:
    """Which documents stay, counted in some parts."""
    random = np.random.default_rng(7)
    hashes = {name: random.integers(0, 1 << 63, len(held), dtype=np.uint64) for name, held in sizes.items()}
    counting = Quotas(quotas)
    for name in sizes:
        for part in range(parts):
            counting.add(name, hashes[name][part::parts], sizes[name][part::parts])
    return {name: counting.keeps(name, hashes[name]) for name in sizes}


def made(count: int = DOCUMENTS) -> np.ndarray:
    return np.random.default_rng(count).integers(10, 2000, count)


def test_caps_are_kept_and_nearly_reached():
    sizes = {"en": made(), "zh": made(9000), "fr": made(5000)}
    stays = kept({"en": Quota(max_bytes=5_000_000), "zh": Quota(max_documents=1000), "fr": None}, sizes)
    assert 0.99 * 5_000_000 < sizes["en"][stays["en"]].sum() <= 5_000_000
    assert 990 < stays["zh"].sum() <= 1000
    assert stays["fr"].all()


def test_shares_are_of_what_is_left():
    sizes = {"en": made(), "zh": made(), "code": made(1000)}
    stays = kept({"en": None, "zh": Quota(max_share=0.25), "code": Quota(max_share=0.5)}, sizes)
    left = {name: sizes[name][stays[name]].sum() for name in sizes}
    assert 0.248 < left["zh"] / sum(left.values()) <= 0.25 + 1e-9
    assert stays["en"].all()
    assert stays["code"].all()


def test_which_documents_stay_does_not_depend_on_the_parts_they_come_in():
    sizes = {"en": made(), "zh": made(3000)}
    quotas = {"en": Quota(max_share=0.6), "zh": Quota(max_bytes=1_000_000)}
    one, many = kept(quotas, sizes), kept(quotas, sizes, parts=9)
    assert all((one[name] == many[name]).all() for name in sizes)


def test_a_capped_language_is_not_gathered_at_one_end_of_the_shuffle():
    hashes = np.random.default_rng(3).integers(0, 1 << 63, DOCUMENTS, dtype=np.uint64)
    counting = Quotas({"en": Quota(max_documents=2000)})
    counting.add("en", hashes, made())
    stays = counting.keeps("en", hashes)
    assert abs(np.median(hashes[stays]) / np.median(hashes) - 1) < 0.1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0.05, 1)), min_size=1, max_size=6))
def test_no_share_is_exceeded_and_none_cut_without_need(pairs):
    sizes, shares = np.array([size for size, _ in pairs]), np.array([share for _, share in pairs])
    if shares.sum() < 1:
        shares[0] = 1.0
    left = within_shares(sizes, shares)
    total = left.sum()
    assert (left <= sizes + 1e-6).all()
    assert (left <= shares * total * (1 + 1e-6) + 1e-6).all()
    cut = left < sizes - 1e-3
    assert np.allclose(left[cut], shares[cut] * total, rtol=1e-6)


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"languages": {"en": None}}, "clean.language must be identify"),
        (
            {"clean": {"language": "identify"}, "languages": {"en": {"max_share": 0.5}, "zh": {"max_share": 0.4}}},
            "max_share sum to 0.9",
        ),
        ({"clean": {"language": "identify"}, "languages": {"en": {"max_bites": 5}}}, "languages.en.max_bites"),
        ({"clean": {"language": "En"}}, "clean.language: String should match"),
    ],
)
def test_quotas_that_make_no_sense_are_refused(tree, match):
    with pytest.raises(UserError, match=match):
        validate(DatasetRecipe, tree, "the recipe")
