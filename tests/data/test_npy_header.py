"""Threads read the headers of .npy files at once, and what np.save did not write is refused."""

import gc
import io
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data.npy_header import npy_array, npy_header


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "u1", "<i4", "<f4"])
@pytest.mark.parametrize("shape", [(0,), (7,), (0, 3), (5, 16)])
def test_an_array_comes_back_as_numpy_wrote_it(dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    data = saved(array)
    found, known, start = npy_header(data)
    assert (found, known, start) == (np.dtype(dtype), shape, len(data) - array.nbytes)
    back = npy_array(data)
    assert back.dtype == array.dtype and np.array_equal(back, array)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x93NUMPY", saved(np.zeros(3))[:60], b"PK" + saved(np.zeros(3))[2:], saved(np.zeros((2, 2), order="F")),
        saved(np.array("text")), saved(np.zeros(3, [("a", "<u2")])), saved(np.arange(4))[:-1],
        saved(np.arange(4)) + b"x",
    ],
)  # fmt: skip
def test_anything_else_is_refused(data):
    with pytest.raises(ValueError):
        npy_array(data)


class _Busy:
    """A cycle whose collection runs Python, so that another thread may run in the middle of any allocation."""

    def __init__(self):
        self.me = self

    def __del__(self):
        for _ in range(200):
            pass


def test_threads_read_headers_at_once():
    data = saved(np.zeros(5, np.uint16))

    def read(_):
        for _ in range(1000):
            _Busy()
            npy_header(data)

    before, pause = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(5)
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(read, range(6)))
    finally:
        gc.set_threshold(*before)
        sys.setswitchinterval(pause)
