"""Priors p(z)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastvae import ops


class Draw(NamedTuple):
    """Latents drawn from the posterior, and its KL divergence from the prior."""

    z: Tensor
    """(B, Z) float32."""
    kl_row: Tensor
    """(B,) nats per image."""
    kl_dim: Tensor
    """(Z,) nats per latent, summed over the batch."""


class Prior(nn.Module, ABC):
    """What a prior must offer."""

    @abstractmethod
    def draw(self, mean: Tensor, logvar: Tensor, rng: Tensor, sample_offset: int) -> Draw:
        """Draw z ~ q and KL(q || p). Shapes: mean, logvar (B, Z); rng (2,) int64."""

    @abstractmethod
    def kl(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """KL(q || p) per latent, nats. Shapes: mean, logvar (B, Z); returns (B, Z)."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), nats. Shapes: z (B, Z); returns (B,)."""

    @abstractmethod
    def sample(self, eps: Tensor) -> Tensor:
        """Latents from standard normal noise. Shapes: eps (B, Z); returns (B, Z)."""


class StandardNormal(Prior):
    """p(z) = N(0, 1)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def draw(self, mean: Tensor, logvar: Tensor, rng: Tensor, sample_offset: int) -> Draw:
        return Draw(*ops.reparam_kl(mean, logvar, rng, sample_offset=sample_offset))

    def kl(self, mean: Tensor, logvar: Tensor) -> Tensor:
        return ops.kl_standard_normal(mean, logvar)

    def log_prob(self, z: Tensor) -> Tensor:
        zero = torch.zeros((), device=z.device)
        return ops.gaussian_log_prob(z, zero, zero).sum(dim=1)

    def sample(self, eps: Tensor) -> Tensor:
        return eps


PRIORS: dict[str, Callable[[int], Prior]] = {"standard": StandardNormal}
