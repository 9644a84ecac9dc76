"""Philox 4x32-10 for Numba kernels: the same words as ``philox.philox_words``, one call each."""

from __future__ import annotations

import numpy as np

from fastvae.kernels.jit import njit

FourWords = tuple[np.uint64, np.uint64, np.uint64, np.uint64]
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # see philox.py
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
MASK, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@njit(cache=True, nogil=True)
def four_words(seed: int, ordinal: int, group: int, stream: int) -> FourWords:
    """Columns 4 * group .. 4 * group + 3 of row ``ordinal``: four uint64 that hold 32 bits each.

    Args:
        seed: key, int64 >= 0.
        ordinal: counter words 1 and 2, int64 >= 0.
        group: counter word 0.
        stream: counter word 3.
    """
    c0, c3 = np.uint64(group) & MASK, np.uint64(stream) & MASK
    c1, c2 = np.uint64(ordinal) & MASK, np.uint64(ordinal) >> _HALF
    k0, k1 = np.uint64(seed) & MASK, np.uint64(seed) >> _HALF
    for _ in range(10):
        first, second = c0 * M0, c2 * M1  # below 2^64: both factors have 32 bits
        c0, c1 = (second >> _HALF) ^ c1 ^ k0, second & MASK
        c2, c3 = (first >> _HALF) ^ c3 ^ k1, first & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


@njit(cache=True, nogil=True)
def unit(word: np.uint64) -> float:
    """A 32-bit word as a multiple of 2^-32 in [0, 1), exact in float64."""
    return float(word) * 2.0**-32
