"""The discretised logistic likelihood in Triton; formulas in ``dlogistic.py``.

A mixture is read twice: the sums over its components have to be known before any gradient. The
second reading finds the tile in the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastvae.kernels import dlogistic

_MIN_LOG_SCALE = tl.constexpr(dlogistic.MIN_LOG_SCALE)
_HALF_BIN = tl.constexpr(dlogistic.HALF_BIN)
_LOG_BIN = tl.constexpr(dlogistic.LOG_BIN)
_ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer, ties to even


@triton.jit
def integral(y, far, filled):
    """For y >= 0: the series of log((1 - e^-y) / y), good for y < 1; and 1 / (1 - e^-y) - 1 / y.

    far = max(y, 1), filled = 1 - e^-far. See ``log_integral`` and ``integral_mean`` in PyTorch.
    """
    square = y * y
    series = square * (1.0 / 181440.0 - square * (1.0 / 9676800.0)) - 1.0 / 2880.0
    series = square * (series * square + 1.0 / 24.0) - 0.5 * y
    mean = square * (1.0 / 30240.0 - square * (1.0 / 1209600.0)) - 1.0 / 720.0
    mean = y * (mean * square + 1.0 / 12.0) + 0.5
    return series, tl.where(y < 1.0, mean, 1.0 / filled - 1.0 / far)


@triton.jit
def _component(level, mean, log_scale):
    """log p of one component, and its gradients by mean and log scale; all float32.

    The three logarithms of the formula are taken of one product; d < 1 takes series.
    """
    kept = log_scale >= _MIN_LOG_SCALE
    log_scale = tl.where(log_scale < _MIN_LOG_SCALE, _MIN_LOG_SCALE, log_scale)
    inverse = tl.exp(-log_scale)
    centre = level * (1.0 / 127.5) - 1.0 - mean
    a, b = (centre + _HALF_BIN) * inverse, (centre - _HALF_BIN) * inverse
    has_a, has_b = level != 255.0, level != 0.0  # true for NaN, which must show
    inner = has_a & has_b
    e_a, e_b = tl.exp(-tl.abs(a)), tl.exp(-tl.abs(b))
    from_a = tl.where(has_a, tl.where(a >= 0.0, e_a, 1.0) / (1.0 + e_a), 0.0)  # sigmoid(-a)
    from_b = tl.where(has_b, tl.where(b >= 0.0, 1.0, e_b) / (1.0 + e_b), 0.0)  # sigmoid(b)

    d = inverse * (2.0 * _HALF_BIN)
    near = d < 1.0
    far = tl.where(near, 1.0, d)
    filled = 1.0 - tl.exp(-far)
    log_series, mean = integral(d, far, filled)
    width = 1.0 - d * (1.0 - mean)  # d / (e^d - 1)

    product = tl.where(has_a, 1.0 + e_a, 1.0) * tl.where(has_b, 1.0 + e_b, 1.0)
    ratio = tl.where(inner & (d >= 1.0), filled / far, 1.0)
    log_p = tl.log(ratio / product)
    log_p += tl.where(has_a, tl.minimum(a, 0.0), 0.0) + tl.where(has_b, tl.minimum(-b, 0.0), 0.0)
    log_p += tl.where(inner, _LOG_BIN - log_scale + tl.where(near, log_series, 0.0), 0.0)
    by_scale = b * from_b - a * from_a - tl.where(inner, width, 0.0)
    return log_p, inverse * (from_b - from_a), tl.where(kept, by_scale, 0.0)


@triton.jit
def _load(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointers, x, mask):
    tl.store(pointers, x.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _log_add(top, total, x):
    """Take x into the running log-sum-exp, top + log(total)."""
    higher = tl.where(x > top, x, top)
    return higher, total * tl.exp(top - higher) + tl.exp(x - higher)


@triton.jit(do_not_specialize=["rows", "scale"])
def kernel(
    params_ptr,  # (rows, P * columns) any float
    target_ptr,  # (rows / samples, columns) uint8 levels, or float in [0, 1]
    weight_ptr,  # (rows / samples, columns) float or uint8; or None
    grad_row_ptr,  # (rows,) float, or None: the factor is ``scale``
    nll_ptr,  # (rows, column blocks) float32, or None
    grad_ptr,  # (rows, P * columns) as params (may be params), or None
    params_stride,
    target_stride,
    weight_stride,
    grad_row_stride,
    grad_stride,
    scale,
    samples,
    rows,
    columns,
    TARGET: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_GRAD_ROW: tl.constexpr,
    VALUE: tl.constexpr,
    GRAD: tl.constexpr,
    MIXTURES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    row, of_target = index.to(tl.int64), (index // samples).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (index < rows) & (column < columns)
    level = _load(target_ptr + of_target * target_stride + column, mask)
    if TARGET == "float":
        level = (level * 255.0 + _ROUNDER) - _ROUNDER
    read = params_ptr + row * params_stride + column
    write = grad_ptr + row * grad_stride + column if GRAD else read
    factor = scale
    if HAS_GRAD_ROW:
        factor = _load(grad_row_ptr + row * grad_row_stride, index < rows)
    if HAS_WEIGHT:
        weight = _load(weight_ptr + of_target * weight_stride + column, mask)
        factor = factor * weight

    if MIXTURES == 1:
        log_p, by_mean, by_scale = _component(level, _load(read, mask), _load(read + columns, mask))
        value = -log_p
        if GRAD:
            _store(write, -factor * by_mean, mask)
            _store(write + columns, -factor * by_scale, mask)
    else:
        top_w = tl.full((ROWS, BLOCK), float("-inf"), tl.float32)
        top_p, total_w, total_p = top_w, tl.zeros_like(top_w), tl.zeros_like(top_w)
        for j in tl.range(MIXTURES, num_stages=1):  # not unrolled: ten components overflow caches
            w = _load(read + j * columns, mask)
            mean = _load(read + (MIXTURES + j) * columns, mask)
            log_scale = _load(read + (2 * MIXTURES + j) * columns, mask)
            log_p, _, _ = _component(level, mean, log_scale)
            top_w, total_w = _log_add(top_w, total_w, w)
            top_p, total_p = _log_add(top_p, total_p, w + log_p)
        log_w, log_p = top_w + tl.log(total_w), top_p + tl.log(total_p)
        value = log_w - log_p
        if GRAD:
            tl.debug_barrier()  # in place: nobody may write what another thread has yet to read
            for j in tl.range(MIXTURES, num_stages=1):
                w = _load(read + j * columns, mask)
                mean = _load(read + (MIXTURES + j) * columns, mask)
                log_scale = _load(read + (2 * MIXTURES + j) * columns, mask)
                log_pj, by_mean, by_scale = _component(level, mean, log_scale)
                posterior = factor * tl.exp(w + log_pj - log_p)
                by_weight = factor * tl.exp(w - log_w) - posterior
                _store(write + j * columns, by_weight, mask)
                _store(write + (MIXTURES + j) * columns, -posterior * by_mean, mask)
                _store(write + (2 * MIXTURES + j) * columns, -posterior * by_scale, mask)

    if VALUE:
        if HAS_WEIGHT:
            value *= weight
        part = row * tl.num_programs(1) + tl.program_id(1)
        sums = tl.sum(tl.where(mask, value, 0.0), axis=1)[:, None]
        tl.store(nll_ptr + part, sums, mask=index < rows)
