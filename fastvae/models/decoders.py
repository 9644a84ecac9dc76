"""Decoders: latents (B, N) and perhaps the condition -> parameters of the likelihood, (B, P, H, W).

Here are the plain ones; ``registry.py`` has the table of all.
"""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.blocks import ACTIVATIONS, ConvBlock, Stages, mlp
from fastvae.models.conditioning import build_conditioning, refuse_conditioning


class MLPDecoder(nn.Module):
    """Fully connected layers in the reverse order of the encoder's."""

    def __init__(self, config: ModelConfig, features: int, channels: int) -> None:
        super().__init__()
        refuse_conditioning(config, "mlp")
        self.shape = (channels, *config.image_shape[1:])
        sizes = [features, *reversed(config.hidden)]
        self.body = mlp(
            sizes,
            blocks=config.hidden_blocks,
            blocks_after=1,
            dropout=config.dropout,
            activation=config.activation,
        )
        self.head = nn.Linear(sizes[-1], math.prod(self.shape))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.head(self.body(z)).unflatten(1, self.shape)


class ConvDecoder(nn.Module):
    """An MLP up to the smallest side, residual blocks, then transposed convolutions that double it.

    The MLP's last layer has no activation of its own: the first block (or SiLU) supplies it.
    """

    def __init__(self, config: ModelConfig, features: int, channels: int) -> None:
        super().__init__()
        _, height, width = config.image_shape
        factor = 2 ** len(config.channels)
        if height % factor or width % factor:
            raise UserError(
                f"model.channels halves the side {len(config.channels)} times, but an image of "
                f"{height}x{width} is not divisible by {factor}: give fewer channels"
            )
        act = config.activation
        side = (height // factor, width // factor)
        self.start = (config.channels[-1], *side)
        sizes = [features, *reversed(config.hidden)]
        self.body = mlp(
            sizes,
            blocks=config.hidden_blocks,
            blocks_after=1,
            dropout=config.dropout,
            activation=act,
        )
        self.spread = nn.Linear(sizes[-1], math.prod(self.start))
        self.conditioning = build_conditioning(config, self.start[0], side)
        widths = [self.conditioning.channels, *reversed(config.channels[:-1]), channels]
        layers: list[nn.Module] = [ConvBlock(widths[0], act) for _ in range(config.decoder_blocks)]
        for before, after in itertools.pairwise(widths):
            layers += [
                ACTIVATIONS[act](),
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1),
            ]
        self.convs = Stages(*layers, every=2)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.spread(self.body(z)).unflatten(1, self.start)
        return self.convs(self.conditioning(h, y))
