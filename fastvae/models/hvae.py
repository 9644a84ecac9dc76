"""A hierarchical VAE: groups of latents from coarse to fine, each given all before it.

In the manner of Child, "Very deep VAEs generalize autoregressive models and can outperform them on
images" (2021), at small scale: an encoder from the image inwards whose features are kept at every
level, and blocks from the coarsest level outwards, which hold the prior p(z_i | z_<i), the
posterior q(z_i | z_<i, x) and what becomes of z_i. Both share the features of z_<i.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.blocks import ACTIVATIONS, Stages
from fastvae.models.distributions import Draw, Posterior
from fastvae.models.inputs import Inputs
from fastvae.models.levels import Side, Up, down, refuse_parts, see, seen_channels, sides
from fastvae.models.likelihoods import Likelihood
from fastvae.models.model import Model, Pass

Choose = Callable[[int, Tensor, Posterior], Tensor]
"""Gives block i its latents (B, G, h, w), from the features (B, C, h, w) and the prior's mean and
log variance, each of the latents' shape."""


def bottleneck(before: int, after: int, side: Side, act: str, gain: float) -> nn.Sequential:
    """1x1, 3x3, 3x3 and 1x1 convolutions, each after an activation; half as wide in the middle.

    Where a map is at most 2 wide, 3x3 would mostly see the edge: all are 1x1. Weights start as in
    He et al. (2015), so that the signal keeps its size through all four; the last ones start
    ``gain`` times as large.

    Shapes: (B, before, *side) -> (B, after, *side).
    """
    middle = max(1, min(before, after) // 2)
    kernel = 3 if max(side) > 2 else 1
    widths = (before, middle, middle, middle, after)
    layers: list[nn.Module] = []
    for (a, b), k in zip(itertools.pairwise(widths), (1, kernel, kernel, 1), strict=True):
        conv = nn.Conv2d(a, b, k, padding=k // 2)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        layers += [ACTIVATIONS[act](), conv]
    return nn.Sequential(*layers[:-1], scaled(layers[-1], gain))


def scaled(layer: nn.Module, factor: float) -> nn.Module:
    """Scale the weights and biases that a layer starts with."""
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(factor)
    return layer


class Residual(nn.Module):
    """x + bottleneck(x), whose last layer starts 1 / sqrt(depth) as large, so that the sum of all
    ``depth`` branches does not grow with their number. Shapes: (B, C, h, w) -> the same."""

    def __init__(self, channels: int, side: Side, act: str, depth: int) -> None:
        super().__init__()
        self.body = bottleneck(channels, channels, side, act, 1.0 / math.sqrt(depth))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Plan(NamedTuple):
    """One block of latents."""

    level: int
    """Counted from the image inwards."""
    channels: int
    side: Side


def plan_blocks(config: ModelConfig) -> list[Plan]:
    """The blocks of latents, from the coarsest outwards: ``decoder_blocks`` at each level."""
    levels = list(zip(config.channels, sides(config)[1:], strict=True))
    return [
        Plan(level, *levels[level])
        for level in reversed(range(len(levels)))
        for _ in range(config.decoder_blocks)
    ]


class HEncoder(nn.Module):
    """All that only the posterior has: features of the image, and a head for each block."""

    def __init__(self, config: ModelConfig, plans: list[Plan]) -> None:
        super().__init__()
        act = config.activation
        widths = (seen_channels(config), *config.channels)
        depth = max(1, config.encoder_blocks * len(config.channels))
        levels = []
        for level, (before, after) in enumerate(itertools.pairwise(widths)):
            side = sides(config)[level + 1]
            layers: list[nn.Module] = [ACTIVATIONS[act]()] if level else []
            layers.append(down(before, after, 3 if level else 5))
            layers += [Residual(after, side, act, depth) for _ in range(config.encoder_blocks)]
            levels.append(Stages(*layers))
        self.levels = nn.ModuleList(levels)
        outputs = 2 * config.group_latents
        self.heads = nn.ModuleList(
            bottleneck(2 * p.channels, outputs, p.side, act, 0.5) for p in plans
        )

    def forward(self, seen: Tensor) -> list[Tensor]:
        """Features of every level, from the image inwards."""
        features = []
        for level in self.levels:
            seen = level(seen)
            features.append(seen)
        return features

    def posterior(self, block: int, h: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z_i | z_<i, x), (B, G, h, w) each."""
        mean, logvar = self.heads[block](torch.cat((h, features.to(h.dtype)), dim=1)).chunk(2, 1)
        return mean, logvar


class HPrior(nn.Module):
    """A network for each block: the prior over its latents, and what else goes on from there."""

    def __init__(self, config: ModelConfig, plans: list[Plan]) -> None:
        super().__init__()
        self.group = config.group_latents
        self.nets = nn.ModuleList(  # start with N(0, 1), and no features
            bottleneck(p.channels, 2 * self.group + p.channels, p.side, config.activation, 0.0)
            for p in plans
        )

    def forward(self, block: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log variance of p(z_i | z_<i), (B, G, h, w) each, and features (B, C, h, w)."""
        sizes = (self.group, self.group, h.shape[1])
        mean, logvar, features = self.nets[block](h).split(sizes, dim=1)
        return mean, logvar, features


class HDecoder(nn.Module):
    """What becomes of the latents: how they enter the features, and how these go on."""

    def __init__(self, config: ModelConfig, plans: list[Plan], channels: int) -> None:
        super().__init__()
        act, depth = config.activation, len(plans)
        self.start = nn.Parameter(torch.zeros(1, plans[0].channels, *plans[0].side))
        widths = list(reversed(config.channels))
        self.widen = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(widths))
        self.labels = nn.ModuleList(
            nn.Linear(config.label_dim, width) for width in widths if config.classes
        )
        self.latents = nn.ModuleList(
            scaled(nn.Conv2d(config.group_latents, p.channels, 1), 1.0 / math.sqrt(depth))
            for p in plans
        )
        self.blocks = nn.ModuleList(Stages(Residual(p.channels, p.side, act, depth)) for p in plans)
        head = Up(widths[-1], channels, sides(config)[0])
        self.head = nn.Sequential(ACTIVATIONS[act](), head)

    def enter(self, plan: Plan, h: Tensor, label: Tensor | None) -> Tensor:
        """Features at the start of a level, from those of the coarser one (the first: ``start``)
        and the label's embedding."""
        number = len(self.widen) - plan.level
        if number > 0:
            h = F.interpolate(self.widen[number - 1](h), size=plan.side, mode="nearest")
        return h if label is None else h + self.labels[number](label)[:, :, None, None]


class Features(NamedTuple):
    """What the encoder says of a batch; each posterior needs the latents before it besides."""

    levels: list[Tensor]
    """(B, C, h, w) of every level, from the image inwards."""
    label: Tensor | None

    def repeat(self, samples: int) -> Features:
        """Each row ``samples`` times."""
        if samples == 1:
            return self
        label = None if self.label is None else self.label.repeat_interleave(samples, dim=0)
        return Features([t.repeat_interleave(samples, dim=0) for t in self.levels], label)


class HVAE(Model):
    """Encoder, prior and decoder that go from coarse to fine together.

    The KL divergence is the sum over blocks of KL(q(z_i | z_<i, x) || p(z_i | z_<i)), each by its
    formula for the drawn z_<i. Every block draws noise of its own. For people all latents are one
    vector, block after block, from the coarsest: (B, latent_dim).
    """

    seeds: Tensor

    def __init__(self, config: ModelConfig, likelihood: Likelihood) -> None:
        super().__init__()
        refuse_parts(config)
        if config.decoder_blocks == 0:
            raise UserError("model.decoder_blocks = 0: blocks of latents per level, 1 or more")
        self.config = config
        self.likelihood = likelihood
        self.plans = plan_blocks(config)
        self.sizes = [config.group_latents * p.side[0] * p.side[1] for p in self.plans]
        self.latent_dim = sum(self.sizes)
        self.label = nn.Embedding(config.classes, config.label_dim) if config.classes else None
        self.encoder = HEncoder(config, self.plans)
        self.prior = HPrior(config, self.plans)
        channels = likelihood.parameters_per_value * config.image_shape[0]
        self.decoder = HDecoder(config, self.plans, channels)
        # Added to the noise state: another key for each block.
        seeds = [[ops.derive_seed(0, "block", i) >> 1, 0] for i in range(len(self.plans))]
        self.register_buffer("seeds", torch.tensor(seeds), persistent=False)

    def descend(self, rows: int, label: Tensor | None, choose: Choose) -> Tensor:
        """From the coarsest block to the parameters of the likelihood.

        Args:
            rows: how many.
            label: (rows,) or None.
            choose: where each block's latents come from.
        """
        embedded = None if self.label is None else self.label(label)
        h = self.decoder.start.expand(rows, -1, -1, -1)
        level = -1
        for block, plan in enumerate(self.plans):
            if plan.level != level:
                h = self.decoder.enter(plan, h, embedded)
                level = plan.level
            mean, logvar, more = self.prior(block, h)
            z = choose(block, h, self._bound(mean, logvar))
            h = self.decoder.blocks[block](h + more + self.decoder.latents[block](z))
        return self.decoder.head(h)

    def _bound(self, mean: Tensor, logvar: Tensor) -> Posterior:
        """The configured bounds, in float32."""
        mean, logvar = ops.widen(mean), ops.widen(logvar)
        if self.config.clamp_mean is not None:
            mean = mean.clamp(*self.config.clamp_mean)
        if self.config.clamp_logvar is not None:
            logvar = logvar.clamp(*self.config.clamp_logvar)
        return Posterior(mean, logvar)

    def posterior(self, block: int, h: Tensor, features: Features) -> Posterior:
        """q(z_i | z_<i, x) of block i. Shapes: mean and logvar (B, G, h, w)."""
        level = features.levels[self.plans[block].level]
        return self._bound(*self.encoder.posterior(block, h, level))

    def infer(self, inputs: Inputs) -> Features:
        return Features(self.encoder(see(self.config, self.label, inputs)), inputs.label)

    def forward(
        self, inputs: Inputs, rng: Tensor, sample_offset: int = 0, samples: int = 1
    ) -> Pass:
        features = self.infer(inputs).repeat(samples)
        draws: list[Draw] = []

        def choose(block: int, h: Tensor, prior: Posterior) -> Tensor:
            posterior = self.posterior(block, h, features)
            state = rng + self.seeds[block]
            draw = Draw(
                *ops.gaussian_sample_kl(*posterior, *prior, state, sample_offset=sample_offset)
            )
            draws.append(draw)
            return draw.z

        params = self.descend(len(inputs.x) * samples, features.label, choose)
        z = torch.cat([draw.z.flatten(1) for draw in draws], dim=1)
        kl_row = torch.stack([draw.kl_row for draw in draws]).sum(dim=0)
        kl_dim = torch.cat([draw.kl_dim.flatten() for draw in draws])
        return Pass(params, Draw(z, kl_row, kl_dim))

    def exact_kl(self, inferred: Features) -> None:
        return None

    def importance(
        self, inputs: Inputs, inferred: Features, seed: int, ordinal: Tensor, samples: int
    ) -> tuple[Tensor, Tensor]:
        features = inferred.repeat(samples)
        log_ratio = torch.zeros((), device=ordinal.device)

        def choose(block: int, h: Tensor, prior: Posterior) -> Tensor:
            nonlocal log_ratio
            posterior = self.posterior(block, h, features)
            z = reparameterize(posterior, self._noise(block, seed, ordinal), 1.0)
            ratio = ops.gaussian_log_prob(z, *prior) - ops.gaussian_log_prob(z, *posterior)
            log_ratio = log_ratio + ratio.flatten(1).sum(dim=1)
            return z

        params = self.descend(len(ordinal), features.label, choose)
        return self.likelihood.nll(params, inputs.x, samples), log_ratio

    def _noise(self, block: int, seed: int, ordinal: Tensor) -> Tensor:
        """Standard normals (B, G, h, w) of block i."""
        own = ops.derive_seed(seed, "block", block)
        noise = ops.philox_normal(own, ordinal, self.sizes[block])
        return noise.view(-1, self.config.group_latents, *self.plans[block].side)

    def latent_mean(self, inferred: Features) -> Tensor:
        means: list[Tensor] = []

        def choose(block: int, h: Tensor, prior: Posterior) -> Tensor:
            mean = self.posterior(block, h, inferred).mean
            means.append(mean.flatten(1))
            return mean

        self.descend(len(inferred.levels[0]), inferred.label, choose)
        return torch.cat(means, dim=1)

    def generate(self, z: Tensor, inputs: Inputs) -> Tensor:
        groups = z.split(self.sizes, dim=1)

        def choose(block: int, h: Tensor, prior: Posterior) -> Tensor:
            return groups[block].view(-1, self.config.group_latents, *self.plans[block].side)

        return self.descend(len(z), inputs.label, choose)

    def prior_latents(self, inputs: Inputs, seed: int, temperature: float) -> Tensor:
        ordinal = torch.arange(len(inputs.x), device=inputs.x.device)
        drawn: list[Tensor] = []

        def choose(block: int, h: Tensor, prior: Posterior) -> Tensor:
            z = reparameterize(prior, self._noise(block, seed, ordinal), temperature)
            drawn.append(z.flatten(1))
            return z

        self.descend(len(inputs.x), inputs.label, choose)
        return torch.cat(drawn, dim=1)


def reparameterize(gaussian: Posterior, eps: Tensor, temperature: float) -> Tensor:
    """mean + temperature * std * eps. Shapes: all (B, G, h, w)."""
    return gaussian.mean + temperature * torch.exp(0.5 * gaussian.logvar) * eps
