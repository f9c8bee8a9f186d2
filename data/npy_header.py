"""What the header of a .npy file says, read without evaluating it as Python.

numpy parses the header with `ast.literal_eval`, and in CPython 3.11 before 3.11.8 several threads that parse at once
fail now and then with "AST constructor recursion depth mismatch" (python/cpython#106905; 257 of 24,000 reads in six
threads). Readers and downloads are threads, and the only headers they meet are those that `np.save` wrote here: a flat
or two-dimensional array in C order, of a plain number. Anything else is refused.
"""

import re

import numpy as np

MOST = 1 << 10  # bytes; np.save writes 128
_MAGIC = re.compile(rb"\x93NUMPY\x01\x00(..)", re.DOTALL)
_SAID = re.compile(rb"\{'descr': '([<|][uif]\d+)', 'fortran_order': False, 'shape': \((\d+(?:, \d+)*),?\), \} *\n")


def npy_header(data: bytes | memoryview) -> tuple[np.dtype, tuple[int, ...], int]:
    """(dtype, shape, bytes before the first element) of a .npy file that begins with `data`.

    Raises:
        ValueError: it doesn't begin with such a header.
    """
    head = bytes(data[:MOST])
    magic = _MAGIC.match(head)
    said = magic and _SAID.fullmatch(head, magic.end(), magic.end() + int.from_bytes(magic[1], "little"))
    if not magic or not said:
        raise ValueError("it doesn't begin with the header of a .npy file of numbers")
    return np.dtype(said[1].decode()), tuple(int(size) for size in said[2].split(b", ")), said.end()


def npy_array(data: bytes | memoryview) -> np.ndarray:
    """The array of a whole .npy file; read-only, a view of `data`.

    Raises:
        ValueError: it isn't one, or has more or fewer bytes than its header says.
    """
    dtype, shape, start = npy_header(data)
    return np.frombuffer(data, dtype, offset=start).reshape(shape)
