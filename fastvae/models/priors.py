"""Priors p(z)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastvae import ops


class Prior(nn.Module, ABC):
    """What a prior must offer."""

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

    def kl(self, mean: Tensor, logvar: Tensor) -> Tensor:
        return ops.kl_standard_normal(mean, logvar)

    def log_prob(self, z: Tensor) -> Tensor:
        zero = torch.zeros((), device=z.device)
        return ops.gaussian_log_prob(z, zero, zero).sum(dim=1)

    def sample(self, eps: Tensor) -> Tensor:
        return eps


PRIORS: dict[str, Callable[[int], Prior]] = {"standard": StandardNormal}
