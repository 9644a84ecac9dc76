"""Raw drawings to simplified ones, by the rule of Google's Quick, Draw! files.

1. Subtract the least x and the least y of the drawing; multiply by 255 / max(width, height), or by
   1 where both are 0.
2. Resample each stroke along its length at distances 0, 1, 2, ... of its beginning, and its end.
   Beyond 65,536 px (some 60 whole drawings, end to end) the distance grows instead of the number.
3. Ramer-Douglas-Peucker: keep the ends; keep the point farthest from the line through them if that
   is more than 2 px away, and go on with both halves. Ends that coincide: farthest from that point.
4. Round, halves to even, and clip to 0..255.

Each stroke keeps its first and its last point even where they are equal, as Google's do: a stroke
of one point becomes two equal points. Of points that are equally far, but for rounding errors, the
first is kept. A resampled point's time is interpolated like its coordinates. The text of the rule
is Google's; that it is this rule in detail was found by comparing: tests/test_simplify.py has the
share of drawings that come out the same in every point.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.jit import njit
from fastvae.kernels.parse import RawParsed
from fastvae.kernels.strokes import Offsets, Strokes

Numbers = NDArray[np.float64]

EPSILON = 2.0  # px
MOST_SAMPLES = 1 << 16
NEARLY = 1e-9
"""Distances in px that differ by less count as equal."""
PIECE = 256
"""Drawings that are simplified at a time, by one thread."""
LATEST = 2**31 - 1


def simplify(raw: RawParsed, *, threads: int = 1) -> tuple[Strokes, NDArray[np.int32]]:
    """Simplify raw drawings; the module's docstring has the rule.

    Args:
        threads: drawings are shared out among so many; the result is the same for any number.

    Returns:
        The drawings, and (P,) int32 the time of each point: ms since the drawing's first point,
        clipped to what int32 holds; 0 for drawings without times.

    Raises:
        ValueError: an offset is out of order or out of range, or a number is not finite.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    strokes, drawings = len(raw.stroke_offset) - 1, len(raw.drawing_offset) - 1
    if not len(raw.x) == len(raw.y) == len(raw.t):
        raise ValueError(f"x, y and t have {len(raw.x)}, {len(raw.y)} and {len(raw.t)} elements")
    x, y, t = (_readonly(array, np.float64) for array in (raw.x, raw.y, raw.t))
    stroke_offset = _readonly(raw.stroke_offset, np.int64)
    drawing_offset = _readonly(raw.drawing_offset, np.int64)
    if strokes < 0 or drawings < 0:
        raise ValueError("stroke_offset and drawing_offset must have at least one element")
    bad = first_bad(x, y, t, stroke_offset, drawing_offset)
    if bad >= 0:
        raise ValueError(f"drawing {bad} has offsets out of order or numbers that are not finite")

    def run(first: int) -> tuple[NDArray[np.uint8], NDArray[np.int32], Offsets]:
        last = min(first + PIECE, drawings)
        begin, end = drawing_offset[first], drawing_offset[last]
        arrays = (x, y, t, stroke_offset, drawing_offset, first, last)
        scales = np.empty((last - first, 3), dtype=np.float64)
        samples, longest = measure(*arrays, scales)
        points = np.empty((samples, 2), dtype=np.uint8)
        times = np.empty(samples, dtype=np.int32)
        ends = np.empty(end - begin, dtype=np.int64)
        work = np.empty((3, longest), dtype=np.float64)
        keep, stack = np.empty(longest, dtype=np.uint8), np.empty((longest, 2), dtype=np.int64)
        count = simplify_drawings(*arrays, scales, points, times, ends, work, keep, stack)
        return points[:count].copy(), times[:count].copy(), ends

    firsts = range(0, drawings, PIECE)
    if threads == 1:
        parts = [run(first) for first in firsts]
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(run, firsts))
    none = np.empty((0, 2), dtype=np.uint8), np.empty(0, dtype=np.int32), np.empty(0, np.int64)
    points, times, ends = zip(none, *parts, strict=True)
    before = np.cumsum([0, *(len(part) for part in points[:-1])], dtype=np.int64)
    moved = [part + start for part, start in zip(ends, before, strict=True)]
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), *moved])
    return Strokes(np.concatenate(points), offsets, np.array(drawing_offset)), np.concatenate(times)


def _readonly(array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """The array, read-only, so that the kernels are compiled for one type only."""
    if array.dtype != dtype or array.ndim != 1:
        raise ValueError(f"expected (N,) {dtype.__name__}, got {array.shape} {array.dtype}")
    view = np.ascontiguousarray(array).view(np.ndarray).view()
    view.flags.writeable = False
    return view


@njit(cache=True, nogil=True)
def first_bad(
    x: Numbers, y: Numbers, t: Numbers, stroke_offset: Offsets, drawing_offset: Offsets
) -> int:
    """The first drawing with offsets out of order or range, or with a number that is not finite,
    or whose width or height is not; or -1."""
    strokes, points = len(stroke_offset) - 1, len(x)
    drawings = len(drawing_offset) - 1
    if drawing_offset[0] != 0 or drawing_offset[drawings] != strokes:
        return 0 if drawing_offset[0] != 0 else max(drawings - 1, 0)
    for d in range(drawings):
        first, last = drawing_offset[d], drawing_offset[d + 1]
        if first > last or last > strokes:
            return d
        for s in range(first, last):
            begin, end = stroke_offset[s], stroke_offset[s + 1]
            if (s == 0 and begin != 0) or begin > end or end > points:
                return d
            for p in range(begin, end):
                if not (abs(x[p]) < 1e300 and abs(y[p]) < 1e300 and abs(t[p]) < 1e300):
                    return d
    return -1


@njit(cache=True, nogil=True)
def _length(x: Numbers, y: Numbers, begin: int, end: int, scale: float) -> float:
    """Length of a stroke in px."""
    total = 0.0
    for p in range(begin + 1, end):
        dx, dy = (x[p] - x[p - 1]) * scale, (y[p] - y[p - 1]) * scale
        total += math.sqrt(dx * dx + dy * dy)
    return total


@njit(cache=True, nogil=True)
def _samples(points: int, length: float) -> int:
    """How many points a stroke of that length may be resampled to."""
    if points == 0:
        return 0
    return 2 + int(min(length, MOST_SAMPLES))


@njit(cache=True, nogil=True)
def measure(
    x: Numbers,
    y: Numbers,
    t: Numbers,
    stroke_offset: Offsets,
    drawing_offset: Offsets,
    first: int,
    last: int,
    scales: Numbers,
) -> tuple[int, int]:
    """Least x, least y and scale of drawings ``first`` .. ``last - 1``: (D, 3); how many points
    they may be resampled to in all, and the longest stroke."""
    samples, longest = 0, 1
    for d in range(first, last):
        begin = stroke_offset[drawing_offset[d]]
        end = stroke_offset[drawing_offset[d + 1]]
        low_x = low_y = math.inf
        high_x = high_y = -math.inf
        for p in range(begin, end):
            low_x, high_x = min(low_x, x[p]), max(high_x, x[p])
            low_y, high_y = min(low_y, y[p]), max(high_y, y[p])
        extent = max(high_x - low_x, high_y - low_y)
        scale = 255 / extent if extent > 1e-300 else 1.0
        row = d - first
        scales[row, 0], scales[row, 1], scales[row, 2] = low_x, low_y, scale
        for s in range(drawing_offset[d], drawing_offset[d + 1]):
            begin, end = stroke_offset[s], stroke_offset[s + 1]
            count = _samples(end - begin, _length(x, y, begin, end, scale))
            samples += count
            longest = max(longest, count)
    return samples, longest


@njit(cache=True, nogil=True)
def _resample(
    x: Numbers,
    y: Numbers,
    t: Numbers,
    begin: int,
    end: int,
    low_x: float,
    low_y: float,
    scale: float,
    work: Numbers,
) -> int:
    """Fill ``work`` (3, N) with x, y (px) and t of the resampled stroke; how many."""
    length = _length(x, y, begin, end, scale)
    step = max(1.0, length / MOST_SAMPLES)
    count = 0
    passed = 0.0  # up to the point before
    for p in range(begin + 1, end):
        ax, ay = (x[p - 1] - low_x) * scale, (y[p - 1] - low_y) * scale
        dx, dy = (x[p] - x[p - 1]) * scale, (y[p] - y[p - 1]) * scale
        piece = math.sqrt(dx * dx + dy * dy)
        while count * step < passed + piece and count < work.shape[1] - 1:
            share = (count * step - passed) / piece
            work[0, count], work[1, count] = ax + share * dx, ay + share * dy
            work[2, count] = t[p - 1] + share * (t[p] - t[p - 1])
            count += 1
        passed += piece
    if count == 0:  # no length: the first point, before the last
        work[0, 0], work[1, 0] = (x[begin] - low_x) * scale, (y[begin] - low_y) * scale
        work[2, 0] = t[begin]
        count = 1
    work[0, count], work[1, count] = (x[end - 1] - low_x) * scale, (y[end - 1] - low_y) * scale
    work[2, count] = t[end - 1]
    return count + 1


@njit(cache=True, nogil=True)
def _farthest(work: Numbers, a: int, b: int) -> tuple[int, float]:
    """Which of the points between ``a`` and ``b`` is farthest from the line through these, and how
    far, in px."""
    ax, ay = work[0, a], work[1, a]
    dx, dy = work[0, b] - ax, work[1, b] - ay
    chord = math.sqrt(dx * dx + dy * dy)
    best, farthest = a, 0.0
    for i in range(a + 1, b):
        px, py = work[0, i] - ax, work[1, i] - ay
        far = abs(px * dy - py * dx) / chord if chord > 0 else math.sqrt(px * px + py * py)
        if far > farthest + NEARLY:
            best, farthest = i, far
    return best, farthest


@njit(cache=True, nogil=True)
def _choose(work: Numbers, count: int, keep: NDArray[np.uint8], stack: Offsets) -> None:
    """Mark the points that stay. ``stack`` (N, 2) has room for all halves that ever wait: each is
    of other points."""
    keep[:count] = 0
    keep[0] = keep[count - 1] = 1
    waiting = 1
    stack[0, 0], stack[0, 1] = 0, count - 1
    while waiting > 0:
        waiting -= 1
        a, b = stack[waiting, 0], stack[waiting, 1]
        best, farthest = _farthest(work, a, b)
        if farthest > EPSILON:
            keep[best] = 1
            for left, right in ((best, b), (a, best)):
                if right - left > 1:
                    stack[waiting, 0], stack[waiting, 1] = left, right
                    waiting += 1


@njit(cache=True, nogil=True)
def _byte(value: float) -> int:
    return int(min(max(np.rint(value), 0.0), 255.0))


@njit(cache=True, nogil=True)
def simplify_drawings(
    x: Numbers,
    y: Numbers,
    t: Numbers,
    stroke_offset: Offsets,
    drawing_offset: Offsets,
    first: int,
    last: int,
    scales: Numbers,
    points: NDArray[np.uint8],
    times: NDArray[np.int32],
    ends: Offsets,
    work: Numbers,
    keep: NDArray[np.uint8],
    stack: Offsets,
) -> int:
    """Simplify drawings ``first`` .. ``last - 1`` into ``points``, ``times`` and, for each stroke,
    ``ends``; how many points. ``work``, ``keep`` and ``stack`` are working memory."""
    total = 0
    stroke = 0
    for d in range(first, last):
        low_x, low_y, scale = scales[d - first, 0], scales[d - first, 1], scales[d - first, 2]
        start = stroke_offset[drawing_offset[d]]
        for s in range(drawing_offset[d], drawing_offset[d + 1]):
            begin, end = stroke_offset[s], stroke_offset[s + 1]
            if end > begin:
                count = _resample(x, y, t, begin, end, low_x, low_y, scale, work)
                _choose(work, count, keep, stack)
                for i in range(count):
                    if keep[i]:
                        points[total, 0], points[total, 1] = _byte(work[0, i]), _byte(work[1, i])
                        since = np.rint(work[2, i] - t[start])
                        times[total] = int(min(max(since, -LATEST), LATEST))
                        total += 1
            ends[stroke] = total
            stroke += 1
    return total
