"""From a resident data set to a batch: gather, convert, binarize, mirror and normalize in one step.

For output sample b with i = indices[b], key = keys[b] and pixel p = images[i, c, h, w]::

    binarize "none"        v = p / 255, rounded once
             "threshold"   v = 1 if p > 255 * threshold else 0
             "stochastic"  v = 1 with probability p / 255: word(key, (c * H + h) * W + w) of
                           stream 0 below p / 255 * 2^32, in integers
    mirror                 out[b, c, h, W - 1 - w] = v where word(key, 0) of stream 1 is below
                           floor(flip * 2^32), else out[b, c, h, w] = v
    normalize              (v - mean[c]) / std[c], each operation rounded once in float32

``word`` is Philox with the seed rng[0]. A pixel's bit belongs to the pixel and not to the place it
is stored in, so a mirrored binarized image is the mirror image of the binarized one.

Samples whose index is outside ``[0, N)`` come out as NaN: a check on the host would have to wait
for the device, and a read outside the data set would return somebody else's memory.

There is no gradient. Values are those of float32 arithmetic and one rounding to the output's dtype;
eager and fused forms agree bit for bit.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from fastvae.kernels.philox import philox_bernoulli, philox_words

BINARIZE = ("none", "threshold", "stochastic")
FLIP_STREAM = 1  # keeps the decision about a sample apart from the words of its pixels


def flip_bound(flip: float) -> int:
    """Mirror where a word is below this: P = bound / 2^32; 0 never, 2^32 always."""
    return math.floor(flip * 2.0**32)


def threshold_bound(threshold: float) -> int:
    """White where a pixel is above this; for integers that is above 255 * threshold."""
    return math.floor(255 * min(max(threshold, -1.0), 1.0))


def allocate(images: Tensor, rows: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """An uninitialized batch (rows, C, H, W) in the memory format asked for."""
    _, channels, height, width = images.shape
    if channels_last:
        return images.new_empty((rows, height, width, channels), dtype=dtype).permute(0, 3, 1, 2)
    return images.new_empty((rows, channels, height, width), dtype=dtype)


def _select(images: Tensor, indices: Tensor) -> tuple[Tensor, Tensor | None]:
    """Pixels (B, C, H, W), and which indices (B,) are inside the data set; None where all are."""
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        with contextlib.suppress(IndexError):  # it looks by itself; on a GPU that would wait
            return images.index_select(0, indices), None
    inside = (indices >= 0) & (indices < len(images))
    return images[indices.clamp(0, len(images) - 1)], inside


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
    """Plain PyTorch form; the module's docstring has the formulas.

    Args:
        rng: needed where flip > 0 or binarize is "stochastic"; only the seed is read.

    Shapes: images (N, C, H, W) uint8 of any strides; indices, keys (B,) int64; mean, std (C,)
        float32, each optional; rng (2,) int64. Returns (B, C, H, W) in ``dtype``.
    """
    if images.numel() == 0:
        return allocate(images, len(indices), dtype, channels_last).fill_(math.nan)
    pixels, inside = _select(images, indices)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    if binarize == "threshold":
        value = (pixels.to(torch.int16) > threshold_bound(threshold)).to(wide)
    elif binarize == "stochastic":
        assert rng is not None
        value = philox_bernoulli(rng[0], keys, pixels).to(wide)
    else:
        # By a tensor: PyTorch's CUDA kernel multiplies by the reciprocal of a Python number.
        by = 255.0 if inside is None else torch.full((), 255.0, dtype=wide, device=pixels.device)
        value = pixels.to(wide) / by
    if flip > 0:
        assert rng is not None
        word = philox_words(rng[0], keys, 1, stream=FLIP_STREAM)[:, :, None, None]
        value = torch.where(word < flip_bound(flip), value.flip(3), value)
    if mean is not None:
        value = value - mean.to(wide)[:, None, None]
    if std is not None:
        value = value / std.to(wide)[:, None, None]
    if inside is not None:
        value = torch.where(inside[:, None, None, None], value, math.nan)
    out = allocate(images, len(indices), dtype, channels_last)
    if value.dtype == dtype and value.stride() == out.stride():
        return value
    return out.copy_(value)
