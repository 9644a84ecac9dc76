"""From stored uint8 images to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fastvae.kernels import gather_op
from fastvae.ops import checks


def gather_normalize(
    images_u8: Tensor,
    indices: Tensor,
    *,
    keys: Tensor | None = None,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    flip: float = 0.0,
    binarize: str = "none",
    threshold: float = 0.5,
    rng: Tensor | None = None,
) -> Tensor:
    """Gather stored images and turn them into a batch, in one kernel.

        (pixel / 255 - mean) / std, after mirroring and binarization

    Args:
        images_u8: (N, C, H, W) uint8 of any strides; a data set stored as (N, H, W, C) is passed as
            ``stored.permute(0, 3, 1, 2)``, without a copy.
        indices: (B,) int64, which images. One outside 0..N-1 gives a ValueError on a CPU, and an
            image of NaN on a GPU (to look would mean to wait).
        keys: (B,) int64, what random numbers are keyed by; None takes ``indices``. The counter of
            ``rng`` plays no part.
        mean, std: per channel or one for all, in units of pixels in [0, 1]; None leaves [0, 1].
        dtype: float32, bfloat16 or float16.
        channels_last: memory order of the result.
        flip: probability that an image is mirrored left to right.
        binarize: none; threshold: 1 where pixel / 255 > threshold; stochastic: 1 with probability
            pixel / 255, exact in integers, the same bits as ``philox_bernoulli``.
        rng: state from ``rng_state``; needed for ``flip`` and ``stochastic``.

    Returns:
        (B, C, H, W) of ``dtype``.
    """
    op = "gather_normalize"
    checks.tensor(op, "images_u8", images_u8)
    checks.tensor(op, "indices", indices)
    if keys is not None:
        checks.tensor(op, "keys", keys)
    if images_u8.dtype != torch.uint8 or images_u8.dim() != 4:
        raise ValueError(
            f"{op}: images_u8 must be (N, C, H, W) uint8, got {tuple(images_u8.shape)} "
            f"{images_u8.dtype}"
        )
    named = {"indices": indices} if keys is None else {"indices": indices, "keys": keys}
    for name, tensor in named.items():
        if tensor.dtype != torch.int64 or tensor.dim() != 1 or tensor.shape != indices.shape:
            count = indices.shape[0] if name == "keys" and indices.dim() else "B"
            raise ValueError(
                f"{op}: {name} must be int64 ({count},), got {tuple(tensor.shape)} {tensor.dtype}"
            )
    checks.same_place(op, images_u8=images_u8, **named)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{op}: dtype must be float32, bfloat16 or float16, got {dtype}")
    if binarize not in ("none", "threshold", "stochastic"):
        raise ValueError(f"{op}: binarize = {binarize!r}: expected none, threshold or stochastic")
    checks.number(op, "threshold", threshold)
    checks.number(op, "flip", flip, least=0.0)
    if flip > 1.0:
        raise ValueError(f"{op}: flip = {flip}: expected a probability")
    if rng is not None:
        checks.rng(op, rng, images_u8.device)
    elif flip > 0.0 or binarize == "stochastic":
        raise ValueError(f"{op}: rng is needed for flip and for binarize = 'stochastic'")
    checks.indices(op, indices, len(images_u8))
    channels, device = images_u8.shape[1], images_u8.device
    return gather_op.gather_normalize(
        images_u8,
        indices,
        keys=indices if keys is None else keys,
        mean=_per_channel(op, "mean", mean, channels, device),
        std=_per_channel(op, "std", std, channels, device),
        rng=rng,
        dtype=dtype,
        channels_last=channels_last,
        flip=float(flip),
        binarize=binarize,
        threshold=float(threshold),
    )


def _per_channel(
    op: str,
    name: str,
    value: float | Sequence[float] | Tensor | None,
    channels: int,
    device: torch.device,
) -> Tensor | None:
    """A float32 tensor (C,) on the device, or None."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        if tuple(value.shape) != (channels,) or value.dtype != torch.float32:
            raise ValueError(
                f"{op}: {name} must be float32 ({channels},), "
                f"got {tuple(value.shape)} {value.dtype}"
            )
        checks.same_place(op, images_u8=torch.empty(0, device=device), **{name: value})
        checks.finite_on_cpu(op, name, value)
        if name == "std":
            checks.finite_on_cpu(op, "1 / std", 1.0 / value)
        return value
    numbers = tuple(value) if isinstance(value, Sequence) else (value,) * channels
    for number in numbers:
        checks.number(op, name, number)
        if name == "std" and number <= 0.0:
            raise ValueError(f"{op}: std = {value!r}: expected more than 0")
    if len(numbers) != channels:
        raise ValueError(f"{op}: {name} has {len(numbers)} numbers, the images {channels} channels")
    return _constant(numbers, device)


@lru_cache(maxsize=64)
def _constant(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Made once per value, by kernels: a copy from ordinary memory would wait for the GPU."""
    filled = [torch.full((1,), number, dtype=torch.float32, device=device) for number in numbers]
    return torch.cat(filled)
