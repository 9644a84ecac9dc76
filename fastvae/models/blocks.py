"""Building blocks of the networks.

None of them normalises over the batch: batch statistics would tie a sample's loss to the samples
beside it, and so the result to the number of ranks. Residual branches end in a layer that starts at
zero, so that a block starts as the identity (Zhang, Dauphin, Ma, "Fixup initialization", 2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn


def mlp(sizes: Sequence[int], *, blocks: int, blocks_after: int, dropout: float) -> nn.Sequential:
    """Linear layers with SiLU after each, and residual blocks after one of them.

    Args:
        sizes: widths, input first.
        blocks: number of residual blocks.
        blocks_after: the linear layer that they follow, counted from 1.
        dropout: probability of dropping a feature after each SiLU.

    Shapes: (B, sizes[0]) -> (B, sizes[-1]).
    """
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
        layers.append(nn.Linear(before, after))
        if i == blocks_after:
            layers += [LinearBlock(after) for _ in range(blocks)]
        layers.append(nn.SiLU())
        if dropout > 0.0:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def _start_at_zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ConvBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), 3x3. Shapes: (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            _start_at_zero(nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class LinearBlock(nn.Module):
    """x + linear(silu(linear(silu(x)))). Shapes: (B, N) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            _start_at_zero(nn.Linear(width, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
