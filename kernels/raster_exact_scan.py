"""From the outline of a stroke to its coverage and into the image, as cairo 1.16 does it; the
definitions are in ``raster_exact.py``.

**Samples.** A row of pixels has 15 lines of samples; an edge crosses sample line y (counted from
the top of the image, 15 a row) at x = floor(a + b y), 256 to a px. a contains what makes rounding
right: 1/2, and half the least distance that an inexact result keeps from an integer.

**Chains** are runs of edges in one vertical direction. ``Scratch.key`` holds 2 x + (1 if the chain
goes up) for their samples in turn, between 16 times the sentinel ``far``, so that a row of a chain
is one load of 16 lanes, of which the last counts for nothing.

**Rows.** Keys of all chains in a row are sorted lane by lane; where the winding number leaves 0 a
span starts, where it comes back one ends. The pixel with columns c..c+1 is covered by
min(max(256 (c + 1) - start, 0), 256) - the same with end, summed over spans and lanes.

Rows that each chain crosses in a single edge, none of which changes places with another, cairo
computes from the areas of trapezoids (``_trapezoids``). It rounds differently: so must we.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastvae.kernels import raster_exact_lanes as v
from fastvae.kernels.raster_exact_lanes import load, peek, poke, splat, store
from fastvae.kernels.raster_exact_outline import OPTIONS, Ints, Longs, inlined

Floats = NDArray[np.float64]
Keys = NDArray[Any]
Images = NDArray[np.uint8]

i4, i8, f8 = np.int32, np.int64, np.float64

LINES = 15
"""Lines of samples in a row of pixels."""
FULL = 512 * LINES
"""Area of a pixel."""
EDGE, CHAIN = 3, 6
"""Numbers in an entry of ``Scratch.whole`` and ``Scratch.chain``."""
CROWD = 64
"""Rows with more edges are sampled: they are not worth sorting for cairo's last bit."""
MEMORY = 1024
"""How many lines up the order of edges at one place is looked for."""


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
def put_edge(edges: Edges, n: Any, x: Any, y: Any, dx: Any, dy: Any, begin: Any, end: Any) -> None:
    """Edge n: the line through (x, y) along (dx, dy), from y = begin to y = end."""
    part = 1.0 / (LINES * f8(dy))
    slope = f8(dx) * part
    edges.extra[n] = abs(0.25 * part)
    edges.b[n] = 256.0 * slope
    edges.a[n] = f8(x) + 0.5 + abs(0.25 * part) + (128.0 - LINES * f8(y)) * slope
    edges.y0[n], edges.y1[n] = i4(line_of(begin)), i4(line_of(end))


@njit(**OPTIONS, fastmath={"nnan", "ninf", "nsz", "reassoc", "contract"})
def edges_of(vx: Ints, vy: Ints, lo: Any, hi: Any, edges: Edges, n: Any) -> Any:
    """Edges n.. of the closed outline vx[lo:hi], vy[lo:hi]; returns the new n."""
    for i in range(hi - lo - 1):
        x, y, to = vx[lo + i], vy[lo + i], vy[lo + i + 1]
        put_edge(edges, n + i, x, y, vx[lo + i + 1] - x, to - y, y, to)
    return n + hi - lo - 1


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
            if down:
                put_edge(edges, n, x, y, dx, dy, begin, end)
            else:
                put_edge(edges, n, x, y, dx, dy, end, begin)
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
def chains(edges: Edges, n: Any, top: Any, bottom: Any, scratch: Scratch, far: Any) -> None:
    """Chains 1.. of edges 0..n-1 in rows top..bottom-1."""
    key, chain = scratch.key, scratch.chain
    one = splat(key, 1)
    store(key, 0, splat(key, far))
    at, count, whole = i8(16), i8(0), i8(0)
    for r in range(top, bottom):
        scratch.head[r] = scratch.whole_head[r] = -1
        scratch.whole_count[r] = 0
    heading, stop = i8(0), i8(-1)
    above, below = i8(LINES * top), i8(LINES * bottom)
    begin = i8(0)
    for i in range(n):
        y0, y1 = i8(peek(edges.y0, i)), i8(peek(edges.y1, i))
        y0, y1 = min(max(y0, above), below), min(max(y1, above), below)
        height = y1 - y0
        way = i8(height > 0) - i8(height < 0)
        new = i8((way != heading) | (y0 != stop)) if height != 0 else i8(0)
        heading = way if height != 0 else heading
        stop = y1 if height != 0 else stop
        begin = y0 if new else begin
        store(key, at, splat(key, far))  # overwritten unless a chain ends here
        at += 16 * new
        count += new
        step = peek(edges.b, i) * f8(heading)
        x = peek(edges.a, i) + step * f8(y0 if heading > 0 else 1 - y0)
        up = splat(key, heading < 0)
        store(key, at, v.either(v.left(v.ramp(key, x, step), one), up))
        height = abs(height)
        if height >= LINES:
            for k in range(16, height, 16):
                store(key, at + k, v.either(v.left(v.ramp(key, x + step * k, step), one), up))
            for r in range((min(y0, y1) + LINES - 1) // LINES, max(y0, y1) // LINES):
                poke(scratch.whole, EDGE * whole, i8(i))
                poke(scratch.whole, EDGE * whole + 1, heading)
                poke(scratch.whole, EDGE * whole + 2, peek(scratch.whole_head, r))
                poke(scratch.whole_head, r, i8(whole))
                poke(scratch.whole_count, r, peek(scratch.whole_count, r) + 1)
                whole += 1
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
        poke(chain, c + 4, peek(scratch.head, r))
        poke(chain, c + 5, (max(y0, y1) - 1) // LINES)
        poke(scratch.head, r, i8(i))


@inlined
def _add(delta: Ints, c: Any, area: Any, cover: Any, lo: Any, hi: Any) -> None:
    """In column c an edge leaves ``area`` on its left uncovered, and covers ``cover`` lines of all
    columns that follow; columns lo..hi-1 are there."""
    if c < lo:
        delta[lo] += i4(512 * cover)
    elif c < hi:
        delta[c] += i4(512 * cover - area)
        delta[c + 1] += i4(area)


@inlined
def _trapezoid(delta: Ints, a: Any, b: Any, extra: Any, sign: Any, lo: Any, hi: Any) -> None:
    """The area right of an edge, in a row at whose first line it is at a (not rounded)."""
    # cairo goes back half a line with an integer division of the whole part of b.
    half = 0.5 * b
    if i8(b) & 1:
        half -= math.copysign(0.5, b)
    x0 = a - half
    x1 = x0 + LINES * b
    if x1 < x0:
        x0, x1 = x1, x0
    whole0, whole1 = i8(math.floor(x0)), i8(math.floor(x1))
    c, last, f0, f1 = whole0 >> 8, whole1 >> 8, whole0 & 255, whole1 & 255
    if c == last:
        _add(delta, c, sign * (f0 + f1) * LINES, sign * LINES, lo, hi)
        return
    per_unit = 1.0 / abs(b)
    lines = ((c + 1) * 256 - x0 + 2 * extra) * per_unit
    done = i8(lines)
    _add(delta, c, sign * done * (256 + f0), sign * done, lo, hi)
    c += 1
    while c < last:
        lines += 256 * per_unit
        more = i8(lines) - done
        done += more
        _add(delta, c, sign * more * 256, sign * more, lo, hi)
        c += 1
    _add(delta, c, sign * (LINES - done) * f1, sign * (LINES - done), lo, hi)


@inlined
def _place(edges: Edges, e: Any, line: Any) -> Any:
    return math.floor(peek(edges.a, e) + peek(edges.b, e) * line)


@inlined
def _goes_first(edges: Edges, e: Any, o: Any, line: Any) -> Any:
    """Whether edge e comes before edge o, at the same place in this line: as further up."""
    top = max(min(edges.y0[e], edges.y1[e]), min(edges.y0[o], edges.y1[o]))
    if edges.a[e] != edges.a[o] or edges.b[e] != edges.b[o]:
        for y in range(line - 1, max(i8(top), line - MEMORY) - 1, -1):
            at_e, at_o = _place(edges, e, y), _place(edges, o, y)
            if at_e != at_o:
                return at_e < at_o
    return e < o


@njit(**OPTIONS)
def _trapezoids(edges: Edges, scratch: Scratch, r: Any, lo: Any, hi: Any) -> Any:
    """Row r to ``delta``, if its edges keep their order; returns whether they do."""
    edge, sign, at, whole = scratch.edge, scratch.sign, scratch.at, scratch.whole
    line = i8(LINES * r)
    n, f = 0, scratch.whole_head[r]
    while f >= 0:
        e = peek(whole, EDGE * f)
        x = _place(edges, e, line)
        j = n
        while j > 0:
            if at[j - 1] < x or (at[j - 1] == x and not _goes_first(edges, e, edge[j - 1], line)):
                break
            at[j], edge[j], sign[j] = at[j - 1], edge[j - 1], sign[j - 1]
            j -= 1
        at[j], edge[j], sign[j] = x, e, peek(whole, EDGE * f + 1)
        n += 1
        f = peek(whole, EDGE * f + 2)
    x = -math.inf
    for i in range(n):
        after = _place(edges, edge[i], line + LINES)
        if after < x:
            return False
        x = after
    i = 0
    while i < n:
        begin, winding = edge[i], sign[i]
        i += 1
        while i < n - 1:
            winding += sign[i]
            if winding == 0 and at[i + 1] != at[i]:
                break
            i += 1
        for k in range(2):
            e = edge[min(i, n - 1)] if k == 1 else begin
            a = edges.a[e] - 0.5 + edges.b[e] * line
            _trapezoid(scratch.delta, a, edges.b[e], edges.extra[e], 1 - 2 * k, lo, hi)
        i += 1
    return True


@inlined
def _sort(scratch: Scratch, n: Any, r: Any) -> None:
    """Keys of the n active chains in row r, lane by lane, to ``sorted``."""
    key, chain, out = scratch.key, scratch.chain, scratch.sorted
    few = min(n, 12)
    for i in range(n):
        c = CHAIN * peek(scratch.active, i)
        step = peek(chain, c + 1)
        value = load(key, peek(chain, c) + step * r)
        value = v.where(splat(key, step >> 63), v.reverse(value), value)
        if i < few:
            for j in range(i):
                other = load(out, 16 * j)
                store(out, 16 * j, v.low(other, value))
                value = v.high(other, value)
        store(out, 16 * i, value)
    if n > few:
        _merge_sort(out, n)


@njit(**OPTIONS)
def _merge_sort(out: Keys, n: Any) -> None:
    """Batcher's odd-even merge sort (1968): the comparisons do not depend on the keys."""
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(j, min(j + k, n - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        a, b = load(out, 16 * i), load(out, 16 * (i + k))
                        store(out, 16 * i, v.low(a, b))
                        store(out, 16 * (i + k), v.high(a, b))
            k //= 2
        p *= 2


@inlined
def _spans(scratch: Scratch, n: Any, far: Any) -> Any:
    """Starts and ends of spans from n sorted chains, to ``spans``; returns how many pairs.

    A lane's starts and ends need not be in the same pair; where there is none stands ``far`` / 2.
    """
    keys, out = scratch.sorted, scratch.spans
    one, none, most = splat(keys, 1), splat(keys, far >> 1), splat(keys, far)
    winding, starts, ends = splat(keys, 0), none, none
    pairs = 0
    for i in range(n):
        key = load(keys, 16 * i)
        x, up = v.low(v.right(key, one), none), v.both(key, one)
        changed = v.add(winding, v.sub(v.add(up, up), one))
        inside, still = v.is_set(winding), v.is_set(changed)
        start, end = v.both(v.without(still, inside), v.below(key, most)), v.without(inside, still)
        taken = v.either(v.both(start, v.below(starts, none)), v.both(end, v.below(ends, none)))
        if v.any_set(taken):
            store(out, 32 * pairs, starts)
            store(out, 32 * pairs + 16, ends)
            pairs += 1
            starts, ends = none, none
        starts, ends = v.where(start, x, starts), v.where(end, x, ends)
        winding = changed
    store(out, 32 * pairs, starts)
    store(out, 32 * pairs + 16, ends)
    return pairs + 1


@inlined
def _columns(spans: Keys, pairs: Any, far: Any) -> Any:
    """The first column with a start, and the last with an end."""
    none = splat(spans, far >> 1)
    first, final = none, splat(spans, 0)
    for i in range(pairs):
        first = v.low(first, load(spans, 32 * i))
        end = load(spans, 32 * i + 16)
        final = v.high(final, v.both(end, v.below(end, none)))
    return v.least(first) >> 8, v.greatest(final) >> 8


@inlined
def _window(spans: Keys, pairs: Any, column: Any) -> Any:
    """Area of 16 columns, lines times 256."""
    right, width = v.add(splat(spans, 256 * column + 256), v.steps(spans, 256)), splat(spans, 256)
    area = splat(spans, 0)
    for i in range(pairs):
        for k in range(LINES):
            start = splat(spans, i8(peek(spans, 32 * i + k)))
            end = splat(spans, i8(peek(spans, 32 * i + 16 + k)))
            area = v.add(area, v.low(v.less_by(right, start), width))
            area = v.sub(area, v.low(v.less_by(right, end), width))
    return v.widened(area)


@inlined
def _scatter(delta: Ints, spans: Keys, pairs: Any) -> None:
    """Area of all columns as changes from one to the next; delta is there for ``far`` / 2 too."""
    for i in range(pairs):
        for k in range(2 * LINES):
            down = k >= LINES
            x = i8(peek(spans, 32 * i + (k + 1 if down else k)))
            c, past = x >> 8, 2 * (x & 255)
            rest = 512 - past
            past, rest = (-past, -rest) if down else (past, rest)
            poke(delta, c, i4(peek(delta, c) + rest))
            poke(delta, c + 1, i4(peek(delta, c + 1) + past))


@inlined
def _blend(canvas: Images, at: Any, area: Any, highest: Any) -> None:
    """16 pixels. area: in FULL-ths of the pixel."""
    eight, white = splat(area, 8), splat(area, 255)
    cover = v.add(v.mul(area, splat(area, 17)), splat(area, 256))
    ink = v.both(v.right(cover, splat(area, 9)), white)
    under = v.load_bytes(canvas, at)
    if highest:
        v.store_bytes(canvas, at, v.high(ink, under))
    else:
        rest = v.add(v.mul(under, v.sub(white, ink)), splat(area, 127))
        rest = v.right(v.add(rest, v.right(rest, eight)), eight)
        v.store_bytes(canvas, at, v.add(ink, rest))


@inlined
def _flush(delta: Ints, canvas: Images, at: Any, lo: Any, hi: Any, highest: Any) -> None:
    """``delta`` of columns lo..hi-1 to the row of pixels that begins at ``at``; it becomes 0."""
    area = i8(0)
    for c in range(lo, hi, 16):
        total = v.add(v.sums(load(delta, c)), splat(delta, area))
        store(delta, c, splat(delta, 0))
        area = v.last(total)
        _blend(canvas, at + c, total, highest)
    store(delta, hi, splat(delta, 0))


@inlined
def rows(
    edges: Edges,
    scratch: Scratch,
    box: Any,
    canvas: Images,
    start: Any,
    pitch: Any,
    far: Any,
    highest: Any,
) -> None:
    """Ink of the chains to the rows and columns of ``box`` (left, top, right, bottom)."""
    left, top, right, bottom = box
    active, spans, delta = scratch.active, scratch.spans, scratch.delta
    n = 0
    for r in range(top, bottom):
        s = peek(scratch.head, r)
        while s >= 0:
            poke(active, n, s)
            n += 1
            s = peek(scratch.chain, CHAIN * s + 4)
        if n == 0:
            continue
        at = start + pitch * r
        plain = n == peek(scratch.whole_count, r) and n <= CROWD
        if plain and _trapezoids(edges, scratch, r, left, right):
            _flush(delta, canvas, at, left, right, highest)
        else:
            _sort(scratch, n, r)
            pairs = _spans(scratch, n, far)
            lo, hi = left, right - 1
            if hi - lo >= 16:
                lo, hi = _columns(spans, pairs, far)
                hi = min(hi, right - 1)
            if hi - lo >= 32:
                _scatter(delta, spans, pairs)
                _flush(delta, canvas, at, lo, right, highest)
            else:
                for c in range(lo, hi + 1, 16):
                    area = _window(spans, pairs, c)
                    _blend(canvas, at + c, v.add(area, area), highest)
        kept = 0
        for i in range(n):
            s = peek(active, i)
            poke(active, kept, s)
            kept += peek(scratch.chain, CHAIN * s + 5) > r
        n = kept
