"""How a decoder sees the condition y: at its first feature map (B, C, h, w)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError


class NoConditioning(nn.Module):
    """Not at all: only the latents know of y."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        return h


class Concat(nn.Module):
    """y, resized bilinearly to the feature map, as further channels."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.channels = channels + config.image_shape[0]

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        small = F.interpolate(y, size=h.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat((h, small.to(h.dtype)), dim=1)


class FiLM(nn.Module):
    """h * gamma(y) + beta(y), each of the feature map's own size.

    Perez et al., "FiLM: visual reasoning with a general conditioning layer" (2018); here gamma and
    beta vary over the image. Convolutions halve y's side until it is the feature map's; more than
    two of them start with fewer channels, for the large sides are the expensive ones. gamma starts
    around 1, so that latents come through from the first step.
    """

    def __init__(self, config: ModelConfig, channels: int, side: tuple[int, int]) -> None:
        super().__init__()
        self.channels = channels
        before, height, width = config.image_shape
        halvings = _halvings((height, width), side)
        layers: list[nn.Module] = []
        for left in reversed(range(halvings)):
            after = max(1, channels >> max(0, left - 1))
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
            before = after
        last = nn.Conv2d(before, 2 * channels, 3, padding=1)
        assert last.bias is not None
        with torch.no_grad():
            last.bias[:channels] += 1.0
        self.net = nn.Sequential(*layers, last)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        gamma, beta = self.net(y).chunk(2, dim=1)
        return h * gamma + beta


def _halvings(image: tuple[int, int], side: tuple[int, int]) -> int:
    """How often the image's side is halved to be the feature map's."""
    count = max(image[0] // side[0], 1).bit_length() - 1
    if (side[0] << count, side[1] << count) != image:
        raise UserError(
            f"model.conditioning = 'film' halves the condition {image[0]}x{image[1]} down to the "
            f"decoder's first feature map {side[0]}x{side[1]}, which does not work out: use "
            "--model.conditioning concat"
        )
    return count


def build_conditioning(
    config: ModelConfig, channels: int, side: tuple[int, int]
) -> NoConditioning | Concat | FiLM:
    """What ``model.conditioning`` says, for a first feature map of (channels, *side).

    Its attribute ``channels`` is what comes out.
    """
    if config.conditioning == "skip":
        raise UserError(
            "model.conditioning = 'skip' is for --model.decoder unet; this one takes film or concat"
        )
    if config.conditioning == "film":
        return FiLM(config, channels, side)
    return Concat(config, channels) if config.conditioning == "concat" else NoConditioning(channels)


def refuse_conditioning(config: ModelConfig, name: str) -> None:
    """For decoders without a feature map to condition."""
    if config.conditioning != "none":
        raise UserError(
            f"model.conditioning = {config.conditioning!r}: decoder {name!r} cannot see an image; "
            "use --model.conditioning none (only the latents know of it) or another decoder"
        )
