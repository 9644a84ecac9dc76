"""A decoder that sees the condition at every size: a U-Net whose innermost features are latents.

Ronneberger, Fischer, Brox, "U-Net" (2015); Kohl et al., "A probabilistic U-Net for segmentation of
ambiguous images" (2018), has the idea of latents from a learned prior in it (there they come in at
the end).
"""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.blocks import ACTIVATIONS, ConvBlock, Stages, mlp


class UNetDecoder(nn.Module):
    """Features of the condition at every size, added on the way up from the latents.

    Strided convolutions of y give them; after each sum come residual blocks, then the side is
    doubled. y itself is added to the output through one convolution: what is given need not be
    drawn again.

    Shapes: z (B, features), y (B, C, H, W) -> (B, channels, H, W); H and W divisible by 2^levels.
    """

    def __init__(self, config: ModelConfig, features: int, channels: int) -> None:
        super().__init__()
        if config.conditioning != "skip":
            raise UserError(
                f"model.conditioning = {config.conditioning!r}: decoder 'unet' sees the condition "
                "at every size; use --model.condition image --model.conditioning skip, or decoder "
                "'conv'"
            )
        seen, height, width = config.image_shape
        factor = 2 ** len(config.channels)
        if height % factor or width % factor:
            raise UserError(
                f"model.channels halves the side {len(config.channels)} times, but an image of "
                f"{height}x{width} is not divisible by {factor}: give fewer channels"
            )
        act = config.activation
        self.start = (config.channels[-1], height // factor, width // factor)
        sizes = [features, *reversed(config.hidden)]
        self.body = mlp(
            sizes,
            blocks=config.hidden_blocks,
            blocks_after=1,
            dropout=config.dropout,
            activation=act,
        )
        self.spread = nn.Linear(sizes[-1], math.prod(self.start))
        self.down = nn.ModuleList(
            Stages(
                *([ACTIVATIONS[act]()] if level else []),
                nn.Conv2d(before, after, 4, stride=2, padding=1),
                every=2,
            )
            for level, (before, after) in enumerate(itertools.pairwise((seen, *config.channels)))
        )
        widths = [*reversed(config.channels), channels]
        self.up = nn.ModuleList(
            Stages(
                *(ConvBlock(before, act) for _ in range(config.decoder_blocks)),
                ACTIVATIONS[act](),
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1),
                every=config.decoder_blocks + 2,
            )
            for before, after in itertools.pairwise(widths)
        )
        self.last = nn.Conv2d(seen, channels, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        sizes = [y]
        for down in self.down:
            sizes.append(down(sizes[-1]))
        h = self.spread(self.body(z)).unflatten(1, self.start)
        for up in self.up:
            h = up(h + sizes.pop())
        return h + self.last(y)
