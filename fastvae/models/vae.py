"""The variational autoencoder: four parts and how they meet.

Kingma and Welling (2014): maximise E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z)). With a condition y
(an image) or a label every part may depend on it: Sohn, Lee, Yan (2015).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.distributions import LatentDistribution, Posterior
from fastvae.models.inputs import Inputs
from fastvae.models.likelihoods import Likelihood
from fastvae.models.model import Model, Pass


class Inferred(NamedTuple):
    """What a VAE's encoder says of a batch."""

    mean: Tensor
    """(B, Z) float32 (float64 of a float64 model)."""
    logvar: Tensor
    prior: LatentDistribution
    """The prior for these images."""

    @property
    def posterior(self) -> Posterior:
        return Posterior(self.mean, self.logvar)


class VAE(Model):
    """Encoder, prior, decoder and likelihood, any of each.

    The encoder sees x, then y if there is one, then planes of the label's embedding, as channels;
    the decoder sees z and the label's embedding as one vector, and y as ``conditioning`` says.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        prior: nn.Module,
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
        if config.prior == "vamp" and any(isinstance(m, _BatchNorm) for m in encoder.modules()):
            raise UserError(
                "model.prior = 'vamp' sends pseudo-inputs through the encoder, and their batch "
                "statistics would be counted as the images': use --model.norm group, or an encoder "
                "without batch norm"
            )
        self.latent_dim = config.latent_dim
        self.label = nn.Embedding(config.classes, config.label_dim) if config.classes else None

    def see(self, x: Tensor | None, y: Tensor | None, label: Tensor | None) -> Tensor:
        """What an encoder looks at: standardized images and planes of the label's embedding.

        Shapes: x, y (B, C, H, W), label (B,); returns (B, channels, H, W).
        """
        config = self.config
        images = [x] if config.condition == "none" else [x, y]
        seen = [(i - config.input_mean) / config.input_std for i in images if i is not None]
        if self.label is not None:
            planes = self.label(label)[:, :, None, None]
            seen.append(planes.expand(-1, -1, *config.image_shape[1:]).to(seen[0].dtype))
        return seen[0] if len(seen) == 1 else torch.cat(seen, dim=1)

    def clamp(self, posterior: Posterior) -> Posterior:
        """Put the configured bounds on mean and log variance."""
        mean, logvar = posterior
        if self.config.clamp_mean is not None:
            mean = mean.clamp(*self.config.clamp_mean)
        if self.config.clamp_logvar is not None:
            logvar = logvar.clamp(*self.config.clamp_logvar)
        return Posterior(mean, logvar)

    def posterior(self, inputs: Inputs) -> Posterior:
        """q(z|x, y). Shapes: mean and logvar (B, Z)."""
        return self.clamp(Posterior(*self.encoder(self.see(*inputs))))

    def generate(self, z: Tensor, inputs: Inputs) -> Tensor:
        if self.label is not None:
            z = torch.cat((z, self.label(inputs.label).to(z.dtype)), dim=1)
        return self.decoder(z, inputs.y)

    def forward(
        self, inputs: Inputs, rng: Tensor, sample_offset: int = 0, samples: int = 1
    ) -> Pass:
        posterior = self.posterior(inputs)
        prior = self.prior(inputs, self)
        draw = prior.repeat(samples).draw(posterior.repeat(samples), rng, sample_offset)
        return Pass(self.generate(draw.z, inputs.repeat(samples)), draw, posterior, prior)

    def infer(self, inputs: Inputs) -> Inferred:
        posterior = Posterior(*map(ops.widen, self.posterior(inputs)))
        return Inferred(*posterior, self.prior(inputs, self))

    def exact_kl(self, inferred: Inferred) -> Tensor | None:
        kl = inferred.prior.kl(inferred.posterior)
        return None if kl is None else kl.sum(dim=1)

    def importance(
        self, inputs: Inputs, inferred: Inferred, seed: int, ordinal: Tensor, samples: int
    ) -> tuple[Tensor, Tensor]:
        posterior = inferred.posterior.repeat(samples)
        z = ops.reparameterize(*posterior, ops.philox_normal(seed, ordinal, self.latent_dim))
        nll = self.likelihood.nll(self.generate(z, inputs.repeat(samples)), inputs.x, samples)
        return nll, inferred.prior.repeat(samples).log_prob(z) - posterior.log_prob(z)

    @torch.no_grad()
    def encode(self, x: Tensor, y: Tensor | None = None, label: Tensor | None = None) -> Posterior:
        return self.infer(self.inputs(x, y, label)).posterior

    def latent_mean(self, inferred: Inferred) -> Tensor:
        return inferred.mean

    def prior_latents(self, inputs: Inputs, seed: int, temperature: float) -> Tensor:
        ordinal = torch.arange(len(inputs.x), device=inputs.x.device)
        eps = ops.philox_normal(seed, ordinal, self.latent_dim)
        # A uniform number from one more normal one, by its distribution function.
        pick = ops.philox_normal(ops.derive_seed(seed, "component"), ordinal, 1)[:, 0]
        pick = torch.special.ndtr(pick)
        return self.prior(inputs, self).sample(eps, pick, temperature)
