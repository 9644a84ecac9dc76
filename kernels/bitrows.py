"""Binary images as rows of bits: 64 pixels to a word, eight times smaller than bytes.

    pixel (x, y) of image b  is bit x % 64 of words[b, y, x // 64]; (B, H, ceil(W / 64)) uint64

Little-endian bit order: the bytes of the words are what ``np.packbits(bitorder="little")`` gives,
filled up to whole words. Bits beyond the width are 0 in everything made here.

Bytes are moved 64 at a time by vectors as LLVM knows them (``vector_load`` and the like, to be used
inside ``numba.extending.intrinsic``), which LLVM turns into whatever the processor has. It finds no
such vectors by itself: Numba's integer arithmetic widens bytes to 64 bits, and a row of 28 pixels
is all remainder.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numba import extending, types
from numpy.typing import NDArray

from fastvae.kernels.jit import njit
from fastvae.kernels.raster_frame import in_threads

Images = NDArray[np.uint8]
Words = NDArray[np.uint64]

ir: Any = import_module("llvmlite.ir")  # has no types
intrinsic: Any = extending.intrinsic  # what it makes has not the signature that Numba tells mypy

BYTE = ir.IntType(8)
_BITS = ir.VectorType(ir.IntType(1), 64)
_ONE, _ALL = np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)
_LITTLE = 1 << 23  # bytes below which starting a thread costs more than it saves


def words_per_row(width: int) -> int:
    """Words that hold ``width`` pixels."""
    return -(-width // 64)


def pack(images: Images, threshold: int = 0, *, threads: int = 0) -> Words:
    """Bit 1 where a pixel is above ``threshold`` (0..255).

    Shapes: images (B, H, W) uint8; returns (B, H, ceil(W / 64)) uint64.
    """
    check_images("images", images)
    check_byte("threshold", threshold)
    count, height, width = images.shape
    words = np.empty((count, height, words_per_row(width)), dtype=np.uint64)
    source, target = np.ascontiguousarray(images).reshape(-1), words.reshape(-1)

    def run(lo: int, hi: int) -> None:
        _pack(lo * height, hi * height, source, target, width, np.uint8(threshold))

    in_threads(run, count, few_threads(threads, images.size))
    return words


def unpack(words: Words, width: int, ink: int = 255, paper: int = 0, *, threads: int = 0) -> Images:
    """Pixels of value ``ink`` where a bit is 1, of value ``paper`` where it is 0.

    Shapes: words (B, H, ceil(width / 64)) uint64; returns (B, H, width) uint8.
    """
    check_words(words, width)
    check_byte("ink", ink)
    check_byte("paper", paper)
    count, height, across = words.shape
    images = np.empty((count, height, width), dtype=np.uint8)
    source, target = np.ascontiguousarray(words).reshape(-1), images.reshape(-1)

    def run(lo: int, hi: int) -> None:
        size = height * width
        unpack_rows(
            source, lo * height * across, (hi - lo) * height, width, target, lo * size, hi * size,
            np.uint8(ink), np.uint8(paper),
        )  # fmt: skip

    in_threads(run, count, few_threads(threads, images.size))
    return images


def few_threads(threads: int, size: int) -> int:
    """``threads``, but one where it is left to us (0) and ``size`` bytes are little to do."""
    if not isinstance(threads, int | np.integer) or threads < 0:
        raise ValueError(f"threads must be an integer >= 0, got {threads!r}")
    return 1 if threads == 0 and size < _LITTLE else int(threads)


def check_images(name: str, images: Images) -> None:
    """Raise unless ``images`` is (B, H, W) uint8 with H and W of at least 1."""
    if images.dtype != np.uint8 or images.ndim != 3 or 0 in images.shape[1:]:
        raise ValueError(
            f"{name} must be (B, H, W) uint8 with H, W >= 1, got {images.shape} {images.dtype}"
        )


def check_words(words: Words, width: int) -> None:
    """Raise unless ``words`` is (B, H, ceil(width / 64)) uint64 with H and width of at least 1."""
    if not isinstance(width, int | np.integer) or width < 1:
        raise ValueError(f"width must be an integer >= 1, got {width!r}")
    across = words_per_row(width)
    if (
        words.dtype != np.uint64
        or words.ndim != 3
        or words.shape[1] == 0
        or words.shape[2] != across
    ):
        raise ValueError(
            f"words must be (B, H, {across}) uint64 with H >= 1 for width = {width}, "
            f"got {words.shape} {words.dtype}"
        )


def check_byte(name: str, value: int) -> None:
    """Raise unless ``value`` is an integer in 0..255."""
    if not isinstance(value, int | np.integer) or not 0 <= value <= 255:
        raise ValueError(f"{name} must be an integer in 0..255, got {value!r}")


@njit(cache=True, nogil=True)
def last_mask(width: int) -> np.uint64:
    """The bits of a row's last word that are pixels."""
    used = width & 63
    return _ALL if used == 0 else (_ONE << np.uint64(used)) - _ONE


@njit(cache=True, nogil=True)
def _pack(
    first: int, last: int, pixels: Images, words: Words, width: int, threshold: np.uint8
) -> None:
    """Rows first..last-1 of all rows, one after the other."""
    across, mask = (width + 63) >> 6, last_mask(width)
    for row in range(first, last):
        for k in range(across):
            at = row * width + 64 * k
            if at + 64 <= len(pixels):
                word = bits_above(pixels, at, threshold)
            else:
                word = np.uint64(0)
                for j in range(len(pixels) - at):
                    word |= np.uint64(pixels[at + j] > threshold) << np.uint64(j)
            words[row * across + k] = word & mask if k == across - 1 else word


@njit(cache=True, nogil=True)
def unpack_rows(
    words: Words,
    start: int,
    rows: int,
    width: int,
    pixels: Images,
    at: int,
    end: int,
    ink: np.uint8,
    paper: np.uint8,
) -> None:
    """``rows`` rows from words[start:] to pixels[at:]; nothing is written from ``end`` on.

    What a row's last word writes too much, the next row overwrites. After the last row up to 63
    pixels before ``end`` are spoilt, so whoever has more to write goes on upwards.
    """
    across = (width + 63) >> 6
    for row in range(rows):
        for k in range(across):
            to = at + row * width + 64 * k
            word = words[start + row * across + k]
            if to + 64 <= end:
                store_bits(pixels, to, word, ink, paper)
            else:
                for j in range(min(64, width - 64 * k)):
                    pixels[to + j] = ink if (word >> np.uint64(j)) & _ONE else paper


def vector_load(context: Any, builder: Any, array: Any, value: Any, at: Any, kind: Any) -> Any:
    """A vector of type ``kind`` from element ``at`` on of an array (Numba type, LLVM value)."""
    loaded = builder.load(_place(context, builder, array, value, at, kind))
    loaded.align = 1
    return loaded


def vector_store(context: Any, builder: Any, array: Any, value: Any, at: Any, vector: Any) -> None:
    """Write ``vector`` from element ``at`` on."""
    place = _place(context, builder, array, value, at, vector.type)
    builder.store(vector, place).align = 1


def vector_of(builder: Any, scalar: Any, lanes: int) -> Any:
    """``scalar`` in every lane."""
    kind = ir.VectorType(scalar.type, lanes)
    zero = ir.Constant(ir.IntType(32), 0)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, zero)
    return builder.shuffle_vector(
        first,
        ir.Constant(kind, ir.Undefined),
        ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes),
    )


def _place(context: Any, builder: Any, array: Any, value: Any, at: Any, kind: Any) -> Any:
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [at]), kind.as_pointer())


@intrinsic
def store_bits(typing: Any, pixels: Any, at: Any, word: Any, ink: Any, paper: Any) -> Any:
    """pixels[at + j] = ink if bit j of word else paper, for j in 0..63 (no look at the bounds)."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        out, first, bits, one, zero = values
        chosen = builder.select(
            builder.bitcast(bits, _BITS), vector_of(builder, one, 64), vector_of(builder, zero, 64)
        )
        vector_store(context, builder, signature.args[0], out, first, chosen)
        return context.get_dummy_value()

    return types.void(pixels, types.int64, types.uint64, types.uint8, types.uint8), code


@intrinsic
def bits_above(typing: Any, pixels: Any, at: Any, threshold: Any) -> Any:
    """The word whose bit j is pixels[at + j] > threshold (no look at the bounds)."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.VectorType(BYTE, 64)
        loaded = vector_load(context, builder, signature.args[0], values[0], values[1], kind)
        above = builder.icmp_unsigned(">", loaded, vector_of(builder, values[2], 64))
        return builder.bitcast(above, ir.IntType(64))

    return types.uint64(pixels, types.int64, types.uint8), code
