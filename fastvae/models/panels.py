"""Comic strips: panels side by side in one image, seen by one shared network, with joint latents.

The panels are folded into the batch, so that the shared network is called once, not once for each;
its batch statistics are then those of all panels together.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.blocks import ACTIVATIONS, norm1d
from fastvae.models.conditioning import refuse_conditioning
from fastvae.models.resnet import sides, trunk_in, trunk_out

PANELS = 3


def panel_side(config: ModelConfig) -> tuple[int, int]:
    """Height and width of one panel."""
    _, height, width = config.image_shape
    if width % PANELS:
        raise UserError(
            f"model.image_shape = {list(config.image_shape)}: {PANELS} panels side by side need a "
            f"width that is divisible by {PANELS}"
        )
    return height, width // PANELS


def fold(strips: Tensor) -> Tensor:
    """Panels as a batch of their own. Shapes: (B, C, H, P * W) -> (B * P, C, H, W)."""
    panels = strips.unflatten(3, (PANELS, -1))  # (B, C, H, P, W)
    return panels.permute(0, 3, 1, 2, 4).flatten(0, 1)


def unfold(panels: Tensor) -> Tensor:
    """Panels side by side again. Shapes: (B * P, C, H, W) -> (B, C, H, P * W)."""
    strips = panels.unflatten(0, (-1, PANELS))  # (B, P, C, H, W)
    return strips.permute(0, 2, 3, 1, 4).flatten(3, 4)


class PanelsEncoder(nn.Module):
    """Each panel through a residual trunk and a wide layer, then one layer over all of them."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        height, width = sides(*panel_side(config), len(config.channels))[-1]
        wide = 2 * config.latent_dim
        self.convs = trunk_in(config, channels)
        self.panel = nn.Sequential(
            nn.Linear(config.channels[-1] * height * width, wide),
            norm1d(config.norm, wide),
            ACTIVATIONS[config.activation](),
        )
        self.head = nn.Linear(PANELS * wide, wide)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        panels = self.panel(self.convs(fold(seen)).flatten(1))  # (B * P, 2 Z)
        mean, logvar = self.head(panels.unflatten(0, (-1, PANELS)).flatten(1)).chunk(2, dim=1)
        return mean, logvar


class PanelsDecoder(nn.Module):
    """One layer to a vector for each panel, then a shared wide layer and residual trunk."""

    def __init__(self, config: ModelConfig, features: int, channels: int) -> None:
        super().__init__()
        refuse_conditioning(config, "panels")
        height, width = panel_side(config)
        side = sides(height, width, len(config.channels))[-1]
        self.start = (config.channels[-1], *side)
        self.spread = nn.Linear(features, PANELS * config.latent_dim)
        self.panel = nn.Sequential(
            nn.Linear(config.latent_dim, math.prod(self.start)),
            nn.Unflatten(1, self.start),
            ACTIVATIONS[config.activation](),
        )
        self.convs = trunk_out(config, self.start[0], height, width, channels)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        panels = self.spread(z).unflatten(1, (PANELS, -1)).flatten(0, 1)  # (B * P, Z)
        return unfold(self.convs(self.panel(panels)))
