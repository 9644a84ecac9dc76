"""Pixel likelihoods as negative log-likelihoods per row, in nats.

    Bernoulli             on logits x, target t in [0, 1]:  softplus(x) - x t
    continuous Bernoulli  as above minus log C(x),          C(x) = x / tanh(x / 2)
    Gaussian              mean m, log variance v:           (log 2 pi + v + (m - t)^2 e^-v) / 2
    discretised logistic  see ``dlogistic.py``

Their gradients: sigmoid(x) - t; mean(x) - t with mean(x) = 1 / (1 - e^-x) - 1 / x;
(m - t) e^-v and (1 - (m - t)^2 e^-v) / 2.

A Bernoulli target strictly between 0 and 1 is read as the mean of a Bernoulli pixel (cross-entropy)
: the number has no normaliser for continuous data, so it compares only with other grey-target
results. The continuous Bernoulli (Loaiza-Ganem and Cunningham, "The continuous Bernoulli: fixing a
pervasive error in variational autoencoders", NeurIPS 2019) has that normaliser, C.

The first part of this file are plain references, differentiable by autograd in any float dtype. The
second part are the *explicit forms*: value and hand-written gradient in plain PyTorch, computed in
float32 (float64 for float64 parameters). They are what CPU tensors run, and what torch.compile
makes one pass over the pixels of.

Arguments of the explicit forms, with R = T * K rows, row r belonging to target r // K:

    params   (R, N); discretised logistic: (R, P * N), see ``dlogistic.py``; rows may be strided
    second   Gaussian only: log variance, () or (1,) for all pixels, or (R, N)
    target   (T, N) float in [0, 1], uint8 (level / 255) or bool; or, packed, (T, ceil(N / 8)) uint8
             of bits in the order of ``numpy.packbits``
    weight   (T, N) float or bool, multiplies each pixel's term; or None
    kind     one of KINDS
    samples_per_target  K
    mixtures components of the discretised logistic
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae.kernels import dlogistic
from fastvae.kernels.rows import wide_dtype

KINDS = ("bernoulli", "continuous_bernoulli", "gaussian", "dlogistic")
LOG_2_PI = math.log(2.0 * math.pi)


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Bernoulli negative log-likelihood, summed over all but the first axis.

    Shapes: logits (B, ...), target the same shape with values in [0, 1]; returns (B,).
    """
    element = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return element.flatten(1).sum(dim=1)


def continuous_bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Continuous Bernoulli negative log-likelihood. Shapes: as ``bernoulli_nll``."""
    near = logits.abs() < 1e-3  # log C by its series, for the sake of the gradient
    far, square = torch.where(near, 1.0, logits), logits.square()
    series = math.log(2.0) + square / 12.0 - square.square() * (7.0 / 1440.0)
    log_c = torch.where(near, series, (far / (0.5 * far).tanh()).log())
    return bernoulli_nll(logits, target) - log_c.flatten(1).sum(dim=1)


def gaussian_nll(mean: Tensor, logvar: Tensor, target: Tensor) -> Tensor:
    """Gaussian negative log-likelihood, summed over all but the first axis.

    Shapes: mean (B, ...), target the same shape, logvar broadcastable to it; returns (B,).
    """
    return _value("gaussian", mean, logvar, target.to(mean.dtype)).flatten(1).sum(dim=1)


def dlogistic_nll(params: Tensor, level: Tensor) -> Tensor:
    """Discretised logistic negative log-likelihood.

    Shapes: params (B, P, N), see ``dlogistic.py``; level (B, N) in 0..255; returns (B,).
    """
    return _value("dlogistic", params, None, level.to(params.dtype)).sum(dim=-1)


Terms = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Per pixel: value (..., N), gradient by params, gradient by second; None where not asked for.

Gradients are new tensors, free to be overwritten.
"""


def _bernoulli(x: Tensor, second: Tensor | None, t: Tensor, value: bool, grad: bool) -> Terms:
    if torch.compiler.is_compiling() and x.dtype != torch.float64:
        return _bernoulli_fused(x, t, value, grad)
    nll = None
    if value:
        nll = F.binary_cross_entropy_with_logits(x, t.expand_as(x), reduction="none")
    return nll, x.sigmoid().sub_(t) if grad else None, None


# 2 atanh(s) / s in s^2 on [0, 1/9], lowest power first: relative error 4e-9.
ATANH_COEFFICIENTS = (2.0, 0.66666315, 0.4002491, 0.27960603, 0.28178335)


def _bernoulli_fused(x: Tensor, t: Tensor, value: bool, grad: bool) -> Terms:
    """The same for compilers to C++, where exp and log cost more than all the rest.

    One exp, one division and no log: with e = exp(-|x|) and s = e / (2 + e), log(1 + e) is
    2 atanh(s), and 1 / (1 + e) and s share the reciprocal of (1 + e) (2 + e). As single calls in
    PyTorch this would be slower than its own functions.
    """
    e = (-x.abs()).exp()
    one, two = 1.0 + e, 2.0 + e
    reciprocal = 1.0 / (one * two)
    nll = None
    if value:
        s = e * (one * reciprocal)
        square = s * s
        total = ATANH_COEFFICIENTS[-1] * square + ATANH_COEFFICIENTS[-2]
        for coefficient in ATANH_COEFFICIENTS[-3::-1]:
            total = total * square + coefficient
        nll = x.clamp_min(0.0) - x * t + s * total
    sigmoid = torch.where(x >= 0.0, two, e * two) * reciprocal
    return nll, sigmoid - t if grad else None, None


def _continuous_bernoulli(
    x: Tensor, second: Tensor | None, t: Tensor, value: bool, grad: bool
) -> Terms:
    """softplus(x) - log C(x) is max(x, 0) + log((1 - e^-|x|) / |x|); mean(-x) is 1 - mean(x)."""
    y = x.abs()
    nll = x.clamp_min(0.0) - x * t + dlogistic.log_integral(y) if value else None
    if not grad:
        return nll, None, None
    mean = dlogistic.integral_mean(y)
    return nll, torch.where(x >= 0.0, mean, 1.0 - mean) - t, None


def _gaussian(mean: Tensor, logvar: Tensor | None, t: Tensor, value: bool, grad: bool) -> Terms:
    assert logvar is not None
    difference = mean - t
    by_mean = difference * (-logvar).exp()
    by_logvar = 0.5 - 0.5 * difference * by_mean if grad else None
    nll = (difference * by_mean + (logvar + LOG_2_PI)) * 0.5 if value else None
    return nll, by_mean if grad else None, by_logvar


_TERMS: dict[str, Callable[[Tensor, Tensor | None, Tensor, bool, bool], Terms]] = {
    "bernoulli": _bernoulli,
    "continuous_bernoulli": _continuous_bernoulli,
    "gaussian": _gaussian,
    "dlogistic": dlogistic.terms,
}


def _value(kind: str, x: Tensor, second: Tensor | None, t: Tensor) -> Tensor:
    nll, _, _ = _TERMS[kind](x, second, t, True, False)
    assert nll is not None
    return nll


def parts(kind: str, mixtures: int) -> int:
    """Parameters per pixel in ``params``."""
    return dlogistic.parts(mixtures) if kind == "dlogistic" else 1


def unpack_bits(packed: Tensor, columns: int) -> Tensor:
    """Undo ``numpy.packbits(axis=1)``: (T, ceil(columns / 8)) uint8 to (T, columns) of 0 and 1."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :columns]


class _Pixels(NamedTuple):
    """Widened inputs that broadcast together: (R, N), or (T, K, N) for K > 1 samples."""

    x: Tensor  # discretised logistic: one more axis, of its P parts, before the last
    second: Tensor | None
    target: Tensor
    weight: Tensor | None


def _pixels(
    params: Tensor,
    second: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    kind: str,
    samples_per_target: int,
    packed: bool,
    mixtures: int,
) -> _Pixels:
    dtype = wide_dtype(params.dtype)
    count = parts(kind, mixtures)
    columns = params.shape[1] // count
    if kind == "dlogistic":
        t = dlogistic.levels(target, dtype)
    elif packed:
        t = unpack_bits(target, columns).to(dtype)
    else:
        t = target.to(dtype)
        if target.dtype == torch.uint8:
            t = t.div_(255.0)
    x = params.to(dtype)
    if second is not None:
        second = second.to(dtype).reshape(()) if second.dim() < 2 else second.to(dtype)
    if weight is not None:
        weight = weight.to(dtype)
    if samples_per_target > 1:
        groups = (target.shape[0], samples_per_target)
        x, t = x.unflatten(0, groups), t.unsqueeze(1)
        if second is not None and second.dim() == 2:
            second = second.unflatten(0, groups)
        if weight is not None:
            weight = weight.unsqueeze(1)
    if kind == "dlogistic":
        x = x.unflatten(-1, (count, columns))
    return _Pixels(x, second, t, weight)


def _row_sums(element: Tensor, weight: Tensor | None) -> Tensor:
    if weight is not None:
        element = element * weight
    return element.sum(dim=-1).reshape(-1)


def _per_row(factor: Tensor, target: Tensor, samples_per_target: int) -> Tensor:
    """(R,) as (R, 1), or (T, K, 1) for K > 1."""
    if samples_per_target > 1:
        factor = factor.unflatten(0, (target.shape[0], samples_per_target))
    return factor.unsqueeze(-1)


def _gradients(
    terms: Terms,
    weight: Tensor | None,
    factor: Tensor | float,
    params: Tensor,
    second: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients by params and second, times ``factor``: a number, or (R, 1) / (T, K, 1)."""
    _, grad, grad_second = terms
    assert grad is not None
    if weight is not None:
        factor = weight * factor
    if isinstance(factor, Tensor) and grad.dim() > factor.dim():  # the axis of parts
        grad = grad.mul_(factor.unsqueeze(-2))
    else:
        grad = grad.mul_(factor)
    dtype = grad.dtype
    grad = grad.reshape(params.shape).to(params.dtype).contiguous()
    if second is None or grad_second is None:
        return grad, grad.new_empty((0,), dtype=dtype)
    grad_second = grad_second * factor
    if second.dim() < 2:
        return grad, grad_second.sum(dim=-1).reshape(-1)
    return grad, grad_second.reshape(second.shape).to(second.dtype).contiguous()


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
    """Negative log-likelihood of each row, nats: (R,) float32 (float64 for float64 params)."""
    pixels = _pixels(params, second, target, weight, kind, samples_per_target, packed, mixtures)
    return _row_sums(_value(kind, pixels.x, pixels.second, pixels.target), pixels.weight)


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
    """Gradients of sum(grad_row * nll), in the dtypes of params and second.

    Returns:
        By params (R, P * N). By second: (R, N); for one log variance of all pixels the sums of each
        row, (R,) float32 or float64; (0,) where there is none.
    """
    pixels = _pixels(params, second, target, weight, kind, samples_per_target, packed, mixtures)
    factor = _per_row(grad_row.to(wide_dtype(params.dtype)), target, samples_per_target)
    terms = _TERMS[kind](pixels.x, pixels.second, pixels.target, False, True)
    return _gradients(terms, pixels.weight, factor, params, second)


def pixel_nll_grad(
    params: Tensor,
    second: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    kind: str,
    samples_per_target: int,
    packed: bool,
    mixtures: int,
    scale: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """``pixel_nll`` (unscaled) and the gradients of ``(scale * nll).sum()`` in one pass.

    ``scale`` may be (R,), one for each row. Compiled, that is faster than a number: the gradient
    then has a loop over rows, as the sum has, and inductor makes one loop of both. Nor does
    another number compile anew.
    """
    pixels = _pixels(params, second, target, weight, kind, samples_per_target, packed, mixtures)
    terms = _TERMS[kind](pixels.x, pixels.second, pixels.target, True, True)
    assert terms[0] is not None
    nll = _row_sums(terms[0], pixels.weight)
    if isinstance(scale, Tensor):
        scale = _per_row(scale, pixels.target, samples_per_target)
    return nll, *_gradients(terms, pixels.weight, scale, params, second)


def rescale_(grad: Tensor, factor: Tensor) -> None:
    """grad *= factor, in place. factor: () float; where reading it is free, 1 is skipped."""
    if grad.device.type == "cpu" and factor.item() == 1.0:
        return
    grad.mul_(factor)
