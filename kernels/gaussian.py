"""Diagonal Gaussians: reparameterized sampling and KL divergence, in nats.

With q = N(m, e^l), p = N(n, e^k) per latent, d = m - n and r = e^(l - k):

    z        = m + e^(l / 2) * eps
    KL(q||p) = 0.5 * (k - l + r + d^2 e^-k - 1);  for p = N(0, 1): 0.5 * (e^l + m^2 - 1 - l)

With g the gradient of the loss with respect to z and c that with respect to KL(q||p) of one latent
of one row (the sum of its row's and its column's, as KL is summed over both), the gradients are

    m: g + c d e^-k                               n: -c d e^-k
    l: 0.5 * (g e^(l / 2) eps + c (r - 1))        k: 0.5 * c (1 - r - d^2 e^-k)

and twice as much for log standard deviations l / 2 and k / 2.

Kingma and Welling, "Auto-encoding variational Bayes" (2014), section 2.4 and appendix B.

The first functions are the plain references: differentiable by autograd, in the dtype of their
inputs. ``sample_kl`` and ``sample_kl_backward`` are the explicit forms, which CPU runs and
torch.compile compiles: float32 inside for anything but float64. ``gaussian_triton.py`` takes the
same arguments and gives the same results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastvae.kernels import philox
from fastvae.kernels.rows import widen

NO_CLAMP = (-math.inf, math.inf, -math.inf, math.inf)


def reparameterize(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z = mean + exp(logvar / 2) * eps. Shapes: all (B, Z); returns (B, Z)."""
    return mean + (0.5 * logvar).exp() * eps


def kl_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(q || N(0, 1)) per element, in nats. Shapes: (B, Z) each; returns (B, Z)."""
    return 0.5 * (logvar.exp() + mean.square() - 1.0 - logvar)


def kl_gaussian(mean_q: Tensor, logvar_q: Tensor, mean_p: Tensor, logvar_p: Tensor) -> Tensor:
    """KL(q || p) per element, in nats. Shapes: broadcastable, as (B, Z); returns the same."""
    ratio = (logvar_q - logvar_p).exp()
    squared = (mean_q - mean_p).square() * (-logvar_p).exp()
    return 0.5 * (logvar_p - logvar_q + ratio + squared - 1.0)


def gaussian_log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, exp(logvar)) per element, in nats. Shapes: broadcastable; returns the same."""
    squared = (z - mean).square() * (-logvar).exp()
    return -0.5 * (math.log(2.0 * math.pi) + logvar + squared)


def sample_kl_reference(
    mean_q: Tensor,
    scale_q: Tensor,
    mean_p: Tensor | None,
    scale_p: Tensor | None,
    eps: Tensor,
    log_std: bool,
    clamp: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``sample_kl`` computes, for given noise and for autograd to differentiate.

    Shapes: all (B, Z); returns z (B, Z), KL summed over latents (B,) and over rows (Z,).
    """
    factor = 2.0 if log_std else 1.0
    mean = mean_q.clamp(clamp[0], clamp[1])
    logvar = factor * scale_q.clamp(clamp[2], clamp[3])
    if mean_p is None or scale_p is None:
        kl = kl_standard_normal(mean, logvar)
    else:
        kl = kl_gaussian(mean, logvar, mean_p, factor * scale_p)
    return reparameterize(mean, logvar, eps), kl.sum(dim=1), kl.sum(dim=0)


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
    """Sample z ~ q and sum KL(q || p).

    Args:
        mean_q, scale_q: (B, Z), any float dtype; scale is log variance.
        mean_p, scale_p: (B, Z), or None for N(0, 1).
        rng: (2,) int64 (seed, counter) on the same device. Row r draws the Philox normals of
            ordinal counter + sample_offset + r.
        log_std: scale is log standard deviation instead.
        clamp: lowest and highest mean_q, then scale_q; infinite where there is no bound.
        out_dtype: of z.

    Returns:
        z (B, Z); KL in nats summed over latents (B,) and over rows (Z,), in float32 (float64 for
        float64 inputs); the noise (B, Z) float32, for the backward pass.
    """
    eps = _noise(rng, sample_offset, *mean_q.shape)
    mean, scale = _clamped(mean_q, scale_q, clamp)
    std = (scale if log_std else 0.5 * scale).exp()
    logvar = 2.0 * scale if log_std else scale
    if mean_p is None or scale_p is None:
        twice = std * std + mean * mean - 1.0 - logvar
    else:
        difference, logvar_p = mean - widen(mean_p), _logvar(scale_p, log_std)
        log_ratio = logvar - logvar_p
        squared = difference * difference * (-logvar_p).exp()
        twice = log_ratio.exp() + squared - 1.0 - log_ratio
    z = (mean + std * eps).to(out_dtype).contiguous()
    return z, 0.5 * twice.sum(dim=1), 0.5 * twice.sum(dim=0), eps


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
    """Gradients of ``sample_kl`` with respect to mean_q, scale_q and, if given, mean_p, scale_p.

    Args:
        grad_z, grad_row, grad_dim: (B, Z), (B,), (Z,), or None for zero.
        noise: the noise that ``sample_kl`` returned. The others are its arguments.

    Returns:
        2 or 4 tensors (B, Z), contiguous, in the dtypes of the inputs.
    """
    mean, scale = _clamped(mean_q, scale_q, clamp)
    half = 1.0 if log_std else 0.5
    c = _kl_gradient(grad_row, grad_dim, mean)
    gradients: list[Tensor] = []
    if grad_row is None and grad_dim is None:  # 0 times the variance, which may be infinite
        g_mean, g_scale = torch.zeros_like(mean), torch.zeros_like(scale)
        gradients = [x.new_zeros(x.shape) for x in (mean_p, scale_p) if x is not None]
    elif mean_p is None or scale_p is None:
        g_mean, g_scale = c * mean, c * ((2.0 * half * scale).exp() - 1.0)
    else:
        logvar_p, difference = _logvar(scale_p, log_std), mean - widen(mean_p)
        g_mean = c * difference * (-logvar_p).exp()
        g_scale = c * ((2.0 * half * scale - logvar_p).exp() - 1.0)
        g_scale_p = -half * (g_scale + g_mean * difference)
        gradients = [_as(mean_p, -g_mean), _as(scale_p, g_scale_p)]
    if grad_z is not None:
        g = widen(grad_z)
        g_mean = g_mean + g
        g_scale = g_scale + g * noise * (half * scale).exp()
    g_mean = _unclamped(g_mean, mean_q, clamp[0], clamp[1])
    g_scale = _unclamped(half * g_scale, scale_q, clamp[2], clamp[3])
    return [_as(mean_q, g_mean), _as(scale_q, g_scale), *gradients]


def _as(x: Tensor, gradient: Tensor) -> Tensor:
    return gradient.to(x.dtype).contiguous()


def _logvar(scale: Tensor, log_std: bool) -> Tensor:
    return 2.0 * widen(scale) if log_std else widen(scale)


def _noise(rng: Tensor, sample_offset: int, rows: int, columns: int) -> Tensor:
    ordinal = torch.arange(rows, device=rng.device)
    if rng.is_cuda or torch.compiler.is_compiling():
        return philox.philox_normal(rng[0], ordinal + (rng[1] + sample_offset), columns)
    seed, counter = rng.tolist()  # on a CPU integers are quicker than tensors of one element
    return philox.philox_normal(seed, ordinal + (counter + sample_offset), columns)


def _clamped(mean: Tensor, scale: Tensor, clamp: Sequence[float]) -> tuple[Tensor, Tensor]:
    mean, scale = widen(mean), widen(scale)
    if tuple(clamp) == NO_CLAMP:
        return mean, scale
    return mean.clamp(clamp[0], clamp[1]), scale.clamp(clamp[2], clamp[3])


def _unclamped(gradient: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """The gradient where ``x`` is within its bounds, at the bounds too; zero elsewhere."""
    if low == -math.inf and high == math.inf:
        return gradient
    wide = widen(x)  # bounds are rounded to the precision of the computation, not to that of x
    return torch.where((wide >= low) & (wide <= high), gradient, 0.0)


def _kl_gradient(grad_row: Tensor | None, grad_dim: Tensor | None, like: Tensor) -> Tensor:
    """Gradient with respect to each element of KL: broadcastable to (B, Z)."""
    if grad_row is None:
        return like.new_zeros(()) if grad_dim is None else grad_dim
    return grad_row[:, None] if grad_dim is None else grad_row[:, None] + grad_dim
