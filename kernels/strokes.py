"""Ragged strokes: many drawings in three flat arrays, the form in which all stroke kernels take
them.

    drawing d  is strokes  drawing_offset[d] .. drawing_offset[d + 1]
    stroke  s  is points   stroke_offset[s]  .. stroke_offset[s + 1]
    point   p  is (x, y) = points[p], 0..255, y downwards (Quick, Draw!'s simplified form)

Per drawing of Quick, Draw! (44.5 points, 5.3 strokes on average) that is about 140 bytes. Offsets
are int64: 50 million drawings have more than 2^31 points.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.jit import njit

Points = NDArray[np.uint8]
Offsets = NDArray[np.int64]
Array = TypeVar("Array", bound=NDArray[Any])


@dataclass(frozen=True, eq=False)
class Strokes:
    """Drawings as ragged arrays. The arrays may be memory-mapped and read-only.

    Attributes:
        points: (P, 2) uint8, C order.
        stroke_offset: (S + 1,) int64, ascending from 0 to P.
        drawing_offset: (D + 1,) int64, ascending from 0 to S.
    """

    points: Points
    stroke_offset: Offsets
    drawing_offset: Offsets

    def __post_init__(self) -> None:
        """Look at shapes, dtypes and ends, not at every offset (``check`` does)."""
        points = self.points
        if points.dtype != np.uint8 or points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"points must be (P, 2) uint8, got {points.shape} {points.dtype}")
        if not points.flags.c_contiguous:
            raise ValueError("points must be in C order")
        for name, total, of in (
            ("stroke_offset", len(points), "points"),
            ("drawing_offset", len(self.stroke_offset) - 1, "strokes"),
        ):
            offset = getattr(self, name)
            if offset.dtype != np.int64 or offset.ndim != 1 or not offset.flags.c_contiguous:
                raise ValueError(
                    f"{name} must be (N + 1,) int64, got {offset.shape} {offset.dtype}"
                )
            if len(offset) < 1 or offset[0] != 0 or offset[-1] != total:
                ends = (int(offset[0]), int(offset[-1])) if len(offset) else "nothing"
                raise ValueError(f"{name} must run from 0 to {total} ({of}), got {ends}")

    @property
    def drawings(self) -> int:
        """Number of drawings."""
        return len(self.drawing_offset) - 1

    def arrays(self) -> tuple[Points, Offsets, Offsets]:
        """points, stroke_offset, drawing_offset as kernels take them."""
        return (
            read_only(self.points),
            read_only(self.stroke_offset),
            read_only(self.drawing_offset),
        )

    def check(self) -> None:
        """Raise ValueError unless every offset is at least the one before it (reads them all)."""
        for name in ("stroke_offset", "drawing_offset"):
            bad = first_descent(read_only(getattr(self, name)))
            if bad >= 0:
                raise ValueError(f"{name}[{bad + 1}] is less than {name}[{bad}]")

    def select(self, index: Offsets) -> Strokes:
        """Copy the drawings ``index`` (B,) into a set of their own, in that order."""
        check_index(index, self.drawings)
        arrays, index = self.arrays(), read_only(index)
        raise_bad(int(first_bad(*arrays, index)), index)
        return Strokes(*_select(*arrays, index))

    def strokes_of(self, drawing: int) -> list[Points]:
        """Points (N, 2) of each stroke of one drawing, as views."""
        first, last = self.drawing_offset[drawing : drawing + 2]
        ends = self.stroke_offset[first : last + 1]
        return [self.points[a:b] for a, b in itertools.pairwise(ends)]


def from_lists(drawings: list[list[list[list[int]]]]) -> Strokes:
    """Strokes of drawings as in Quick, Draw!'s JSON: per stroke a list of x and a list of y."""
    wide = [np.asarray(stroke[:2]).T for drawing in drawings for stroke in drawing]
    pairs = [pair.astype(np.uint8) for pair in wide]
    if any(not np.array_equal(a, b) for a, b in zip(wide, pairs, strict=True)):
        raise ValueError("coordinates must be integers in 0..255")
    points = np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.uint8)
    lengths = np.array([len(pair) for pair in pairs], dtype=np.int64)
    counts = np.array([len(drawing) for drawing in drawings], dtype=np.int64)
    return Strokes(np.ascontiguousarray(points), offsets(lengths), offsets(counts))


def read_only(array: Array) -> Array:
    """A view that may not be written: Numba compiles a kernel once for it, where it would compile
    again for arrays that may (a mapped set of drawings may not, one in memory may)."""
    view = array.view()
    view.flags.writeable = False
    return view


def offsets(lengths: NDArray[np.int64]) -> Offsets:
    """0 and the running sum of ``lengths`` (N,): (N + 1,) int64."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def raise_bad(bad: int, index: Offsets) -> None:
    """Raise for the drawing at position ``bad`` of ``index``; do nothing when it is negative."""
    if bad >= 0:
        raise ValueError(f"drawing {int(index[bad])}: its offsets do not ascend (damaged data)")


def check_index(index: Offsets, drawings: int) -> None:
    """Raise unless ``index`` is (B,) int64 with every element in 0..drawings-1."""
    if not isinstance(index, np.ndarray):
        raise ValueError(f"index must be an array of int64, got {type(index).__name__}")
    if index.dtype != np.int64 or index.ndim != 1:
        raise ValueError(f"index must be (B,) int64, got {index.shape} {index.dtype}")
    if len(index) and not (index.min() >= 0 and index.max() < drawings):
        raise ValueError(
            f"index {int(index.min())}..{int(index.max())} must be in 0..{drawings - 1}"
        )


@njit(cache=True, nogil=True)
def first_bad(
    points: Points, stroke_offset: Offsets, drawing_offset: Offsets, index: Offsets
) -> int:
    """The first b whose drawing index[b] is not there, or has offsets out of order; or -1."""
    strokes, total = len(stroke_offset) - 1, len(points)
    for b in range(len(index)):
        d = index[b]
        if not 0 <= d < len(drawing_offset) - 1:
            return b
        first, last = drawing_offset[d], drawing_offset[d + 1]
        if not 0 <= first <= last <= strokes:
            return b
        if stroke_offset[first] < 0 or stroke_offset[last] > total:
            return b
        for s in range(first, last):
            if stroke_offset[s + 1] < stroke_offset[s]:
                return b
    return -1


@njit(cache=True, nogil=True)
def first_descent(offset: Offsets) -> int:
    """The first i with offset[i + 1] < offset[i], or -1."""
    for i in range(len(offset) - 1):
        if offset[i + 1] < offset[i]:
            return i
    return -1


@njit(cache=True, nogil=True)
def point_span(stroke_offset: Offsets, drawing_offset: Offsets, d: int) -> tuple[int, int]:
    """First point of drawing ``d`` and the one after its last."""
    return stroke_offset[drawing_offset[d]], stroke_offset[drawing_offset[d + 1]]


@njit(cache=True, nogil=True)
def _select(
    points: Points, stroke_offset: Offsets, drawing_offset: Offsets, index: Offsets
) -> tuple[Points, Offsets, Offsets]:
    strokes = total = 0
    for d in index:
        first, last = drawing_offset[d], drawing_offset[d + 1]
        strokes += last - first
        total += stroke_offset[last] - stroke_offset[first]
    chosen = np.empty((total, 2), dtype=np.uint8)
    stroke_end = np.zeros(strokes + 1, dtype=np.int64)
    drawing_end = np.zeros(len(index) + 1, dtype=np.int64)
    s = p = 0
    for i, d in enumerate(index):
        first, last = drawing_offset[d], drawing_offset[d + 1]
        begin, end = stroke_offset[first], stroke_offset[last]
        chosen[p : p + end - begin] = points[begin:end]
        for k in range(first, last):
            s += 1
            stroke_end[s] = p + stroke_offset[k + 1] - begin
        p += end - begin
        drawing_end[i + 1] = s
    return chosen, stroke_end, drawing_end
