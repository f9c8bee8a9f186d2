import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order.order import Order
from data.reader import RESOLVED, LocalReader, layout

CONTEXT = 64


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3 * RESOLVED), st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_the_fast_way_gives_the_rows_of_the_general_one(small_dataset, start, steps):
    index = small_dataset.index("train")
    order = Order(layout(index, CONTEXT), 5, 2)
    fast, general = LocalReader(index, order, CONTEXT), LocalReader(index, order, CONTEXT)
    assert fast._alike
    general._alike = False
    for positions in (start + np.cumsum(steps), start + np.arange(8), np.array([start, -1, start + RESOLVED])):
        one, two = fast.rows(positions), general.rows(positions)
        assert one.tokens.dtype == two.tokens.dtype and np.array_equal(one.tokens, two.tokens)
        assert np.array_equal(one.lengths, two.lengths) and np.array_equal(one.positions, two.positions)
        assert one.use is None and two.use is None
        assert len(one.starts) == len(two.starts)
        for mine, theirs in zip(one.starts, two.starts, strict=True):
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
