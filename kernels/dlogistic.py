"""Discretised logistic likelihood of 8-bit pixels, alone or as a mixture, in nats.

Salimans, Karpathy, Chen and Kingma, "PixelCNN++: improving the PixelCNN with discretized logistic
mixture likelihood and other modifications" (ICLR 2017), equation 2; here the channels of a pixel
are independent, as a decoder that sees all of z needs no autoregression. Level k in 0..255 is
x = k / 127.5 - 1, its bin reaches h = 1 / 255 to both sides, and with mean m, log scale s:

    i = e^-s    a = (x + h - m) i    b = (x - h - m) i    d = 2 h i = a - b
    log p = log sigmoid(a) + log sigmoid(-b) + log(1 - e^-d)    0 < k < 255
          = log sigmoid(a)                                      k = 0
          = log sigmoid(-b)                                     k = 255

The first line is log(sigmoid(a) - sigmoid(b)) without its cancellation. log(1 - e^-d) is taken as
log(2 h) - s + log((1 - e^-d) / d), which holds for any scale, and its derivative by s,
-d / (e^d - 1), as d (1 - integral_mean(d)) - 1. s counts as at least MIN_LOG_SCALE,
with gradient zero below. Mixture: log sum_j softmax(w)_j p_j.

Layout of parameters: part-major, (..., P, N). One component, P = 2: means, log scales. M > 1
components, P = 3 M: weights (logits) of all components, their means, their log scales.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_LOG_SCALE = -7.0
HALF_BIN = 1.0 / 255.0
LOG_BIN = math.log(2.0 * HALF_BIN)


def parts(mixtures: int) -> int:
    """Parameters per pixel."""
    return 2 if mixtures == 1 else 3 * mixtures


def levels(target: Tensor, dtype: torch.dtype) -> Tensor:
    """Levels 0..255 as floats. target: uint8 levels, or floats in [0, 1] (rounded to levels)."""
    wide = target.to(dtype)
    return wide if target.dtype == torch.uint8 else (wide * 255.0).round()


def _near(y: Tensor) -> float:
    """Below this a series is taken: its error and that of the other formula are below rounding."""
    return 0.1 if y.dtype == torch.float64 else 1.0


def log_integral(y: Tensor) -> Tensor:
    """log of the integral of e^(-y u) over u in [0, 1]: log((1 - e^-y) / y). y >= 0.

    Without expm1, which inductor's C++ takes as exp - 1.
    """
    near, square = _near(y), y * y
    series = square * (1.0 / 181440.0 - square * (1.0 / 9676800.0)) - 1.0 / 2880.0
    series = square * (series * square + 1.0 / 24.0) - 0.5 * y
    far = y.clamp_min(near)
    return torch.where(y < near, series, ((1.0 - (-far).exp()) / far).log())


def integral_mean(y: Tensor) -> Tensor:
    """Mean of u in [0, 1] with density proportional to e^(y u): 1 / (1 - e^-y) - 1 / y. y >= 0.

    The poles at 0 cancel; the coefficients of the series are B_2k / (2k)! (Bernoulli numbers).
    """
    near, square = _near(y), y * y
    series = square * (1.0 / 30240.0 - square * (1.0 / 1209600.0)) - 1.0 / 720.0
    series = y * (series * square + 1.0 / 12.0) + 0.5
    far = y.clamp_min(near)
    return torch.where(y < near, series, 1.0 / (1.0 - (-far).exp()) - 1.0 / far)


def _split(params: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Weights (or None), means, log scales: each (..., M, N)."""
    if params.shape[-2] == 2:
        return None, params[..., :1, :], params[..., 1:, :]
    weights, means, log_scales = params.unflatten(-2, (3, -1)).unbind(-3)
    return weights, means, log_scales


def _components(
    means: Tensor, log_scales: Tensor, level: Tensor, grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """log p of each component and its gradients. Shapes: (..., M, N), level (..., 1, N)."""
    clamped = log_scales.clamp_min(MIN_LOG_SCALE)
    inverse = (-clamped).exp()
    centre = level * (1.0 / 127.5) - 1.0 - means
    a, b = (centre + HALF_BIN) * inverse, (centre - HALF_BIN) * inverse
    d = inverse * (2.0 * HALF_BIN)
    lowest, highest = level == 0.0, level == 255.0
    below, above = F.logsigmoid(a), F.logsigmoid(-b)
    inside = below + above + (LOG_BIN - clamped) + log_integral(d)
    log_p = torch.where(lowest, below, torch.where(highest, above, inside))
    if not grad:
        return log_p, None, None
    from_a = torch.where(highest, 0.0, (-a).sigmoid())
    from_b = torch.where(lowest, 0.0, b.sigmoid())
    width = torch.where(lowest | highest, 0.0, 1.0 - d * (1.0 - integral_mean(d)))
    by_scale = torch.where(log_scales >= MIN_LOG_SCALE, b * from_b - a * from_a - width, 0.0)
    return log_p, inverse * (from_b - from_a), by_scale


def terms(
    params: Tensor, second: Tensor | None, level: Tensor, value: bool, grad: bool
) -> tuple[Tensor | None, Tensor | None, None]:
    """-log p per pixel and its gradient by params, what is asked for.

    Shapes: params (..., P, N), level (..., N) in 0..255; returns (..., N), (..., P, N), None.
    """
    weights, means, log_scales = _split(params)
    log_p, by_mean, by_scale = _components(means, log_scales, level.unsqueeze(-2), grad)
    nll = gradient = None
    if weights is None:
        nll = -log_p.squeeze(-2) if value else None
        if by_mean is not None and by_scale is not None:
            gradient = torch.cat((by_mean, by_scale), dim=-2).neg_()
        return nll, gradient, None
    joint = weights + log_p
    if value:
        nll = weights.logsumexp(dim=-2) - joint.logsumexp(dim=-2)
    if by_mean is not None and by_scale is not None:
        posterior = joint.softmax(dim=-2)
        by_weight = posterior - weights.softmax(dim=-2)
        parts_of = (by_weight, posterior * by_mean, posterior * by_scale)
        gradient = torch.cat(parts_of, dim=-2).neg_()
    return nll, gradient, None
