"""Rows by index from packs in memory: what a batch of a mapped or resident set costs.

A set of N rows of one size lies in P packs, each of them contiguous, anywhere in memory (mapped
files, tensors). Pack p holds the rows ``first[p] .. first[p + 1] - 1``, and the first of them
begins at the absolute address ``address[p]``. Whoever calls vouches for the packs: that those bytes
are there and stay there. Indices are checked here: one outside 0..N-1 is an IndexError, and nothing
outside the packs is read (rows before it may have been copied).

The pack of a row is guessed from its share of N, since packs are of one size but for a few, and
found by bisection where the guess is far off. While a row is copied, rows to come are fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.jit import njit
from fastvae.kernels.memory import byte_at, copy, fetch_line, unpack8, unpack64
from fastvae.kernels.raster_frame import in_threads
from fastvae.kernels.strokes import Array, read_only

Index = NDArray[np.int64]
Rows = NDArray[np.uint8]

_INT64, _UINT8 = np.dtype(np.int64), np.dtype(np.uint8)

# Arrays come from the caller and nothing is allocated: references need not be counted.
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False, "error_model": "numpy"}
_compiled: Any = njit(**_OPTIONS)
_inlined: Any = njit(**_OPTIONS, forceinline=True)

_LARGE = 1 << 22  # bytes of a batch from which a second thread saves more than its start costs
_AHEAD = 4  # rows that are fetched while one is copied
_FETCHED = 1024  # bytes of a row to come; of a longer one the processor fetches the rest by itself
_STEPS = 4  # packs to go up or down from a guess before it is given up


# -------------------------------------------------------------------------------- for callers
def gather_packs(
    first: Index, address: Index, row_bytes: int, index: Index, out: Rows, threads: int = 1
) -> None:
    """Copy the rows ``index`` into ``out``.

    Args:
        first: ascending: the first row of each pack, and N.
        address: of the first row of each pack.
        threads: of a large batch; a small one is copied by one. 0: as many as there are cores.

    Shapes: first (P + 1,), address (P,), index (B,) int64; out (B, row_bytes) uint8 in C order.
    """
    _check_packs(first, address)
    _check_rows(index, out, row_bytes)
    _run(_packs, first, address, row_bytes, index, out, threads)


def gather_numbered(
    first: Index,
    address: Index,
    row_bytes: int,
    number_address: Index,
    index: Index,
    out: Rows,
    numbers: Index,
    threads: int = 1,
) -> None:
    """``gather_packs``, and with it a number of each row (its label): one search for both.

    Args:
        number_address: of the number of the first row of each pack; the others follow.

    Shapes: as ``gather_packs``; number_address (P,), numbers (B,) int64.
    """
    _check_packs(first, address)
    _check_rows(index, out, row_bytes)
    _check_integers("number_address", number_address)
    _check_integers("numbers", numbers)
    if len(number_address) != len(address):
        raise ValueError(f"{len(number_address)} addresses of numbers for {len(address)} packs")
    if len(numbers) != len(index) or not numbers.flags.writeable:
        raise ValueError(f"numbers must be ({len(index)},) and writeable, got {numbers.shape}")
    more = _read_only(number_address), numbers
    _run(_numbered, first, address, row_bytes, index, out, threads, more)


def gather_at(address: Index, row_bytes: int, index: Index, out: Rows, threads: int = 1) -> None:
    """Copy the rows ``index`` (B,) of those at ``address`` (N,) into ``out`` (B, row_bytes)."""
    _check_integers("address", address)
    _check_rows(index, out, row_bytes)
    _run(_single, address, address, row_bytes, index, out, threads)


def gather_bits(
    first: Index, address: Index, row_bytes: int, index: Index, out: Rows, threads: int = 1
) -> None:
    """The rows ``index``, which are ``numpy.packbits`` of pixels, as pixels 0 and 255.

    Shapes: as ``gather_packs``, but out (B, pixels) with row_bytes = ceil(pixels / 8).
    """
    _check_packs(first, address)
    _check_rows(index, out, None)
    if -(-out.shape[1] // 8) != row_bytes:
        raise ValueError(f"rows of {row_bytes} bytes are not the bits of {out.shape[1]} pixels")
    _run(_bits, first, address, row_bytes, index, out, threads)


def untouched(first: Index, index: Index, seen: NDArray[np.uint8]) -> Index:
    """The packs that rows ``index`` lie in and whose ``seen`` is 0: (K,) int64, ascending.

    Shapes: first (P + 1,), index (B,) int64; seen (P,) uint8.
    """
    found: Index = np.empty(len(index), dtype=np.int64)
    count = _find(first, index, seen, found)
    return np.unique(found[:count]) if count else found[:0]


# -------------------------------------------------------------------------------- checks, threads
def _read_only(array: Array) -> Array:
    """So that kernels are compiled once for what describes a set: it may be mapped or not. (Of
    indices, which come anew with each batch, both kinds are taken as they are: a view costs as
    much as a call.)"""
    return read_only(array) if array.flags.writeable else array


def _check_integers(name: str, array: Index) -> None:
    if array.dtype != _INT64 or array.ndim != 1 or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be int64 of one axis, without gaps, got {array.shape} {array.dtype}"
        )


def _check_packs(first: Index, address: Index) -> None:
    _check_integers("first", first)
    _check_integers("address", address)
    if len(first) != len(address) + 1:
        raise ValueError(
            f"first has {len(first)} numbers for {len(address)} packs: one more needed"
        )


def _check_rows(index: Index, out: Rows, row_bytes: int | None) -> None:
    _check_integers("index", index)
    shape = (len(index), row_bytes if row_bytes is not None else out.shape[-1])
    if out.dtype != _UINT8 or out.shape != shape or not out.flags.c_contiguous:
        raise ValueError(f"out must be {shape} uint8 in C order, got {out.shape} {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable")


def _run(
    kernel: Any,
    first: Index,
    address: Index,
    row_bytes: int,
    index: Index,
    out: Rows,
    threads: int,
    more: tuple[Index, ...] = (),
) -> None:
    """Call ``kernel`` for all rows; the error of the first index that is outside."""
    first, address = _read_only(first), _read_only(address)
    if threads == 1 or out.nbytes < _LARGE:
        bad = kernel(*more, first, address, index, row_bytes, out, 0, len(index))
    else:
        found: list[int] = []

        def run(lo: int, hi: int) -> None:
            found.append(kernel(*more, first, address, index, row_bytes, out, lo, hi))

        in_threads(run, len(index), threads)
        bad = min((b for b in found if b >= 0), default=-1)
    if bad >= 0:
        raise _outside(index, bad, len(address) if kernel is _single else int(first[-1]))


def in_few_threads(
    run: Callable[[int, int], object], count: int, threads: int, nbytes: int
) -> None:
    """``in_threads``, but in this one alone where ``nbytes`` are little to write."""
    if threads == 1 or nbytes < _LARGE:
        run(0, count)
    else:
        in_threads(run, count, threads)


def _find(first: Index, index: Index, seen: NDArray[np.uint8], found: Index) -> int:
    _check_integers("first", first)
    _check_integers("index", index)
    if len(first) < 1 or seen.dtype != np.uint8 or seen.shape != (len(first) - 1,):
        raise ValueError(
            f"seen must be uint8 and first one longer, got {seen.shape} {seen.dtype} and "
            f"{first.shape}"
        )
    count, bad = _unseen(_read_only(first), index, _read_only(seen), found)
    if bad >= 0:
        raise _outside(index, bad, int(first[-1]))
    return int(count)


def _outside(index: Index, bad: int, rows: int) -> IndexError:
    return IndexError(f"index[{bad}] = {int(index[bad])} is outside 0..{rows - 1}")


# -------------------------------------------------------------------------------- kernels
@_inlined
def _share(first: Index) -> float:
    """Packs per row."""
    return np.float64(len(first) - 1) / np.float64(first[len(first) - 1])


@_inlined
def _pack_of(first: Index, share: float, i: int) -> int:
    """The pack that row ``i`` lies in, or -1 where there is none."""
    packs = len(first) - 1
    if packs < 1 or i < first[0] or i >= first[packs]:
        return -1
    p: Any = min(np.int64(np.float64(i) * share), packs - 1)
    p += np.int64(i >= first[p + 1]) - np.int64(i < first[p])  # often, and not to be predicted
    for _ in range(_STEPS):
        if i < first[p]:
            p = max(p - 1, 0)
        elif i >= first[p + 1]:
            p = min(p + 1, packs - 1)
        else:
            return int(p)
    low, high = 0, packs  # first[low] <= i < first[high]
    while high - low > 1:
        middle = (low + high) >> 1
        if i < first[middle]:
            high = middle
        else:
            low = middle
    return low


@_inlined
def _place(first: Index, share: float, address: Index, row_bytes: int, i: int) -> int:
    """Absolute address of row ``i``, or 0 where there is none."""
    p = _pack_of(first, share, i)
    return 0 if p < 0 else address[p] + (i - first[p]) * row_bytes


@_inlined
def _fetch(place: int, size: int) -> None:
    if place != 0:
        for at in range(0, min(size, _FETCHED), 64):
            fetch_line(place + at)


@_compiled
def _packs(
    first: Index, address: Index, index: Index, row_bytes: int, out: Rows, lo: int, hi: int
) -> int:
    """Copy rows lo..hi-1 of the batch; the first one whose index is outside, or -1."""
    target, share = np.int64(out.ctypes.data), _share(first)
    for b in range(lo, hi):
        if b + _AHEAD < hi and row_bytes > 8:
            _fetch(_place(first, share, address, row_bytes, index[b + _AHEAD]), row_bytes)
        place = _place(first, share, address, row_bytes, index[b])
        if place == 0:
            return b
        if row_bytes == 8:  # numbers
            copy(target + b * 8, place, 8)
        else:
            copy(target + b * row_bytes, place, row_bytes)
    return -1


@_compiled
def _numbered(
    number_address: Index,
    numbers: Index,
    first: Index,
    address: Index,
    index: Index,
    row_bytes: int,
    out: Rows,
    lo: int,
    hi: int,
) -> int:
    """The same, with a number of each row."""
    target, share = np.int64(out.ctypes.data), _share(first)
    to = np.int64(numbers.ctypes.data)
    for b in range(lo, hi):
        if b + _AHEAD < hi:
            _fetch(_place(first, share, address, row_bytes, index[b + _AHEAD]), row_bytes)
        p = _pack_of(first, share, index[b])
        if p < 0:
            return b
        at = index[b] - first[p]
        copy(target + b * row_bytes, address[p] + at * row_bytes, row_bytes)
        copy(to + b * 8, number_address[p] + at * 8, 8)
    return -1


@_compiled
def _single(
    address: Index, same: Index, index: Index, row_bytes: int, out: Rows, lo: int, hi: int
) -> int:
    """The same where each row has an address of its own."""
    target, rows = np.int64(out.ctypes.data), len(address)
    for b in range(lo, hi):
        i = index[b]
        if i < 0 or i >= rows:
            return b
        if b + _AHEAD < hi:
            after = index[b + _AHEAD]
            if 0 <= after < rows:
                _fetch(address[after], row_bytes)
        copy(target + b * row_bytes, address[i], row_bytes)
    return -1


@_compiled
def _bits(
    first: Index, address: Index, index: Index, row_bytes: int, out: Rows, lo: int, hi: int
) -> int:
    """The same where rows are bits."""
    pixels = out.shape[1]
    target, share = np.int64(out.ctypes.data), _share(first)
    whole, most = pixels // 8, pixels // 64 * 8
    for b in range(lo, hi):
        if b + _AHEAD < hi:
            _fetch(_place(first, share, address, row_bytes, index[b + _AHEAD]), row_bytes)
        place = _place(first, share, address, row_bytes, index[b])
        if place == 0:
            return b
        to = target + b * pixels
        for k in range(0, most, 8):
            unpack64(to + 8 * k, place + k)
        for k in range(most, whole):
            unpack8(to + 8 * k, place + k)
        if whole < row_bytes:
            last = byte_at(place + whole)
            for j in range(pixels - 8 * whole):
                out[b, 8 * whole + j] = np.uint8(255) if last & (128 >> j) else np.uint8(0)
    return -1


@_compiled
def _unseen(first: Index, index: Index, seen: NDArray[np.uint8], found: Index) -> Any:
    """The packs of rows that have not been seen, in the order of the rows, to ``found``; how many,
    and the first row whose index is outside, or -1."""
    count, share = 0, _share(first)
    for b in range(len(index)):
        p = _pack_of(first, share, index[b])
        if p < 0:
            return count, b
        if seen[p] == 0:
            found[count] = p
            count += 1
    return count, -1
