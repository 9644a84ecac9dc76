"""Residual networks (He et al., "Deep residual learning for image recognition", 2016).

Level i has ``config.channels[i]`` features; each level but the first begins with a block that
halves the side, rounding up, and the decoder goes back through the very same sides.
"""

from __future__ import annotations

import itertools
import math

import torch.nn.functional as F
from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.models.blocks import ACTIVATIONS, Stages, mlp, norm2d, start_at_zero
from fastvae.models.conditioning import build_conditioning
from fastvae.models.encoders import Encoder

Side = tuple[int, int]


class ResBlock(nn.Module):
    """act(main(x) + skip(x)), main = conv norm act conv norm, 3x3.

    Shapes: (B, before, H, W) -> (B, after, H', W'), where the side stays, is halved (rounding up)
    with ``down``, or becomes ``up``, which is twice the side or one less.
    """

    def __init__(
        self,
        config: ModelConfig,
        before: int,
        after: int,
        *,
        down: bool = False,
        up: Side | None = None,
    ) -> None:
        super().__init__()
        self.down, self.up = down, up
        bias = config.norm == "none"
        first: nn.Module
        if up is None:
            stride = 2 if down else 1
            first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=bias)
        else:
            first = nn.ConvTranspose2d(
                before, after, 3, stride=2, padding=1, output_padding=1, bias=bias
            )
        last = nn.Conv2d(after, after, 3, padding=1, bias=bias)
        if config.norm == "none":  # with one, its scale keeps the branch in bounds
            start_at_zero(last)
        self.main = nn.Sequential(
            first,
            norm2d(config.norm, after),
            ACTIVATIONS[config.activation](),
            last,
            norm2d(config.norm, after),
        )
        same = before == after and not down and up is None
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1)
        self.act = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            # Every second pixel, then stride 1: oneDNN (issue 6035) writes out of bounds in the
            # backward pass of 1x1 convolutions with a stride, few channels and channels last.
            return self.act(self.main(x) + self.skip(x[:, :, ::2, ::2]))
        if self.up is None:
            return self.act(self.main(x) + self.skip(x))
        height, width = self.up
        skip = self.skip(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.act((self.main(x) + skip)[:, :, :height, :width])


def sides(height: int, width: int, levels: int) -> list[Side]:
    """Sides of the levels, from the image inwards."""
    found = [(height, width)]
    for _ in range(levels - 1):
        height, width = (height + 1) // 2, (width + 1) // 2
        found.append((height, width))
    return found


def trunk_in(config: ModelConfig, channels: int) -> Stages:
    """Image -> features of the last level. Shapes: (B, channels, H, W) -> (B, C', h, w)."""
    widths, blocks = config.channels, config.encoder_blocks
    first = nn.Conv2d(channels, widths[0], 3, padding=1, bias=config.norm == "none")
    stem = nn.Sequential(first, norm2d(config.norm, widths[0]), ACTIVATIONS[config.activation]())
    levels = [nn.Sequential(*(ResBlock(config, widths[0], widths[0]) for _ in range(blocks)))]
    for before, after in itertools.pairwise(widths):
        plain = (ResBlock(config, after, after) for _ in range(blocks - 1))
        levels.append(nn.Sequential(ResBlock(config, before, after, down=True), *plain))
    return Stages(stem, *levels)


def trunk_out(config: ModelConfig, entering: int, height: int, width: int, channels: int) -> Stages:
    """Features of the last level -> image.

    Args:
        entering: channels that come in (more than the level's own with a condition).
        height, width: the image's.
        channels: the image's parameters.

    Shapes: (B, entering, h, w) -> (B, channels, height, width).
    """
    widths = list(reversed(config.channels))
    blocks = config.decoder_blocks
    start = [ResBlock(config, entering if i == 0 else widths[0], widths[0]) for i in range(blocks)]
    if blocks == 0 and entering != widths[0]:
        start = [ResBlock(config, entering, widths[0])]
    levels = [nn.Sequential(*start)]
    outwards = list(reversed(sides(height, width, len(widths))))
    for (before, after), side in zip(itertools.pairwise(widths), outwards[1:], strict=True):
        plain = (ResBlock(config, after, after) for _ in range(blocks - 1))
        levels.append(nn.Sequential(ResBlock(config, before, after, up=side), *plain))
    head = nn.Conv2d(widths[-1], channels, 3, padding=1, bias=config.norm == "none")
    return Stages(*levels, head)


class ResNetEncoder(Encoder):
    """A residual trunk, then an MLP."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        height, width = sides(*config.image_shape[1:], len(config.channels))[-1]
        super().__init__(config, config.channels[-1] * height * width)
        self.convs = trunk_in(config, channels)

    def features(self, seen: Tensor) -> Tensor:
        return self.convs(seen).flatten(1)


class ResNetDecoder(nn.Module):
    """An MLP, then a residual trunk that the condition, if there is one, enters at its start."""

    def __init__(self, config: ModelConfig, features: int, channels: int) -> None:
        super().__init__()
        _, height, width = config.image_shape
        side = sides(height, width, len(config.channels))[-1]
        self.start = (config.channels[-1], *side)
        sizes = [features, *reversed(config.hidden)]
        self.body = mlp(
            sizes,
            blocks=config.hidden_blocks,
            blocks_after=1,
            dropout=config.dropout,
            activation=config.activation,
        )
        self.spread = nn.Linear(sizes[-1], math.prod(self.start))
        self.conditioning = build_conditioning(config, self.start[0], side)
        self.convs = trunk_out(config, self.conditioning.channels, height, width, channels)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.spread(self.body(z)).unflatten(1, self.start)
        return self.convs(self.conditioning(h, y))
