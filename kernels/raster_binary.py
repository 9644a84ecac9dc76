"""Binary rasterization of strokes: lines of one pixel, widened; the rule of the system S0.

**Place.** scale = (side - pad) / 256 in float64; a coordinate v becomes int(v * scale) + pad // 2,
cut off, not rounded. Nothing is centred.

**Line.** Bresenham's, with strict inequalities: from (x1, y1) with dx = |x2 - x1|, dy = |y2 - y1|,
err = dx - dy, at each pixel e = 2 err, a step in x if e > -dy and a step in y if e < dx. That is,
with b = max(dx, dy) and a = min(dx, dy): pixel n = 0..b lies n along the longer axis and

    m(n) = floor((2 n a + b - 1) / (2 b)) = floor((n a + (b - 1) // 2) / b)

along the shorter one, n a / b rounded with halves towards the first end. (Let b = dx > dy = a.
While every step so far went in x, err = dx - dy - n dy + m dx stays in [dx / 2 - dy,
3 dx / 2 - dy): so e > -dy and the next goes in x too; one m only puts err in there, the one above.
For dy > dx the same holds with the axes exchanged, and for dx = dy err is 0 at each pixel.) A flat
line is a run in each row: that of row m ends at n = floor(((m + 1) b - (b - 1) // 2 - 1) / a), the
last with m(n) = m. Both divisions, of a number below 2^25 by one below 2^12, are exact as a
multiplication by floor(2^40 / divisor) + 1.

**Stroke.** The lines between its points, in order. One point is one pixel with ``dots``; S0 loses
it.

**Widening** (``widen`` times): a pixel becomes ink if it or one of its eight neighbours is; that is
``cv2.erode`` with ones((3, 3)) of an image whose ink is 0 and whose paper is 1.

A drawing is made of bit rows (``bitrows``), 64 pixels to a word, which makes clearing, widening and
the copy for the partial image cheap; bytes are written once, at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.bitrows import Words, check_byte, unpack_rows, words_per_row
from fastvae.kernels.jit import njit
from fastvae.kernels.morphology import edges_of_words, lanes, step
from fastvae.kernels.raster_frame import MAX_SIDE, in_threads
from fastvae.kernels.strokes import (
    Offsets,
    Points,
    Strokes,
    check_index,
    first_bad,
    raise_bad,
    read_only,
)

_ONE, _ALL = np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)
_SHIFT = 40
_LITTLE = 256  # drawings below which starting a thread costs more than it saves


def rasterize_binary(
    strokes: Strokes,
    side: int,
    index: Offsets,
    *,
    pad: int = 10,
    widen: int = 1,
    cut: Offsets | None = None,
    dots: bool = True,
    ink: int = 255,
    paper: int = 0,
    packed: bool = False,
    out: NDArray[Any] | None = None,
    partial_out: NDArray[Any] | None = None,
    threads: int = 0,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]:
    """Draw the drawings ``index`` (B,) int64, each (side, side).

    Args:
        side: 1..4096 px.
        pad: 0..side, px left free at both ends together; 10 and 0 are what S0 used.
        widen: how often lines are widened by a pixel on each side.
        cut: (B,) int64, clamped to 0..points of the drawing. With it, the result is a pair of
            images, (full, partial), made in one pass: the partial one shows the drawing's first
            cut[b] points. A stroke of which it shows one point is a dot, or nothing without
            ``dots``.
        dots: whether a stroke of one point is drawn. False is the rule of S0.
        ink, paper: 0..255, the values of pixels; they have no say where ``packed``.
        packed: bits in place of bytes, 1 = ink: (B, side, ceil(side / 64)) uint64 as in
            ``bitrows``.
        out, partial_out: what the result is written to; no memory in common.
        threads: 0 for OMP_NUM_THREADS, or the cores there are; the result is the same with any.

    Returns:
        (B, side, side) uint8, or (B, side, words) uint64 where ``packed``; two with ``cut``.

    Raises:
        ValueError: an argument out of its range, or offsets of a drawing that do not ascend.
    """
    _check_integer("side", side, 1, MAX_SIDE)
    _check_integer("pad", pad, 0, side)
    _check_integer("widen", widen, 0, None)
    _check_integer("threads", threads, 0, None)
    check_byte("ink", ink)
    check_byte("paper", paper)
    check_index(index, strokes.drawings)
    arrays, index = strokes.arrays(), read_only(np.ascontiguousarray(index))
    raise_bad(int(first_bad(*arrays, index)), index)
    count, across = len(index), words_per_row(side)
    shape, dtype = ((side, across), np.uint64) if packed else ((side, side), np.uint8)
    full = _target("out", out, (count, *shape), dtype)
    if cut is None:
        if partial_out is not None:
            raise ValueError("partial_out needs cut")
        shown = partial = None
    else:
        if cut.shape != (count,) or cut.dtype != np.int64:
            raise ValueError(f"cut must be ({count},) int64, got {cut.shape} {cut.dtype}")
        shown = read_only(np.ascontiguousarray(cut))
        partial = _target("partial_out", partial_out, (count, *shape), dtype)
        if np.may_share_memory(full, partial):
            raise ValueError("out and partial_out must not share memory")
    place = (np.arange(256) * ((side - pad) / 256)).astype(np.int64) + pad // 2
    nothing = np.empty(0, dtype=dtype)
    targets = full.reshape(-1), nothing if partial is None else partial.reshape(-1)
    edges, rows = edges_of_words(side, side)

    def run(lo: int, hi: int) -> None:
        _rasterize(
            lo, hi, *arrays, index, index[:0] if shown is None else shown, place, side,
            min(widen, side), dots, edges, rows, *targets, np.uint8(ink), np.uint8(paper),
        )  # fmt: skip

    in_threads(run, count, 1 if threads == 0 and count < _LITTLE else threads)
    return full if partial is None else (full, partial)


def _check_integer(name: str, value: int, least: int, most: int | None) -> None:
    good = isinstance(value, int | np.integer) and value >= least
    if not good or (most is not None and value > most):
        span = f">= {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name} must be an integer {span}, got {value!r}")


def _target(
    name: str, array: NDArray[Any] | None, shape: tuple[int, ...], dtype: type
) -> NDArray[Any]:
    if array is None:
        return np.empty(shape, dtype=dtype)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{name} must be {shape} {np.dtype(dtype)}, got {array.shape} {array.dtype}"
        )
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise ValueError(f"{name} must be writable and in C order")
    return array


@njit(cache=True, nogil=True)
def _rasterize(
    lo: int,
    hi: int,
    points: Points,
    stroke_offset: Offsets,
    drawing_offset: Offsets,
    index: Offsets,
    cut: Offsets,
    place: Offsets,
    side: int,
    widen: int,
    dots: bool,
    edges: Words,
    rows: int,
    full: NDArray[Any],
    partial: NDArray[Any],
    ink: np.uint8,
    paper: np.uint8,
) -> None:
    """Drawings lo..hi-1 of ``index``; those of ``partial`` too unless that is empty."""
    across = (side + 63) >> 6
    size, slack = side * across, lanes(edges)
    canvas, seen = np.zeros(size + slack, np.uint64), np.zeros(size + slack, np.uint64)
    work = np.zeros(2 * (size + slack), np.uint64)
    half = np.zeros(rows * across + 3 * slack, np.uint64)
    for b in range(lo, hi):
        first, last = drawing_offset[index[b]], drawing_offset[index[b] + 1]
        begin = stroke_offset[first]
        stop = begin + min(max(cut[b], 0), stroke_offset[last] - begin) if len(cut) else -1
        canvas[:] = np.uint64(0)
        if stop == begin:
            seen[:] = canvas
        for s in range(first, last):
            x, y = 0, 0
            for p in range(stroke_offset[s], stroke_offset[s + 1]):
                to_x, to_y = place[points[p, 0]], place[points[p, 1]]
                if p > stroke_offset[s]:
                    _line(canvas, across, x, y, to_x, to_y)
                elif dots:
                    canvas[to_y * across + (to_x >> 6)] |= _ONE << np.uint64(to_x & 63)
                x, y = to_x, to_y
                if p + 1 == stop:
                    seen[:] = canvas
        if len(cut):
            _write(seen, side, widen, work, edges, rows, half, partial, b, hi, ink, paper)
        _write(canvas, side, widen, work, edges, rows, half, full, b, hi, ink, paper)


@njit(cache=True, nogil=True)
def _line(canvas: Words, across: int, x: int, y: int, to_x: int, to_y: int) -> None:
    """The pixels of one line, both ends included: one row after the other."""
    right, down = (1 if to_x > x else -1), (1 if to_y > y else -1)
    dx, dy = abs(to_x - x), abs(to_y - y)
    if dy >= dx:  # a pixel in each row
        inverse = (1 << _SHIFT) // max(dy, 1) + 1
        shift, pace = (max(dy - 1, 0) >> 1) * inverse, dx * inverse
        for _ in range(dy + 1):
            column = x + right * (shift >> _SHIFT)
            canvas[np.uint64(y * across + (column >> 6))] |= _ONE << np.uint64(column & 63)
            y += down
            shift += pace
        return
    inverse = (1 << _SHIFT) // max(dy, 1) + 1
    begin, left = 0, dx - ((dx - 1) >> 1) - 1
    for m in range(dy + 1):
        end = dx if m == dy else (left * inverse) >> _SHIFT
        one, other = x + right * begin, x + right * end
        _run(canvas, y * across, min(one, other), max(one, other))
        begin = end + 1
        left += dx
        y += down


@njit(cache=True, nogil=True)
def _run(canvas: Words, row: int, low: int, high: int) -> None:
    """Columns low..high of the row that begins at word ``row``."""
    first, last = row + (low >> 6), row + (high >> 6)
    from_low, to_high = _ALL << np.uint64(low & 63), _ALL >> np.uint64(63 - (high & 63))
    if first == last:
        canvas[np.uint64(first)] |= from_low & to_high
        return
    canvas[np.uint64(first)] |= from_low
    for word in range(first + 1, last):
        canvas[np.uint64(word)] = _ALL
    canvas[np.uint64(last)] |= to_high


@njit(cache=True, nogil=True)
def _write(
    canvas: Words,
    side: int,
    widen: int,
    work: Words,
    edges: Words,
    rows: int,
    half: Words,
    out: NDArray[Any],
    b: int,
    end: int,
    ink: np.uint8,
    paper: np.uint8,
) -> None:
    """Widen what is on the canvas and write it to image ``b`` of ``out``, below image ``end``."""
    across, every = (side + 63) >> 6, _ALL
    if widen == 0:
        _emit(canvas, 0, side, out, b, end, ink, paper)
        return
    step(canvas, 0, work, 0, 1, side, across, False, edges, rows, half, every)
    here, area = 0, len(work) >> 1
    for _ in range(widen - 1):
        there = area - here
        step(work, here, work, there, 1, side, across, False, edges, rows, half, every)
        here = there
    _emit(work, here, side, out, b, end, ink, paper)


@njit(cache=True, nogil=True)
def _emit(
    words: Words,
    start: int,
    side: int,
    out: NDArray[Any],
    b: int,
    end: int,
    ink: np.uint8,
    paper: np.uint8,
) -> None:
    if out.itemsize == 8:  # packed
        size = side * ((side + 63) >> 6)
        out[b * size : (b + 1) * size] = words[start : start + size]
    else:
        size = side * side
        unpack_rows(words, start, side, side, out, b * size, end * size, ink, paper)
