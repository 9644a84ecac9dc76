"""Encoder and decoder from a list of layers (arch_def), with TensorFlow's padding.

Layers are (filters, kernel, stride down, stride across). Convolutions keep n pixels as ceil(n / s)
and transposed ones make n * s of them: TensorFlow's 'same' padding, which puts the odd pixel at the
bottom and right. Glorot and Bengio, "Understanding the difficulty of training deep feedforward
neural networks" (2010), has the uniform start; there are no norms.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models.blocks import Stages
from fastvae.models.conditioning import build_conditioning

Layer = tuple[int, int, int, int]
"""filters, kernel, stride down, stride across."""


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after ``size`` pixels, so that ceil(size / stride) outputs fit."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's 'same' padding, for images of one size.

    Shapes: (B, C, H, W) -> (B, filters, ceil(H / down), ceil(W / across)).
    """

    def __init__(self, channels: int, layer: Layer, side: tuple[int, int]) -> None:
        filters, kernel, *stride = layer
        pads = [same_padding(n, kernel, s) for n, s in zip(side, stride, strict=True)]
        even = all(before == after for before, after in pads)
        # 1x1 with a stride: the pixels are chosen first, for the reason given in resnet.ResBlock.
        self.step = (stride[0], stride[1]) if kernel == 1 else (1, 1)
        super().__init__(
            channels,
            filters,
            kernel,
            stride=1 if kernel == 1 else (stride[0], stride[1]),
            padding=(pads[0][0], pads[1][0]) if even else 0,
        )
        self.uneven = None if even else [*pads[1], *pads[0]]
        glorot(self)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.step[0], :: self.step[1]]
        return super().forward(x if self.uneven is None else F.pad(x, self.uneven))


class SameConvTranspose(nn.ConvTranspose2d):
    """Transposed convolution with TensorFlow's 'same' padding: the gradient of ``SameConv``.

    Shapes: (B, C, H, W) -> (B, filters, H * down, W * across).
    """

    def __init__(self, channels: int, layer: Layer) -> None:
        filters, kernel, down, across = layer
        # What the convolution pads before an image is not part of it. Strides beyond the kernel
        # leave pixels that nothing reaches.
        before = [max(kernel - s, 0) // 2 for s in (down, across)]
        after = [max(s - kernel, 0) for s in (down, across)]
        super().__init__(
            channels,
            filters,
            kernel,
            stride=(down, across),
            padding=(before[0], before[1]),
            output_padding=(after[0], after[1]),
        )
        glorot(self)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        height, width = x.shape[2] * self.stride[0], x.shape[3] * self.stride[1]
        return super().forward(x)[:, :, :height, :width]


def glorot(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    """Glorot's uniform weights, no bias."""
    nn.init.xavier_uniform_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def sides(config: ModelConfig) -> list[tuple[int, int]]:
    """Height and width of the image and after each layer of the encoder."""
    _, height, width = config.image_shape
    found = [(height, width)]
    for _, _, down, across in config.arch_encode:
        height, width = -(-height // down), -(-width // across)
        found.append((height, width))
    return found


def decoder_layers(config: ModelConfig) -> tuple[Layer, ...]:
    """Layers from the latents outwards: the given ones, or the encoder's in reverse."""
    return config.arch_decode or config.arch_encode[::-1]


def first_side(config: ModelConfig) -> tuple[int, int]:
    """Height and width of the decoder's first feature map.

    A UserError names the layer at which a side of the image cannot be divided any more.
    """
    name = "arch_decode" if config.arch_decode else "arch_encode"
    layers = decoder_layers(config)
    strides = [1, 1]
    for index in range(len(layers) - 1, -1, -1):  # from the image inwards
        number = index + 1 if config.arch_decode else len(layers) - index
        for axis, side in enumerate(("height", "width")):
            strides[axis] *= layers[index][2 + axis]
            length = config.image_shape[1 + axis]
            if length % strides[axis]:
                raise UserError(
                    f"model.{name}, layer {number}: {side} {length} of model.image_shape is not "
                    f"divisible by {strides[axis]}, the product of the strides from the image to "
                    "this layer: use stride 1 here, or images of another size"
                )
    return config.image_shape[1] // strides[0], config.image_shape[2] // strides[1]


def require_layers(config: ModelConfig) -> None:
    """Without layers there is no network."""
    if not config.arch_encode:
        raise UserError(
            "model.arch_encode is empty: list the encoder's layers, each [filters, kernel, stride "
            "down, stride across], or give a file with fastvae train arch --arch FILE"
        )


class ArchEncoder(nn.Module):
    """The listed convolutions, each with a ReLU, then one linear layer for mean and log variance.

    The layer numbers of ``model.arch_encode`` are the step numbers of ``convs``, counted from 1.
    """

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        require_layers(config)
        steps: list[nn.Module] = []
        places = sides(config)
        for layer, side in zip(config.arch_encode, places, strict=False):
            steps.append(nn.Sequential(SameConv(channels, layer, side), nn.ReLU()))
            channels = layer[0]
        self.convs = Stages(*steps)
        self.head = nn.Linear(channels * math.prod(places[-1]), 2 * config.latent_dim)
        glorot(self.head)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.head(self.convs(seen).flatten(1)).chunk(2, dim=1)
        return mean, logvar


class ArchDecoder(nn.Module):
    """A linear layer with a ReLU, the encoder's layers mirrored, and a 3x3 layer to the image.

    The first feature map has as many channels as the encoder's FIRST layer has filters, not its
    last: that is how arch_def is defined, and it keeps the linear layer small.
    """

    def __init__(self, config: ModelConfig, features: int, channels: int) -> None:
        super().__init__()
        require_layers(config)
        side = first_side(config)
        self.start = (config.arch_encode[0][0], *side)
        linear = nn.Linear(features, math.prod(self.start))
        glorot(linear)
        self.spread = nn.Sequential(linear, nn.ReLU())
        self.conditioning = build_conditioning(config, self.start[0], side)
        before = self.conditioning.channels
        steps: list[nn.Module] = []
        for layer in decoder_layers(config):
            steps.append(nn.Sequential(SameConvTranspose(before, layer), nn.ReLU()))
            before = layer[0]
        self.convs = Stages(*steps, SameConvTranspose(before, (channels, 3, 1, 1)))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.spread(z).unflatten(1, self.start)
        return self.convs(self.conditioning(h, y))
