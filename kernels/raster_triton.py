"""The rasterizer of ``raster_torch.py`` as one Triton kernel.

A program is one warp with a tile of one image. It goes once over the drawing's points: a segment is
scalar work (place both ends, direction, normal) and then, where its bounding box meets the tile,
work on pixels. The whole and the partial image come out of the same pass, since the partial one is
the state of the whole one at the cut.

What it costs, counted for Quick, Draw! at 64 x 64 (45 points per drawing), not timed: memory moves
100 bytes in and 8192 out for a drawing with its partial image, so 512 of them are 4 MB, a
microsecond of an H200's bandwidth. Arithmetic decides: 45 segments x 4096 pixels x some 25
operations would be 4.6 Mflop, but on average the box of a segment meets 18 % of the 8 tiles (7,500
real drawings). In the code for sm_90 a point costs a warp some 90 instructions, and 380 more where
its segment meets the tile: 8 x 45 x (90 + 0.18 x 380) = 57 thousand per drawing. At the 9e11 per
second that 132 processors with four schedulers at 1.7 GHz can issue, that is 0.06 us, or 33 us for
512 drawings. Work on the segment itself is repeated by every warp: hence one warp per tile, and 16
pixels per thread.

Every drawing is read again by each of its tiles, from the cache. Nothing is allocated but the
images, and nothing is read back: the launch can be captured in a CUDA graph, and a replay reads the
indices, cuts and maps that are there by then.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvae.kernels.launch import Launch
from fastvae.kernels.launch_table import RASTER
from fastvae.kernels.raster_torch import DOT, FAR, NO_SLANT, allocate, frame

TILE = Launch(int(RASTER["elements"]), int(RASTER["block"]), int(RASTER["warps"]))
_POINTS = 64  # read at once while looking for the maxima: most drawings need one or two rounds
_REACH = 0.7072  # a pixel's centre is at most this far (half its diagonal) from what touches it

_DOT_SQUARED = tl.constexpr(DOT**2)
_FAR = tl.constexpr(FAR)
_NO_SLANT = tl.constexpr(NO_SLANT)
_REACH_OUT = tl.constexpr(_REACH)


@triton.jit
def _highest(points_ptr, begin, end, POINTS: tl.constexpr):
    """Largest x and y of points begin..end; 0 where there are none."""
    lane = tl.arange(0, POINTS)
    x = tl.zeros((POINTS,), tl.int32)
    y = tl.zeros((POINTS,), tl.int32)
    for start in range(begin, end, POINTS):
        at = start + lane
        x = tl.maximum(x, tl.load(points_ptr + 2 * at, mask=at < end, other=0).to(tl.int32))
        y = tl.maximum(y, tl.load(points_ptr + 2 * at + 1, mask=at < end, other=0).to(tl.int32))
    return tl.max(x, axis=0).to(tl.float32), tl.max(y, axis=0).to(tl.float32)


@triton.jit
def _share(t, high, low, curve, per_wide):
    """F(t) - 1/2 for t >= 0."""
    inner = tl.minimum(t, high)
    ramp = tl.maximum(inner - low, 0.0)
    return tl.fma(ramp * ramp, curve, inner) * per_wide


@triton.jit
def _segment(ax, ay, bx, by, column, row, radius, THIN: tl.constexpr):
    """Coverage of the tile by a segment. column (1, COLUMNS), row (ROWS, 1): pixel centres."""
    x, y = bx - ax, by - ay
    squared = x * x + y * y
    dot = squared < _DOT_SQUARED
    inverse = tl.where(dot, 0.0, tl.rsqrt(tl.maximum(squared, _DOT_SQUARED)))
    x, y = x * inverse, tl.where(dot, 1.0, y * inverse)
    half = 0.5 * squared * inverse
    from_x, from_y = column - 0.5 * (ax + bx), row - 0.5 * (ay + by)
    along = from_y * y + from_x * x
    across = from_y * x - from_x * y
    beyond = tl.maximum(tl.abs(along) - half, 0.0)
    distance = tl.sqrt(tl.fma(across, across, beyond * beyond))

    wide, narrow = tl.maximum(tl.abs(x), tl.abs(y)), tl.minimum(tl.abs(x), tl.abs(y))
    high, low = 0.5 * (wide + narrow), 0.5 * (wide - narrow)
    curve, per_wide = -0.5 / tl.maximum(narrow, _NO_SLANT), 1.0 / wide
    t = radius - distance
    share = _share(tl.abs(t), high, low, curve, per_wide)
    near = tl.where(t < 0, -share, share)
    if THIN:
        return near + _share(radius + distance, high, low, curve, per_wide)
    return near + 0.5  # the far edge is more than a pixel away


@triton.jit
def _left(clear, stroke, OVER: tl.constexpr):
    """What is left free by one more stroke."""
    if OVER:
        return clear * (1.0 - stroke)
    return tl.minimum(clear, 1.0 - stroke)


@triton.jit
def _store(out_ptr, image, clear, row, column, side):
    """Write the tile of an image; row and column as integers."""
    there = (row < side) & (column < side)
    value = (255.0 * (1.0 - clear) + 0.5).to(tl.int32)
    at = (image * side + row) * side + column
    tl.store(out_ptr + at, tl.minimum(tl.maximum(value, 0), 255).to(tl.uint8), mask=there)


@triton.jit(do_not_specialize=["rows", "drawings"])
def _raster_kernel(
    points_ptr,  # (P, 2) uint8
    last_ptr,  # (P / 8,) uint8, bits
    first_ptr,  # (drawings + 1,) int64
    indices_ptr,  # (rows,) int64
    cut_ptr,  # (rows,) int64, where HAS_CUT
    affine_ptr,  # (rows, 2, 3) float32, where HAS_AFFINE
    out_ptr,  # (1 or 2, rows, side, side) uint8
    rows: tl.int64,
    drawings: tl.int64,
    side,
    middle,
    scale,
    radius,
    HAS_CUT: tl.constexpr,
    HAS_AFFINE: tl.constexpr,
    OVER: tl.constexpr,
    THIN: tl.constexpr,  # the line is so narrow that both its edges can cross one pixel
    POINTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    top, left = tl.program_id(1) * ROWS, tl.program_id(2) * COLUMNS
    row, column = top + tl.arange(0, ROWS)[:, None], left + tl.arange(0, COLUMNS)[None, :]
    centre_y, centre_x = row.to(tl.float32) + 0.5, column.to(tl.float32) + 0.5
    reach = radius + _REACH_OUT
    least_x, least_y = left.to(tl.float32) + 0.5 - reach, top.to(tl.float32) + 0.5 - reach
    most_x, most_y = least_x + (COLUMNS - 1 + 2 * reach), least_y + (ROWS - 1 + 2 * reach)

    index = tl.load(indices_ptr + image)
    inside = (index >= 0) & (index < drawings)
    begin = tl.load(first_ptr + index, mask=inside, other=0)
    end = tl.load(first_ptr + index + 1, mask=inside, other=0)
    stop = begin
    if HAS_CUT:
        # No point is the last before a stop at or below ``begin``: nothing is shown then.
        stop += tl.minimum(tl.load(cut_ptr + image), end - begin)
    high_x, high_y = _highest(points_ptr, begin, end, POINTS)
    half_x, half_y = 0.5 * high_x, 0.5 * high_y
    if HAS_AFFINE:
        map_ptr = affine_ptr + 6 * image
        xx, xy, x1 = tl.load(map_ptr), tl.load(map_ptr + 1), tl.load(map_ptr + 2)
        yx, yy, y1 = tl.load(map_ptr + 3), tl.load(map_ptr + 4), tl.load(map_ptr + 5)

    clear = tl.full((ROWS, COLUMNS), 1.0, tl.float32)
    stroke = tl.zeros((ROWS, COLUMNS), tl.float32)  # coverage by the stroke that has not ended
    shown = clear
    ax, ay = 0.0, 0.0
    begins = 1
    for step in range(end - begin):
        p = begin + step
        u = tl.load(points_ptr + 2 * p).to(tl.float32) - half_x
        v = tl.load(points_ptr + 2 * p + 1).to(tl.float32) - half_y
        bx, by = u, v
        if HAS_AFFINE:
            bx = xx * u + xy * v + x1
            by = yx * u + yy * v + y1
        bx, by = bx * scale + middle, by * scale + middle
        ends = (tl.load(last_ptr + (p >> 3)).to(tl.int32) >> (p & 7).to(tl.int32)) & 1
        ax, ay = tl.where(begins != 0, bx, ax), tl.where(begins != 0, by, ay)

        cuts = p + 1 == stop
        meets = (tl.minimum(ax, bx) < most_x) & (tl.maximum(ax, bx) > least_x)
        meets &= (tl.minimum(ay, by) < most_y) & (tl.maximum(ay, by) > least_y)
        # Each on its own: a maximum would hide what is not a number.
        meets &= (tl.abs(ax) <= _FAR) & (tl.abs(ay) <= _FAR)
        meets &= (tl.abs(bx) <= _FAR) & (tl.abs(by) <= _FAR)
        # The first of several points is drawn by the segment that begins there, unless cut off.
        if meets & ((begins == 0) | (ends != 0) | cuts):
            covered = _segment(ax, ay, bx, by, centre_x, centre_y, radius, THIN)
            stroke = tl.maximum(stroke, covered)
        if (ends != 0) | cuts:  # one branch around all that is rare: it is not computed and dropped
            if cuts:
                shown = _left(clear, stroke, OVER)
            if ends != 0:
                clear = _left(clear, stroke, OVER)
            if (ends != 0) | (begins != 0):  # the dot of a first point is of the partial image only
                stroke = tl.zeros_like(stroke)
        ax, ay, begins = bx, by, ends

    _store(out_ptr, image, clear, row, column, side)
    if HAS_CUT:
        _store(out_ptr, rows + image, shown, row, column, side)


def rasterize(
    points: Tensor,
    last: Tensor,
    first: Tensor,
    indices: Tensor,
    cut: Tensor | None,
    affine: Tensor | None,
    side: int,
    line_width: float,
    padding: float,
    over: bool,
) -> Tensor:
    """Launch: see ``raster_torch.rasterize``."""
    rows = len(indices)
    out = allocate(points, rows, side, cut)
    if out.numel() == 0:
        return out
    scale, radius = frame(side, line_width, padding)
    columns, tall = TILE.tile(side)
    grid = (rows, triton.cdiv(side, tall), triton.cdiv(side, columns))
    with torch.cuda.device_of(points):
        _raster_kernel[grid](
            points,
            last,
            first,
            indices.contiguous(),
            None if cut is None else cut.contiguous(),
            None if affine is None else affine.contiguous(),
            out,
            rows,
            len(first) - 1,
            side,
            0.5 * side,
            scale,
            radius,
            HAS_CUT=cut is not None,
            HAS_AFFINE=affine is not None,
            OVER=over,
            THIN=radius < _REACH,
            POINTS=_POINTS,
            ROWS=tall,
            COLUMNS=columns,
            num_warps=TILE.warps,
            enable_fp_fusion=False,  # ends of segments are those of PyTorch, to the bit
        )
    return out
