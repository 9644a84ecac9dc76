"""Diagonal Gaussians: reparameterized sampling and KL divergence, in nats.

    z  = mean + exp(logvar / 2) * eps
    KL(N(mean, exp(logvar)) || N(0, 1)) = 0.5 * (exp(logvar) + mean^2 - 1 - logvar)

Kingma and Welling, "Auto-encoding variational Bayes" (2014), section 2.4 and appendix B.
These are the plain PyTorch references: they follow the dtype of their inputs, float64 included.
"""

from __future__ import annotations

import math

from torch import Tensor


def reparameterize(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z = mean + exp(logvar / 2) * eps. Shapes: all (B, Z); returns (B, Z)."""
    return mean + (0.5 * logvar).exp() * eps


def kl_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(q || N(0, 1)) per element, in nats. Shapes: (B, Z) each; returns (B, Z)."""
    return 0.5 * (logvar.exp() + mean.square() - 1.0 - logvar)


def gaussian_log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, exp(logvar)) per element, in nats. Shapes: broadcastable; returns the same."""
    squared = (z - mean).square() * (-logvar).exp()
    return -0.5 * (math.log(2.0 * math.pi) + logvar + squared)
