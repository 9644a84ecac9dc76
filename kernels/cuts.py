"""What a partial drawing shows, and how a drawing is jittered: a few random numbers per drawing.

They come from Philox keyed by (seed, index of the drawing), so they are the same in any batch, on
any rank, after any resume, and for images made on the CPU as on a GPU: both take what is made here.
A fresh cut in each epoch is a fresh seed.

A partial drawing is its first ``cut`` points (a prefix in drawing order), or the whole drawing with
a box blanked out. With u uniform in [low, high), the share that is shown:

    strokes   the first max(floor(u * strokes), 1) strokes, never all of several
    points    the first max(floor(u * points), 1) points, never all of several
    time      the points drawn within the first u of the time it took
    box       all but a square of 1 - u of the canvas, centred on a random point of the drawing

A cut is moved to an earlier place, a stroke or point at a time, when nothing of what it hides would
be seen: all of it lies outside the image or within half a pixel of the lines that are shown, e.g.
where a stroke was drawn twice. Then the partial image would be the full one, and a model that
completes drawings would learn to add nothing. That concerns 2% of Quick, Draw!'s drawings at 64x64.
Only a drawing that never leaves its own beginning keeps such a cut.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.jit import njit
from fastvae.kernels.philox_numba import four_words, unit
from fastvae.kernels.strokes import (
    Offsets,
    Points,
    Strokes,
    check_index,
    first_bad,
    raise_bad,
    read_only,
)

PrefixMode = Literal["strokes", "points", "time"]
_MODES = {"strokes": 0, "points": 1, "time": 2}
_CUT, _BOX, _JITTER = 16, 17, 18  # Philox streams; 0 and 1 belong to noise, pixels and mirroring
_BUDGET = 200_000  # distances per drawing, after which a cut is halved instead of moved by one
_MOST_LOOKED_AT = 4096  # hidden places compared with what is shown, for one cut


class View(NamedTuple):
    """How units become pixels: pixel = scale * unit + offset, after centring and jitter."""

    side: int
    """Of the image, in pixels."""
    scale: float
    offset: float
    radius: float
    """Half the width of a line, in pixels."""
    centred: bool = True
    """Whether drawings are centred on the canvas first, as ``raster.rasterize`` does."""


def prefix_cuts(
    strokes: Strokes,
    index: Offsets,
    seed: int,
    mode: PrefixMode,
    view: View,
    *,
    low: float = 0.0,
    high: float = 1.0,
    affine: NDArray[np.float32] | None = None,
    time: NDArray[np.int32] | None = None,
) -> Offsets:
    """How many of its points each partial drawing shows.

    Args:
        strokes: all drawings.
        index: (B,) int64, which of them.
        seed: int64 >= 0.
        view: of the images, to tell whether what is hidden would be seen.
        low, high: range of the share shown, 0 <= low <= high <= 1.
        affine: (B, 2, 3) float32, jitter as given to ``raster.rasterize``.
        time: (P,) int32, milliseconds since the drawing began, ascending (mode time).

    Returns:
        (B,) int64, 1..points of the drawing (0 where it has none); less than all points where the
        drawing has more than one stroke (points, time: more than one point).

    Raises:
        ValueError: wrong shapes or ranges, or offsets that do not ascend (names the drawing).
    """
    check_index(index, strokes.drawings)
    _check_share(low, high)
    if mode not in _MODES:
        raise ValueError(f"mode = {mode!r}: expected one of {', '.join(_MODES)}")
    if mode == "time":
        if time is None:
            raise ValueError("mode time needs the time of each point")
        if time.shape != strokes.points.shape[:1] or time.dtype != np.int32:
            raise ValueError(
                f"time must be ({len(strokes.points)},) int32, got {time.shape} {time.dtype}"
            )
    cut = np.empty(len(index), dtype=np.int64)
    raise_bad(
        first_bad(strokes.points, strokes.stroke_offset, strokes.drawing_offset, index), index
    )
    _prefix_cuts(
        *strokes.arrays(),
        read_only(np.empty(0, dtype=np.int32) if time is None or mode != "time" else time),
        read_only(index),
        seed,
        _MODES[mode],
        low,
        high,
        view,
        _affine(affine, len(index)),
        cut,
    )
    return cut


def boxes(
    strokes: Strokes,
    index: Offsets,
    seed: int,
    view: View,
    *,
    affine: NDArray[np.float32] | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> NDArray[np.int32]:
    """The box that each partial image blanks out; arguments as of ``prefix_cuts``.

    Returns:
        (B, 4) int32: first row, row after the last, first column, column after the last. A box is
        at least three pixels wider than a line. A drawing without a point in the image has an
        empty box.
    """
    check_index(index, strokes.drawings)
    _check_share(low, high)
    box = np.zeros((len(index), 4), dtype=np.int32)
    raise_bad(
        first_bad(strokes.points, strokes.stroke_offset, strokes.drawing_offset, index), index
    )
    _boxes(
        *strokes.arrays(),
        read_only(index),
        seed,
        view,
        _affine(affine, len(index)),
        low,
        high,
        box,
    )
    return box


def jitter(
    index: Offsets, seed: int, *, rotate: float, scale: float, shear: float, shift: float
) -> NDArray[np.float32]:
    """Random affine maps about the middle of the canvas, each number uniform and symmetric.

    Args:
        index: (B,) int64, the drawings.
        rotate: most degrees, either way.
        scale: most change of size, as a share: 0.1 gives factors exp(-0.1) to exp(0.1), each axis
            its own.
        shear: most horizontal shift per unit of height.
        shift: most displacement per axis, in units (the canvas is 256 wide).

    Returns:
        (B, 2, 3) float32.
    """
    affine = np.empty((len(index), 2, 3), dtype=np.float32)
    _jitter(index, seed, math.radians(rotate), scale, shear, shift, affine)
    return affine


def _check_offsets(strokes: Strokes, index: Offsets) -> None:
    raise_bad(int(first_bad(*strokes.arrays(), read_only(index))), index)


def _affine(affine: NDArray[np.float32] | None, rows: int) -> NDArray[np.float32]:
    """An empty array stands for none."""
    if affine is None:
        return np.empty((0, 2, 3), dtype=np.float32)
    if affine.shape != (rows, 2, 3) or affine.dtype != np.float32:
        raise ValueError(
            f"affine must be ({rows}, 2, 3) float32, got {affine.shape} {affine.dtype}"
        )
    return affine


def _check_share(low: float, high: float) -> None:
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"low, high = {low}, {high}: expected 0 <= low <= high <= 1")


@njit(cache=True, nogil=True)
def _prefix_cuts(
    points: Points,
    stroke_offset: Offsets,
    drawing_offset: Offsets,
    time: NDArray[np.int32],
    index: Offsets,
    seed: int,
    mode: int,
    low: float,
    high: float,
    view: View,
    affine: NDArray[np.float32],
    cut: Offsets,
) -> None:
    for b in range(len(index)):
        d = index[b]
        first, last = drawing_offset[d], drawing_offset[d + 1]
        begin, end = stroke_offset[first], stroke_offset[last]
        u = low + (high - low) * unit(four_words(seed, d, 0, _CUT)[0])
        shown = 0
        if mode == 0:
            shown = _share(last - first, u)
            cut[b] = stroke_offset[first + shown] - begin
        elif mode == 1:
            cut[b] = _share(end - begin, u)
        else:
            until = u * (time[end - 1] - time[begin]) if end > begin else 0.0
            count = 0
            while count < end - begin and time[begin + count] - time[begin] <= until:
                count += 1
            cut[b] = max(min(count, end - begin - 1), min(1, end - begin))
        to_px = _to_px(points, begin, end, view, affine, b)
        budget = _BUDGET
        while cut[b] < end - begin:
            seen, looked = _shows(points, stroke_offset, first, last, begin + cut[b], view, to_px)
            budget -= looked
            if seen:
                break
            # Halving keeps the work bounded for a drawing of a million strokes in one place.
            if mode == 0:
                if shown <= 1:
                    break
                shown = shown - 1 if budget > 0 else shown // 2
                cut[b] = stroke_offset[first + shown] - begin
            else:
                if cut[b] <= 1:
                    break
                cut[b] = cut[b] - 1 if budget > 0 else cut[b] // 2


@njit(cache=True, nogil=True)
def _to_px(
    points: Points,
    begin: int,
    end: int,
    view: View,
    affine: NDArray[np.float32],
    b: int,
) -> tuple[float, float, float, float, float, float]:
    """Coefficients (xx, xy, x0, yx, yy, y0): column = xx x + xy y + x0, row = yx x + yy y + y0."""
    right = bottom = 0 if view.centred else 256
    for p in range(begin, end):
        right, bottom = max(right, points[p, 0]), max(bottom, points[p, 1])
    x0, y0 = (256.0 - right) / 2.0, (256.0 - bottom) / 2.0
    xx, xy, yx, yy = 1.0, 0.0, 0.0, 1.0
    if len(affine):
        a = affine[b]
        xx, xy, yx, yy = a[0, 0], a[0, 1], a[1, 0], a[1, 1]
        u, v = x0 - 128.0, y0 - 128.0
        x0, y0 = xx * u + xy * v + 128.0 + a[0, 2], yx * u + yy * v + 128.0 + a[1, 2]
    s = view.scale
    return s * xx, s * xy, s * x0 + view.offset, s * yx, s * yy, s * y0 + view.offset


@njit(cache=True, nogil=True)
def _place(
    points: Points, p: int, to_px: tuple[float, float, float, float, float, float]
) -> tuple[float, float]:
    """Column and row of a point, in pixels."""
    xx, xy, x0, yx, yy, y0 = to_px
    x, y = float(points[p, 0]), float(points[p, 1])
    return xx * x + xy * y + x0, yx * x + yy * y + y0


@njit(cache=True, nogil=True)
def _share(count: int, u: float) -> int:
    """max(floor(u * count), 1), less than ``count`` where that is more than one."""
    return min(max(math.floor(u * count), 1), max(count - 1, min(count, 1)))


@njit(cache=True, nogil=True)
def _shows(
    points: Points,
    stroke_offset: Offsets,
    first: int,
    last: int,
    cut: int,
    view: View,
    to_px: tuple[float, float, float, float, float, float],
) -> tuple[bool, int]:
    """Whether something from point ``cut`` on is in the image and off the lines before it.

    Places a pixel apart along the hidden lines are looked at. Also returns how many distances that
    took.
    """
    looked = places = 0
    for s in range(first, last):
        stop = stroke_offset[s + 1]
        begin = max(stroke_offset[s], cut - 1)  # a stroke that is cut inside goes on from there
        if stop <= cut or places > _MOST_LOOKED_AT:
            continue
        for p in range(begin, max(stop - 1, begin + 1)):
            ax, ay = _place(points, p, to_px)
            bx, by = _place(points, min(p + 1, stop - 1), to_px)
            pieces = min(math.ceil(max(abs(bx - ax), abs(by - ay))), 4096) + 1
            for k in range(pieces + 1):
                x, y = ax + (bx - ax) * k / pieces, ay + (by - ay) * k / pieces
                if not (0.0 <= x < view.side and 0.0 <= y < view.side):
                    continue
                places += 1
                far, count = _off(points, stroke_offset, first, last, cut, x, y, view, to_px)
                looked += count
                if far:
                    return True, looked
    return False, looked


@njit(cache=True, nogil=True)
def _off(
    points: Points,
    stroke_offset: Offsets,
    first: int,
    last: int,
    cut: int,
    x: float,
    y: float,
    view: View,
    to_px: tuple[float, float, float, float, float, float],
) -> tuple[bool, int]:
    """Whether (x, y) is half a pixel and more off the edges of all lines before point ``cut``."""
    margin, count = (view.radius + 0.5) ** 2, 0
    for s in range(first, last):
        stop = min(stroke_offset[s + 1], cut)
        if stroke_offset[s] >= stop:
            continue
        for p in range(stroke_offset[s], max(stop - 1, stroke_offset[s] + 1)):
            count += 1
            a, b = _place(points, p, to_px), _place(points, min(p + 1, stop - 1), to_px)
            if _distance_squared(a, b, x, y) <= margin:
                return False, count
    return True, count


@njit(cache=True, nogil=True)
def _distance_squared(a: tuple[float, float], b: tuple[float, float], x: float, y: float) -> float:
    """Squared distance of (x, y) from the segment between ``a`` and ``b``."""
    ux, uy = b[0] - a[0], b[1] - a[1]
    length = ux * ux + uy * uy
    t = 0.0
    if length > 0.0:
        t = min(max(((x - a[0]) * ux + (y - a[1]) * uy) / length, 0.0), 1.0)
    dx, dy = x - a[0] - t * ux, y - a[1] - t * uy
    return dx * dx + dy * dy


@njit(cache=True, nogil=True)
def _boxes(
    points: Points,
    stroke_offset: Offsets,
    drawing_offset: Offsets,
    index: Offsets,
    seed: int,
    view: View,
    affine: NDArray[np.float32],
    low: float,
    high: float,
    box: NDArray[np.int32],
) -> None:
    side = view.side
    for b in range(len(index)):
        d = index[b]
        begin, end = stroke_offset[drawing_offset[d]], stroke_offset[drawing_offset[d + 1]]
        words = four_words(seed, d, 0, _BOX)
        to_px = _to_px(points, begin, end, view, affine, b)
        hidden = 1.0 - (low + (high - low) * unit(words[0]))
        half = max(side * math.sqrt(hidden), 2.0 * view.radius + 3.0) / 2.0
        start = int(unit(words[1]) * (end - begin))
        for k in range(end - begin):  # from a random point on, the first that is in the image
            column, row = _place(points, begin + (start + k) % (end - begin), to_px)
            if 0.0 <= column < side and 0.0 <= row < side:
                box[b, 0], box[b, 1] = _inside(row - half, side), _inside(row + half, side)
                box[b, 2], box[b, 3] = _inside(column - half, side), _inside(column + half, side)
                break


@njit(cache=True, nogil=True)
def _inside(edge: float, side: int) -> int:
    """The pixel edge nearest to ``edge``, 0..side."""
    return math.floor(min(max(edge, 0.0), float(side)) + 0.5)


@njit(cache=True, nogil=True)
def _jitter(
    index: Offsets,
    seed: int,
    rotate: float,
    scale: float,
    shear: float,
    shift: float,
    affine: NDArray[np.float32],
) -> None:
    for b in range(len(index)):
        w0, w1, w2, w3 = four_words(seed, index[b], 0, _JITTER)
        w4, w5, _, _ = four_words(seed, index[b], 1, _JITTER)
        angle = rotate * _symmetric(w0)
        wide, high = math.exp(scale * _symmetric(w1)), math.exp(scale * _symmetric(w2))
        slant = shear * _symmetric(w3)
        cosine, sine = math.cos(angle), math.sin(angle)
        # rotation @ shear @ scale
        affine[b, 0, 0] = cosine * wide
        affine[b, 0, 1] = (cosine * slant - sine) * high
        affine[b, 1, 0] = sine * wide
        affine[b, 1, 1] = (sine * slant + cosine) * high
        affine[b, 0, 2] = shift * _symmetric(w4)
        affine[b, 1, 2] = shift * _symmetric(w5)


@njit(cache=True, nogil=True)
def _symmetric(word: np.uint64) -> float:
    return 2.0 * unit(word) - 1.0
