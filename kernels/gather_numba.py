"""The fused form of ``gather.py`` for a CPU: bytes are read once and float32 is written once.

An image that lies in memory in the order of the result, and is neither mirrored nor binarized, goes
straight from the data set to the batch, 8 pixels at a time. Any other one is first arranged as
bytes, in a row of scratch memory that stays in the cache: in the order (C, H, W), in which random
bits are numbered, binarized to 0 and 255, mirrored, and put into the order of the result. Images to
come are fetched meanwhile.

The bits are those of the plain form. A byte p times a = 2^-8 + 2^-16 is exact, and p a + p b, with
b = 1 / 255 - a, is p / 255 rounded once (``test_gather_numba.py`` tries all 256); all that follows
is rounded as there.

float32 only, and tensors that have memory of their own; anything else takes the plain form.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import types
from numpy.typing import NDArray
from torch import Tensor

from fastvae.kernels import gather
from fastvae.kernels.gather_rows import Index, in_few_threads
from fastvae.kernels.jit import njit
from fastvae.kernels.memory import (
    BYTE,
    WORD,
    byte_at,
    copy,
    fetch_line,
    ir,
    load,
    put_float,
    store,
    vector,
)
from fastvae.kernels.philox_numba import M0, M1, MASK, W0, W1, four_words
from fastvae.kernels.strokes import read_only

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False, "error_model": "numpy"}
_compiled: Any = njit(**_OPTIONS)
_inlined: Any = njit(**_OPTIONS, forceinline=True)

_LANES = 8  # pixels that are converted at once: with 16 it is slower, though stores are wider
_AHEAD = 4096  # bytes of images to come that are fetched, at least one image
_SPLIT = 16  # pixels of three bytes that are split at once
_A = 2.0**-8 + 2.0**-16
_B = float(np.float32(1 / 255 - _A))
_GROUPS = 8  # of four pixels, for which random words are made at once
_EVERY = range(_GROUPS)
_NONE, _THRESHOLD, _STOCHASTIC = range(3)
_MODES = {"none": _NONE, "threshold": _THRESHOLD, "stochastic": _STOCHASTIC}


def gather_normalize(
    images: Tensor,
    indices: Tensor,
    keys: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    rng: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
    flip: float,
    binarize: str,
    threshold: float,
) -> Tensor:
    """See ``gather.gather_normalize``, whose arguments and results these are."""
    if dtype != torch.float32 or type(images) is not Tensor or images.numel() == 0:
        return gather.gather_normalize(
            images, indices, keys, mean, std, rng, dtype, channels_last, flip, binarize, threshold
        )
    out = gather.allocate(images, len(indices), dtype, channels_last)
    write(out, images, indices, keys, mean, std, rng, flip, binarize, threshold)
    return out


def write(
    out: Tensor,
    images: Tensor,
    indices: Tensor,
    keys: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    rng: Tensor | None,
    flip: float,
    binarize: str,
    threshold: float,
) -> None:
    """The same into ``out`` (B, C, H, W) float32, dense, in either order of memory."""
    count, channels, height, width = images.shape
    size = channels * height * width
    mode, mirror = _MODES[binarize], gather.flip_bound(flip)
    order = key = read_only(np.ascontiguousarray(indices.numpy()))
    if mirror > 0 or mode == _STOCHASTIC:
        key = read_only(np.ascontiguousarray(keys.numpy()))
    normalize = mean is not None or std is not None
    shift = _per_channel(mean, 0.0, channels)
    scale = _per_channel(std, 1.0, channels)
    above = gather.threshold_bound(threshold)
    seed = 0 if rng is None else int(rng[0])
    source, strides, target = images.data_ptr(), images.stride(), out.data_ptr()
    last = channels > 1 and not out.is_contiguous()

    def run(lo: int, hi: int) -> None:
        scratch = np.empty(2 * size + 4 * _GROUPS, dtype=np.uint8)
        constants = np.empty((2, channels * (_LANES + 1)), dtype=np.float32)
        _rows(
            lo, hi, source, count, strides, (channels, height, width), order, key, target, last,
            shift, scale, normalize, mode, above, mirror, seed, scratch, constants,
        )  # fmt: skip

    in_few_threads(run, len(order), torch.get_num_threads(), 4 * size * len(order))


def _per_channel(value: Tensor | None, default: float, channels: int) -> Floats:
    if value is None:
        return _constant(default, channels)
    return np.ascontiguousarray(value.detach().numpy())


@lru_cache(maxsize=64)
def _constant(value: float, channels: int) -> Floats:
    return np.full(channels, value, dtype=np.float32)


# -------------------------------------------------------------------------------- vectors
def _convert(lanes: int, normalize: bool) -> Any:
    """``lanes`` bytes at ``source`` over 255 as float32 at ``target``; with ``normalize`` less the
    floats at ``shift``, over those at ``scale``. All are absolute addresses."""

    def convert(typing: Any, target: Any, source: Any, shift: Any, scale: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            floats = ir.VectorType(ir.FloatType(), lanes)
            a, b = (ir.Constant(floats, [x] * lanes) for x in (_A, _B))
            byte = builder.uitofp(load(builder, values[1], ir.VectorType(BYTE, lanes)), floats)
            value = builder.fadd(builder.fmul(byte, a), builder.fmul(byte, b))
            if normalize:
                value = builder.fsub(value, load(builder, values[2], floats))
                value = builder.fdiv(value, load(builder, values[3], floats))
            store(builder, value, values[0])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), code

    return vector(convert)


_plain8, _plain1 = _convert(_LANES, False), _convert(1, False)
_normal8, _normal1 = _convert(_LANES, True), _convert(1, True)


@vector
def _split3(typing: Any, source: Any, target: Any, plane: Any) -> Any:
    """16 pixels of 3 bytes at ``source`` to 16 bytes in each of 3 planes, ``plane`` bytes apart."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        origin, to, apart = values
        wide = ir.VectorType(BYTE, 3 * _SPLIT)
        pixels = load(builder, origin, wide)
        for c in range(3):
            order = _lanes([3 * i + c for i in range(_SPLIT)])
            part = builder.shuffle_vector(pixels, pixels, order)
            store(builder, part, to)
            to = builder.add(to, apart)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), code


@vector
def _draw32(typing: Any, place: Any, seed: Any, key: Any, group: Any) -> Any:
    """32 bytes p at ``place`` to 255 with probability p / 255, else to 0: the bits of
    ``philox_bernoulli`` for groups ``group`` .. ``group + 7`` of four pixels each.

    What ``philox_numba.four_words`` computes, for eight groups at once.
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place, seed, key, group = values
        wide = ir.VectorType(WORD, _GROUPS)
        bytes_, all_bytes = (ir.VectorType(BYTE, n) for n in (_GROUPS, 4 * _GROUPS))
        low, half = ir.Constant(WORD, int(MASK)), ir.Constant(WORD, 32)

        def all_of(value: int) -> Any:
            return ir.Constant(wide, [value] * _GROUPS)

        def spread(value: Any) -> Any:
            one = builder.insert_element(ir.Constant(wide, ir.Undefined), value, _lane(0))
            return builder.shuffle_vector(one, one, _lanes([0] * _GROUPS))

        def halves(value: Any) -> tuple[Any, Any]:
            return builder.and_(value, low), builder.lshr(value, half)

        count = ir.Constant(wide, list(range(_GROUPS)))
        c0 = builder.and_(builder.add(spread(group), count), all_of(int(MASK)))
        c1, c2 = (spread(word) for word in halves(key))
        c3 = all_of(0)
        k0, k1 = halves(seed)
        for _ in range(10):
            first, second = builder.mul(c0, all_of(int(M0))), builder.mul(c2, all_of(int(M1)))
            high = [builder.lshr(word, all_of(32)) for word in (second, first)]
            c0 = builder.xor(builder.xor(high[0], c1), spread(k0))
            c2 = builder.xor(builder.xor(high[1], c3), spread(k1))
            c1, c3 = (builder.and_(word, all_of(int(MASK))) for word in (second, first))
            k0 = builder.and_(builder.add(k0, ir.Constant(WORD, int(W0))), low)
            k1 = builder.and_(builder.add(k1, ir.Constant(WORD, int(W1))), low)

        pixels = load(builder, place, all_bytes)
        none, white = (ir.Constant(bytes_, [x] * _GROUPS) for x in (0, 255))
        drawn = []
        for j, word in enumerate((c0, c1, c2, c3)):
            part = builder.shuffle_vector(pixels, pixels, _lanes([4 * g + j for g in _EVERY]))
            bound = builder.mul(builder.zext(part, wide), all_of(0x01010101))
            full = builder.zext(builder.icmp_unsigned("==", part, white), wide)
            below = builder.icmp_signed("<", word, builder.add(bound, full))
            drawn.append(builder.select(below, white, none))
        pairs = [
            builder.shuffle_vector(drawn[j], drawn[j + 1], _lanes(list(range(2 * _GROUPS))))
            for j in (0, 2)
        ]
        order = [_GROUPS * j + g for g in _EVERY for j in range(4)]
        store(builder, builder.shuffle_vector(*pairs, _lanes(order)), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), code


def _lane(number: int) -> Any:
    return ir.Constant(ir.IntType(32), number)


def _lanes(numbers: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


# -------------------------------------------------------------------------------- kernels
@_inlined
def _dense(size: int, stride: int, expected: int) -> bool:
    """Is this the stride of an axis of a dense image? Of one element any is."""
    return size == 1 or stride == expected


@_inlined
def _plain(target: int, source: int, count: int, ahead: int) -> None:
    """``count`` bytes over 255 as floats. The bytes at ``ahead`` are fetched meanwhile."""
    whole = count & -64
    for k in range(0, whole, 64):
        fetch_line(ahead + k)
        for j in range(k, k + 64, _LANES):
            _plain8(target + 4 * j, source + j, 0, 0)
    for k in range(whole, count & -_LANES, _LANES):
        _plain8(target + 4 * k, source + k, 0, 0)
    for k in range(count & -_LANES, count):
        _plain1(target + 4 * k, source + k, 0, 0)


@_inlined
def _normal(
    target: int, source: int, count: int, shift: int, scale: int, period: int, ahead: int
) -> None:
    """The same, normalized. The constants repeat after ``period`` and go on for 8 more."""
    whole, step, phase = count & -_LANES, _LANES % period, 0
    for k in range(0, whole, _LANES):
        if k & 63 == 0:
            fetch_line(ahead + k)
        _normal8(target + 4 * k, source + k, shift + 4 * phase, scale + 4 * phase)
        phase += step
        phase -= period if phase >= period else 0
    for k in range(whole, count):
        at = 4 * (k % period)
        _normal1(target + 4 * k, source + k, shift + at, scale + at)


@_compiled
def _to_planes(
    place: int, strides: tuple[int, int, int, int], shape: tuple[int, int, int], planes: Bytes
) -> None:
    """An image at ``place`` in the order (C, H, W)."""
    channels, height, width = shape
    area = height * width
    _, of_c, of_h, of_w = strides
    if channels == 3 and of_c == 1 and of_w == 3 and of_h == 3 * width and area >= _SPLIT:
        to = np.int64(planes.ctypes.data)
        for k in range(0, area - _SPLIT + 1, _SPLIT):
            _split3(place + 3 * k, to + k, area)
        k = area - _SPLIT  # what is left, with some of what was there before
        _split3(place + 3 * k, to + k, area)
        return
    for c in range(channels):
        for h in range(height):
            at = (c * height + h) * width
            row = place + c * of_c + h * of_h
            if of_w == 1:
                copy(np.int64(planes.ctypes.data) + at, row, width)
            else:
                for w in range(width):
                    planes[at + w] = byte_at(row + w * of_w)


@_compiled
def _mirror(planes: Bytes, rows: int, width: int) -> None:
    for row in range(rows):
        left, right = row * width, row * width + width - 1
        while left < right:
            planes[left], planes[right] = planes[right], planes[left]
            left += 1
            right -= 1


@_compiled
def _rows(
    lo: int,
    hi: int,
    source: int,
    count: int,
    strides: tuple[int, int, int, int],
    shape: tuple[int, int, int],
    order: Index,
    keys: Index,
    target: int,
    last: bool,
    shift: Floats,
    scale: Floats,
    normalize: bool,
    mode: int,
    above: int,
    mirror: int,
    seed: int,
    scratch: Bytes,
    constants: Floats,
) -> None:
    """Rows lo..hi-1 of the batch."""
    channels, height, width = shape
    area = height * width
    size = channels * area
    step, of_c, of_h, of_w = strides
    if last:
        straight = _dense(width, of_w, channels) and _dense(height, of_h, channels * width)
        straight = straight and of_c == 1
    else:
        straight = _dense(width, of_w, 1) and _dense(height, of_h, width)
        straight = straight and _dense(channels, of_c, area)
    straight = straight and mode == _NONE
    for j in range(channels * (_LANES + 1)):
        c = j % channels if last else j // (_LANES + 1)
        constants[0, j], constants[1, j] = shift[c], scale[c]
    first = np.int64(constants.ctypes.data)
    second = first + 4 * channels * (_LANES + 1)
    planes, pixels = scratch[:size], scratch[size:]
    further = 1 + _AHEAD // size

    for b in range(lo, hi):
        i, to = order[b], target + 4 * size * b
        if i < 0 or i >= count:
            for k in range(size):
                put_float(to + 4 * k, np.float32(np.nan))
            continue
        place = source + i * step
        ahead = source + step * order[min(b + further, hi - 1)]
        flipped = mirror > 0 and np.int64(four_words(seed, keys[b], 0, 1)[0]) < mirror
        if not straight or flipped:
            _to_planes(place, strides, shape, planes)
            place = np.int64(planes.ctypes.data)
            if mode == _THRESHOLD:
                for k in range(size):
                    planes[k] = np.uint8(255) if np.int64(planes[k]) > above else np.uint8(0)
            elif mode == _STOCHASTIC:  # up to 31 bytes of ``pixels`` are spoilt
                for k in range(0, size, 4 * _GROUPS):
                    _draw32(place + k, seed, keys[b], k >> 2)
            if flipped:
                _mirror(planes, channels * height, width)
            if last:
                for c in range(channels):
                    for k in range(area):
                        pixels[k * channels + c] = planes[c * area + k]
                place = np.int64(pixels.ctypes.data)
        if not normalize:
            _plain(to, place, size, ahead)
        elif last:
            _normal(to, place, size, first, second, channels, ahead)
        else:
            for c in range(channels):
                skip = 4 * c * (_LANES + 1)
                k = c * area
                _normal(to + 4 * k, place + k, area, first + skip, second + skip, 1, ahead + k)
