"""The compiled permutation against one written in Python's integers."""

from __future__ import annotations

import numpy as np
import pytest

from fastvae.kernels.permutation import permuted, permuted_run

KEYS = np.random.default_rng(0).integers(0, 2**64, 6, dtype=np.uint64)
WORD = 2**64 - 1


def walk(position: int, n: int, half: int) -> int:
    low = (1 << half) - 1
    while True:
        left, right = position >> half, position & low
        for key in KEYS.tolist():
            mixed = (right + key) & WORD
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & WORD
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & WORD
            left, right = right, left ^ ((mixed ^ (mixed >> 31)) & low)
        position = (left << half) | right
        if position < n:
            return position


@pytest.mark.parametrize(
    ("n", "half"), [(1, 1), (2, 4), (5, 4), (255, 4), (256, 4), (257, 5), (300, 8), (1 << 12, 6)]
)
def test_every_position(n: int, half: int) -> None:
    order = permuted(np.arange(n), n, half, KEYS)
    assert order.dtype == np.int64
    assert order.tolist() == [walk(i, n, half) for i in range(n)]
    assert sorted(order.tolist()) == list(range(n))


@pytest.mark.parametrize(("n", "half"), [(1, 1), (5, 4), (256, 4), (300, 8)])
def test_runs_of_positions_go_on_at_0(n: int, half: int) -> None:
    order = permuted(np.arange(n), n, half, KEYS)
    for start, count in ((0, n), (n - 1, 1), (n // 2, 3 * n + 1), (7 * n + 2, 2), (0, 0)):
        expected = order[(start + np.arange(count)) % n]
        np.testing.assert_array_equal(permuted_run(start, count, n, half, KEYS), expected)
    far = permuted_run(2**40, 3, n, half, KEYS)
    np.testing.assert_array_equal(far, order[(2**40 + np.arange(3)) % n])


@pytest.mark.parametrize(("n", "half"), [(50_000_000, 13), (2**40 + 7, 21), (2**62, 31)])
def test_far_positions(n: int, half: int) -> None:
    positions = np.random.default_rng(1).integers(0, n, 300)
    positions[:2] = 0, n - 1
    expected = [walk(i, n, half) for i in positions.tolist()]
    assert permuted(positions, n, half, KEYS).tolist() == expected
    positions.flags.writeable = False
    assert permuted(positions[::-2], n, half, KEYS).tolist() == expected[::-2]


@pytest.mark.parametrize("bad", [-1, 100, 2**62, -(2**63)])
def test_positions_outside_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=r"positions must be in \[0, 100\)"):
        permuted(np.array([3, bad, 4]), 100, 4, KEYS)


def test_sizes_that_do_not_fit_are_refused() -> None:
    for n, half in ((257, 4), (5, 0), (5, 32), (-1, 4)):
        with pytest.raises(ValueError, match="do not fit"):
            permuted(np.arange(1), n, half, KEYS)
        with pytest.raises(ValueError, match="do not fit"):
            permuted_run(0, 1, n, half, KEYS)
    for start, count, n in ((-1, 2, 5), (0, -1, 5), (0, 1, 0)):
        with pytest.raises(ValueError, match="positions"):
            permuted_run(start, count, n, 4, KEYS)


def test_no_positions() -> None:
    assert permuted(np.zeros(0, dtype=np.int64), 10, 4, KEYS).shape == (0,)
    assert permuted(np.zeros(0, dtype=np.int64), 0, 4, KEYS).shape == (0,)
