"""Encoders: image (B, C, H, W) in [0, 1] -> posterior mean and log variance, (B, Z) each."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.models.blocks import ConvBlock, mlp


class Encoder(nn.Module):
    """What all encoders share: standardized input, and a linear head for mean and log variance."""

    def __init__(self, config: ModelConfig, features: int) -> None:
        super().__init__()
        self.input_mean = config.input_mean
        self.input_std = config.input_std
        sizes = [features, *config.hidden]
        self.body = mlp(
            sizes,
            blocks=config.hidden_blocks,
            blocks_after=len(config.hidden),
            dropout=config.dropout,
        )
        self.head = nn.Linear(sizes[-1], 2 * config.latent_dim)

    def features(self, x: Tensor) -> Tensor:
        """Features of standardized images. Shapes: (B, C, H, W) -> (B, features)."""
        return x.flatten(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.features((x - self.input_mean) / self.input_std)
        mean, logvar = self.head(self.body(h)).chunk(2, dim=1)
        return mean, logvar


class MLPEncoder(Encoder):
    """Flatten, then fully connected layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, math.prod(config.image_shape))


class ConvEncoder(Encoder):
    """Strided convolutions that halve the side (rounding up), residual blocks, then an MLP."""

    def __init__(self, config: ModelConfig) -> None:
        channels, height, width = config.image_shape
        for _ in config.channels:
            height, width = (height + 1) // 2, (width + 1) // 2
        super().__init__(config, config.channels[-1] * height * width)
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(
            zip((channels, *config.channels), config.channels, strict=False)
        ):
            kernel = 5 if level == 0 else 3
            if level > 0:
                layers.append(nn.SiLU())
            layers.append(nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2))
        layers += [ConvBlock(config.channels[-1]) for _ in range(config.encoder_blocks)]
        self.convs = nn.Sequential(*layers, nn.SiLU())

    def features(self, x: Tensor) -> Tensor:
        return self.convs(x).flatten(1)


ENCODERS: dict[str, Callable[[ModelConfig], nn.Module]] = {"mlp": MLPEncoder, "conv": ConvEncoder}
