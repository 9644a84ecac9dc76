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

A cut is moved to an earlier place when nothing of what it hides would be seen: every hidden point
lies within ``margin`` of what is shown, e.g. where a stroke was drawn twice. Then the partial image
would be the full one, and a model that completes drawings would learn to add nothing. Only a
drawing that lies within ``margin`` of its own beginning keeps such a cut.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastvae.kernels.philox_numba import four_words, unit
from fastvae.kernels.strokes import Offsets, Points, Strokes, check_index

PrefixMode = Literal["strokes", "points", "time"]
_MODES = {"strokes": 0, "points": 1, "time": 2}
_CUT, _BOX, _JITTER = 16, 17, 18  # Philox streams; 0 and 1 belong to noise, pixels and mirroring
_MOST_LOOKED_AT = 64  # hidden points compared with what is shown: bounds the work per drawing


def prefix_cuts(
    strokes: Strokes,
    index: Offsets,
    seed: int,
    mode: PrefixMode,
    *,
    low: float = 0.0,
    high: float = 1.0,
    margin: float = 16.0,
    time: NDArray[np.int32] | None = None,
) -> Offsets:
    """How many of its points each partial drawing shows.

    Args:
        strokes: all drawings.
        index: (B,) int64, which of them.
        seed: int64 >= 0.
        low, high: range of the share shown, 0 <= low <= high <= 1.
        margin: in units of the points (0..255); one line width by default.
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
    bad = _prefix_cuts(
        strokes.points,
        strokes.stroke_offset,
        strokes.drawing_offset,
        np.empty(0, dtype=np.int32) if time is None or mode != "time" else time,
        index,
        seed,
        _MODES[mode],
        low,
        high,
        margin,
        cut,
    )
    raise_bad_offsets(bad, index)
    return cut


def boxes(
    strokes: Strokes,
    index: Offsets,
    seed: int,
    *,
    side: int,
    scale: float,
    offset: float,
    line: float,
    centred: bool = True,
    affine: NDArray[np.float32] | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> NDArray[np.int32]:
    """The box that each partial image blanks out.

    Args:
        side: of the images, in pixels.
        scale, offset: pixel = scale * unit + offset.
        line: width of a line in pixels.
        centred: whether drawings are centred on the canvas first, as ``raster.rasterize`` does.
        affine: jitter, as given to ``raster.rasterize``.

    Returns:
        (B, 4) int32: first row, row after the last, first column, column after the last. A box is
        at least three pixels wider than a line. An empty drawing has an empty box.
    """
    check_index(index, strokes.drawings)
    _check_share(low, high)
    box = np.zeros((len(index), 4), dtype=np.int32)
    bad = _boxes(
        strokes.points,
        strokes.stroke_offset,
        strokes.drawing_offset,
        index,
        seed,
        side,
        scale,
        offset,
        line,
        centred,
        np.empty((0, 2, 3), dtype=np.float32) if affine is None else affine,
        low,
        high,
        box,
    )
    raise_bad_offsets(bad, index)
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


def raise_bad_offsets(bad: int, index: Offsets) -> None:
    """Raise for the drawing at position ``bad`` of ``index``; do nothing when it is negative."""
    if bad >= 0:
        raise ValueError(f"drawing {int(index[bad])}: its offsets do not ascend (damaged data)")


def _check_share(low: float, high: float) -> None:
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"low, high = {low}, {high}: expected 0 <= low <= high <= 1")


@njit(cache=True, nogil=True)
def sound(stroke_offset: Offsets, drawing_offset: Offsets, points: int, d: int) -> bool:
    """Whether the offsets of drawing ``d`` ascend and stay inside the arrays."""
    first, last = drawing_offset[d], drawing_offset[d + 1]
    if first < 0 or last < first or last >= len(stroke_offset):
        return False
    if stroke_offset[first] < 0 or stroke_offset[last] > points:
        return False
    descents = 0
    for s in range(first, last):
        descents += stroke_offset[s + 1] < stroke_offset[s]
    return descents == 0


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
    margin: float,
    cut: Offsets,
) -> int:
    for b in range(len(index)):
        d = index[b]
        if not sound(stroke_offset, drawing_offset, len(points), d):
            return b
        first, last = drawing_offset[d], drawing_offset[d + 1]
        begin, end = stroke_offset[first], stroke_offset[last]
        u = low + (high - low) * unit(four_words(seed, d, 0, _CUT)[0])
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
            shown = count
        # Halving keeps the work bounded for a drawing of a million strokes in one place.
        while cut[b] < end - begin and not _shows(
            points, stroke_offset, first, last, begin + cut[b], margin
        ):
            if mode == 0:
                if shown <= 1:
                    break
                shown //= 2
                cut[b] = stroke_offset[first + shown] - begin
            else:
                if cut[b] <= 1:
                    break
                cut[b] //= 2
    return -1


@njit(cache=True, nogil=True)
def _share(count: int, u: float) -> int:
    """max(floor(u * count), 1), less than ``count`` where that is more than one."""
    return min(max(math.floor(u * count), 1), max(count - 1, min(count, 1)))


@njit(cache=True, nogil=True)
def _shows(
    points: Points, stroke_offset: Offsets, first: int, last: int, cut: int, margin: float
) -> bool:
    """Whether a point from ``cut`` on lies farther than ``margin`` from the lines before it."""
    end = stroke_offset[last]
    step = max((end - cut) // _MOST_LOOKED_AT, 1)
    for p in range(cut, end, step):
        x, y = float(points[p, 0]), float(points[p, 1])
        far = True
        s = first
        while far and s < last and stroke_offset[s] < cut:
            stop = min(stroke_offset[s + 1], cut)
            a = stroke_offset[s]
            if a < stop:
                far = _distance_squared(points, a, a, x, y) > margin * margin
            while far and a + 1 < stop:
                far = _distance_squared(points, a, a + 1, x, y) > margin * margin
                a += 1
            s += 1
        if far:
            return True
    return False


@njit(cache=True, nogil=True)
def _distance_squared(points: Points, a: int, b: int, x: float, y: float) -> float:
    """Squared distance of (x, y) from the segment between points ``a`` and ``b``."""
    ax, ay = float(points[a, 0]), float(points[a, 1])
    ux, uy = float(points[b, 0]) - ax, float(points[b, 1]) - ay
    length = ux * ux + uy * uy
    t = 0.0
    if length > 0.0:
        t = min(max(((x - ax) * ux + (y - ay) * uy) / length, 0.0), 1.0)
    dx, dy = x - ax - t * ux, y - ay - t * uy
    return dx * dx + dy * dy


@njit(cache=True, nogil=True)
def _boxes(
    points: Points,
    stroke_offset: Offsets,
    drawing_offset: Offsets,
    index: Offsets,
    seed: int,
    side: int,
    scale: float,
    offset: float,
    line: float,
    centred: bool,
    affine: NDArray[np.float32],
    low: float,
    high: float,
    box: NDArray[np.int32],
) -> int:
    for b in range(len(index)):
        d = index[b]
        if not sound(stroke_offset, drawing_offset, len(points), d):
            return b
        begin, end = stroke_offset[drawing_offset[d]], stroke_offset[drawing_offset[d + 1]]
        if begin == end:
            continue
        right = bottom = 256 if not centred else 0
        for p in range(begin, end):
            right, bottom = max(right, points[p, 0]), max(bottom, points[p, 1])
        words = four_words(seed, d, 0, _BOX)
        chosen = begin + int(unit(words[1]) * (end - begin))
        x = points[chosen, 0] + (256.0 - right) / 2.0
        y = points[chosen, 1] + (256.0 - bottom) / 2.0
        if len(affine):
            a = affine[b]
            x, y = (
                a[0, 0] * (x - 128.0) + a[0, 1] * (y - 128.0) + 128.0 + a[0, 2],
                a[1, 0] * (x - 128.0) + a[1, 1] * (y - 128.0) + 128.0 + a[1, 2],
            )
        hidden = 1.0 - (low + (high - low) * unit(words[0]))
        half = max(side * math.sqrt(hidden), line + 3.0) / 2.0
        row, column = y * scale + offset, x * scale + offset
        box[b, 0], box[b, 1] = _inside(row - half, side), _inside(row + half, side)
        box[b, 2], box[b, 3] = _inside(column - half, side), _inside(column + half, side)
    return -1


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
