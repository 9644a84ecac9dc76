"""The networks of the GenZoo MNIST system: layers, order and starting values of the original.

Its decoder has no activation anywhere, so that in evaluation, where batch statistics are constants,
the logits are an affine function of the latents: a logistic principal component analysis of rank
``latent_dim``. That is why its pictures are blurred. It is here to compare with; for good pictures
take the conv networks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.blocks import Stages, norm1d, norm2d
from fastvae.models.conditioning import build_conditioning

SLOPE = 0.01  # of the leaky rectifiers


def _sides(config: ModelConfig) -> list[tuple[int, int]]:
    """Heights and widths from the image inwards: halved, rounding down, once for each level."""
    _, height, width = config.image_shape
    sides = [(height >> level, width >> level) for level in range(len(config.channels) + 1)]
    if min(sides[-1]) == 0:
        raise UserError(
            f"model.channels halves the side {len(config.channels)} times, and nothing is left of "
            f"an image of {height}x{width}: give fewer channels"
        )
    return sides


def _linear(before: int, after: int) -> nn.Linear:
    layer = nn.Linear(before, after)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _conv(before: int, after: int) -> nn.Conv2d:
    layer = nn.Conv2d(before, after, 3, padding=1)
    nn.init.xavier_normal_(layer.weight)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, 0.01)
    return layer


class GenZooEncoder(nn.Module):
    """Convolutions with max pooling, then fully connected layers with dropout before each.

    With channels (16, 32) and hidden (512, 256), for 28x28 pixels: 16 and 32 channels, each level
    conv 3x3, leaky ReLU, max pool, norm; one more convolution to 16 channels with nothing after it;
    784 to 512 to 256 features; norm; two linear heads.
    """

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        levels: list[nn.Module] = [
            nn.Sequential(
                _conv(before, after),
                nn.LeakyReLU(SLOPE),
                nn.MaxPool2d(2),
                norm2d(config.norm, after),
            )
            for before, after in itertools.pairwise((channels, *config.channels))
        ]
        first = config.channels[0]
        self.convs = Stages(*levels, _conv(config.channels[-1], first))
        sizes = [first * math.prod(_sides(config)[-1]), *config.hidden]
        layers: list[nn.Module] = [nn.Dropout(config.dropout)]
        for before, after in itertools.pairwise(sizes):
            layers += [_linear(before, after), nn.LeakyReLU(SLOPE), nn.Dropout(config.dropout)]
        self.body = nn.Sequential(*layers, norm1d(config.norm, sizes[-1]))
        self.mean = _linear(sizes[-1], config.latent_dim)
        self.logvar = _linear(sizes[-1], config.latent_dim)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(self.convs(seen).flatten(1))
        return self.mean(h), self.logvar(h)


class GenZooDecoder(nn.Module):
    """Linear layers and transposed convolutions with norms between them, and no activation.

    A transposed convolution of stride 1 and kernel k makes a side k - 1 longer, which takes 7 to 14
    to 28 pixels with kernels of 8 and 15.
    """

    def __init__(self, config: ModelConfig, features: int, channels: int) -> None:
        super().__init__()
        sides = _sides(config)[::-1]
        first, last = config.channels[0], config.channels[-1]
        self.start = (first, *sides[0])
        sizes = [features, *reversed(config.hidden), math.prod(self.start)]
        self.body = nn.Sequential(*(_linear(a, b) for a, b in itertools.pairwise(sizes)))
        self.conditioning = build_conditioning(config, first, sides[0])
        levels: list[nn.Module] = [
            nn.Sequential(
                nn.ConvTranspose2d(self.conditioning.channels, last, 3, padding=1),
                norm2d(config.norm, last),
            )
        ]
        widths = [*reversed(config.channels), channels]
        for number, (before, after) in enumerate(itertools.pairwise(widths), start=1):
            grow = nn.ConvTranspose2d(before, after, _kernel(sides[number - 1], sides[number]))
            at_end = number == len(sides) - 1
            levels.append(grow if at_end else nn.Sequential(grow, norm2d(config.norm, after)))
        self.convs = Stages(*levels)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.body(z).unflatten(1, self.start)
        return self.convs(self.conditioning(h, y))


def _kernel(side: Sequence[int], longer: Sequence[int]) -> tuple[int, int]:
    """The kernel that takes a feature map of one side to a larger one."""
    return (longer[0] - side[0] + 1, longer[1] - side[1] + 1)
