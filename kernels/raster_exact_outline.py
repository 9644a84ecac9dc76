"""The outline of a stroke as cairo 1.16 makes it; the definitions are in ``raster_exact.py``.

All coordinates are integers, 256 to a px. Directions are compared exactly, by the cross product.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastvae.kernels.raster_exact_lanes import peek, poke
from fastvae.kernels.raster_frame import FAR, Frame
from fastvae.kernels.strokes import Points

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]

OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
inlined: Any = njit(**OPTIONS, forceinline=True)

TOLERANCE = 0.1
"""px between the pen and its circle."""
UNIT = 256.0
i4, i8 = np.int32, np.int64


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
    up = [np.ascontiguousarray(a[around], dtype=i4) for a in (x, y)]
    down = [np.ascontiguousarray(a[::-1][around], dtype=i4) for a in (x, y)]
    left, right = _tangents(slopes, size, 1 << max(6, (4 * size - 1).bit_length()))
    return Pen(slopes, *down, *up, left, right, size, round(major * UNIT))


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
def _left(pen: Pen, x: Any, y: Any) -> Any:
    """The vertex where the left tangent of direction (x, y) touches the pen."""
    i = i8(peek(pen.left, _bucket(x, y, len(pen.left))))
    for _ in range(pen.size):
        if not _before(x, y, peek(pen.slopes, 4 * i + 2), peek(pen.slopes, 4 * i + 3)):
            break
        i = i + 1 if i + 1 < pen.size else 0
    return i


@inlined
def _right(pen: Pen, x: Any, y: Any) -> Any:
    """The first vertex with a side, the one that ends there, not before direction (x, y)."""
    i = i8(peek(pen.right, _bucket(x, y, len(pen.right))))
    for _ in range(pen.size):
        if not _before(peek(pen.slopes, 4 * i), peek(pen.slopes, 4 * i + 1), x, y):
            break
        i = i + 1 if i + 1 < pen.size else 0
    return i


@inlined
def _put(vx: Ints, vy: Ints, n: Any, x: Any, y: Any) -> None:
    poke(vx, n, i4(x))
    poke(vy, n, i4(y))


@inlined
def _fan_left(vx: Ints, vy: Ints, n: Any, pen: Pen, i: Any, j: Any, x: Any, y: Any) -> Any:
    """The pen's vertices i, i - 1 .. j around (x, y); returns the new n."""
    count = i - j + 1
    count = count if count > 0 else count + pen.size
    at = pen.size - 1 - i
    for done in range(0, count, 4):
        for k in range(4):  # too many do no harm: they are overwritten
            to, of = n + done + k, at + done + k
            _put(vx, vy, to, x + peek(pen.down_x, of), y + peek(pen.down_y, of))
    return n + count


@inlined
def _fan_right(vx: Ints, vy: Ints, w: Any, pen: Pen, i: Any, j: Any, x: Any, y: Any) -> Any:
    """The pen's vertices i, i + 1 .. j - 1 around (x, y), written backwards; the new w."""
    count = j - i
    count = count if count >= 0 else count + pen.size
    for done in range(0, count, 4):
        for k in range(4):
            to, of = w - done - k, i + done + k
            _put(vx, vy, to, x + peek(pen.up_x, of), y + peek(pen.up_y, of))
    return w - count


@inlined
def _inside(box: Any, x: Any, y: Any) -> Any:
    return (box[0] <= x) & (x <= box[2]) & (box[1] <= y) & (y <= box[3])


@inlined
def outline(
    vx: Ints, vy: Ints, path: Path, begin: Any, end: Any, radius: Any, pen: Pen, near: Any
) -> Any:
    """The closed outline of points begin..end-1 (no two running equal) into vx[lo:hi], vy[lo:hi].

    Runs around with the stroke on its right, in y down. near: the box (x0, y0, x1, y1) of points
    whose round joins and caps are drawn. Returns (lo, hi).
    """
    middle = len(vx) // 2
    n, w, count = middle, middle - 1, end - begin - 1
    x, y = i8(path.x[begin]), i8(path.y[begin])
    if count == 0:
        if _inside(near, x, y):
            west, east, far = _left(pen, -256, 0), _left(pen, 256, 0), i8(np.rint(radius))
            n = _fan_left(vx, vy, n, pen, west, east, x, y)
            _put(vx, vy, n, x, y + far)
            n = _fan_left(vx, vy, n + 1, pen, east, west, x, y)
            _put(vx, vy, n, x, y - far)
            _put(vx, vy, n + 1, vx[middle], vy[middle])
            n += 2
        return middle, n
    for i in range(count):
        dx = np.float64(path.x[begin + i + 1] - path.x[begin + i])
        dy = np.float64(path.y[begin + i + 1] - path.y[begin + i])
        part = radius / math.sqrt(dx * dx + dy * dy)
        path.off_x[i], path.off_y[i] = i4(np.rint(-dy * part)), i4(np.rint(dx * part))
    # The left side goes forwards from the middle, the right side backwards.
    ex, ey = i8(path.x[begin + 1]), i8(path.y[begin + 1])
    dx, dy, ox, oy = ex - x, ey - y, i8(path.off_x[0]), i8(path.off_y[0])
    if _inside(near, x, y):
        n = _fan_left(vx, vy, n, pen, _left(pen, -dx, -dy), _left(pen, dx, dy), x, y)
    _put(vx, vy, n, x + ox, y + oy)
    _put(vx, vy, w, x - ox, y - oy)
    n, w = n + 1, w - 1
    for i in range(1, count):
        _put(vx, vy, n, ex + ox, ey + oy)
        _put(vx, vy, w, ex - ox, ey - oy)
        n, w = n + 1, w - 1
        x, y = ex, ey
        ex, ey = i8(peek(path.x, begin + i + 1)), i8(peek(path.y, begin + i + 1))
        ux, uy = ex - x, ey - y
        px, py = i8(peek(path.off_x, i)), i8(peek(path.off_y, i))
        turn = dy * ux - uy * dx
        turn = turn if turn != 0 else order(dx, dy, ux, uy)
        bends = (px != ox) | (py != oy)
        round_off = bends & _inside(near, x, y)
        if turn > 0:
            _put(vx, vy, w, x, y)
            _put(vx, vy, w - 1, x - px, y - py)
            w -= 2
            if round_off:
                i0, i1 = _left(pen, dx, dy), _left(pen, ux, uy)
                if i0 != i1:
                    n = _fan_left(vx, vy, n, pen, i0, i1, x, y)
            _put(vx, vy, n, x + px, y + py)
            n += bends
        else:
            _put(vx, vy, n, x, y)
            _put(vx, vy, n + 1, x + px, y + py)
            n += 2
            if round_off:
                i0, i1 = _right(pen, dx, dy), _right(pen, ux, uy)
                if not _before(ux, uy, peek(pen.slopes, 4 * i0 + 2), peek(pen.slopes, 4 * i0 + 3)):
                    ax, ay = peek(pen.slopes, 4 * i1), peek(pen.slopes, 4 * i1 + 1)
                    if order(ax, ay, ux, uy) != 0:
                        i1 = i1 - 1 if i1 > 0 else pen.size - 1
                    w = _fan_right(vx, vy, w, pen, i0, i1, x, y)
            _put(vx, vy, w, x - px, y - py)
            w -= bends
        dx, dy, ox, oy = ux, uy, px, py
    _put(vx, vy, n, ex + ox, ey + oy)
    _put(vx, vy, w, ex - ox, ey - oy)
    n += 1
    if _inside(near, ex, ey):
        n = _fan_left(vx, vy, n, pen, _left(pen, dx, dy), _left(pen, -dx, -dy), ex, ey)
    _put(vx, vy, n, vx[w], vy[w])
    return w, n + 1


@inlined
def place(points: Points, first: Any, count: Any, to_px: Any, plain: Any, path: Path) -> Any:
    """Points first..first+count-1 as a path without points that change nothing.

    to_px: (xx, xy, x0, yx, yy, y0), column = xx x + xy y + x0. plain: these are (offset of x,
    scale, margin in px, offset of y) instead, to be rounded in the order of Google's recipe.

    Returns (sub-paths, x0, y0, x1, y1), the last four the box of all points; the ends of the
    sub-paths, none of which is empty, are in path.end. A new one begins after a point that is not
    finite or too far away.
    """
    n = subs = start = there = 0
    x0 = y0 = i8(1) << 40
    x1 = y1 = -(i8(1) << 40)
    for i in range(count + 1):
        fx = fy = math.nan
        if i < count:
            u, v = np.float64(points[first + i, 0]), np.float64(points[first + i, 1])
            if plain:
                fx = (u + to_px[0]) * to_px[1] + to_px[2]
                fy = (v + to_px[3]) * to_px[1] + to_px[2]
            else:
                fx = to_px[0] * u + to_px[1] * v + to_px[2]
                fy = to_px[3] * u + to_px[4] * v + to_px[5]
        if not (abs(fx) <= FAR and abs(fy) <= FAR):
            if there >= 2 or there == count:
                path.end[subs] = n
                subs += n > start
            n = start = path.end[subs - 1] if subs > 0 else 0
            there = 0
            continue
        x, y = i8(np.rint(fx * UNIT)), i8(np.rint(fy * UNIT))
        there += 1
        x0, x1, y0, y1 = min(x0, x), max(x1, x), min(y0, y), max(y1, y)
        if n > start:
            px, py = i8(path.x[n - 1]), i8(path.y[n - 1])
            if px == x and py == y:
                continue
            if n > start + 1:  # straight on: the point before is not needed
                ax, ay = px - path.x[n - 2], py - path.y[n - 2]
                bx, by = x - px, y - py
                n -= (ay * bx == by * ax) & (ax * bx + ay * by >= 0)
        path.x[n], path.y[n] = i4(x), i4(y)
        n += 1
    return subs, x0, y0, x1, y1
