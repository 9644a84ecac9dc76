"""Erosion and dilation of grey and of packed binary images, equal to OpenCV's bit for bit.

    erode:  out[y, x] = min of in[y', x'] over the window of (y, x)          dilate: max
    window: size 3: y-1..y+1, x-1..x+1;  size 5: y-2..y+2, x-2..x+2;  size 2: y-1..y, x-1..x
            (for both operations: OpenCV does not mirror the anchor of a dilation)

What lies outside the image is ignored. ``iterations`` repeats the operation; OpenCV takes one
larger window instead, which is the same.

How: a window is the minimum over columns of the minimum over rows. Both are taken over an image's
flat memory without regard to where rows end, so vectors are full at any width: 32 pixels at a time
(64 make most loads straddle two cache lines), or 8 words. The row ends are mended in passing: an
edge is 255 where a pixel has no such neighbour, and x | 255 never is the minimum. Size 5 is size 3
twice, and a dilation is the erosion of the complement, so there is one step, of reach 1, compiled
for bytes (min) and for words of bits (and). It takes a few rows at a time, so that what lies
between its two halves stays in the first-level cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from fastvae.kernels.bitrows import (
    Images,
    Words,
    check_images,
    check_words,
    few_threads,
    intrinsic,
    ir,
    last_mask,
    vector_load,
    vector_of,
    vector_store,
    words_per_row,
)
from fastvae.kernels.jit import njit
from fastvae.kernels.raster_frame import in_threads

SIZES = (2, 3, 5)
_TILE = 4096  # bytes between the two halves
_BYTES, _WORDS = 32, 8  # lanes
_FLIP = {1: (np.uint8(0), np.uint8(255)), 8: (np.uint64(0), np.uint64(2**64 - 1))}
"""By bytes of an element: what turns an erosion into itself, and into a dilation."""

Pixels = NDArray[np.uint8] | NDArray[np.uint64]
"""Bytes, or words of bits; flat."""


def erode(
    images: Images,
    size: int = 3,
    iterations: int = 1,
    out: Images | None = None,
    threads: int = 0,
) -> Images:
    """The minimum over size x size pixels: ``cv2.erode`` with ones((size, size)).

    Args:
        size: 2, 3 or 5.
        iterations: how often, 0 or more.
        out: where to write; no memory in common with ``images``.
        threads: 0 for OMP_NUM_THREADS, or the cores there are; the result is the same with any.

    Shapes: images (B, H, W) uint8, unchanged; returns (B, H, W) uint8.
    """
    return _grey(images, size, iterations, out, threads, dilation=False)


def dilate(
    images: Images,
    size: int = 3,
    iterations: int = 1,
    out: Images | None = None,
    threads: int = 0,
) -> Images:
    """The maximum over size x size pixels: ``cv2.dilate``; arguments as ``erode``."""
    return _grey(images, size, iterations, out, threads, dilation=True)


def erode_packed(
    words: Words,
    width: int,
    size: int = 3,
    iterations: int = 1,
    out: Words | None = None,
    threads: int = 0,
) -> Words:
    """``erode`` of binary images as rows of bits (``bitrows``): the AND over the window.

    Bits beyond the width are ignored, and 0 in the result.

    Shapes: words (B, H, ceil(width / 64)) uint64, unchanged; returns the same shape.
    """
    return _packed(words, width, size, iterations, out, threads, dilation=False)


def dilate_packed(
    words: Words,
    width: int,
    size: int = 3,
    iterations: int = 1,
    out: Words | None = None,
    threads: int = 0,
) -> Words:
    """``dilate`` of binary images as rows of bits: the OR over the window."""
    return _packed(words, width, size, iterations, out, threads, dilation=True)


def _grey(
    images: Images, size: int, iterations: int, out: Images | None, threads: int, *, dilation: bool
) -> Images:
    check_images("images", images)
    height, width = images.shape[1:]
    steps = _steps(size, iterations, max(height, width))
    edges, rows = _edges(height, width, size)
    return _run(images, steps, edges, rows, width, size, out, threads, dilation)


def _packed(
    words: Words,
    width: int,
    size: int,
    iterations: int,
    out: Words | None,
    threads: int,
    *,
    dilation: bool,
) -> Words:
    check_words(words, width)
    height, across = words.shape[1:]
    steps = _steps(size, iterations, max(height, width))
    edges, rows = edges_of_words(height, width, size)
    target = _run(words, steps, edges, rows, across, size, out, threads, dilation)
    if steps == 0:
        target[:, :, -1] &= last_mask(width)
    return target


def _steps(size: int, iterations: int, extent: int) -> int:
    """How many steps of reach 1 it takes; after ``extent`` of them nothing changes any more."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(map(str, SIZES))}, got {size!r}")
    if not isinstance(iterations, int | np.integer) or iterations < 0:
        raise ValueError(f"iterations must be an integer >= 0, got {iterations!r}")
    return min(int(iterations) * (2 if size == 5 else 1), extent)


def _run(
    images: NDArray[Any],
    steps: int,
    edges: NDArray[Any],
    rows: int,
    across: int,
    size: int,
    out: NDArray[Any] | None,
    threads: int,
    dilation: bool,
) -> NDArray[Any]:
    count, height, _ = images.shape
    target = _target(images, out)
    if steps == 0:
        np.copyto(target, images)
        return target
    source, flat = np.ascontiguousarray(images).reshape(-1), target.reshape(-1)
    flip = _FLIP[images.dtype.itemsize][dilation]

    def run(lo: int, hi: int) -> None:
        _erode(lo, hi, source, flat, height, across, steps, size == 2, edges, rows, flip)

    in_threads(run, count, few_threads(threads, images.nbytes * max(steps, 1)))
    return target


def _target(source: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    if out is None:
        return np.empty(source.shape, dtype=source.dtype)
    if out.shape != source.shape or out.dtype != source.dtype:
        raise ValueError(f"out must be {source.shape} {source.dtype}, got {out.shape} {out.dtype}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be writable and in C order")
    if np.may_share_memory(source, out):
        raise ValueError("out and the images must not share memory")
    return out


@lru_cache(maxsize=32)
def _edges(height: int, width: int, size: int) -> tuple[Images, int]:
    """What ``step`` has to know of the ends of rows, and how many rows it does at a time.

    (2 * (rows * width + lanes),) uint8: 255 where the pixel to the left has no place in the image
    or in the window, else 0; then the same of the pixel to the right.
    """
    rows = max(1, min(height, _TILE // width))
    edges = np.zeros((2, rows * width + _BYTES), dtype=np.uint8)
    left, right = edges[:, : rows * width].reshape(2, rows, width)
    left[:, 0] = right[:, -1] = 255
    if size == 2:
        right[:] = 255
    return edges.reshape(-1), rows


@lru_cache(maxsize=32)
def edges_of_words(height: int, width: int, size: int = 3) -> tuple[Words, int]:
    """The same for bits; (3 * (rows * words + lanes),) uint64, last the bits that are pixels."""
    across = words_per_row(width)
    rows = max(1, min(height, _TILE // (8 * across)))
    edges = np.zeros((3, rows * across + _WORDS), dtype=np.uint64)
    left, right, pixels = edges[:, : rows * across].reshape(3, rows, across)
    left[:, 0] = 1
    right[:, -1] = 1 << ((width - 1) % 64)
    if size == 2:
        right[:] = 2**64 - 1
    pixels[:] = 2**64 - 1
    pixels[:, -1] = last_mask(width)
    return edges.reshape(-1), rows


@njit(cache=True, nogil=True)
def _erode(
    lo: int,
    hi: int,
    images: Pixels,
    out: Pixels,
    height: int,
    across: int,
    steps: int,
    up_only: bool,
    edges: Pixels,
    rows: int,
    flip: Any,
) -> None:
    """Images lo..hi-1, several in one go where they are small.

    The last ones, whose slack would reach beyond them, go by way of ``work``.
    """
    size, slack = height * across, lanes(images)
    many = max(1, min(hi - lo, _TILE // (size * images.itemsize)))
    area = many * size + slack
    work = np.zeros(2 * area, images.dtype)
    half = np.zeros(rows * across + 3 * slack, images.dtype)
    b = lo
    if steps == 1:
        b = max(lo, hi - 1 - (slack - 1) // size)
        at = lo * size
        step(images, at, out, at, b - lo, height, across, up_only, edges, rows, half, flip)
    while b < hi:
        n = min(many, hi - b)
        at, end = b * size, (b + n) * size
        inside = end + slack <= hi * size
        if inside:
            step(images, at, work, 0, n, height, across, up_only, edges, rows, half, flip)
        else:
            work[: n * size] = images[at:end]
        here = 0
        for _ in range(steps - 2 if inside else steps):
            there = area - here
            step(work, here, work, there, n, height, across, up_only, edges, rows, half, flip)
            here = there
        if inside:
            step(work, here, out, at, n, height, across, up_only, edges, rows, half, flip)
        else:
            out[at:end] = work[here : here + n * size]
        b += n


@intrinsic
def lanes(typing: Any, images: Any) -> Any:
    """Bytes or words in a vector, as a constant: a loop whose stride LLVM does not know is slow."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(ir.IntType(64), _vector(images).count)

    return types.int64(images), code


@njit(cache=True, nogil=True)
def step(
    source: Pixels,
    at: int,
    out: Pixels,
    to: int,
    count: int,
    height: int,
    across: int,
    up_only: bool,
    edges: Pixels,
    rows: int,
    half: Pixels,
    flip: Any,
) -> None:
    """One step of reach 1 from ``count`` images in source[at:] to out[to:]: an erosion, or a
    dilation where ``flip`` is all ones.

    Vectors run over the end of what they do, always upwards, and what they spoil is written again
    by what follows; ``lanes`` elements beyond the images are read, and spoilt in ``out``.

    Args:
        across: elements in a row.
        up_only: the window is that of size 2.
        edges, rows: from ``_edges`` or ``edges_of_words``.
        half: (rows * across + 3 * lanes,), scratch.
    """
    block = lanes(source)
    stride = rows * across + block
    right, pixels = edges[stride], edges[len(edges) - stride]
    below = 0 if up_only else across
    under = below if height > 1 else 0  # of the first row
    last = (height - 1) * across  # where the last row begins
    for _ in range(count):
        if source.itemsize == 8 and across == 1 and height >= block and not up_only:
            for y in range(0, height, block):
                j = min(y, height - block)
                before, after = at + max(j - 1, 0), at + min(j + block, last)
                window(out, to + j, source, at + j, before, after, right, pixels, flip)
        else:
            for top in range(0, height, rows):
                begin, end = top * across, min(top + rows, height) * across
                shift = block - begin
                if top == 0:
                    for i in range(0, across, block):
                        j = at + i
                        least_of_rows(half, shift + i, source, j, j, j + under, flip)
                for i in range(max(begin, across), min(end, last), block):
                    j = at + i
                    least_of_rows(half, shift + i, source, j - across, j, j + below, flip)
                if end > last and height > 1:
                    for i in range(last, end, block):
                        j = at + i
                        least_of_rows(half, shift + i, source, j - across, j, j, flip)
                for i in range(begin, end, block):
                    least_of_columns(out, to + i, half, shift + i, edges, i - begin, stride, flip)
        at += height * across
        to += height * across


def _least(array: Any, builder: Any, a: Any, b: Any) -> Any:
    """The minimum of two vectors of pixels."""
    if array.dtype == types.uint64:
        return builder.and_(a, b)
    return builder.select(builder.icmp_unsigned("<", a, b), a, b)


def _vector(array: Any) -> Any:
    """The LLVM type of a vector of elements of this array."""
    if array.dtype == types.uint64:
        return ir.VectorType(ir.IntType(64), _WORDS)
    return ir.VectorType(ir.IntType(8), _BYTES)


def _all(vector: Any, value: int) -> Any:
    return ir.Constant(vector, [value] * vector.count)


@intrinsic
def least_of_rows(
    typing: Any, out: Any, to: Any, source: Any, above: Any, at: Any, below: Any, flip: Any
) -> Any:
    """out[to + j] = min of flip ^ source at above + j, at + j, below + j (no look at bounds)."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = _vector(source)
        flipped = vector_of(builder, values[6], kind.count)
        a, b, c = (
            builder.xor(vector_load(context, builder, source, values[2], place, kind), flipped)
            for place in values[3:6]
        )
        least = _least(source, builder, _least(source, builder, a, b), c)
        vector_store(context, builder, out, values[0], values[1], least)
        return context.get_dummy_value()

    place = types.int64
    return types.void(out, place, source, place, place, place, source.dtype), code


@intrinsic
def least_of_columns(
    typing: Any,
    out: Any,
    to: Any,
    half: Any,
    at: Any,
    edges: Any,
    edge: Any,
    stride: Any,
    flip: Any,
) -> Any:
    """out[to + j] = flip ^ min of the pixels half[at + j] and their neighbours to both sides.

    What the edges say of element j stands at edge + j, edge + stride + j, ... (no look at bounds).
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind, one = _vector(half), ir.Constant(ir.IntType(64), 1)

        def load(argument: int, place: Any) -> Any:
            array = signature.args[argument]
            return vector_load(context, builder, array, values[argument], place, kind)

        here, first = values[3], values[5]
        second = builder.add(first, values[6])
        middle = load(2, here)
        before, after = load(2, builder.sub(here, one)), load(2, builder.add(here, one))
        if half.dtype == types.uint64:
            before, after = _bits_beside(builder, middle, before, after)
        before = builder.or_(before, load(4, first))
        after = builder.or_(after, load(4, second))
        least = _least(half, builder, _least(half, builder, middle, before), after)
        least = builder.xor(least, vector_of(builder, values[7], kind.count))
        if half.dtype == types.uint64:
            least = builder.and_(least, load(4, builder.add(second, values[6])))
        vector_store(context, builder, out, values[0], values[1], least)
        return context.get_dummy_value()

    place = types.int64
    return types.void(out, place, half, place, edges, place, place, half.dtype), code


def _bits_beside(builder: Any, words: Any, before: Any, after: Any) -> tuple[Any, Any]:
    """Each pixel's neighbours, in its own place, from the words before and after."""
    one, most = _all(words.type, 1), _all(words.type, 63)
    left = builder.or_(builder.shl(words, one), builder.lshr(before, most))
    right = builder.or_(builder.lshr(words, one), builder.shl(after, most))
    return left, right


@intrinsic
def window(
    typing: Any,
    out: Any,
    to: Any,
    source: Any,
    at: Any,
    before: Any,
    after: Any,
    right: Any,
    pixels: Any,
    flip: Any,
) -> Any:
    """Both halves at once, for rows of one word, where left and right are in the word itself.

    Rows at + j to out[to + j]; ``before`` and ``after`` are the rows around them, or where the
    image ends the first and the last themselves. Bytes have no such rows, and never come here.
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if source.dtype != types.uint64:
            return context.get_dummy_value()
        kind = _vector(source)
        many, data = kind.count, context.make_array(source)(context, builder, values[2]).data
        over, under = (
            vector_of(builder, builder.load(builder.gep(data, [place])), many)
            for place in values[4:6]
        )
        last, used, flipped = (vector_of(builder, x, many) for x in values[6:9])
        rows = vector_load(context, builder, source, values[2], values[3], kind)
        places = ir.VectorType(ir.IntType(32), many)
        down = ir.Constant(places, [0, *range(many, 2 * many - 1)])
        up = ir.Constant(places, [*range(1, many), many])
        above = builder.shuffle_vector(over, rows, down)
        below = builder.shuffle_vector(rows, under, up)
        middle, above, below = (builder.xor(x, flipped) for x in (rows, above, below))
        middle = builder.and_(builder.and_(middle, above), below)
        left, beyond = _bits_beside(builder, middle, _all(kind, 0), _all(kind, 0))
        least = builder.and_(middle, builder.or_(left, _all(kind, 1)))
        least = builder.and_(least, builder.or_(beyond, last))
        least = builder.and_(builder.xor(least, flipped), used)
        vector_store(context, builder, out, values[0], values[1], least)
        return context.get_dummy_value()

    place, word = types.int64, source.dtype
    return types.void(out, place, source, place, place, place, word, word, word), code
