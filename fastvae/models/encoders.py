"""Encoders: what ``VAE.see`` gives, (B, C, H, W), -> posterior mean and log variance, (B, Z) each.

Here are the plain ones; ``registry.py`` has the table of all.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.models.blocks import ACTIVATIONS, ConvBlock, Stages, mlp


class Encoder(nn.Module):
    """Features, an MLP, and a linear head for mean and log variance."""

    def __init__(self, config: ModelConfig, features: int) -> None:
        super().__init__()
        sizes = [features, *config.hidden]
        self.body = mlp(
            sizes,
            blocks=config.hidden_blocks,
            blocks_after=len(config.hidden),
            dropout=config.dropout,
            activation=config.activation,
        )
        self.head = nn.Linear(sizes[-1], 2 * config.latent_dim)

    def features(self, seen: Tensor) -> Tensor:
        """Features of what is seen. Shapes: (B, C, H, W) -> (B, features)."""
        return seen.flatten(1)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.head(self.body(self.features(seen))).chunk(2, dim=1)
        return mean, logvar


class MLPEncoder(Encoder):
    """Flatten, then fully connected layers."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__(config, channels * math.prod(config.image_shape[1:]))


class ConvEncoder(Encoder):
    """Strided convolutions that halve the side (rounding up), residual blocks, then an MLP."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        _, height, width = config.image_shape
        for _ in config.channels:
            height, width = (height + 1) // 2, (width + 1) // 2
        super().__init__(config, config.channels[-1] * height * width)
        act = config.activation
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(
            zip((channels, *config.channels), config.channels, strict=False)
        ):
            kernel = 5 if level == 0 else 3
            if level > 0:
                layers.append(ACTIVATIONS[act]())
            layers.append(nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2))
        layers += [ConvBlock(config.channels[-1], act) for _ in range(config.encoder_blocks)]
        self.convs = Stages(*layers, ACTIVATIONS[act](), every=2)

    def features(self, seen: Tensor) -> Tensor:
        return self.convs(seen).flatten(1)
