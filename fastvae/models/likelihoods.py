"""Pixel likelihoods p(x|z): what the decoder's numbers mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from fastvae import ops
from fastvae.models.priors import Draw


class LossWeights(NamedTuple):
    """Weights of the terms of the training loss: see ``ops.elbo_loss``."""

    beta: float | Tensor = 1.0
    free_bits: float = 0.0
    scale: float = 1.0


class Likelihood(nn.Module, ABC):
    """What a likelihood must offer."""

    parameters_per_value: int
    """Decoder output channels per image channel."""
    constants: str
    """What the reported number includes, for tables."""

    @abstractmethod
    def nll(self, params: Tensor, target: Tensor, samples: int = 1) -> Tensor:
        """-log p(target | params), summed over pixels, nats.

        Shapes: params (T * samples, ...), target (T, ...), ``samples`` rows of parameters for each
        target; returns (T * samples,).
        """

    @abstractmethod
    def elbo(self, params: Tensor, target: Tensor, draw: Draw, weights: LossWeights) -> ops.ElboOut:
        """The training loss. Shapes: params and target (B, ...)."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """Mean image in [0, 1]. Shapes: params (B, ...); returns (B, C, H, W)."""


class Bernoulli(Likelihood):
    """Independent Bernoulli pixels; the decoder gives logits."""

    parameters_per_value = 1
    constants = "all of log p(x|z) for binary targets; cross-entropy, no normaliser, for grey ones"

    def nll(self, params: Tensor, target: Tensor, samples: int = 1) -> Tensor:
        return ops.bernoulli_nll(params, target, samples_per_target=samples)

    def elbo(self, params: Tensor, target: Tensor, draw: Draw, weights: LossWeights) -> ops.ElboOut:
        return ops.elbo_loss(params, target, draw.kl_row, draw.kl_dim, **weights._asdict())

    def mean(self, params: Tensor) -> Tensor:
        return ops.widen(params).sigmoid()


LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {"bernoulli": Bernoulli}
