"""What the models with networks of their own share: levels, each half the side of the one before.

Level i has ``config.channels[i]`` features and half the side of level i - 1 (of the image, for
i = 0), rounded up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.inputs import Inputs

Side = tuple[int, int]


def sides(config: ModelConfig) -> list[Side]:
    """Height and width of the image and then of each level."""
    height, width = config.image_shape[1:]
    found = [(height, width)]
    for _ in config.channels:
        height, width = (height + 1) // 2, (width + 1) // 2
        found.append((height, width))
    return found


def down(before: int, after: int, kernel: int) -> nn.Conv2d:
    """A convolution that halves the side, rounding up."""
    return nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2)


class Up(nn.Module):
    """A transposed convolution that doubles the side, less the edge that rounding up had added.

    Shapes: (B, before, H, W) -> (B, after, *side).
    """

    def __init__(self, before: int, after: int, side: Side) -> None:
        super().__init__()
        self.side = side
        self.conv = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(h)[:, :, : self.side[0], : self.side[1]]


def see(config: ModelConfig, embedding: nn.Embedding | None, inputs: Inputs) -> Tensor:
    """What an encoder looks at: the standardized image and planes of the label's embedding.

    Shapes: returns (B, C, H, W), with C as ``seen_channels`` says.
    """
    seen = (inputs.x - config.input_mean) / config.input_std
    if embedding is None:
        return seen
    planes = embedding(inputs.label)[:, :, None, None].expand(-1, -1, *seen.shape[2:])
    return torch.cat((seen, planes.to(seen.dtype)), dim=1)


def seen_channels(config: ModelConfig) -> int:
    """Channels of what ``see`` gives."""
    return config.image_shape[0] + (config.label_dim if config.classes else 0)


def refuse_parts(config: ModelConfig) -> None:
    """A UserError where the configuration asks for what only ``model.kind = 'vae'`` has."""
    own = f"model.kind = {config.kind!r}"
    for name, expected in (("encoder", "conv"), ("decoder", "conv"), ("prior", "standard")):
        value = getattr(config, name)
        if value != expected:
            raise UserError(
                f"model.{name} = {value!r}: {own} has networks and a prior of its own; leave it at "
                f"{expected}, or use --model.kind vae"
            )
    if config.condition != "none":
        raise UserError(
            f"model.condition = {config.condition!r}: {own} can be given labels (model.classes), "
            "no image; use --model.kind vae"
        )
    if config.dropout > 0.0:
        raise UserError(f"model.dropout = {config.dropout:g}: {own} has no dropout; set it to 0")
