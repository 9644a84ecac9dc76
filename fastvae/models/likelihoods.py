"""Pixel likelihoods p(x|z): what the decoder's numbers mean."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.distributions import Draw

LEAST_LOGVAR = -2.0 * math.log(255.0)
"""Log variance of a deviation of one grey level."""

LOG_SCALES = (-7.0, 7.0)
"""dlogistic: bounds of log scales in the mean. ``ops.dlogistic_nll`` has the lower one too; above
the upper one, a thousand times the range of pixels, the formula cancels."""


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

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

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


def _fused(
    params: Tensor, target: Tensor, draw: Draw, weights: LossWeights, **kind: Any
) -> ops.ElboOut:
    kl_dim = draw.kl_dim if draw.kl_dim.numel() else None
    return ops.elbo_loss(params, target, draw.kl_row, kl_dim, **kind, **weights._asdict())


class Bernoulli(Likelihood):
    """Independent Bernoulli pixels; the decoder gives logits. For black-and-white images."""

    parameters_per_value = 1
    constants = "all of log p(x|z) for binary targets; cross-entropy, no normaliser, for grey ones"

    def nll(self, params: Tensor, target: Tensor, samples: int = 1) -> Tensor:
        return ops.bernoulli_nll(params, target, samples_per_target=samples)

    def elbo(self, params: Tensor, target: Tensor, draw: Draw, weights: LossWeights) -> ops.ElboOut:
        return _fused(params, target, draw, weights)

    def mean(self, params: Tensor) -> Tensor:
        return ops.widen(params).sigmoid()


class ContinuousBernoulli(Likelihood):
    """Continuous Bernoulli pixels on logits: a density on [0, 1], for grey images.

    Loaiza-Ganem and Cunningham, "The continuous Bernoulli" (2019). On binary images it has no lower
    bound and is the wrong choice.
    """

    parameters_per_value = 1
    constants = "all of the density of grey values in [0, 1]; may be negative"

    def nll(self, params: Tensor, target: Tensor, samples: int = 1) -> Tensor:
        return ops.continuous_bernoulli_nll(params, target, samples_per_target=samples)

    def elbo(self, params: Tensor, target: Tensor, draw: Draw, weights: LossWeights) -> ops.ElboOut:
        return _fused(params, target, draw, weights, likelihood="continuous_bernoulli")

    def mean(self, params: Tensor) -> Tensor:
        """E[x] = 1 / (1 - exp(-a)) - 1 / a at logit a, by its series 1/2 + a/12 near 0."""
        a = ops.widen(params)
        small = a.abs() < 0.05
        safe = torch.where(small, torch.ones_like(a), a)
        exact = -1.0 / torch.expm1(-safe) - 1.0 / safe
        return torch.where(small, 0.5 + a / 12.0, exact)


class Gaussian(Likelihood):
    """Gaussian pixels around a mean in [0, 1] (a sigmoid of the decoder's output).

    The standard deviation is fixed (a squared error, weighted), one learned number (Rybkin,
    Daniilidis, Levine, "Simple and effective VAE training with calibrated decoders", 2021), or the
    decoder's, for each value.
    """

    constants = "all of the density of values in [0, 1], with log(2 pi) and the deviation"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.scale = config.gaussian_scale
        self.parameters_per_value = 2 if self.scale == "pixel" else 1
        start = 2.0 * math.log(config.gaussian_std)
        if self.scale != "fixed":
            if start <= LEAST_LOGVAR:
                raise UserError(
                    f"model.gaussian_std = {config.gaussian_std:g}: a learned deviation stays "
                    "above 1/255 and starts above it: use a larger one, e.g. 0.1"
                )
            # Where ``bounded`` gives the configured deviation.
            start = LEAST_LOGVAR + math.log(math.expm1(start - LEAST_LOGVAR))
        self.start = start
        if self.scale == "shared":
            self.logvar = nn.Parameter(torch.full((1,), start))

    def split(self, params: Tensor) -> tuple[Tensor, Tensor | float]:
        """Means in [0, 1] and log variances: of their shape, of one element, or a number."""
        if self.scale == "pixel":
            mean, logvar = ops.widen(params).chunk(2, dim=1)
            return mean.sigmoid(), bounded(logvar + self.start)
        mean = ops.widen(params).sigmoid()
        return mean, bounded(ops.widen(self.logvar)) if self.scale == "shared" else self.start

    def nll(self, params: Tensor, target: Tensor, samples: int = 1) -> Tensor:
        mean, logvar = self.split(params)
        return ops.gaussian_nll(mean, target, logvar, samples_per_target=samples)

    def elbo(self, params: Tensor, target: Tensor, draw: Draw, weights: LossWeights) -> ops.ElboOut:
        mean, logvar = self.split(params)
        return _fused(mean, target, draw, weights, likelihood="gaussian", logvar=logvar)

    def mean(self, params: Tensor) -> Tensor:
        return self.split(params)[0]


class DiscretizedLogistic(Likelihood):
    """Mixture of logistics over the 256 levels of each value, every channel by itself.

    Salimans et al., "PixelCNN++" (2017), section 2.1, without the coupling of channels.
    """

    constants = "all of log p(x|z) for 8-bit values"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.mixtures = config.mixtures
        self.parameters_per_value = 2 if self.mixtures == 1 else 3 * self.mixtures

    def nll(self, params: Tensor, target: Tensor, samples: int = 1) -> Tensor:
        return ops.dlogistic_nll(params, target, n_mix=self.mixtures, samples_per_target=samples)

    def elbo(self, params: Tensor, target: Tensor, draw: Draw, weights: LossWeights) -> ops.ElboOut:
        return _fused(params, target, draw, weights, likelihood="dlogistic", n_mix=self.mixtures)

    def mean(self, params: Tensor) -> Tensor:
        """E[x], to within half a level. Of a logistic (m, s) whose tails beyond -1 and 1 are put
        at these ends it is -1 + s (softplus((m + 1) / s) - softplus((m - 1) / s))."""
        params = ops.widen(params)
        if self.mixtures == 1:
            means, scales = params.chunk(2, dim=1)
            weight = torch.ones_like(means)
        else:
            logits, means, scales = params.unflatten(1, (3, self.mixtures, -1)).unbind(dim=1)
            weight = logits.softmax(dim=1)
        means, scale = means.clamp(-1e4, 1e4), scales.clamp(*LOG_SCALES).exp()
        above = F.softplus((means + 1.0) / scale) - F.softplus((means - 1.0) / scale)
        inside = weight * (scale * above / 2.0).clamp(0.0, 1.0)
        return inside if self.mixtures == 1 else inside.sum(dim=1).clamp(max=1.0)


def bounded(logvar: Tensor) -> Tensor:
    """Log variances above that of a deviation of 1/255: pixels are known no better than that, and
    without a bound a constant region of the images would draw the loss to minus infinity. Softplus
    keeps a gradient everywhere, as in Rybkin et al."""
    return LEAST_LOGVAR + F.softplus(logvar - LEAST_LOGVAR)


LIKELIHOODS: dict[str, Callable[[ModelConfig], Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "dlogistic": DiscretizedLogistic,
}
