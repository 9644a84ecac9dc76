"""The pixel likelihoods in Triton; formulas and arguments in ``likelihood.py``.

One kernel for the likelihoods with one parameter per pixel, in three uses: value, gradient, or both
in one pass. Tiles are a block of one wide row or several narrow rows. A program writes the sum of
its tile's rows to a buffer of partial sums, (rows, column blocks), which PyTorch adds in a fixed
order: few wide rows still fill the machine, and there are no atomics.

Multiply and add may be fused (``enable_fp_fusion``): no bits have to agree with PyTorch here, and
a fused operation rounds once less.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvae.kernels import dlogistic_triton, likelihood
from fastvae.kernels.launch import LAUNCH
from fastvae.kernels.rows import add_parts, inner_one, row_stride

_LOG_2_PI = tl.constexpr(likelihood.LOG_2_PI)


@triton.jit
def _bernoulli(x, t):
    """Value and gradient. log(1 + e) errs by at most 6e-8, as the rounding of a sum does."""
    e = tl.exp(-tl.abs(x))
    wide = 1.0 + e
    return tl.maximum(x, 0.0) - x * t + tl.log(wide), tl.where(x >= 0.0, 1.0, e) / wide - t


@triton.jit
def _continuous_bernoulli(x, t):
    """Value max(x, 0) - x t + log((1 - e^-|x|) / |x|), and gradient; series where |x| < 1."""
    y = tl.abs(x)
    near = y < 1.0
    far = tl.where(near, 1.0, y)
    filled = 1.0 - tl.exp(-far)
    log_series, mean = dlogistic_triton.integral(y, far, filled)
    log_integral = tl.where(near, log_series, tl.log(filled / far))
    value = tl.maximum(x, 0.0) - x * t + log_integral
    return value, tl.where(x >= 0.0, mean, 1.0 - mean) - t


@triton.jit
def _gaussian(mean, logvar, t):
    """Value, gradient by mean, gradient by log variance."""
    difference = mean - t
    by_mean = difference * tl.exp(-logvar)
    half = 0.5 * (difference * by_mean)
    return half + 0.5 * (logvar + _LOG_2_PI), by_mean, 0.5 - half


@triton.jit
def _load_target(
    target_ptr,
    offset,
    in_rows,
    columns,
    TARGET: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A (ROWS, BLOCK) tile of targets in [0, 1]. offset, in_rows: (ROWS, 1), place and mask."""
    if TARGET == "packed":  # one byte is loaded once, for eight pixels; the first is its high bit
        byte = tl.program_id(1) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
        inside = (byte * 8 < columns) & in_rows
        packed = tl.load(target_ptr + offset + byte, mask=inside, other=0).to(tl.int32)
        bits = (packed[:, :, None] >> (7 - tl.arange(0, 8)[None, None, :])) & 1
        return tl.reshape(bits, (ROWS, BLOCK)).to(tl.float32)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = in_rows & (column < columns)
    t = tl.load(target_ptr + offset + column, mask=mask, other=0).to(tl.float32)
    return t / 255.0 if TARGET == "level" else t


@triton.jit(do_not_specialize=["rows", "scale"])
def _pixel_kernel(
    params_ptr,  # (rows, columns) any float
    second_ptr,  # (1,) or (rows, columns) any float; or None
    target_ptr,  # (rows / samples, columns) float or uint8; packed: (.., columns / 8) uint8
    weight_ptr,  # (rows / samples, columns) float or uint8; or None
    grad_row_ptr,  # (rows,) float, or None: the factor is ``scale``
    nll_ptr,  # (rows, column blocks) float32, or None
    grad_ptr,  # (rows, columns) as params (may be params), or None
    grad_second_ptr,  # (rows, columns) as second; one for all: (rows, column blocks) float32
    params_stride,
    second_stride,
    target_stride,
    weight_stride,
    grad_row_stride,
    grad_stride,
    scale,
    samples,
    rows,
    columns,
    KIND: tl.constexpr,
    SECOND: tl.constexpr,
    TARGET: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_GRAD_ROW: tl.constexpr,
    VALUE: tl.constexpr,
    GRAD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    row, of_target = index.to(tl.int64), (index // samples).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (index < rows) & (column < columns)
    x = tl.load(params_ptr + row * params_stride + column, mask=mask, other=0.0).to(tl.float32)
    offset = of_target * target_stride
    t = _load_target(target_ptr, offset, index < rows, columns, TARGET, ROWS, BLOCK)
    if KIND == "gaussian":
        if SECOND == "pixel":
            second = tl.load(second_ptr + row * second_stride + column, mask=mask, other=0.0)
        else:
            second = tl.load(second_ptr)
        value, grad, grad_second = _gaussian(x, second.to(tl.float32), t)
    elif KIND == "bernoulli":
        value, grad = _bernoulli(x, t)
    else:
        value, grad = _continuous_bernoulli(x, t)

    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + of_target * weight_stride + column, mask=mask, other=0)
        weight = weight.to(tl.float32)
        value, grad = value * weight, grad * weight
        if KIND == "gaussian":
            grad_second *= weight
    part = row * tl.num_programs(1) + tl.program_id(1)
    if VALUE:
        sums = tl.sum(tl.where(mask, value, 0.0), axis=1)[:, None]
        tl.store(nll_ptr + part, sums, mask=index < rows)
    if GRAD:
        if HAS_GRAD_ROW:
            factor = tl.load(grad_row_ptr + row * grad_row_stride, mask=index < rows, other=0.0)
            factor = factor.to(tl.float32)
        else:
            factor = scale
        grad = (grad * factor).to(grad_ptr.dtype.element_ty)
        tl.store(grad_ptr + row * grad_stride + column, grad, mask=mask)
        if SECOND == "pixel":
            grad_second = (grad_second * factor).to(grad_second_ptr.dtype.element_ty)
            tl.store(grad_second_ptr + row * columns + column, grad_second, mask=mask)
        elif SECOND == "scalar":
            sums = tl.sum(tl.where(mask, grad_second * factor, 0.0), axis=1)[:, None]
            tl.store(grad_second_ptr + part, sums, mask=index < rows)


@triton.jit(do_not_specialize=["rows"])
def _rescale_kernel(
    grad_ptr,  # (rows, columns) any float
    factor_ptr,  # () any float
    grad_stride,
    rows,
    columns,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    factor = tl.load(factor_ptr).to(tl.float32)
    if factor != 1.0:
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
        mask = (row < rows) & (column < columns)
        place = grad_ptr + row * grad_stride + column
        grad = tl.load(place, mask=mask, other=0.0).to(tl.float32) * factor
        tl.store(place, grad.to(grad_ptr.dtype.element_ty), mask=mask)


def _run(
    params: Tensor,
    second: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    kind: str,
    samples: int,
    packed: bool,
    mixtures: int,
    *,
    value: bool,
    grad: Tensor | None = None,
    grad_row: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Launch. ``grad``: where the gradient by params goes, or None; may be params itself.

    Returns nll (R,) where ``value``, and grad_second where ``grad`` is given; else empty.
    """
    rows, columns = params.shape[0], params.shape[1] // likelihood.parts(kind, mixtures)
    launch = LAUNCH[row_of_table(kind, mixtures)]
    block, height = launch.tile(columns)
    grid = (triton.cdiv(rows, height), triton.cdiv(columns, block))
    nll = params.new_empty((rows, grid[1]) if value else (0, 1), dtype=torch.float32)
    kind_of_second, grad_second = _second(second, grad, params, grid[1])
    if rows * columns == 0:
        sums = grad_second.sum(dim=1) if kind_of_second == "scalar" else grad_second
        return nll.sum(dim=1), sums
    matrices = [_as_bytes(inner_one(x)) for x in (params, second, target, weight)]
    tensors: dict[str, Any] = {
        "params_ptr": matrices[0],
        "target_ptr": matrices[2],
        "weight_ptr": matrices[3],
        "grad_row_ptr": grad_row,
        "nll_ptr": nll,
        "grad_ptr": grad,
    }
    sizes: dict[str, Any] = {
        "params_stride": row_stride(matrices[0]),
        "target_stride": row_stride(matrices[2]),
        "weight_stride": row_stride(matrices[3]),
        "grad_row_stride": row_stride(grad_row),
        "grad_stride": row_stride(grad),
        "scale": scale,
        "samples": samples,
        "rows": rows,
        "columns": columns,
    }
    flags: dict[str, Any] = {
        "TARGET": _kind_of_target(target, packed),
        "HAS_WEIGHT": weight is not None,
        "HAS_GRAD_ROW": grad_row is not None,
        "VALUE": value,
        "GRAD": grad is not None,
        "ROWS": height,
        "BLOCK": block,
        "num_warps": launch.warps,
        "enable_fp_fusion": True,
    }
    with torch.cuda.device_of(params):
        if kind == "dlogistic":
            dlogistic_triton.kernel[grid](**tensors, **sizes, **flags, MIXTURES=mixtures)
        else:
            _pixel_kernel[grid](
                **tensors,
                **sizes,
                **flags,
                second_ptr=matrices[1],
                second_stride=row_stride(matrices[1]),
                grad_second_ptr=grad_second,
                KIND=kind,
                SECOND=kind_of_second,
            )
    if kind_of_second == "scalar":
        grad_second = add_parts(grad_second, 1)
    return add_parts(nll, 1), grad_second


def _second(
    second: Tensor | None, grad: Tensor | None, params: Tensor, blocks: int
) -> tuple[str, Tensor]:
    """How the kernel reads ``second``, and the buffer of its gradient (empty where none)."""
    if second is None:
        return "none", params.new_empty((0,), dtype=torch.float32)
    if second.dim() == 2:
        return "pixel", second.new_empty(params.shape if grad is not None else (0,))
    rows = 0 if grad is None else params.shape[0]
    return "scalar", params.new_empty((rows, blocks), dtype=torch.float32)


def row_of_table(kind: str, mixtures: int) -> str:
    """The kernel's row of the launch table."""
    if kind != "dlogistic":
        return "pixel"
    return "dlogistic" if mixtures == 1 else "dlogistic_mixture"


def _kind_of_target(target: Tensor, packed: bool) -> str:
    if packed:
        return "packed"
    return "level" if target.dtype == torch.uint8 else "float"


def _as_bytes(x: Tensor | None) -> Tensor | None:
    """bool as uint8, which Triton reads; the rest as it is."""
    return x if x is None or x.dtype != torch.bool else x.view(torch.uint8)


def pixel_nll(
    params: Tensor,
    second: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    kind: str,
    samples_per_target: int,
    packed: bool,
    mixtures: int,
) -> Tensor:
    """Launch: see ``likelihood.pixel_nll``."""
    inputs = (params, second, target, weight, kind, samples_per_target, packed, mixtures)
    return _run(*inputs, value=True)[0]


def pixel_nll_backward(
    grad_row: Tensor,
    params: Tensor,
    second: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    kind: str,
    samples_per_target: int,
    packed: bool,
    mixtures: int,
) -> tuple[Tensor, Tensor]:
    """Launch: see ``likelihood.pixel_nll_backward``."""
    inputs = (params, second, target, weight, kind, samples_per_target, packed, mixtures)
    grad = params.new_empty(params.shape)
    return grad, _run(*inputs, value=False, grad=grad, grad_row=grad_row)[1]


def pixel_nll_grad(
    params: Tensor,
    second: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    kind: str,
    samples_per_target: int,
    packed: bool,
    mixtures: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch: see ``likelihood.pixel_nll_grad``."""
    inputs = (params, second, target, weight, kind, samples_per_target, packed, mixtures)
    grad = params.new_empty(params.shape)
    nll, grad_second = _run(*inputs, value=True, grad=grad, scale=scale)
    return nll, grad, grad_second


def pixel_nll_grad_(
    params: Tensor,
    second: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    kind: str,
    samples_per_target: int,
    packed: bool,
    mixtures: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """As ``pixel_nll_grad``, but the gradient overwrites params; returns nll, grad_second."""
    inputs = (params, second, target, weight, kind, samples_per_target, packed, mixtures)
    if params.stride(1) != 1:  # the kernel reads a copy
        nll, grad, grad_second = pixel_nll_grad(*inputs, scale)
        params.copy_(grad)
        return nll, grad_second
    return _run(*inputs, value=True, grad=params, scale=scale)


def rescale_(grad: Tensor, factor: Tensor) -> None:
    """grad *= factor, in place; the kernel reads the factor and leaves at once where it is 1.

    Shapes: grad (R, N) or (R,); factor (). Where columns do not lie next to one another (in-place
    gradients of such parameters), it is an ordinary multiplication.
    """
    if grad.numel() == 0:
        return
    matrix = grad if grad.dim() == 2 else grad.unsqueeze(0)
    if matrix.stride(1) != 1:
        grad.mul_(factor)
        return
    rows, columns = matrix.shape
    launch = LAUNCH["rescale"]
    block, height = launch.tile(columns)
    with torch.cuda.device_of(grad):
        _rescale_kernel[(triton.cdiv(rows, height), triton.cdiv(columns, block))](
            matrix,
            factor,
            matrix.stride(0),
            rows,
            columns,
            ROWS=height,
            BLOCK=block,
            num_warps=launch.warps,
            enable_fp_fusion=True,
        )
