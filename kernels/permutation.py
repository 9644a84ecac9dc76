"""A keyed permutation of 0..n-1, position by position: the order of training samples.

A Feistel network over 2^(2 half) >= n values, walked along its cycles until the value falls below n
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). The round function is the
64-bit finalizer of splitmix64 (Steele et al. 2014). ``fastvae.data.plan`` chooses ``half`` and
derives the keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.jit import njit
from fastvae.kernels.strokes import read_only

Indices = NDArray[np.int64]
Keys = NDArray[np.uint64]

_ONE, _30, _27, _31 = np.uint64(1), np.uint64(30), np.uint64(27), np.uint64(31)
_M0, _M1 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def permuted(positions: Indices, n: int, half: int, keys: Keys) -> Indices:
    """The samples at ``positions``: one to one.

    Args:
        half: bits of each half, 1..31, with n <= 4^half.
        keys: of the rounds.

    Shapes: positions (K,) int64, each in [0, n); keys (R,) uint64; returns (K,) int64.
    """
    _check(n, half)
    memory = np.empty((3, len(positions)), dtype=np.int64)
    memory[1] = positions
    if len(positions) and not 0 <= memory[1].min() <= memory[1].max() < n:
        raise ValueError(f"positions must be in [0, {n})")
    _walk(memory.view(np.uint64), n, np.uint64(half), _read_only(keys))
    return memory[0]


def permuted_run(start: int, count: int, n: int, half: int, keys: Keys) -> Indices:
    """The samples (count,) at the positions start, start + 1, ..., which go on at 0 after n - 1."""
    _check(n, half)
    if start < 0 or count < 0 or (count and n < 1):
        raise ValueError(f"no {count} positions from {start} on among {n}")
    memory = np.empty((3, count), dtype=np.int64)
    _run(memory.view(np.uint64), start, n, np.uint64(half), _read_only(keys))
    return memory[0]


def _check(n: int, half: int) -> None:
    if not 1 <= half <= 31 or not 0 <= n <= 1 << 2 * half:
        raise ValueError(f"{n} values do not fit into 2 x {half} bits")


def _read_only(keys: Keys) -> Keys:
    return read_only(keys) if keys.flags.writeable else keys


@njit(cache=True, nogil=True, _nrt=False)
def _run(memory: Keys, start: int, n: int, half: np.uint64, keys: Keys) -> None:
    position = np.int64(start) % np.int64(n) if n > 0 else 0
    for i in range(memory.shape[1]):
        memory[1, i] = np.uint64(position)
        position += 1
        if position == n:
            position = 0
    _walk(memory, n, half, keys)


@njit(cache=True, nogil=True, _nrt=False)
def _walk(memory: Keys, n: int, half: np.uint64, keys: Keys) -> None:
    """Walk the values in memory[1]; they end up in memory[0]. memory: (3, K)."""
    arrived, walking, places = memory[0], memory[1], memory[2]
    low = (_ONE << half) - _ONE
    count = len(walking)
    for i in range(count):
        places[i] = np.uint64(i)
    while count:
        for r in range(len(keys)):  # round by round: the loop inside becomes vectors
            for i in range(count):
                walking[i] = _round(walking[i], half, low, keys[r])
        still: Any = 0
        for i in range(count):  # those that are inside have arrived; no branch
            value, place = walking[i], places[i]
            arrived[place] = value
            walking[still], places[still] = value, place
            still += np.int64(value >= np.uint64(n))
        count = still


@njit(cache=True, nogil=True, _nrt=False, forceinline=True)
def _round(x: np.uint64, half: np.uint64, low: np.uint64, key: np.uint64) -> np.uint64:
    right = x & low
    mixed = right + key
    mixed = (mixed ^ (mixed >> _30)) * _M0
    mixed = (mixed ^ (mixed >> _27)) * _M1
    return np.uint64((right << half) | ((x >> half) ^ ((mixed ^ (mixed >> _31)) & low)))
