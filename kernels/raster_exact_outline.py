"""The outline of a stroke as cairo 1.16 makes it; the definitions are in ``raster_exact.py``.

All coordinates are integers, 256 to a px. Directions are compared exactly, by the cross product.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.jit import njit
from fastvae.kernels.raster_exact_lanes import peek, poke
from fastvae.kernels.raster_frame import FAR, Frame

Images = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]

# Without Numba's run time: what is called in the loops makes no arrays, and counting references to
# those it is given would take a fifth of the time.
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
inlined: Any = njit(**OPTIONS, forceinline=True)

TOLERANCE = 0.1
"""px between the pen and its circle."""
UNIT = 256.0
i4: Any = np.int32
i8: Any = np.int64
f8: Any = np.float64


class Pen(NamedTuple):
    """A polygon of N vertices in place of a disc, counted by angle.

    Attributes:
        slopes: (4 N,) x, y of the side that ends in the vertex, and of the one that begins there.
        down_x, down_y, up_x, up_y: (2 N + 4,) the vertices twice around, backwards and forwards.
        left, right: by direction (``_bucket``), the vertex from which to look for the tangent's.
        size: N, 1 where the pen is too small to draw.
        reach: how far ink goes from a path in x and y.
    """

    slopes: Longs
    down_x: Ints
    down_y: Ints
    up_x: Ints
    up_y: Ints
    left: Ints
    right: Ints
    size: int
    reach: int


class Path(NamedTuple):
    """Scratch for the points of a stroke: x, y; the offset to its left of each segment; ends of
    the sub-paths."""

    x: Ints
    y: Ints
    off_x: Ints
    off_y: Ints
    end: Ints


@lru_cache(maxsize=64)
def pen_of(frame: Frame) -> Pen:
    """The pen for lines of a frame."""
    scale, half = float(frame.scale), float(frame.line_width) / 2
    same = abs(scale**4 - 1.0) < 1 / 256  # cairo takes such a scale for 1 here
    major = half if same else half * scale
    if major <= TOLERANCE / 4:
        size = 1
    elif major <= TOLERANCE:
        size = 4
    else:
        size = math.ceil(2 * math.pi / math.acos(1 - TOLERANCE / major))
        size = max(4, size + size % 2)
    turns = [2 * math.pi * i / size for i in range(size)]
    x = np.rint([half * math.cos(turn) * scale * UNIT for turn in turns]).astype(i8)
    y = np.rint([half * math.sin(turn) * scale * UNIT for turn in turns]).astype(i8)
    into = (x - np.roll(x, 1), y - np.roll(y, 1))
    out = (np.roll(x, -1) - x, np.roll(y, -1) - y)
    slopes = np.stack([*into, *out], axis=1).reshape(-1)
    around = np.arange(2 * size + 4) % size
    up_x, up_y = x[around].astype(i4), y[around].astype(i4)
    down_x, down_y = x[::-1][around].astype(i4), y[::-1][around].astype(i4)
    left, right = _tangents(slopes, size, 1 << max(6, (4 * size - 1).bit_length()))
    reach = max(round(major * UNIT), int(x.max()), int(y.max()))
    return Pen(slopes, down_x, down_y, up_x, up_y, left, right, size, reach)


def _tangents(slopes: Longs, size: int, buckets: int) -> tuple[Ints, Ints]:
    """Where to begin the search for the tangent vertices of the directions in each bucket."""
    angle = np.arctan2(slopes[3::4], slopes[2::4])  # of the side that begins in a vertex
    turn = np.arange(buckets) * 4 / buckets - 1  # as in ``_bucket``, at the bucket's begin
    x, y = np.where(turn <= 1, 1 - np.abs(turn), np.abs(turn - 2) - 1), np.minimum(turn, 2 - turn)
    begin = np.arctan2(y, x) - 1e-6  # a little early: the search goes on from there
    past = (angle[None, :] - begin[:, None]) % (2 * math.pi)
    first = past.argmin(axis=1)  # the first side from there on; the vertex in which it ends:
    past = (angle[None, :] - begin[:, None] - math.pi) % (2 * math.pi)
    return past.argmin(axis=1).astype(i4), ((first + 1) % size).astype(i4)


@njit(**OPTIONS)
def order(ax: Any, ay: Any, bx: Any, by: Any) -> Any:
    """-1, 0, 1: b is counterclockwise (in x right, y up) of a, the same direction, clockwise.

    Of opposite directions the one with positive x (y, if x is 0) comes first.
    """
    turn = ay * bx - by * ax
    if turn != 0:
        return 1 if turn > 0 else -1
    if (ax ^ bx) < 0 or (ay ^ by) < 0:
        return -1 if ax > 0 or (ax == 0 and ay > 0) else 1
    return 0


@inlined
def _before(ax: Any, ay: Any, bx: Any, by: Any) -> Any:
    turn = ay * bx - by * ax
    return turn < 0 if turn != 0 else order(ax, ay, bx, by) < 0


@inlined
def _bucket(x: Any, y: Any, buckets: Any) -> Any:
    """A number that grows with the angle, from -90 degrees on; it needs no trigonometry."""
    turn = np.float64(y) / np.float64(abs(x) + abs(y))
    turn = turn if x >= 0 else 2.0 - turn
    return i8((turn + 1.0) * (0.25 * buckets)) & (buckets - 1)


@inlined
def _left(slopes: Longs, table: Ints, size: Any, x: Any, y: Any) -> Any:
    """The vertex where the left tangent of direction (x, y) touches the pen."""
    i = i8(peek(table, _bucket(x, y, len(table))))
    for _ in range(size):
        if not _before(x, y, peek(slopes, 4 * i + 2), peek(slopes, 4 * i + 3)):
            break
        i = i + 1 if i + 1 < size else 0
    return i


@inlined
def _right(slopes: Longs, table: Ints, size: Any, x: Any, y: Any) -> Any:
    """The first vertex with a side, the one that ends there, not before direction (x, y)."""
    i = i8(peek(table, _bucket(x, y, len(table))))
    for _ in range(size):
        if not _before(peek(slopes, 4 * i), peek(slopes, 4 * i + 1), x, y):
            break
        i = i + 1 if i + 1 < size else 0
    return i


@inlined
def _put(vx: Ints, vy: Ints, n: Any, x: Any, y: Any) -> None:
    poke(vx, n, i4(x))
    poke(vy, n, i4(y))


@inlined
def _fan(
    vx: Ints, vy: Ints, n: Any, step: Any, pen_x: Ints, pen_y: Ints, i: Any, count: Any, x: Any,
    y: Any,
) -> Any:  # fmt: skip
    """The pen's vertices i..i+count-1 around (x, y) to n, n + step ..; returns the new n."""
    for done in range(0, count, 4):
        for k in range(done, done + 4):  # too many do no harm: they are overwritten
            _put(vx, vy, n + step * k, x + peek(pen_x, i + k), y + peek(pen_y, i + k))
    return n + step * count


@inlined
def _around(difference: Any, size: Any) -> Any:
    return difference if difference >= 0 else difference + size


@inlined
def _both_and_between(i: Any, j: Any, size: Any) -> Any:
    """How many vertices i, i - 1 .. j are; 0 rather than all of them, as cairo has it."""
    count = _around(i - j, size) + 1
    return count if count < size else 0


@inlined
def _inside(box: Any, x: Any, y: Any) -> Any:
    return (box[0] <= x) & (x <= box[2]) & (box[1] <= y) & (y <= box[3])


@inlined
def outline(
    vx: Ints, vy: Ints, path: Path, begin: Any, end: Any, radius: Any, pen: Pen, near: Any
) -> Any:
    """The closed outline of points begin..end-1 (no two running equal) into vx[lo:hi], vy[lo:hi].

    It has the stroke on its right, with y down. near: the box (x0, y0, x1, y1) of points whose
    round joins and caps are drawn. Returns (lo, hi).
    """
    size, slopes, table, other = pen.size, pen.slopes, pen.left, pen.right
    down_x, down_y, up_x, up_y = pen.down_x, pen.down_y, pen.up_x, pen.up_y
    xs, ys, off_x, off_y = path.x, path.y, path.off_x, path.off_y
    count = end - begin - 1
    for i in range(count):
        fx, fy = f8(xs[begin + i + 1] - xs[begin + i]), f8(ys[begin + i + 1] - ys[begin + i])
        part = radius / math.sqrt(fx * fx + fy * fy)
        off_x[i], off_y[i] = i4(np.rint(-fy * part)), i4(np.rint(fx * part))
    # The left side goes forwards from the middle, the right side backwards.
    n = len(vx) // 2
    w = n - 1
    x, y = i8(xs[begin]), i8(ys[begin])
    ex, ey, dx, dy, ox, oy = x, y, i8(256), i8(0), i8(0), i8(np.rint(radius))  # a dot
    if count > 0:
        ex, ey, ox, oy = i8(xs[begin + 1]), i8(ys[begin + 1]), i8(off_x[0]), i8(off_y[0])
        dx, dy = ex - x, ey - y
    if _inside(near, x, y):
        i0, i1 = _left(slopes, table, size, -dx, -dy), _left(slopes, table, size, dx, dy)
        n = _fan(vx, vy, n, 1, down_x, down_y, size - 1 - i0, _both_and_between(i0, i1, size), x, y)
    _put(vx, vy, n, x + ox, y + oy)
    _put(vx, vy, w, x - ox, y - oy)
    n += 1
    for i in range(1, count + 1):
        _put(vx, vy, n, ex + ox, ey + oy)
        _put(vx, vy, w - 1, ex - ox, ey - oy)
        n, w = n + 1, w - 1
        if i == count:
            break
        x, y = ex, ey
        ex, ey = i8(peek(xs, begin + i + 1)), i8(peek(ys, begin + i + 1))
        ux, uy = ex - x, ey - y
        px, py = i8(peek(off_x, i)), i8(peek(off_y, i))
        turn = dy * ux - uy * dx
        turn = turn if turn != 0 else order(dx, dy, ux, uy)
        bends = (px != ox) | (py != oy)
        fan = bends & _inside(near, x, y)
        if turn > 0:
            _put(vx, vy, w - 1, x, y)
            _put(vx, vy, w - 2, x - px, y - py)
            w -= 2
            if fan:
                i0, i1 = _left(slopes, table, size, dx, dy), _left(slopes, table, size, ux, uy)
                many = _both_and_between(i0, i1, size) if i0 != i1 else 0
                n = _fan(vx, vy, n, 1, down_x, down_y, size - 1 - i0, many, x, y)
            _put(vx, vy, n, x + px, y + py)
            n += bends
        else:
            _put(vx, vy, n, x, y)
            _put(vx, vy, n + 1, x + px, y + py)
            n += 2
            if fan:
                i0, i1 = _right(slopes, other, size, dx, dy), _right(slopes, other, size, ux, uy)
                past = _before(ux, uy, peek(slopes, 4 * i0 + 2), peek(slopes, 4 * i0 + 3))
                ax, ay = peek(slopes, 4 * i1), peek(slopes, 4 * i1 + 1)
                i1 -= (ay * ux != uy * ax) | (ax * ux + ay * uy < 0)
                many = 0 if past else _around(i1 - i0, size)
                w = _fan(vx, vy, w - 1, -1, up_x, up_y, i0, many, x, y) + 1
            _put(vx, vy, w - 1, x - px, y - py)
            w -= bends
        dx, dy, ox, oy = ux, uy, px, py
    if _inside(near, ex, ey):
        i0, i1 = _left(slopes, table, size, dx, dy), _left(slopes, table, size, -dx, -dy)
        n = _fan(
            vx, vy, n, 1, down_x, down_y, size - 1 - i0, _both_and_between(i0, i1, size), ex, ey
        )
    _put(vx, vy, n, peek(vx, w), peek(vy, w))
    return w, n + 1


@inlined
def place(flat: Images, first: Any, count: Any, to_px: Any, plain: Any, path: Path) -> Any:
    """Points first..first+count-1 of flat, (2 P,), as a path without those that change nothing.

    to_px: (xx, xy, x0, yx, yy, y0), column = xx x + xy y + x0. plain: these are (offset of x,
    scale, margin in px, offset of y) instead, to be rounded in the order of Google's recipe.

    Returns (sub-paths, x0, y0, x1, y1), the last four the box of all points; the ends of the
    sub-paths, none of which is empty, are in path.end. A new one begins after a point that is not
    finite or too far away.
    """
    xs, ys, ends = path.x, path.y, path.end
    n = start = subs = there = i8(0)
    x0 = y0 = i8(1) << 40
    x1 = y1 = -(i8(1) << 40)
    px, py, ax, ay = i8(0), i8(0), i8(0), i8(0)  # the last point, and the way to it
    for i in range(count):
        u, v = f8(peek(flat, 2 * (first + i))), f8(peek(flat, 2 * (first + i) + 1))
        if plain:
            fx = (u + to_px[0]) * to_px[1] + to_px[2]
            fy = (v + to_px[3]) * to_px[1] + to_px[2]
        else:
            fx = to_px[0] * u + to_px[1] * v + to_px[2]
            fy = to_px[3] * u + to_px[4] * v + to_px[5]
            if not (abs(fx) <= FAR and abs(fy) <= FAR):
                if there < 2:
                    n = start  # a point alone is nothing
                ends[subs] = i4(n)
                subs += n > start
                start, there = n, i8(0)
                continue
        x, y = i8(np.rint(fx * UNIT)), i8(np.rint(fy * UNIT))
        there += 1
        x0, x1, y0, y1 = min(x0, x), max(x1, x), min(y0, y), max(y1, y)
        bx, by = x - px, y - py
        if n > start:
            if (bx == 0) & (by == 0):
                continue
            # Straight on: the point before is not needed.
            n -= (n > start + 1) & (ay * bx == by * ax) & (ax * bx + ay * by >= 0)
        poke(xs, n, i4(x))
        poke(ys, n, i4(y))
        n += 1
        px, py = x, y
        last = n - 2 if n > 1 else 0
        ax, ay = x - peek(xs, last), y - peek(ys, last)
    if there < 2 and count > 1:
        n = start
    ends[subs] = i4(n)
    subs += n > start
    return subs, x0, y0, x1, y1
