"""Philox words and normals inside Triton kernels; the same bits as ``philox.py`` in PyTorch.

``tl.randn`` throws away two of four Philox words and half of each Box-Muller pair, and its sine
takes a slow path with local memory: 170 to 210 instructions per normal on sm_90. The transform
here takes four words to four normals.

Kernels that call ``normal4`` must be launched with ``enable_fp_fusion=False``: a fused multiply-add
rounds once where PyTorch rounds twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvae.kernels import philox
from fastvae.kernels.launch import LAUNCH

_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7 = map(tl.constexpr, philox.LOG_COEFFICIENTS)
_S0, _S1, _S2, _S3 = map(tl.constexpr, philox.SIN_COEFFICIENTS)
_C0, _C1, _C2, _C3 = map(tl.constexpr, philox.COS_COEFFICIENTS)
_MINUS_2_LN_2 = tl.constexpr(philox.MINUS_2_LN_2)
_SQRT_HALF_BITS = tl.constexpr(philox.SQRT_HALF_BITS)


@triton.jit
def words4(seed, ordinal, group, STREAM: tl.constexpr):
    """Four words for columns 4 * group .. 4 * group + 3 of sample ``ordinal``.

    seed: scalar int64; ordinal: int64, group: int32, of shapes that broadcast together.
    """
    zero = (ordinal + group) * 0
    c0 = (zero + group).to(tl.uint32)
    c1 = (zero + ordinal).to(tl.uint32)
    c2 = ((zero + ordinal) >> 32).to(tl.uint32)
    c3 = (zero + STREAM).to(tl.uint32)
    return tl.philox(seed, c0, c1, c2, c3)


@triton.jit
def _normal2(first, second):
    u = first.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 2^-32, 2^-33
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = f * _L7 + _L6
    p = p * f + _L5
    p = p * f + _L4
    p = p * f + _L3
    p = p * f + _L2
    p = p * f + _L1
    p = p * f + _L0
    log = f * p
    radius = tl.sqrt_rn(exponent.to(tl.float32) * _MINUS_2_LN_2 - (log + log))

    v = (second << 2).to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10  # 2^-31
    square = v * v
    sine = square * _S3 + _S2
    sine = sine * square + _S1
    sine = v * (sine * square + _S0)
    cosine = square * _C3 + _C2
    cosine = cosine * square + _C1
    cosine = cosine * square + _C0
    swap = (second & 0x40000000) != 0
    radius = tl.where(second >= 0x80000000, -radius, radius)
    return radius * tl.where(swap, sine, cosine), radius * tl.where(swap, cosine, sine)


@triton.jit
def normal4(seed, ordinal, group):
    """Four standard normals for columns 4 * group .. 4 * group + 3; float32."""
    w0, w1, w2, w3 = words4(seed, ordinal, group, 0)
    n0, n1 = _normal2(w0, w1)
    n2, n3 = _normal2(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def normal_tile(seed, ordinal, first_group, GROUPS: tl.constexpr):
    """Normals of a tile. ordinal (ROWS, 1) int64; returns (ROWS, 4 * GROUPS) float32.

    Four neighbours belong to one thread, as in a vectorized load of four floats.
    """
    group = first_group + tl.arange(0, GROUPS)[None, :]
    n0, n1, n2, n3 = normal4(seed, ordinal, group)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit(do_not_specialize=["seed", "rows"])
def _normal_kernel(
    ordinal_ptr,  # (rows,) int64
    out_ptr,  # (rows, columns) float32
    seed,
    rows,
    columns,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    ordinal = tl.load(ordinal_ptr + row, mask=row < rows, other=0)
    eps = normal_tile(seed, ordinal, tl.program_id(1) * (BLOCK // 4), BLOCK // 4)
    tl.store(out_ptr + row * columns + column, eps, mask=(row < rows) & (column < columns))


def philox_normal(seed: int, ordinal: Tensor, columns: int) -> Tensor:
    """Launch: see ``philox.philox_normal``."""
    rows = len(ordinal)
    out = ordinal.new_empty((rows, columns), dtype=torch.float32)
    if out.numel() == 0:
        return out
    tile = LAUNCH["normal"]
    block, height = tile.tile(columns)
    grid = (triton.cdiv(rows, height), triton.cdiv(columns, block))
    with torch.cuda.device_of(out):
        _normal_kernel[grid](
            ordinal.contiguous(),
            out,
            seed,
            rows,
            columns,
            ROWS=height,
            BLOCK=block,
            num_warps=tile.warps,
            enable_fp_fusion=False,
        )
    return out
