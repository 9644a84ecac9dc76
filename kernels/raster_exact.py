"""The anti-aliased rasterizer's exact mode: what cairo 1.16 draws with Google's recipe for the
bitmaps of Quick, Draw!, byte for byte (but see below). Frame and affine maps are defined in
``raster.py``.

This is cairo's arithmetic, in an order that suits vectors (antialias best, round caps and joins,
one stroke() per stroke):

- Coordinates are rounded to 1/256 px. A point equal to the one before, or one that lies straight
  on, is left out (``raster_exact_outline.py``).
- The pen is a polygon of N vertices that keeps within 0.1 px of its circle. A stroke's outline runs
  along the offsets of its segments, by the pen's vertices around the outside of a join and around
  the ends, by the point itself on the inside of a join.
- The outline is filled where its winding number is not 0: coverage within a stroke is a union. It
  is sampled on 15 lines per row of pixels, exact to 1/256 px along the line; a row without corners
  or crossings is computed from areas (``raster_exact_scan.py``, ``raster_exact_rows.py``).
- Coverage c becomes alpha = floor((17 c + 256) / 512), c in 7680ths. Strokes compose in 8 bits:
  alpha + t', t' = (t + floor(t / 256)) / 256 of t = 127 + below (255 - alpha); or by "max".

Tests compare with cairo's own output; none of cairo's code is used. Where two edges of a stroke
begin within 1/256 px of one another, cairo's rounding depends on the order in which it sorts them,
which is not followed: of 7,500 real drawings none differs from cairo at side 28 and 3 do at 64, by
up to 14 of 255 on 17 px in all; under random affine maps about one in ten, by up to 17.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.jit import njit
from fastvae.kernels.raster_exact_lanes import clear, copy
from fastvae.kernels.raster_exact_outline import (
    OPTIONS,
    Ints,
    Path,
    Pen,
    inlined,
    outline,
    pen_of,
    place,
)
from fastvae.kernels.raster_exact_rows import CROWD, rows
from fastvae.kernels.raster_exact_scan import (
    CHAIN,
    EDGE,
    LINES,
    Edges,
    Scratch,
    chains,
    clipped_edges,
    edges_of,
)
from fastvae.kernels.raster_frame import Frame, in_threads, largest
from fastvae.kernels.raster_frame import place as map_to_px
from fastvae.kernels.strokes import Offsets, Strokes, first_bad, read_only

Images = NDArray[np.uint8]
Affine = NDArray[np.float32]

MARGIN = 32
"""Columns beyond the right border that vectors write to, and delta's for what is nowhere."""
SMALL = 127 - MARGIN
"""Up to this side a key has 16 bits."""
ROOM = 1 << 16
"""Keys in scratch; more only for very many edges. More keys than there are take several bands of
rows."""
EVERYWHERE = 1 << 40

i8: Any = np.int64
f8: Any = np.float64


def render(
    strokes: Strokes,
    frame: Frame,
    index: Offsets,
    cut: Offsets | None,
    affine: Affine | None,
    composite: str,
    full: Images,
    partial: Images | None,
    threads: int,
) -> int:
    """See "Low-level calls" in ``raster.py``."""
    points, stroke_offset, drawing_offset = strokes.arrays()
    index = read_only(index)
    bad = int(first_bad(points, stroke_offset, drawing_offset, index))
    if bad >= 0 or len(index) == 0:
        return bad
    cuts = read_only(np.empty(0, np.int64) if cut is None else cut)
    maps = read_only(np.empty((0, 2, 3), np.float32) if affine is None else affine)
    full = full.reshape(-1)
    partial = np.empty(0, np.uint8) if partial is None else partial.reshape(-1)
    flat = points.reshape(-1)
    key = np.empty(1, np.uint16 if frame.side <= SMALL else np.uint32)
    units = (float(frame.scale), float(frame.margin), 256.0 * frame.radius)
    pen = pen_of(frame)

    def run(lo: int, hi: int) -> None:
        _render(
            flat, stroke_offset, drawing_offset, index, cuts, maps, int(frame.side), units, pen,
            composite == "max", key, full, partial, lo, hi,
        )  # fmt: skip

    in_threads(run, len(index), threads)
    return -1


@njit(cache=True, nogil=True)
def _render(
    flat: Images,
    stroke_offset: Offsets,
    drawing_offset: Offsets,
    index: Offsets,
    cut: Offsets,
    affine: Affine,
    side: Any,
    units: Any,
    pen: Pen,
    highest: Any,
    like: Any,
    full: Images,
    partial: Images,
    lo: Any,
    hi: Any,
) -> None:
    """Drawings index[lo:hi]. flat: points, (2 P,). units: scale, margin in points' units, radius in
    1/256 px. like: an array of the dtype of keys."""
    longest = i8(1)
    for b in range(lo, hi):
        for s in range(drawing_offset[index[b]], drawing_offset[index[b] + 1]):
            longest = max(longest, stroke_offset[s + 1] - stroke_offset[s])
    path, vx, vy, edges, scratch = _scratch(longest, pen.size, side, like)
    # the second canvas is for the last stroke of a partial image
    canvas = np.zeros(2 * (side + 1) * (side + MARGIN), np.uint8)
    _drawings(
        flat, stroke_offset, drawing_offset, index, cut, affine, side, units, pen, highest,
        path, vx, vy, edges, scratch, canvas, full, partial, lo, hi,
    )  # fmt: skip


@njit(**OPTIONS)
def _drawings(
    flat: Images,
    stroke_offset: Offsets,
    drawing_offset: Offsets,
    index: Offsets,
    cut: Offsets,
    affine: Affine,
    side: Any,
    units: Any,
    pen: Pen,
    highest: Any,
    path: Path,
    vx: Ints,
    vy: Ints,
    edges: Edges,
    scratch: Scratch,
    canvas: Images,
    full: Images,
    partial: Images,
    lo: Any,
    hi: Any,
) -> None:
    """``_render`` with its scratch."""
    scale, margin, radius = units
    pitch = side + MARGIN
    room = (side + 1) * pitch
    plain = len(affine) == 0
    for b in range(lo, hi):
        first, last = drawing_offset[index[b]], drawing_offset[index[b] + 1]
        begin, end = stroke_offset[first], stroke_offset[last]
        max_x, max_y = largest(flat, begin, end)
        to_px = map_to_px(max_x, max_y, affine, b, side, scale)
        if plain:
            x, y = (256.0 - f8(max_x)) * 0.5, (256.0 - f8(max_y)) * 0.5
            to_px = (x, scale, margin * scale, y, 0.0, 0.0)
        left = min(max(cut[b], 0), end - begin) if len(cut) > 0 else i8(-1)  # -1: all is done
        clear(canvas, 0, room)
        for s in range(first, last):
            count = stroke_offset[s + 1] - stroke_offset[s]
            ends = 0 <= left < count  # the partial image does, in this stroke
            if ends:
                copy(canvas, room, canvas, 0, room)
            for part in range(0 if ends else 1, 2):
                take = left if part == 0 else count
                if take > 0:
                    subs, x0, y0, x1, y1 = place(flat, stroke_offset[s], take, to_px, plain, path)
                    box = (
                        (x0 - pen.reach) >> 8,
                        (y0 - pen.reach) >> 8,
                        -((-x1 - pen.reach) >> 8),
                        -((-y1 - pen.reach) >> 8),
                    )
                    _stroke(
                        path, subs, vx, vy, edges, scratch, box, radius, pen, side, canvas,
                        room if part == 0 else 0, pitch, highest,
                    )  # fmt: skip
            if ends:
                _deliver(canvas, room, pitch, side, partial, b)
            left = i8(-1) if ends or left < 0 else left - count
        _deliver(canvas, 0, pitch, side, full, b)
        if left >= 0:
            _deliver(canvas, 0, pitch, side, partial, b)


@njit(**OPTIONS)
def _deliver(canvas: Images, start: Any, pitch: Any, side: Any, out: Images, b: Any) -> None:
    for row in range(side):
        copy(out, (b * side + row) * side, canvas, start + row * pitch, side)


@njit(cache=True, nogil=True)
def _scratch(points: Any, pen_size: Any, side: Any, like: Any) -> Any:
    """Path, vertices (x, y), Edges and Scratch for strokes of so many points. Most of it is never
    touched: few joins need half a pen."""
    vertices = (points + 2) * (pen_size // 2 + 10) + 2 * pen_size
    edges = 3 * vertices
    path = Path(
        np.empty(points, np.int32),
        np.empty(points, np.int32),
        np.empty(points, np.int32),
        np.empty(points, np.int32),
        np.empty(points, np.int32),
    )
    edge = Edges(
        np.empty(edges + 16, np.int32),
        np.empty(edges + 16, np.int32),
        np.empty(edges + 16),
        np.empty(edges + 16),
        np.empty(edges + 16),
    )
    keys = max(ROOM, 64 * edges)
    scratch = Scratch(
        np.empty(keys + 64, like.dtype),
        np.empty(CHAIN * (edges + 2), np.int64),
        np.empty(side + 1, np.int64),
        np.empty(EDGE * (keys // LINES), np.int64),
        np.empty(side + 1, np.int64),
        np.empty(side + 1, np.int64),
        np.empty(edges + 2, np.int64),
        np.empty(16 * (edges + 2), like.dtype),
        np.empty(32 * (edges + 2), like.dtype),
        np.empty(CROWD + 1, np.int64),
        np.empty(CROWD + 1, np.int64),
        np.empty(CROWD + 1),
        np.zeros(side + 2 * MARGIN, np.int32),
    )
    vx, vy = np.empty(2 * vertices + 32, np.int32), np.empty(2 * vertices + 32, np.int32)
    return path, vx, vy, edge, scratch


@inlined
def _stroke(
    path: Path,
    subs: Any,
    vx: Ints,
    vy: Ints,
    edges: Edges,
    scratch: Scratch,
    box: Any,
    radius: Any,
    pen: Pen,
    side: Any,
    canvas: Images,
    start: Any,
    pitch: Any,
    highest: Any,
) -> None:
    """The stroke in ``path`` to the canvas that begins at ``start``. box: where it can leave ink,
    in px (left, top, right, bottom)."""
    left, top, right, bottom = box
    clips = left < 0 or top < 0 or right > side or bottom > side
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, side), min(bottom, side)
    if subs == 0 or left >= right or top >= bottom or pen.size < 2:
        return
    inner = left << 8, top << 8, right << 8, bottom << 8
    near = (i8(-EVERYWHERE), i8(-EVERYWHERE), i8(EVERYWHERE), i8(EVERYWHERE))
    if clips:
        near = (
            inner[0] - pen.reach, inner[1] - pen.reach, inner[2] + pen.reach, inner[3] + pen.reach
        )  # fmt: skip
    n, begin = i8(0), i8(0)
    for sub in range(subs):
        end = i8(path.end[sub])
        lo, hi = outline(vx, vy, path, begin, end, radius, pen, near)
        if clips:
            n = clipped_edges(vx, vy, lo, hi, edges, n, inner)
        else:
            n = edges_of(vx, vy, lo, hi, edges, n)
        begin = end
    # All rows at once if their keys have room, else so many that they must have. No edge leaves
    # the box: it is as far around the path's points as the pen reaches.
    most = (len(scratch.key) - 64 - 33 * n) // (LINES * max(n, 1))
    band = most < bottom - top
    if band:
        lines = i8(0)
        for i in range(n):
            lines += abs(i8(edges.y1[i]) - i8(edges.y0[i]))
        band = lines + 33 * n >= len(scratch.key) - 64
    high = max(most, 1) if band else bottom - top
    far = 2 * 256 * (side + MARGIN) + 1
    while top < bottom:
        until = min(top + high, bottom)
        chains(edges, n, top, until, band, scratch, far)
        rows(edges, scratch, (left, top, right, until), canvas, start, pitch, far, highest)
        top = until
