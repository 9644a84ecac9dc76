"""Pairs of 3x3 convolutions between halvings of the side, and one flat layer to the latents.

The networks of the Quick, Draw! VAE and conditional VAE, in the manner of Simonyan and Zisserman,
"Very deep convolutional networks for large-scale image recognition" (2015). Nearly all of their
parameters are in the flat layers: ``conv`` with more levels has far fewer.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.blocks import ACTIVATIONS, Stages
from fastvae.models.conditioning import build_conditioning

POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


def _smallest(config: ModelConfig) -> tuple[int, int]:
    """Height and width of the smallest feature map: halved between every two levels."""
    _, height, width = config.image_shape
    factor = 2 ** (len(config.channels) - 1)
    if height % factor or width % factor:
        raise UserError(
            f"model.channels: vgg halves the side between levels, but an image of {height}x{width} "
            f"is not divisible by {factor}: give fewer channels, or another model.image_shape"
        )
    return height // factor, width // factor


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


class VGGEncoder(nn.Module):
    """Two convolutions and a pooling at each level, one convolution at the last, a linear head.

    Shapes: (B, channels, H, W) -> mean and logvar (B, Z); H and W divisible by 2^(levels - 1).
    """

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        height, width = _smallest(config)
        *levels, last = config.channels
        layers: list[nn.Module] = []
        before = channels
        for after in levels:
            layers += [_conv(before, after), _leaky(), _conv(after, after), _leaky()]
            layers.append(POOLS[config.pool](2))
            before = after
        # A pooling ends a level: steps of five layers begin where the side has just been halved.
        self.convs = Stages(*layers, _conv(before, last), _leaky(), every=5)
        self.head = nn.Linear(last * height * width, 2 * config.latent_dim)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.head(self.convs(seen).flatten(1)).chunk(2, dim=1)
        return mean, logvar


class VGGDecoder(nn.Module):
    """A linear layer, then a doubling and a convolution for each level, and a convolution as head.

    The condition comes in at the first, smallest feature map.

    Shapes: z (B, features), y (B, C, H, W) -> (B, channels, H, W).
    """

    def __init__(self, config: ModelConfig, features: int, channels: int) -> None:
        super().__init__()
        side = _smallest(config)
        first, *rest = reversed(config.channels)
        self.start = (first, *side)
        self.spread = nn.Sequential(nn.Linear(features, first * side[0] * side[1]), _leaky())
        self.conditioning = build_conditioning(config, first, side)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((self.conditioning.channels, *rest)):
            double = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            layers += [double, _leaky(), _conv(after, after), _leaky()]
        last = rest[-1] if rest else self.conditioning.channels
        self.convs = Stages(*layers, _conv(last, channels), every=4)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.spread(z).unflatten(1, self.start)
        return self.convs(self.conditioning(h, y))


def _leaky() -> nn.Module:
    return ACTIVATIONS["leaky_relu"]()
