"""Pixel likelihoods p(x|z): what the decoder's numbers mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from fastvae import ops


class Likelihood(nn.Module, ABC):
    """What a likelihood must offer."""

    parameters_per_value: int
    """Decoder output channels per image channel."""
    constants: str
    """What the reported number includes, for tables."""

    @abstractmethod
    def nll(self, params: Tensor, target: Tensor) -> Tensor:
        """-log p(target | params), summed over pixels, nats. Shapes: (B, ...); returns (B,)."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """Mean image in [0, 1]. Shapes: params (B, ...); returns (B, C, H, W)."""


class Bernoulli(Likelihood):
    """Independent Bernoulli pixels; the decoder gives logits."""

    parameters_per_value = 1
    constants = "all of log p(x|z) for binary targets; cross-entropy, no normaliser, for grey ones"

    def nll(self, params: Tensor, target: Tensor) -> Tensor:
        return ops.bernoulli_nll(params, target)

    def mean(self, params: Tensor) -> Tensor:
        return ops.widen(params).sigmoid()


LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {"bernoulli": Bernoulli}
