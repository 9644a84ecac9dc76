"""5x5 strided convolutions with batch norm, for photographs.

After Larsen et al., "Autoencoding beyond pixels using a learned similarity metric" (2016), without
its adversary: the network of the COCO 64x64 system.
"""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.blocks import Stages, norm1d, norm2d
from fastvae.models.conditioning import build_conditioning


class LarsenEncoder(nn.Module):
    """Convolutions that halve the side, one wide layer for each of ``hidden``, then the head."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        height, width = _smallest_side(config)
        bias = config.norm == "none"  # a norm has its own
        self.convs = Stages(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 5, stride=2, padding=2, bias=bias),
                    norm2d(config.norm, after),
                    nn.ReLU(),
                )
                for before, after in itertools.pairwise((channels, *config.channels))
            )
        )
        sizes = [config.channels[-1] * height * width, *config.hidden]
        self.body = nn.Sequential(*_wide(sizes, config))
        self.head = nn.Linear(sizes[-1], 2 * config.latent_dim)
        xavier(self)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.head(self.body(self.convs(seen).flatten(1))).chunk(2, dim=1)
        return mean, logvar


class LarsenDecoder(nn.Module):
    """A wide layer to the smallest side, transposed convolutions that double it, and a 5x5 head."""

    def __init__(self, config: ModelConfig, features: int, channels: int) -> None:
        super().__init__()
        side = _smallest_side(config)
        self.start = (config.channels[-1], *side)
        self.spread = nn.Sequential(*_wide([features, math.prod(self.start)], config))
        self.conditioning = build_conditioning(config, self.start[0], side)
        bias = config.norm == "none"
        inner = [config.channels[-1], *reversed(config.channels[1:-1])]
        widths = [self.conditioning.channels, *inner[: len(config.channels) - 1]]
        widths.append(max(1, config.channels[0] // 2))
        self.convs = Stages(
            *(
                nn.Sequential(
                    nn.ConvTranspose2d(
                        before, after, 5, stride=2, padding=2, output_padding=1, bias=bias
                    ),
                    norm2d(config.norm, after),
                    nn.ReLU(),
                )
                for before, after in itertools.pairwise(widths)
            ),
            nn.Conv2d(widths[-1], channels, 5, padding=2),
        )
        xavier(self)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.spread(z).unflatten(1, self.start)
        return self.convs(self.conditioning(h, y))


def _wide(sizes: list[int], config: ModelConfig) -> list[nn.Module]:
    """Linear layers with norm and ReLU after each."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        linear = nn.Linear(before, after, bias=config.norm == "none")
        layers += [linear, norm1d(config.norm, after), nn.ReLU()]
    return layers


def _smallest_side(config: ModelConfig) -> tuple[int, int]:
    _, height, width = config.image_shape
    factor = 2 ** len(config.channels)
    if height % factor or width % factor:
        raise UserError(
            f"model.channels halves the side {len(config.channels)} times, but an image of "
            f"{height}x{width} is not divisible by {factor}: give fewer channels"
        )
    return height // factor, width // factor


def xavier(module: nn.Module) -> None:
    """Glorot's normal initialisation of convolutions and linear layers; biases are zero."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
