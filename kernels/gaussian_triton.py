"""Sampling and KL divergence of diagonal Gaussians in Triton; formulas in ``gaussian.py``.

One kernel each way, on tiles of (rows, columns). Each program writes its tile's sums over columns
and over rows to buffers of partial sums, which PyTorch adds in a fixed order: no atomics, so two
runs are equal to the bit. The backward kernel draws the noise again: keeping it would take 4 bytes
per latent and about as much time.

Both kernels draw noise and are launched with ``enable_fp_fusion=False``, see ``philox_triton.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvae.kernels.gaussian import NO_CLAMP
from fastvae.kernels.launch import LAUNCH
from fastvae.kernels.philox_triton import normal_tile
from fastvae.kernels.rows import add_parts, inner_one, row_stride


@triton.jit
def _bounded(x, low, high):
    """Clamp that keeps NaN, as torch.clamp does; tl.clamp would hide it."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _unless_clamped(gradient, x, low, high):
    return tl.where((x >= low) & (x <= high), gradient, 0.0)


@triton.jit
def _tile(rows, latents, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Row (ROWS, 1) int64 and column (1, BLOCK) indices of this program's tile, and its mask."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    return row, column, (row < rows) & (column < latents)


@triton.jit
def _noise(rng_ptr, row, sample_offset, BLOCK: tl.constexpr):
    """Noise of the tile whose rows are ``row`` (ROWS, 1); (ROWS, BLOCK) float32."""
    ordinal = tl.load(rng_ptr + 1) + sample_offset + row
    return normal_tile(tl.load(rng_ptr), ordinal, tl.program_id(1) * (BLOCK // 4), BLOCK // 4)


@triton.jit(do_not_specialize=["sample_offset", "rows"])
def _sample_kl_kernel(
    mean_q_ptr,  # (rows, latents) any float; the next three as well, mean_p and scale_p or None
    scale_q_ptr,
    mean_p_ptr,
    scale_p_ptr,
    rng_ptr,  # (2,) int64: seed, counter
    z_ptr,  # (rows, latents)
    row_part_ptr,  # (rows, column blocks) float32
    dim_part_ptr,  # (row blocks, latents) float32
    mean_q_stride,
    scale_q_stride,
    mean_p_stride,
    scale_p_stride,
    sample_offset,
    rows,
    latents,
    mean_low,
    mean_high,
    scale_low,
    scale_high,
    HAS_PRIOR: tl.constexpr,
    LOG_STD: tl.constexpr,
    CLAMP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, column, mask = _tile(rows, latents, ROWS, BLOCK)
    mean = tl.load(mean_q_ptr + row * mean_q_stride + column, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_q_ptr + row * scale_q_stride + column, mask=mask, other=0.0)
    scale = scale.to(tl.float32)
    if CLAMP:
        mean = _bounded(mean, mean_low, mean_high)
        scale = _bounded(scale, scale_low, scale_high)
    FACTOR: tl.constexpr = 2.0 if LOG_STD else 1.0
    std = tl.exp(scale * (0.5 * FACTOR))
    logvar = scale * FACTOR
    if HAS_PRIOR:
        mean_p = tl.load(mean_p_ptr + row * mean_p_stride + column, mask=mask, other=0.0)
        scale_p = tl.load(scale_p_ptr + row * scale_p_stride + column, mask=mask, other=0.0)
        logvar_p = scale_p.to(tl.float32) * FACTOR
        difference = mean - mean_p.to(tl.float32)
        log_ratio = logvar - logvar_p
        squared = difference * difference * tl.exp(-logvar_p)
        twice = tl.exp(log_ratio) + squared - 1.0 - log_ratio
    else:
        twice = std * std + mean * mean - 1.0 - logvar
    z = mean + std * _noise(rng_ptr, row, sample_offset, BLOCK)
    tl.store(z_ptr + row * latents + column, z.to(z_ptr.dtype.element_ty), mask=mask)

    kl = tl.where(mask, 0.5 * twice, 0.0)
    row_part = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(row_part_ptr + row_part, tl.sum(kl, axis=1)[:, None], mask=row < rows)
    dim_part = tl.program_id(0).to(tl.int64) * latents + column
    tl.store(dim_part_ptr + dim_part, tl.sum(kl, axis=0)[None, :], mask=column < latents)


@triton.jit(do_not_specialize=["sample_offset", "rows"])
def _sample_kl_backward_kernel(
    grad_z_ptr,  # (rows, latents), or None
    grad_row_ptr,  # (rows,) float32, or None
    grad_dim_ptr,  # (latents,) float32, or None
    mean_q_ptr,  # inputs as in the forward kernel
    scale_q_ptr,
    mean_p_ptr,
    scale_p_ptr,
    rng_ptr,
    grad_mean_q_ptr,  # (rows, latents), each in the dtype of its input
    grad_scale_q_ptr,
    grad_mean_p_ptr,
    grad_scale_p_ptr,
    grad_z_stride,
    grad_row_stride,
    grad_dim_stride,
    mean_q_stride,
    scale_q_stride,
    mean_p_stride,
    scale_p_stride,
    sample_offset,
    rows,
    latents,
    mean_low,
    mean_high,
    scale_low,
    scale_high,
    HAS_Z: tl.constexpr,
    HAS_ROW: tl.constexpr,
    HAS_DIM: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    LOG_STD: tl.constexpr,
    CLAMP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, column, mask = _tile(rows, latents, ROWS, BLOCK)
    raw_mean = tl.load(mean_q_ptr + row * mean_q_stride + column, mask=mask, other=0.0)
    raw_scale = tl.load(scale_q_ptr + row * scale_q_stride + column, mask=mask, other=0.0)
    raw_mean, raw_scale = raw_mean.to(tl.float32), raw_scale.to(tl.float32)
    mean, scale = raw_mean, raw_scale
    if CLAMP:
        mean = _bounded(mean, mean_low, mean_high)
        scale = _bounded(scale, scale_low, scale_high)
    c = tl.zeros((ROWS, BLOCK), tl.float32)
    if HAS_ROW:
        c += tl.load(grad_row_ptr + row * grad_row_stride, mask=row < rows, other=0.0)
    if HAS_DIM:
        # Read per element, not per column: in the layout of the tile, 16 bytes at a time.
        dim_offset = tl.broadcast_to(column * grad_dim_stride, (ROWS, BLOCK))
        c += tl.load(grad_dim_ptr + dim_offset, mask=mask, other=0.0)

    FACTOR: tl.constexpr = 2.0 if LOG_STD else 1.0
    out = row * latents + column
    if not (HAS_ROW or HAS_DIM):  # 0 times the variance, which may be infinite
        g_mean, g_scale = c, c
        if HAS_PRIOR:
            tl.store(grad_mean_p_ptr + out, c.to(grad_mean_p_ptr.dtype.element_ty), mask=mask)
            tl.store(grad_scale_p_ptr + out, c.to(grad_scale_p_ptr.dtype.element_ty), mask=mask)
    elif HAS_PRIOR:
        mean_p = tl.load(mean_p_ptr + row * mean_p_stride + column, mask=mask, other=0.0)
        scale_p = tl.load(scale_p_ptr + row * scale_p_stride + column, mask=mask, other=0.0)
        logvar_p = scale_p.to(tl.float32) * FACTOR
        difference = mean - mean_p.to(tl.float32)
        g_mean = c * difference * tl.exp(-logvar_p)
        g_scale = c * (tl.exp(scale * FACTOR - logvar_p) - 1.0)
        g_scale_p = (-0.5 * FACTOR) * (g_scale + g_mean * difference)
        tl.store(grad_mean_p_ptr + out, (-g_mean).to(grad_mean_p_ptr.dtype.element_ty), mask=mask)
        g_scale_p = g_scale_p.to(grad_scale_p_ptr.dtype.element_ty)
        tl.store(grad_scale_p_ptr + out, g_scale_p, mask=mask)
    else:
        g_mean = c * mean
        g_scale = c * (tl.exp(scale * FACTOR) - 1.0)
    if HAS_Z:
        g = tl.load(grad_z_ptr + row * grad_z_stride + column, mask=mask, other=0.0).to(tl.float32)
        std = tl.exp(scale * (0.5 * FACTOR))
        g_mean += g
        g_scale += g * _noise(rng_ptr, row, sample_offset, BLOCK) * std
    g_scale = g_scale * (0.5 * FACTOR)
    if CLAMP:
        g_mean = _unless_clamped(g_mean, raw_mean, mean_low, mean_high)
        g_scale = _unless_clamped(g_scale, raw_scale, scale_low, scale_high)
    tl.store(grad_mean_q_ptr + out, g_mean.to(grad_mean_q_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_scale_q_ptr + out, g_scale.to(grad_scale_q_ptr.dtype.element_ty), mask=mask)


def sample_kl(
    mean_q: Tensor,
    scale_q: Tensor,
    mean_p: Tensor | None,
    scale_p: Tensor | None,
    rng: Tensor,
    sample_offset: int,
    log_std: bool,
    clamp: Sequence[float],
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch: see ``gaussian.sample_kl``; the noise returned is empty, for it is drawn again."""
    rows, latents = mean_q.shape
    z = mean_q.new_empty((rows, latents), dtype=out_dtype)
    noise = mean_q.new_empty((0,), dtype=torch.float32)
    if z.numel() == 0:
        sums = [mean_q.new_zeros((n,), dtype=torch.float32) for n in (rows, latents)]
        return z, sums[0], sums[1], noise
    inputs = [inner_one(x) for x in (mean_q, scale_q, mean_p, scale_p)]
    launch = LAUNCH["sample_kl"]
    block, height = launch.tile(latents)
    grid = (triton.cdiv(rows, height), triton.cdiv(latents, block))
    row_part = mean_q.new_empty((rows, grid[1]), dtype=torch.float32)
    dim_part = mean_q.new_empty((grid[0], latents), dtype=torch.float32)
    with torch.cuda.device_of(mean_q):
        _sample_kl_kernel[grid](
            *inputs,
            rng,
            z,
            row_part,
            dim_part,
            *map(row_stride, inputs),
            sample_offset,
            rows,
            latents,
            *clamp,
            HAS_PRIOR=mean_p is not None,
            LOG_STD=log_std,
            CLAMP=tuple(clamp) != NO_CLAMP,
            ROWS=height,
            BLOCK=block,
            num_warps=launch.warps,
            enable_fp_fusion=False,
        )
    return z, add_parts(row_part, 1), add_parts(dim_part, 0), noise


def sample_kl_backward(
    grad_z: Tensor | None,
    grad_row: Tensor | None,
    grad_dim: Tensor | None,
    mean_q: Tensor,
    scale_q: Tensor,
    mean_p: Tensor | None,
    scale_p: Tensor | None,
    rng: Tensor,
    noise: Tensor,
    sample_offset: int,
    log_std: bool,
    clamp: Sequence[float],
) -> list[Tensor]:
    """Launch: see ``gaussian.sample_kl_backward``; ``noise`` is not read."""
    rows, latents = mean_q.shape
    outputs = [x if x is None else x.new_empty(x.shape) for x in (mean_q, scale_q, mean_p, scale_p)]
    gradients = [x for x in outputs if x is not None]
    if mean_q.numel() == 0:
        return gradients
    inputs = [inner_one(x) for x in (mean_q, scale_q, mean_p, scale_p)]
    grad_z = inner_one(grad_z)
    launch = LAUNCH["sample_kl_backward"]
    block, height = launch.tile(latents)
    with torch.cuda.device_of(mean_q):
        _sample_kl_backward_kernel[(triton.cdiv(rows, height), triton.cdiv(latents, block))](
            grad_z,
            grad_row,
            grad_dim,
            *inputs,
            rng,
            *outputs,
            *map(row_stride, (grad_z, grad_row, grad_dim, *inputs)),
            sample_offset,
            rows,
            latents,
            *clamp,
            HAS_Z=grad_z is not None,
            HAS_ROW=grad_row is not None,
            HAS_DIM=grad_dim is not None,
            HAS_PRIOR=mean_p is not None,
            LOG_STD=log_std,
            CLAMP=tuple(clamp) != NO_CLAMP,
            ROWS=height,
            BLOCK=block,
            num_warps=launch.warps,
            enable_fp_fusion=False,
        )
    return gradients
