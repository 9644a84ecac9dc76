"""Anti-aliased rasterization of strokes: white lines (255) of a given width on black.

**Frame.** Quick, Draw!'s own recipe. A drawing with largest coordinates (max_x, max_y), taken over
all its points even where only some are drawn, is centred on a canvas of 256 units that has
``margin`` = padding + line_width / 2 around it, and

    scale = side / (256 + 2 margin)                      px per unit
    column = (x - max_x / 2) scale + side / 2            = (x + (256 - max_x) / 2 + margin) scale
    row    = (y - max_y / 2) scale + side / 2

in px, where pixel (row, col) has its centre at (col + 1/2, row + 1/2). With an affine map
A = affine[b] (2, 3) about the centre of the canvas, (x - max_x / 2, y - max_y / 2) =: p becomes
A[:, :2] p + A[:, 2], a translation in units; the width of a line, 2 radius = line_width scale px,
stays.

**A stroke** of n points is n - 1 segments, a dot if n = 1, nothing if n = 0. A segment shorter than
DOT px is a dot. A segment (or dot) with an end that is not finite or whose coordinate is beyond
FAR px draws nothing. Inside a stroke a pixel's coverage is the largest over its segments.

**Fast coverage** of a pixel by a segment, d px from the pixel's centre (distance to the segment
with its ends: round caps), n = (nx, ny) its unit normal, (1, 0) for a dot:

    F(radius - d) - F(-radius - d)

where F(t) is the part of a unit square that lies below the line n . q = t through it; a trapezoid's
integral, with a >= b the two of |nx|, |ny|, and w = t clamped to +-(a + b) / 2:

    F(t) = 1/2 + w / a - sign(w) max(|w| - (a - b) / 2, 0)^2 / (2 a b)

that is clamp(t + 1/2, 0, 1) for b = 0. The second term is 0 for radius >= sqrt(1/2). It is the
exact box filter of a straight line; it errs where lines turn, as max is not a union there.
**Exact coverage** (``raster_exact.py``) is that of cairo, byte for byte: a polygon around the
stroke, sampled on 15 lines per pixel.

**Strokes compose** by "over", 1 - (1 - a)(1 - b), as in Quick, Draw!'s bitmaps, or by "max".
A coverage c becomes floor(255 c + 1/2). Kernels compute in float32: they agree with ``reference``,
and with one another, to 1 of 255.

**Low-level calls.** ``raster_fast.render`` and ``raster_exact.render`` have one signature:

    render(strokes, frame, index, cut, affine, composite, full, partial, threads) -> int

    strokes: Strokes               frame: Frame
    index: (B,) int64              any values: this is where they are checked
    cut: (B,) int64 or None        any values: clamped to 0..points of the drawing
    affine: (B, 2, 3) float32 or None, any values
    composite: "over" or "max"
    full: (B, side, side) uint8; written as a whole
    partial: the same, no memory in common; not None exactly where cut is not None
    threads: 1 or more; 0: OMP_NUM_THREADS, or the cores there are

All arrays are in C order. Returns -1, or the first b for which index[b] is no drawing or the
drawing's offsets are out of order; nothing is written then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.raster_frame import DOT, FAR, Frame
from fastvae.kernels.strokes import Offsets, Points, Strokes

__all__ = ["DOT", "FAR", "Composite", "Frame", "Images", "Mode", "rasterize", "reference"]

Mode = Literal["fast", "exact"]
Composite = Literal["over", "max"]
Images = NDArray[np.uint8]
Affine = NDArray[np.float32]
Floats = NDArray[np.float64]
Array = TypeVar("Array", bound=NDArray[np.generic])


def rasterize(
    strokes: Strokes,
    frame: Frame,
    index: Offsets,
    *,
    cut: Offsets | None = None,
    affine: Affine | None = None,
    mode: Mode = "fast",
    composite: Composite = "over",
    out: Images | None = None,
    partial_out: Images | None = None,
    threads: int = 0,
) -> Images | tuple[Images, Images]:
    """Draw the drawings ``index`` (B,) int64: (B, side, side) uint8, white ink on black.

    The result does not depend on the number of threads.

    Args:
        cut: (B,) int64, clamped to what there is. With it, the result is two images of each
            drawing, (full, partial), made in one pass: the partial one shows the drawing's first
            cut[b] points, at the place that they have in the full one.
        affine: (B, 2, 3) float32, one map per drawing about the centre of the canvas, in units.
        out, partial_out: (B, side, side) uint8, to be written to and returned.
        threads: 0 for OMP_NUM_THREADS, or the cores there are.
    """
    count = len(index)
    shape = (count, frame.side, frame.side)
    index = _checked("index", index, (count,), np.int64)
    if cut is not None:
        cut = _checked("cut", cut, (count,), np.int64)
    elif partial_out is not None:
        raise ValueError("partial_out needs cut")
    if affine is not None:
        affine = _checked("affine", affine, (count, 2, 3), np.float32)
    if composite not in ("over", "max"):
        raise ValueError(f"composite must be 'over' or 'max', got {composite!r}")
    if threads < 0:
        raise ValueError(f"threads must be at least 0, got {threads}")
    full = _target("out", out, shape)
    partial = None if cut is None else _target("partial_out", partial_out, shape)
    if partial is not None and np.may_share_memory(full, partial):
        raise ValueError("out and partial_out must not share memory")
    if mode not in ("fast", "exact"):
        raise ValueError(f"mode must be 'fast' or 'exact', got {mode!r}")
    render = import_module(f"fastvae.kernels.raster_{mode}").render  # compiles: only if it is used
    bad = render(strokes, frame, index, cut, affine, composite, full, partial, threads)
    if bad >= 0:
        raise ValueError(
            f"index[{bad}] = {index[bad]} must be in 0..{strokes.drawings - 1}, "
            "and the offsets of its strokes must ascend"
        )
    return full if partial is None else (full, partial)


def _checked(name: str, array: Array, shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} must be an array, got {type(array).__name__}")
        raise ValueError(
            f"{name} must be {shape} {np.dtype(dtype)}, got {array.shape} {array.dtype}"
        )
    return array if array.flags.c_contiguous else array.copy()


def _target(name: str, array: Images | None, shape: tuple[int, ...]) -> Images:
    if array is None:
        return np.empty(shape, dtype=np.uint8)
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(f"{name} must be {shape} uint8, got {array.shape} {array.dtype}")
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise ValueError(f"{name} must be writable and in C order")
    return array


def reference(
    strokes: Sequence[Points],
    frame: Frame,
    *,
    cut: int | None = None,
    affine: Affine | None = None,
    composite: Composite = "over",
) -> Images:
    """The fast mode of one drawing in plain float64: the definition of right, and slow.

    Args:
        strokes: points (N, 2) of each stroke.
        cut: draw the first ``cut`` points only.
        affine: (2, 3).

    Returns:
        (side, side) uint8.
    """
    placed = _place(strokes, frame, affine)
    left = sum(map(len, placed)) if cut is None else max(0, cut)
    total = np.zeros((frame.side, frame.side))
    for stroke in placed:
        cover = _stroke_cover(stroke[:left], frame)
        left = max(0, left - len(stroke))
        total = np.maximum(total, cover) if composite == "max" else total + cover - total * cover
    return np.floor(255.0 * total + 0.5).astype(np.uint8)


def _place(strokes: Sequence[Points], frame: Frame, affine: Affine | None) -> list[Floats]:
    """Strokes in px, (N, 2) as (column, row)."""
    top = np.max([s.max(axis=0) for s in strokes if len(s)] or [[0, 0]], axis=0)
    placed = []
    for stroke in strokes:
        p = stroke.astype(np.float64).reshape(-1, 2) - top / 2.0
        if affine is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                p = p @ affine[:, :2].astype(np.float64).T + affine[:, 2]
        placed.append(p * frame.scale + frame.side / 2.0)
    return placed


def _stroke_cover(stroke: Floats, frame: Frame) -> Floats:
    """Coverage of each pixel (side, side) by the polyline ``stroke`` (N, 2)."""
    cover = np.zeros((frame.side, frame.side))
    ends = stroke[1:] if len(stroke) > 1 else stroke
    for a, b in zip(stroke, ends, strict=False):
        cover = np.maximum(cover, _segment_cover(a, b, frame))
    return cover


def _segment_cover(a: Floats, b: Floats, frame: Frame) -> Floats:
    if not (np.abs([a, b]) <= FAR).all():  # false for NaN
        return np.zeros((frame.side, frame.side))
    centres = np.arange(frame.side) + 0.5
    qx, qy = centres[None, :] - a[0], centres[:, None] - a[1]
    length = math.hypot(b[0] - a[0], b[1] - a[1])
    if length < DOT:
        distance, normal = np.hypot(qx, qy), (1.0, 0.0)
    else:
        ux, uy = (b - a) / length
        along = np.clip(qx * ux + qy * uy, 0.0, length)
        distance, normal = np.hypot(qx - along * ux, qy - along * uy), (-uy, ux)
    return _half_plane(frame.radius - distance, normal) - _half_plane(
        -frame.radius - distance, normal
    )


def _half_plane(t: Floats, normal: tuple[float, float]) -> Floats:
    """F(t): the part of the unit square about 0 where normal . q <= t."""
    b, a = sorted(map(abs, normal))
    w = np.clip(t, -(a + b) / 2, (a + b) / 2)
    corner = np.maximum(np.abs(w) - (a - b) / 2, 0.0) ** 2
    return 0.5 + w / a - np.sign(w) * (corner / (2 * a * b) if b > 1e-12 else 0.0)
