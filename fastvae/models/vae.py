"""The variational autoencoder: four parts and how they meet.

Kingma and Welling (2014): maximise E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z)).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.models.likelihoods import Likelihood
from fastvae.models.priors import Draw, Prior


class Posterior(NamedTuple):
    """q(z|x): a diagonal Gaussian. Shapes: mean and logvar (B, Z), float32."""

    mean: Tensor
    logvar: Tensor


class VAE(nn.Module):
    """Encoder, prior, decoder and likelihood. Images are (B, C, H, W) in [0, 1]."""

    def __init__(
        self,
        *,
        encoder: nn.Module,
        prior: Prior,
        decoder: nn.Module,
        likelihood: Likelihood,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood
        self.config = config

    def forward(self, x: Tensor, rng: Tensor, sample_offset: int = 0) -> tuple[Tensor, Draw]:
        """One pass: encode, draw from the posterior, decode.

        Shapes: x (B, C, H, W), rng (2,) int64 (see ``ops.rng_state``); returns the likelihood's
        parameters (B, ...) and the draw.
        """
        mean, logvar = self.encoder(x)
        draw = self.prior.draw(mean, logvar, rng, sample_offset)
        return self.decoder(draw.z), draw

    def _prepare(self, x: Tensor) -> Tensor:
        """Check images given by a user; uint8 becomes [0, 1]. They are not binarized here."""
        if not isinstance(x, Tensor):
            raise TypeError(f"images must be a torch tensor, got {type(x).__name__}")
        shape = tuple(self.config.image_shape)
        if x.dim() != 4 or tuple(x.shape[1:]) != shape:
            raise ValueError(f"images must be (B, {', '.join(map(str, shape))}), got {x.shape}")
        if x.dtype not in (torch.uint8, torch.bool) and not x.is_floating_point():
            raise ValueError(
                f"images must be uint8 (0..255), bool or floating point (0..1), got {x.dtype}"
            )
        weight = next(self.parameters())
        scaled = x.to(weight.device, weight.dtype)
        return scaled / 255.0 if x.dtype == torch.uint8 else scaled

    @torch.no_grad()
    def encode(self, x: Tensor) -> Posterior:
        """Posterior of images. Shapes: x (B, C, H, W) uint8 or in [0, 1]; mean, logvar (B, Z)."""
        mean, logvar = self.encoder(self._prepare(x))
        return Posterior(ops.widen(mean), ops.widen(logvar))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Mean image of each latent vector. Shapes: z (B, Z); returns (B, C, H, W) in [0, 1]."""
        if z.dim() != 2 or z.shape[1] != self.config.latent_dim:
            raise ValueError(f"latents must be (B, {self.config.latent_dim}), got {tuple(z.shape)}")
        weight = next(self.parameters())
        return self.likelihood.mean(self.decoder(z.to(weight.device, weight.dtype)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Mean image of the posterior mean. Shapes: x (B, C, H, W); returns the same in [0, 1]."""
        return self.decode(self.encode(x).mean)

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """Mean images of latents drawn from the prior.

        Args:
            count: number of images.
            temperature: scale of the prior's standard deviation; 0 gives its mean.
            seed: the same seed gives the same images, on any device.

        Shapes: returns (count, C, H, W) in [0, 1].
        """
        if count < 0:
            raise ValueError(f"count = {count}: expected 0 or more")
        device = next(self.parameters()).device
        ordinal = torch.arange(count, device=device)
        eps = ops.philox_normal(ops.derive_seed(seed, "prior"), ordinal, self.config.latent_dim)
        return self.decode(self.prior.sample(eps * temperature))
