"""The fused form of ``gather.py``: one read of the bytes, one write of the batch.

A tile runs over pixels in the order of the output's memory, so that stores are wide; with
stochastic bits it runs in the order of Philox's columns, four of which share one evaluation. On
the other side of the copy the address of a pixel comes from its coordinates, unless the memory
orders agree. Image sizes are compile-time constants: divisions by them become multiplications, at
the price of one compilation per data set.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvae.kernels.gather import FLIP_STREAM, allocate, flip_bound, threshold_bound
from fastvae.kernels.launch import LAUNCH
from fastvae.kernels.philox_triton import words4

_FLIP_STREAM = tl.constexpr(FLIP_STREAM)


@triton.jit
def _word_tile(seed, key, first_group, GROUPS: tl.constexpr):
    """Philox words of a tile. key (ROWS, 1) int64; returns (ROWS, 4 * GROUPS) uint32."""
    group = first_group + tl.arange(0, GROUPS)[None, :]
    w0, w1, w2, w3 = words4(seed, key, group, 0)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit(do_not_specialize=["images", "flip_below", "white_above"])
def _gather_kernel(
    images_ptr,  # (images, CHANNELS, HEIGHT, WIDTH) uint8, strides below
    indices_ptr,  # (rows,) int64
    keys_ptr,  # (rows,) int64
    mean_ptr,  # (CHANNELS,) float32, where HAS_MEAN
    std_ptr,  # (CHANNELS,) float32, where HAS_STD
    rng_ptr,  # (2,) int64, where FLIP or STOCHASTIC
    out_ptr,  # (rows, CHANNELS, HEIGHT, WIDTH), dense, channels last where OUT_LAST
    rows,
    images,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    flip_below: tl.int64,
    white_above: tl.int32,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_LAST: tl.constexpr,
    TILE_LAST: tl.constexpr,  # the tile's order: channels last, or channels, rows, columns
    IN_LINEAR: tl.constexpr,  # the tile's order is that of the image's memory
    OUT_LINEAR: tl.constexpr,  # ... of the output's memory
    WIDE: tl.constexpr,  # offsets within an image pass 2^31
    FLIP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    THRESHOLD: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    HAS_STD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    PIXELS: tl.constexpr = CHANNELS * HEIGHT * WIDTH
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    there = (row < rows) & (at < PIXELS)
    index = tl.load(indices_ptr + row, mask=row < rows, other=-1)
    inside = (index >= 0) & (index < images)

    if TILE_LAST:
        c, w, h = at % CHANNELS, (at // CHANNELS) % WIDTH, at // (CHANNELS * WIDTH)
    else:
        w, h, c = at % WIDTH, (at // WIDTH) % HEIGHT, at // (WIDTH * HEIGHT)
        if CHANNELS == 1 or (WIDTH * HEIGHT) % BLOCK == 0:  # the tile is of one channel
            c = tl.program_id(1) * BLOCK // (WIDTH * HEIGHT)
    if FLIP or STOCHASTIC:
        seed = tl.load(rng_ptr)
        key = tl.load(keys_ptr + row, mask=row < rows, other=0)
    mirrored = w
    if FLIP:
        word, _, _, _ = words4(seed, key, 0, _FLIP_STREAM)
        mirrored = tl.where(word.to(tl.int64) < flip_below, WIDTH - 1 - w, w)
    # Words belong to pixels of the image: with them the tile runs over the image, and it is the
    # output that is mirrored.
    from_w, to_w = (w, mirrored) if STOCHASTIC else (mirrored, w)

    if IN_LINEAR:
        offset = at
    elif WIDE:
        offset = c.to(tl.int64) * stride_c + h.to(tl.int64) * stride_h
        offset += from_w.to(tl.int64) * stride_w
    else:
        offset = c * stride_c + h * stride_h + from_w * stride_w
    pixel = tl.load(images_ptr + index * stride_n + offset, mask=there & inside, other=0)

    if STOCHASTIC:
        word = _word_tile(seed, key, tl.program_id(1) * (BLOCK // 4), BLOCK // 4)
        below = word < pixel.to(tl.uint32) * 0x01010101
        value = tl.where(below | (pixel == 255), 1.0, 0.0)
    elif THRESHOLD:
        value = tl.where(pixel.to(tl.int32) > white_above, 1.0, 0.0)
    else:
        value = tl.div_rn(pixel.to(tl.float32), 255.0)
    channel = tl.minimum(c, CHANNELS - 1)  # beyond the last pixel
    if HAS_MEAN:
        value -= tl.load(mean_ptr + channel)
    if HAS_STD:
        value = tl.div_rn(value, tl.load(std_ptr + channel) + tl.zeros_like(value))
    value = tl.where(inside, value, float("nan"))

    if OUT_LINEAR:
        to = at
    elif OUT_LAST:
        to = (h * WIDTH + to_w) * CHANNELS + c
    else:
        to = (c * HEIGHT + h) * WIDTH + to_w
    tl.store(out_ptr + row * PIXELS + to, value.to(out_ptr.dtype.element_ty), mask=there)


def _dense(images: Tensor, last: bool) -> bool:
    """Does one image lie without gaps in the order (H, W, C) if ``last``, else (C, H, W)?"""
    one = images[:1].permute(0, 2, 3, 1) if last else images[:1]
    return one.is_contiguous()


def _span(images: Tensor) -> int:
    """Largest offset within one image, in elements."""
    pairs = zip(images.shape[1:], images.stride()[1:], strict=True)
    return sum((size - 1) * stride for size, stride in pairs)


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
    """Launch: see ``gather.gather_normalize``."""
    rows = len(indices)
    count, channels, height, width = images.shape
    pixels = channels * height * width
    out = allocate(images, rows, dtype, channels_last)
    if out.numel() == 0:
        return out
    stochastic, flips = binarize == "stochastic", flip_bound(flip) > 0
    out_last = channels_last and channels > 1
    tile_last = out_last and not stochastic
    tile = LAUNCH["gather"]
    block, tall = tile.tile(pixels)
    grid = (triton.cdiv(rows, tall), triton.cdiv(pixels, block))
    with torch.cuda.device_of(images):
        _gather_kernel[grid](
            images,
            indices.contiguous(),
            keys.contiguous(),
            None if mean is None else mean.contiguous(),
            None if std is None else std.contiguous(),
            rng,
            out,
            rows,
            count,
            *images.stride(),
            flip_bound(flip),
            threshold_bound(threshold),
            CHANNELS=channels,
            HEIGHT=height,
            WIDTH=width,
            OUT_LAST=out_last,
            TILE_LAST=tile_last,
            IN_LINEAR=_dense(images, tile_last) and (stochastic or not flips),
            OUT_LINEAR=out_last == tile_last and not (stochastic and flips),
            WIDE=_span(images) >= 2**31,
            FLIP=flips,
            STOCHASTIC=stochastic,
            THRESHOLD=binarize == "threshold",
            HAS_MEAN=mean is not None,
            HAS_STD=std is not None,
            ROWS=tall,
            BLOCK=block,
            num_warps=tile.warps,
            enable_fp_fusion=False,  # nothing here may fuse: the same bits as PyTorch
        )
    return out
