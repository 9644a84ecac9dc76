"""Decoders: latents (B, Z) -> parameters of the likelihood, (B, P * C, H, W)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.blocks import ConvBlock, mlp


class MLPDecoder(nn.Module):
    """Fully connected layers in the reverse order of the encoder's."""

    def __init__(self, config: ModelConfig, parameters_per_value: int) -> None:
        super().__init__()
        channels, height, width = config.image_shape
        self.shape = (parameters_per_value * channels, height, width)
        sizes = [config.latent_dim, *reversed(config.hidden)]
        self.body = mlp(sizes, blocks=config.hidden_blocks, blocks_after=1, dropout=config.dropout)
        self.head = nn.Linear(sizes[-1], math.prod(self.shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.body(z)).unflatten(1, self.shape)


class ConvDecoder(nn.Module):
    """An MLP up to the smallest side, residual blocks, then transposed convolutions that double it.

    The MLP's last layer has no activation of its own: the first block (or SiLU) supplies it.
    """

    def __init__(self, config: ModelConfig, parameters_per_value: int) -> None:
        super().__init__()
        channels, height, width = config.image_shape
        factor = 2 ** len(config.channels)
        if height % factor or width % factor:
            raise UserError(
                f"model.channels halves the side {len(config.channels)} times, but an image of "
                f"{height}x{width} is not divisible by {factor}: give fewer channels"
            )
        widths = [*reversed(config.channels), parameters_per_value * channels]
        self.start = (widths[0], height // factor, width // factor)
        sizes = [config.latent_dim, *reversed(config.hidden)]
        self.body = mlp(sizes, blocks=config.hidden_blocks, blocks_after=1, dropout=config.dropout)
        self.spread = nn.Linear(sizes[-1], math.prod(self.start))
        layers: list[nn.Module] = [ConvBlock(widths[0]) for _ in range(config.decoder_blocks)]
        for before, after in itertools.pairwise(widths):
            layers += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.convs = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.convs(self.spread(self.body(z)).unflatten(1, self.start))


DECODERS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "mlp": MLPDecoder,
    "conv": ConvDecoder,
}
