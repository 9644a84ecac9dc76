"""The public face of the kernels: plain tensors in, plain tensors out.

This is the only module that imports from ``fastvae.kernels``. Losses are returned per sample, in
nats, and are computed in float32 (or float64 when the input is float64) whatever the autocast
state: half-precision network outputs are widened first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.kernels import gaussian, likelihood, philox

derive_seed = philox.derive_seed
philox_words = philox.philox_words
philox_normal = philox.philox_normal
philox_bernoulli = philox.philox_bernoulli


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged when it is float64 (the precision of tests)."""
    return x if x.dtype == torch.float64 else x.float()


def _same_shape(op: str, **tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{op}: {listed} must have the same shape")


def reparameterize(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z = mean + exp(logvar / 2) * eps in float32. Shapes: all (B, Z); returns (B, Z)."""
    _same_shape("reparameterize", mean=mean, logvar=logvar, eps=eps)
    return gaussian.reparameterize(widen(mean), widen(logvar), eps)


def kl_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) per latent, nats. Shapes: (B, Z); returns (B, Z)."""
    _same_shape("kl_standard_normal", mean=mean, logvar=logvar)
    return gaussian.kl_standard_normal(widen(mean), widen(logvar))


def gaussian_log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, exp(logvar)) per latent, nats. Shapes: broadcastable to z."""
    return gaussian.gaussian_log_prob(widen(z), widen(mean), widen(logvar))


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Bernoulli negative log-likelihood per row, nats. Shapes: (B, ...) each; returns (B,)."""
    _same_shape("bernoulli_nll", logits=logits, target=target)
    if logits.dim() < 2:
        raise ValueError(f"bernoulli_nll: logits {tuple(logits.shape)} must be (B, ...)")
    return likelihood.bernoulli_nll(widen(logits), target)
