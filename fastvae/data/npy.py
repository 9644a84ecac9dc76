"""Headers of ``.npy`` files: read without executing anything, written with a fixed length."""

from __future__ import annotations

from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.lib import format as npy

from fastvae.errors import UserError

HEADER_BYTES = 128
"""Of every header written here: a multiple of 64, as NEP 1 of NumPy asks for."""


def header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """A version 1.0 header of ``HEADER_BYTES`` bytes for an array in C order."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    start = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
    return start + text.encode().ljust(HEADER_BYTES - 11) + b"\n"


def read_header(file: IO[bytes], name: str, fix: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a .npy file, a literal of Python's that is parsed and never executed.

    Args:
        file: at its beginning; afterwards at the first value.
        name: what to call it in an error.
        fix: what to do about an error.

    Returns:
        Shape, whether in Fortran order, dtype.
    """
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        version = npy.read_magic(file)
        if version not in readers:
            raise ValueError(f"version {version[0]}.{version[1]}")
        return readers[version](file)
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} is no .npy file that can be read ({reason}): {fix}") from None
