"""Distributions over latents: posteriors, and what priors p(z) turn out to be for a batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from fastvae import ops


class Posterior(NamedTuple):
    """q(z|x): a diagonal Gaussian. Shapes: mean and logvar (B, Z)."""

    mean: Tensor
    logvar: Tensor

    def repeat(self, samples: int) -> Posterior:
        """Each row ``samples`` times."""
        if samples == 1:
            return self
        return Posterior(*(t.repeat_interleave(samples, dim=0) for t in self))

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z|x), nats. Shapes: z (B, Z); returns (B,)."""
        return ops.gaussian_log_prob(z, self.mean, self.logvar).sum(dim=1)


class Draw(NamedTuple):
    """Latents drawn from the posterior, and its KL divergence from the prior."""

    z: Tensor
    """(B, Z) float32."""
    kl_row: Tensor
    """(B,) nats per image."""
    kl_dim: Tensor
    """(Z,) nats per latent, summed over the batch; empty where the KL does not split into latents
    (mixtures)."""


class LatentDistribution(ABC):
    """A prior over latents as it is for a batch of B images."""

    @abstractmethod
    def draw(self, posterior: Posterior, rng: Tensor, sample_offset: int) -> Draw:
        """Draw z ~ q and KL(q || p). Shapes: posterior (B, Z); rng (2,) int64."""

    @abstractmethod
    def kl(self, posterior: Posterior) -> Tensor | None:
        """KL(q || p) per latent (B, Z), nats; None where there is no formula for it."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), nats. Shapes: z (B, Z); returns (B,)."""

    @abstractmethod
    def sample(self, eps: Tensor, pick: Tensor, temperature: float) -> Tensor:
        """Latents from standard normal noise eps (B, Z), with standard deviations scaled by
        ``temperature`` (0 gives means), and uniform numbers ``pick`` (B,) in [0, 1) that choose a
        component where there are several. Returns (B, Z)."""

    def repeat(self, samples: int) -> LatentDistribution:
        """The same for each image ``samples`` times over."""
        return self


class UnitGaussian(LatentDistribution):
    """p(z) = N(0, 1)."""

    def draw(self, posterior: Posterior, rng: Tensor, sample_offset: int) -> Draw:
        return Draw(*ops.reparam_kl(*posterior, rng, sample_offset=sample_offset))

    def kl(self, posterior: Posterior) -> Tensor:
        return ops.kl_standard_normal(*posterior)

    def log_prob(self, z: Tensor) -> Tensor:
        zero = ops.widen(z.new_zeros(()))
        return ops.gaussian_log_prob(z, zero, zero).sum(dim=1)

    def sample(self, eps: Tensor, pick: Tensor, temperature: float) -> Tensor:
        return eps * temperature


class DiagonalGaussian(LatentDistribution):
    """p(z) = N(mean, exp(logvar)), one for each image. Shapes: mean, logvar (B, Z)."""

    def __init__(self, mean: Tensor, logvar: Tensor) -> None:
        self.mean = mean
        self.logvar = logvar

    def draw(self, posterior: Posterior, rng: Tensor, sample_offset: int) -> Draw:
        q, p = posterior, Posterior(self.mean, self.logvar)
        if q.mean.dtype != p.mean.dtype:  # under autocast a table stays float32
            q, p = Posterior(*map(ops.widen, q)), Posterior(*map(ops.widen, p))
        return Draw(*ops.gaussian_sample_kl(*q, *p, rng, sample_offset=sample_offset))

    def kl(self, posterior: Posterior) -> Tensor:
        mean_q, logvar_q = map(ops.widen, posterior)
        mean_p, logvar_p = ops.widen(self.mean), ops.widen(self.logvar)
        shift = (mean_q - mean_p).square() * torch.exp(-logvar_p)
        return 0.5 * (logvar_p - logvar_q + torch.exp(logvar_q - logvar_p) + shift - 1.0)

    def log_prob(self, z: Tensor) -> Tensor:
        return ops.gaussian_log_prob(z, self.mean, self.logvar).sum(dim=1)

    def sample(self, eps: Tensor, pick: Tensor, temperature: float) -> Tensor:
        mean, logvar = ops.widen(self.mean), ops.widen(self.logvar)
        return ops.reparameterize(mean, logvar, eps * temperature)

    def repeat(self, samples: int) -> DiagonalGaussian:
        if samples == 1:
            return self
        tensors = (t.repeat_interleave(samples, dim=0) for t in (self.mean, self.logvar))
        return DiagonalGaussian(*tensors)


class GaussianMixture(LatentDistribution):
    """p(z) = sum_k w_k N(mean_k, exp(logvar_k)), the same for all images.

    Its KL divergence has no formula: it is estimated from the drawn z, log q(z|x) - log p(z).

    Shapes: logits (K,), unnormalised log weights; mean, logvar (K, Z).
    """

    def __init__(self, logits: Tensor, mean: Tensor, logvar: Tensor) -> None:
        self.log_weight = torch.log_softmax(ops.widen(logits), dim=0)
        self.mean = ops.widen(mean)
        self.logvar = ops.widen(logvar)

    def draw(self, posterior: Posterior, rng: Tensor, sample_offset: int) -> Draw:
        z, *_ = ops.reparam_kl(*posterior, rng, sample_offset=sample_offset)
        return Draw(z, posterior.log_prob(z) - self.log_prob(z), z.new_empty(0))

    def kl(self, posterior: Posterior) -> None:
        return None

    def log_prob(self, z: Tensor) -> Tensor:
        # sum over Z of log N(z; mean_k, var_k), opened up into matrix products: (B, K) and never
        # (B, K, Z). The squares nearly cancel when variances are small: float64, which neither
        # autocast nor TF32 touches.
        wide, mean, logvar = z.double(), self.mean.double(), self.logvar.double()
        precision = torch.exp(-logvar)
        square = (
            wide.square() @ precision.T
            - 2.0 * wide @ (mean * precision).T
            + (mean.square() * precision).sum(dim=1)
        )
        constant = logvar.sum(dim=1) + z.shape[1] * math.log(2.0 * math.pi)
        log_prob = torch.logsumexp(self.log_weight.double() - 0.5 * (square + constant), dim=1)
        return log_prob.to(ops.widen(z).dtype)

    def sample(self, eps: Tensor, pick: Tensor, temperature: float) -> Tensor:
        edges = self.log_weight.exp().cumsum(dim=0)
        k = torch.searchsorted(edges, pick.to(edges) * edges[-1], right=True)
        k = k.clamp(max=len(edges) - 1)
        return ops.reparameterize(self.mean[k], self.logvar[k], eps * temperature)
