"""From the outline of a stroke to samples of it, as cairo 1.16 takes them; the definitions are in
``raster_exact.py``, what becomes of the samples is in ``raster_exact_rows.py``.

**Samples.** A row of pixels has 15 lines of samples; an edge crosses sample line y (counted from
the top of the image, 15 a row) at x = floor(a + b y), 256 to a px. a contains what makes rounding
right: 1/2, and half the least distance that an inexact result keeps from an integer.

**Chains** are runs of edges in one vertical direction. ``Scratch.key`` holds 2 x + (1 if the chain
goes up) for their samples in turn, between 16 times the sentinel ``far``, so that a row of a chain
is one load of 16 lanes, of which the last counts for nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels import raster_exact_lanes as v
from fastvae.kernels.jit import njit
from fastvae.kernels.raster_exact_lanes import load, peek, poke, splat, store
from fastvae.kernels.raster_exact_outline import OPTIONS, Ints, Longs, inlined

Floats = NDArray[np.float64]
Keys = NDArray[Any]

i4: Any = np.int32
i8: Any = np.int64
f8: Any = np.float64

LINES = 15
"""Lines of samples in a row of pixels."""
EDGE, CHAIN = 3, 6
"""Numbers in an entry of ``Scratch.whole`` and ``Scratch.chain``."""


class Edges(NamedTuple):
    """Scratch for edges in the order of the outline: from sample line y0 to y1 (up, if less),
    at floor(a + b y); the inexact part of a."""

    y0: Ints
    y1: Ints
    a: Floats
    b: Floats
    extra: Floats


class Scratch(NamedTuple):
    """What the scan needs; sizes in ``raster_exact.py``.

    Attributes:
        key: samples of all chains; like all Keys uint16 or uint32.
        chain: per chain, where row 0 would be in key; the step from row to row there; first and
            last line; the next chain that begins in the same row; the last row.
        head: per row, the first chain that begins there, or -1.
        whole: per edge and row that it crosses as a whole: the edge; 1 down, -1 up; the next.
        whole_head, whole_count: per row, the first of these, or -1; how many.
        active: chains of the row.
        sorted: keys of the row, 16 per chain.
        spans: starts and ends, 32 per pair.
        edge, sign, at: edges of a row from left to right.
        delta: per column, area less that of the column before.
    """

    key: Keys
    chain: Longs
    head: Longs
    whole: Longs
    whole_head: Longs
    whole_count: Longs
    active: Longs
    sorted: Keys
    spans: Keys
    edge: Longs
    sign: Longs
    at: Floats
    delta: Ints


@inlined
def line_of(y: Any) -> Any:
    """The first line of samples not above y (256 to a px)."""
    return (LINES * i8(y) + 128) >> 8


@inlined
def _line(x: Any, y: Any, dx: Any, dy: Any) -> Any:
    """(a, b, extra) of the line through (x, y) along (dx, dy)."""
    part = 1.0 / (LINES * f8(dy))
    slope, extra = f8(dx) * part, abs(0.25 * part)
    return f8(x) + 0.5 + extra + (128.0 - LINES * f8(y)) * slope, 256.0 * slope, extra


@inlined
def edges_of(vx: Ints, vy: Ints, lo: Any, hi: Any, edges: Edges, n: Any) -> Any:
    """Edges n.. of the closed outline vx[lo:hi], vy[lo:hi]; returns the new n. Writes up to 16 more
    places."""
    y0, y1, a, b, extra = edges.y0, edges.y1, edges.a, edges.b, edges.extra
    count = hi - lo - 1
    steps, half, eight = splat(vy, LINES), splat(vy, 128), splat(vy, 8)
    for i in range(0, count, 16):
        v.lines(vx, vy, lo + i, a, b, extra, n + i)
        for ys, at in ((y0, lo + i), (y1, lo + i + 1)):
            store(ys, n + i, v.shift(v.add(v.mul(load(vy, at), steps), half), eight))
    return n + count


@njit(**OPTIONS)
def clipped_edges(vx: Ints, vy: Ints, lo: Any, hi: Any, edges: Edges, n: Any, box: Any) -> Any:
    """The same with what is outside of ``box`` (x0, y0, x1, y1) moved to its left and right side,
    or left out above and below. At most three edges for one."""
    x0, y0, x1, y1 = box
    for i in range(lo, hi - 1):
        ax, ay, bx, by = i8(vx[i]), i8(vy[i]), i8(vx[i + 1]), i8(vy[i + 1])
        down = ay <= by
        if not down:
            ax, ay, bx, by = bx, by, ax, ay
        top, bottom = max(ay, y0), min(by, y1)
        if top >= bottom:
            continue
        # from ``enter`` to ``leave`` the edge is inside; left of the box is -1, right is 1
        enter, leave, before, after = top, bottom, 0, 0
        if max(ax, bx) <= x0:
            enter, before = bottom, -1
        elif min(ax, bx) >= x1:
            enter, before = bottom, 1
        else:
            if ax < x0 or ax > x1:
                before = -1 if ax < x0 else 1
                enter = min(max(_crossing(ax, ay, bx, by, x0 if ax < x0 else x1, 1), top), bottom)
            if bx < x0 or bx > x1:
                after = -1 if bx < x0 else 1
                leave = max(_crossing(ax, ay, bx, by, x0 if bx < x0 else x1, -1), enter)
                leave = min(leave, bottom)
        for part in range(3):
            p = part if down else 2 - part
            begin = top if p == 0 else (enter if p == 1 else leave)
            end = enter if p == 0 else (leave if p == 1 else bottom)
            if begin >= end or (p == 1 and enter == bottom):
                continue
            side = before if p == 0 else after
            x = ax if p == 1 else (x0 if side < 0 else x1)
            y = ay if p == 1 else y0
            dx, dy = (bx - ax, by - ay) if p == 1 else (i8(0), y1 - y0)
            if not down:
                begin, end = end, begin
            edges.y0[n], edges.y1[n] = i4(line_of(begin)), i4(line_of(end))
            edges.a[n], edges.b[n], edges.extra[n] = _line(x, y, dx, dy)
            n += 1
    return n


@njit(**OPTIONS)
def _crossing(ax: Any, ay: Any, bx: Any, by: Any, x: Any, step: Any) -> Any:
    """Where the edge from a down to b crosses a vertical line; moved by ``step`` if it would be
    outside there, as cairo's integer arithmetic has it."""
    y = ay + _quotient((x - ax) * (by - ay), bx - ax)
    at = ax + _quotient((y - ay) * (bx - ax), by - ay)
    outside = at < x if (ax < x) == (step > 0) else at > x
    return y + step if outside else y


@njit(**OPTIONS)
def _quotient(a: Any, b: Any) -> Any:
    """a / b without its fraction, as in C."""
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


@inlined
def chains(
    edges: Edges, n: Any, top: Any, bottom: Any, band: Any, scratch: Scratch, far: Any
) -> None:
    """Chains 1.. of edges 0..n-1 in rows top..bottom-1. band: edges go beyond these."""
    key, chain, head = scratch.key, scratch.chain, scratch.head
    whole, whole_head, whole_count = scratch.whole, scratch.whole_head, scratch.whole_count
    all_y0, all_y1, all_a, all_b = edges.y0, edges.y1, edges.a, edges.b
    one = splat(key, 1)
    store(key, 0, splat(key, far))
    at, count, wholes = i8(16), i8(0), i8(0)
    for r in range(top, bottom):
        poke(head, r, i8(-1))
        poke(whole_head, r, i8(-1))
        poke(whole_count, r, i8(0))
    heading, stop, begin = i8(0), i8(-1), i8(0)
    above, below = i8(LINES * top), i8(LINES * bottom)
    for i in range(n):
        y0, y1 = i8(peek(all_y0, i)), i8(peek(all_y1, i))
        if band:
            y0, y1 = min(max(y0, above), below), min(max(y1, above), below)
        height = y1 - y0
        way = i8(height > 0) - i8(height < 0)
        way = way if height != 0 else heading
        new = i8(((way != heading) | (y0 != stop)) & (height != 0))
        heading = way
        stop = y1 if height != 0 else stop
        begin = y0 if new else begin
        store(key, at, splat(key, far))  # overwritten unless a chain ends here
        at += 16 * new
        count += new
        step = peek(all_b, i) * f8(heading)
        x = peek(all_a, i) + step * f8(y0 if heading > 0 else 1 - y0)
        up = splat(key, heading < 0)
        store(key, at, v.either(v.left(v.ramp(key, x, step), one), up))
        height = abs(height)
        if height >= LINES:
            for k in range(16, height, 16):
                store(key, at + k, v.either(v.left(v.ramp(key, x + step * k, step), one), up))
            for r in range((min(y0, y1) + LINES - 1) // LINES, max(y0, y1) // LINES):
                poke(whole, EDGE * wholes, i8(i))
                poke(whole, EDGE * wholes + 1, heading)
                poke(whole, EDGE * wholes + 2, peek(whole_head, r))
                poke(whole_head, r, wholes)
                poke(whole_count, r, peek(whole_count, r) + 1)
                wholes += 1
        c = CHAIN * count
        poke(chain, c, at - y0 if heading > 0 else at + y0 - 16)
        poke(chain, c + 1, LINES * heading)
        poke(chain, c + 2, begin)
        poke(chain, c + 3, stop)
        at += height
    store(key, at, splat(key, far))
    for i in range(1, count + 1):
        c = CHAIN * i
        y0, y1 = peek(chain, c + 2), peek(chain, c + 3)
        r = min(y0, y1) // LINES
        poke(chain, c + 4, peek(head, r))
        poke(chain, c + 5, (max(y0, y1) - 1) // LINES)
        poke(head, r, i8(i))
