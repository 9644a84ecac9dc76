"""Models: a VAE is encoder x prior x decoder x likelihood, each chosen by name.

``build_model(config)`` is the one door. The tables of parts are in ``registry.py``; what every
model offers is in ``model.py``; ``vae.py`` is how the parts meet.
"""

from __future__ import annotations

from fastvae.models.distributions import Draw, LatentDistribution, Posterior
from fastvae.models.inputs import Inputs
from fastvae.models.likelihoods import LossWeights
from fastvae.models.model import Model, Pass
from fastvae.models.registry import build_model, count_parameters
from fastvae.models.vae import VAE

__all__ = [
    "VAE",
    "Draw",
    "Inputs",
    "LatentDistribution",
    "LossWeights",
    "Model",
    "Pass",
    "Posterior",
    "build_model",
    "count_parameters",
]
