"""The exact anti-aliased rasterizer on a CPU; definitions in ``raster.py``.

A stroke is drawn as the union of its segments into a mask of ACROSS x DOWN samples per pixel, one
bit each; counting them gives its coverage. A segment with its round ends is convex, so each line
of samples crosses it in one run of bits. The ends of the runs are computed in vectors: on the line
at height y, the left end belongs to the pen at the point of the segment where the segment's left
edge is at height y, or to the pen at one of its ends where there is none such,

    t = clamp((y - r n_y - a_y) / (b_y - a_y), 0, 1),    c = a + t (b - a)
    x = c_x - sqrt(r^2 - (y - c_y)^2)

with n the normal to the left; the right end likewise. Coverages are rounded to 8 bits after each
stroke and composed in 8 bits, as cairo does.

Images are drawn in bands of rows, so that the mask of a large one still fits into the cache.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
from numba import extending, get_num_threads, njit, types
from numpy.typing import NDArray

from fastvae.kernels.raster_frame import DOT, FAR, Frame, first_bad, in_threads, transform
from fastvae.kernels.strokes import Offsets, Points, Strokes

ir: Any = import_module("llvmlite.ir")  # has no types
intrinsic: Any = extending.intrinsic  # what it makes has not the signature that Numba tells mypy

Words = NDArray[np.uint64]
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Images = NDArray[np.uint8]

f4, i4, i8, u8, u16 = np.float32, np.int32, np.int64, np.uint64, np.uint16

ACROSS, DOWN = 16, 8
"""Samples of a pixel; ACROSS fills one uint16."""
BAND = 128
"""Rows of px drawn at a time."""
LEVEL = f4(1e-4)
"""px. A segment that rises less is taken as level."""
ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
GRAIN = 500_000
"""ns of work for which a thread is worth its start."""


def render(
    strokes: Strokes,
    frame: Frame,
    index: Offsets,
    cut: Offsets | None,
    affine: Floats | None,
    composite: str,
    full: Images,
    partial: Images | None,
    threads: int,
) -> int:
    """See "Low-level calls" in ``raster.py``."""
    arrays = (strokes.points, strokes.stroke_offset, strokes.drawing_offset, index)
    points, stroke_offset, drawing_offset, index = (_read_only(array) for array in arrays)
    bad = int(first_bad(points, stroke_offset, drawing_offset, index))
    if bad >= 0 or len(index) == 0:
        return bad
    cut = _read_only(np.empty(0, np.int64) if cut is None else cut)
    affine = _read_only(np.empty((0, 2, 3), np.float32) if affine is None else affine)
    if partial is None:
        partial = np.empty((0, 0, 0), np.uint8)

    def run(lo: int, hi: int) -> None:
        _render(
            points, stroke_offset, drawing_offset, index, cut, affine, float(frame.scale),
            f4(frame.radius), composite == "max", full, partial, lo, hi,
        )  # fmt: skip

    work = len(index) * (4000 + frame.side * frame.side)  # ns, about
    in_threads(run, len(index), min(threads or get_num_threads(), 1 + work // GRAIN))
    return -1


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view that may not be written: numba compiles once, whatever the array's own flag says."""
    view = array.view()
    view.flags.writeable = False
    return view


@intrinsic  # type: ignore[untyped-decorator]
def _ones(context: Any, word: Any) -> Any:
    """Number of set bits of a uint16, as one instruction that LLVM can put into vectors."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint16(types.uint16), emit


@njit(cache=True, nogil=True, error_model="numpy")
def _render(
    points: Points,
    stroke_offset: Offsets,
    drawing_offset: Offsets,
    index: Offsets,
    cut: Offsets,
    affine: Floats,
    scale: Any,
    radius: Any,
    highest: Any,
    full: Images,
    partial: Images,
    lo: Any,
    hi: Any,
) -> None:
    """Drawings index[lo:hi]."""
    side = full.shape[1]
    words = (side + 3) // 4
    band = min(BAND, side)
    mask = np.zeros((band * DOWN, words), np.uint64)
    ends = np.empty((2, band * DOWN), np.int32)
    for b in range(lo, hi):
        first, last = drawing_offset[index[b]], drawing_offset[index[b] + 1]
        begin, end = stroke_offset[first], stroke_offset[last]
        to_px = transform(points, begin, end, affine, b, side, scale)
        stop = begin + min(max(cut[b], 0), end - begin) if len(cut) > 0 else i8(-1)
        for top in range(0, side, band):
            bottom = min(top + band, side)
            whole = full[b, top:bottom]
            part = partial[b, top:bottom] if len(cut) > 0 else whole
            whole[:] = 0
            taken = stop < 0
            for s in range(first, last):
                f, e = stroke_offset[s], stroke_offset[s + 1]
                if not taken and stop < e:
                    part[:] = whole
                    if stop > f:
                        box = _stroke(points, f, stop, to_px, radius, top, side, mask, ends)
                        _compose(mask, box, part, highest)
                    taken = True
                box = _stroke(points, f, e, to_px, radius, top, side, mask, ends)
                _compose(mask, box, whole, highest)
            if not taken:
                part[:] = whole


@njit(cache=True, nogil=True, error_model="numpy")
def _stroke(
    points: Points,
    begin: Any,
    end: Any,
    to_px: Any,
    r: Any,
    top: Any,
    side: Any,
    mask: Words,
    ends: Ints,
) -> Any:
    """Points begin..end-1 to the mask; returns its part that was touched: rows and columns."""
    xx, xy, x0, yx, yy, y0 = to_px
    rows = min(len(mask) // DOWN, side - top)
    left, right, upper, lower = i8(side), i8(0), i8(rows), i8(0)
    ax = ay = f4(0)
    for i in range(begin, end):
        x, y = float(points[i, 0]), float(points[i, 1])
        bx, by = f4(xx * x + xy * y + x0), f4(yx * x + yy * y + y0 - top)
        if i == begin:
            ax, ay = bx, by
        if (i > begin or end == begin + 1) and _near(ax, ay) and _near(bx, by):
            # Whole pixels that the segment can reach.
            l = max(i8(math.floor(min(ax, bx) - r)), i8(0))
            h = min(i8(math.floor(max(ax, bx) + r)) + 1, i8(side))
            u = max(i8(math.floor(min(ay, by) - r)), i8(0))
            d = min(i8(math.floor(max(ay, by) + r)) + 1, i8(rows))
            if l < h and u < d:
                count = _runs(ax, ay, bx, by, r, u, d, side, ends)
                _fill(mask, ends, u * DOWN, count)
                left, right = min(left, l), max(right, h)
                upper, lower = min(upper, u), max(lower, d)
        ax, ay = bx, by
    return upper, lower, left, right


@njit(cache=True, nogil=True)
def _near(x: Any, y: Any) -> Any:
    """False for NaN, too."""
    return abs(x) <= FAR and abs(y) <= FAR


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
def _runs(
    ax: Any, ay: Any, bx: Any, by: Any, r: Any, upper: Any, lower: Any, side: Any, ends: Ints
) -> Any:
    """First sample and the one after the last, on each line of samples of px upper..lower-1."""
    dx, dy = bx - ax, by - ay
    length = math.sqrt(dx * dx + dy * dy)
    if length < f4(DOT):
        dx = dy = f4(0)
    slope, lean = f4(0), f4(0)  # level: t is 0 for one end and 1 for the other
    at_left, at_right = (f4(0), f4(1)) if dx > f4(0) else (f4(1), f4(0))
    if abs(dy) >= LEVEL:
        slope = f4(1) / dy
        lean = (r * dx if dy > f4(0) else -r * dx) / length
        at_left = at_right = f4(0)
    zero, one, half, square = f4(0), f4(1), f4(0.5), r * r
    step, limit = f4(1.0 / DOWN), i4(side * ACROSS)
    start = f4(upper) + half * step - ay
    count = (lower - upper) * DOWN
    for j in range(count):
        y = start + f4(j) * step
        t = (y - lean) * slope + at_left
        t = zero if t < zero else t
        t = one if t > one else t
        off = y - t * dy
        w = square - off * off
        wide = math.sqrt(w if w > zero else zero)
        a = ax + t * dx - wide
        t = (y + lean) * slope + at_right
        t = zero if t < zero else t
        t = one if t > one else t
        off = y - t * dy
        w = square - off * off
        wide = math.sqrt(w if w > zero else zero)
        b = ax + t * dx + wide if w > zero else a  # beside a level segment t differs
        # Sample k is at (k + 1/2) / ACROSS. Both ends are moved up to make the cast a floor.
        a = a if a > zero else zero
        b = b if b > zero else zero
        first, last = i4(a * f4(ACROSS) + half), i4(b * f4(ACROSS) + half)
        ends[0, j] = first
        ends[1, j] = last if last < limit else limit
    return count


@njit(cache=True, nogil=True, error_model="numpy")
def _fill(mask: Words, ends: Ints, line: Any, count: Any) -> None:
    """Set bits ends[0, j] .. ends[1, j] - 1 of each line."""
    for j in range(u8(count)):
        a, b = ends[u8(0), j], ends[u8(1), j] - i4(1)
        if a <= b:
            k, m = u8(a) >> u8(6), u8(b) >> u8(6)
            head, tail = ONES << (u8(a) & u8(63)), ONES >> (u8(63) - (u8(b) & u8(63)))
            row = u8(line) + j
            if k == m:
                mask[row, k] |= head & tail
            else:
                mask[row, k] |= head
                for n in range(k + u8(1), m):
                    mask[row, n] = ONES
                mask[row, m] |= tail


@njit(cache=True, nogil=True, error_model="numpy")
def _compose(mask: Words, box: Any, image: Images, highest: Any) -> None:
    """Put a stroke's mask onto the image, and clear it."""
    upper, lower, left, right = box
    if upper >= lower:
        return
    samples = mask.view(np.uint16)
    for y in range(upper, lower):
        for x in range(left, right):
            total = u16(0)
            for v in range(DOWN):
                total += _ones(samples[y * DOWN + v, x])
            a = (np.uint32(total) * np.uint32(255) + np.uint32(64)) >> np.uint32(7)
            d = np.uint32(image[y, x])
            if highest:
                d = a if a > d else d
            else:
                t = a * d + np.uint32(128)
                d = a + d - (((t >> np.uint32(8)) + t) >> np.uint32(8))
            image[y, x] = d
        for v in range(DOWN):
            mask[y * DOWN + v, left // 4 : (right + 3) // 4] = 0
