"""Models: a VAE is encoder x prior x decoder x likelihood, each chosen by name.

``build_model(config)`` is the one door. A new part is a class in its module and one line in that
module's table (``ENCODERS``, ``DECODERS``, ``PRIORS``, ``LIKELIHOODS``).
"""

from __future__ import annotations

from typing import TypeVar

from fastvae.config import ModelConfig
from fastvae.errors import UserError, nearest
from fastvae.models.decoders import DECODERS
from fastvae.models.encoders import ENCODERS
from fastvae.models.likelihoods import LIKELIHOODS, LossWeights
from fastvae.models.priors import PRIORS, Draw
from fastvae.models.vae import VAE, Posterior

__all__ = ["VAE", "Draw", "LossWeights", "Posterior", "build_model", "count_parameters"]

T = TypeVar("T")


def build_model(config: ModelConfig) -> VAE:
    """Assemble the model; a UserError names an unknown part and the nearest known ones."""
    likelihood = _pick(LIKELIHOODS, "likelihood", config.likelihood)()
    return VAE(
        encoder=_pick(ENCODERS, "encoder", config.encoder)(config),
        prior=_pick(PRIORS, "prior", config.prior)(config.latent_dim),
        decoder=_pick(DECODERS, "decoder", config.decoder)(config, likelihood.parameters_per_value),
        likelihood=likelihood,
        config=config,
    )


def _pick(table: dict[str, T], kind: str, name: str) -> T:
    try:
        return table[name]
    except KeyError:
        raise UserError(f"unknown model.{kind} {name!r}{nearest(name, table)}") from None


def count_parameters(model: VAE) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
