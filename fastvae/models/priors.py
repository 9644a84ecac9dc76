"""Priors: modules that say which distribution p(z) is for a batch.

A prior is called with the batch and the model (whose encoder VampPrior looks through) and returns a
``LatentDistribution``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.distributions import (
    DiagonalGaussian,
    GaussianMixture,
    LatentDistribution,
    Posterior,
    UnitGaussian,
)
from fastvae.models.inputs import Inputs

if TYPE_CHECKING:
    from fastvae.models.vae import VAE

EncoderMaker = Callable[[int], nn.Module]
"""Makes one more encoder like the model's, for a number of input channels."""


class StandardPrior(nn.Module):
    """A unit Gaussian, whatever is given (Kingma and Welling 2014)."""

    def __init__(self, config: ModelConfig, make_encoder: EncoderMaker) -> None:
        super().__init__()

    def forward(self, inputs: Inputs, model: VAE) -> LatentDistribution:
        return UnitGaussian()


class ConditionalPrior(nn.Module):
    """p(z|y): a Gaussian from an encoder of the condition, or one for each class.

    Sohn, Lee, Yan, "Learning structured output representation using deep conditional generative
    models" (2015). With an image as condition the encoder is one like q's that sees only it (and
    the label); with labels alone it is a table of classes, which starts at the unit Gaussian.
    """

    def __init__(self, config: ModelConfig, make_encoder: EncoderMaker) -> None:
        super().__init__()
        self.from_image = config.condition == "image"
        labels = config.label_dim if config.classes else 0
        if self.from_image:
            self.encoder = make_encoder(config.image_shape[0] + labels)
        else:
            self.table = nn.Embedding(config.classes, 2 * config.latent_dim)
            nn.init.zeros_(self.table.weight)

    def forward(self, inputs: Inputs, model: VAE) -> LatentDistribution:
        if self.from_image:
            mean, logvar = self.encoder(model.see(None, inputs.y, inputs.label))
        else:
            mean, logvar = self.table(inputs.label).chunk(2, dim=1)
        return DiagonalGaussian(*model.clamp(Posterior(mean, logvar)))


class MixturePrior(nn.Module):
    """A mixture of Gaussians with learned weights, means and variances.

    Dilokthanakul et al., "Deep unsupervised clustering with Gaussian mixture VAEs" (2016), has the
    idea; here components are parameters, and the KL is estimated from the drawn latents.
    """

    def __init__(self, config: ModelConfig, make_encoder: EncoderMaker) -> None:
        super().__init__()
        _refuse_condition(config, "mog")
        self.logits = nn.Parameter(torch.zeros(config.components))
        self.mean = nn.Parameter(torch.randn(config.components, config.latent_dim))
        self.logvar = nn.Parameter(torch.zeros(config.components, config.latent_dim))

    def forward(self, inputs: Inputs, model: VAE) -> LatentDistribution:
        return GaussianMixture(self.logits, self.mean, self.logvar)


class VampPrior(nn.Module):
    """A mixture of the posteriors of learned pseudo-inputs.

    Tomczak and Welling, "VAE with a VampPrior" (2018): p(z) = 1/K sum_k q(z|u_k). The pseudo-inputs
    u_k are images in [0, 1], kept there by a sigmoid.
    """

    logits: Tensor

    def __init__(self, config: ModelConfig, make_encoder: EncoderMaker) -> None:
        super().__init__()
        _refuse_condition(config, "vamp")
        # Around the data's mean grey, as far as the encoder's standardization tells it.
        mean = min(0.95, max(0.05, config.input_mean))
        start = math.log(mean / (1.0 - mean))
        noise = torch.randn(config.components, *config.image_shape)
        self.pseudo = nn.Parameter(start + noise)
        self.register_buffer("logits", torch.zeros(config.components), persistent=False)

    def forward(self, inputs: Inputs, model: VAE) -> LatentDistribution:
        pseudo = self.pseudo.sigmoid()
        return GaussianMixture(self.logits, *model.posterior(Inputs(pseudo)))


def _refuse_condition(config: ModelConfig, name: str) -> None:
    if config.condition != "none" or config.classes:
        raise UserError(
            f"model.prior = {name!r} is one mixture for all images and cannot depend on a "
            "condition or a label: use --model.prior conditional"
        )


PRIORS: dict[str, Callable[[ModelConfig, EncoderMaker], nn.Module]] = {
    "standard": StandardPrior,
    "conditional": ConditionalPrior,
    "mog": MixturePrior,
    "vamp": VampPrior,
}
