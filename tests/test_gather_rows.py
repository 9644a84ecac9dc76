"""Rows by index from packs, against NumPy's indexing; nothing outside is read."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastvae.kernels import gather_rows
from fastvae.kernels.gather_rows import (
    gather_at,
    gather_bits,
    gather_numbered,
    gather_packs,
    untouched,
)

RNG = np.random.default_rng(0)
Index = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class Set:
    """Rows in packs of these sizes, at odd places in one buffer, in no order."""

    def __init__(self, sizes: list[int], row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self.first = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.rows: Bytes = RNG.integers(0, 256, (self.first[-1], row_bytes), dtype=np.uint8)
        self.buffer = np.zeros(sum(size * row_bytes + 3 for size in sizes) + 1, dtype=np.uint8)
        self.address = np.zeros(len(sizes), dtype=np.int64)
        at = 1
        for p in RNG.permutation(len(sizes)):
            part = self.rows[self.first[p] : self.first[p + 1]].ravel()
            self.buffer[at : at + len(part)] = part
            self.address[p] = self.buffer.ctypes.data + at
            at += len(part) + 3

    def get(self, index: Index, threads: int = 1) -> Bytes:
        out = np.full((len(index), self.row_bytes), 77, dtype=np.uint8)
        gather_packs(self.first, self.address, self.row_bytes, index, out, threads)
        return out


PACKS: dict[str, list[int]] = {
    "one": [50],
    "equal": [16] * 8,
    "short last": [16, 16, 16, 5],
    "single rows": [1] * 20,
    "skewed": [1000] + [1] * 60 + [0, 0] + [3] * 30,
    "skewed the other way": [1] * 200 + [5000],
    "with empty ones": [0, 4, 0, 0, 7, 0],
}


@pytest.mark.parametrize("sizes", PACKS.values(), ids=PACKS)
@pytest.mark.parametrize("row_bytes", [1, 7, 64, 784, 3001])
def test_equals_numpy(sizes: list[int], row_bytes: int) -> None:
    packed = Set(sizes, row_bytes)
    every: Index = np.arange(packed.first[-1])
    for index in (every, RNG.permutation(every), RNG.integers(0, len(every), 300), every[-1:]):
        np.testing.assert_array_equal(packed.get(index), packed.rows[index])


@pytest.mark.parametrize("sizes", PACKS.values(), ids=PACKS)
def test_packs_of(sizes: list[int]) -> None:
    first = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    expected = np.repeat(np.arange(len(sizes)), sizes)
    none = np.zeros(len(sizes), dtype=np.uint8)
    found = [untouched(first, np.array([i]), none).tolist() for i in range(first[-1])]
    assert found == [[pack] for pack in expected.tolist()]


def test_untouched_packs_in_order_and_once_each() -> None:
    first, index = np.array([0, 4, 8, 12, 16]), np.array([13, 1, 14, 5, 0])
    seen = np.zeros(4, dtype=np.uint8)
    assert untouched(first, index, seen).tolist() == [0, 1, 3]
    seen[[0, 3]] = 1
    assert untouched(first, index, seen).tolist() == [1]
    seen[:] = 1
    assert untouched(first, index, seen).tolist() == []
    assert untouched(first, index[:0], seen).dtype == np.int64


@pytest.mark.parametrize("sizes", PACKS.values(), ids=PACKS)
@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_of_rows(sizes: list[int], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_rows, "_LARGE", 1)
    packed, labels = Set(sizes, 31), Set(sizes, 8)
    index = RNG.integers(0, len(packed.rows), 200)
    out, numbers = np.empty((200, 31), dtype=np.uint8), np.empty(200, dtype=np.int64)
    given = packed.first, packed.address, 31, labels.address
    gather_numbered(*given, index, out, numbers, threads)
    np.testing.assert_array_equal(out, packed.rows[index])
    np.testing.assert_array_equal(numbers, labels.rows[index].view(np.int64)[:, 0])
    index[70] = len(packed.rows)
    with pytest.raises(IndexError, match=rf"^index\[70\] = {index[70]} is outside"):
        gather_numbered(*given, index, out, numbers, threads)
    with pytest.raises(ValueError, match="numbers must be"):
        gather_numbered(*given, index, out, numbers[:-1], threads)
    with pytest.raises(ValueError, match="addresses of numbers"):
        gather_numbered(*given[:3], labels.address[1:], index, out, numbers, threads)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_rows, "_LARGE", 1)
    packed = Set([100] * 7 + [31], 513)
    for count in (1, 2, 1000):
        index = RNG.integers(0, len(packed.rows), count)
        np.testing.assert_array_equal(packed.get(index, threads), packed.rows[index])
    index[700], index[900] = -1, 731
    with pytest.raises(IndexError, match=r"^index\[700\] = -1 is outside 0\.\.730$"):
        packed.get(index, threads)


def test_small_batches_start_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a thread for a few bytes")

    monkeypatch.setattr(gather_rows, "in_threads", refuse)
    packed = Set([100], 784)
    assert np.array_equal(packed.get(np.arange(100), threads=8), packed.rows)


@pytest.mark.parametrize("bad", [-1, 50, 51, 2**40, 2**62, -(2**63), 2**63 - 1])
def test_an_index_outside_is_an_error_and_copies_nothing(bad: int) -> None:
    packed = Set([16, 16, 16, 2], 8)
    out = np.full((3, 8), 77, dtype=np.uint8)
    index, seen = np.array([3, bad, 4]), np.ones(4, dtype=np.uint8)
    every = packed.address[0] + 8 * np.arange(50)
    for call in (
        lambda: gather_packs(packed.first, packed.address, 8, index, out),
        lambda: gather_at(every, 8, index, out),
        lambda: untouched(packed.first, index, np.zeros(len(packed.first) - 1, np.uint8)),
        lambda: untouched(packed.first, index, seen),
    ):
        with pytest.raises(IndexError, match=rf"^index\[1\] = {bad} is outside 0\.\.49$"):
            call()
    assert (out[1:] == 77).all()
    with pytest.raises(IndexError, match="outside"):
        gather_bits(packed.first, packed.address, 8, index, np.empty((3, 64), dtype=np.uint8))


def test_no_rows_at_all() -> None:
    nothing, none = np.zeros(0, dtype=np.int64), np.zeros((0, 5), dtype=np.uint8)
    gather_packs(np.zeros(1, dtype=np.int64), nothing, 5, nothing, none, 3)
    gather_at(nothing, 5, nothing, none)
    none = np.zeros(0, dtype=np.uint8)
    assert len(untouched(np.zeros(1, dtype=np.int64), nothing, none)) == 0
    with pytest.raises(IndexError):
        untouched(np.zeros(3, np.int64), np.zeros(1, np.int64), np.zeros(2, np.uint8))
    with pytest.raises(IndexError):
        gather_at(nothing, 5, np.zeros(1, dtype=np.int64), np.zeros((1, 5), dtype=np.uint8))


def test_a_read_only_map_of_a_file(tmp_path: Path) -> None:
    rows = RNG.integers(0, 256, (40, 999), dtype=np.uint8)
    path = tmp_path / "rows"
    path.write_bytes(b"x" * 129 + rows.tobytes())
    index, out = RNG.permutation(40), np.empty((40, 999), dtype=np.uint8)
    index.flags.writeable = False
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    base = np.frombuffer(mapped, dtype=np.uint8).ctypes.data + 129
    first = np.array([0, 17, 40])
    gather_packs(first, base + first[:2] * 999, 999, index, out)  # the last byte is the file's last
    np.testing.assert_array_equal(out, rows[index])
    out[:] = 0
    gather_at(base + 999 * np.arange(40), 999, index, out)
    np.testing.assert_array_equal(out, rows[index])


@pytest.mark.parametrize("pixels", [1, 7, 8, 9, 63, 64, 65, 128, 784, 1023])
@pytest.mark.parametrize("threads", [1, 2])
def test_bits(pixels: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_rows, "_LARGE", 1)
    packed = Set([16, 16, 9], -(-pixels // 8))
    index = RNG.integers(0, 41, 100)
    around = np.full((102, pixels), 77, dtype=np.uint8)
    gather_bits(packed.first, packed.address, packed.row_bytes, index, around[1:-1], threads)
    expected = np.unpackbits(packed.rows[index], axis=1, count=pixels) * np.uint8(255)
    np.testing.assert_array_equal(around[1:-1], expected)
    assert (around[[0, -1]] == 77).all()


def test_arguments_that_do_not_fit() -> None:
    packed = Set([5], 16)
    first, address, index = packed.first, packed.address, np.arange(3)
    out = np.empty((3, 16), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"out must be \(3, 16\) uint8 in C order"):
        gather_packs(first, address, 16, index, out.T.copy().T)
    with pytest.raises(ValueError, match=r"out must be \(3, 15\)"):
        gather_packs(first, address, 15, index, out)
    with pytest.raises(ValueError, match="index must be int64"):
        gather_packs(first, address, 16, index.astype(np.int32), out)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first has 2 numbers for 2 packs"):
        gather_packs(first, np.repeat(address, 2), 16, index, out)
    with pytest.raises(ValueError, match="rows of 2 bytes are not the bits of 128 pixels"):
        gather_bits(first, address, 2, index, np.empty((3, 128), dtype=np.uint8))
    with pytest.raises(ValueError, match="seen must be uint8"):
        untouched(first, index, np.zeros(2, dtype=np.uint8))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        gather_packs(first, address, 16, index, out)
