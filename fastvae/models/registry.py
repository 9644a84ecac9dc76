"""The tables of parts, and ``build_model`` that puts a model together.

A new part is a class in its module and one line here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from fastvae.config import ModelConfig
from fastvae.errors import UserError, nearest
from fastvae.models.arch import ArchDecoder, ArchEncoder
from fastvae.models.decoders import ConvDecoder, MLPDecoder
from fastvae.models.encoders import ConvEncoder, MLPEncoder
from fastvae.models.genzoo import GenZooDecoder, GenZooEncoder
from fastvae.models.hvae import HVAE
from fastvae.models.larsen import LarsenDecoder, LarsenEncoder
from fastvae.models.likelihoods import LIKELIHOODS
from fastvae.models.model import Model
from fastvae.models.panels import PanelsDecoder, PanelsEncoder
from fastvae.models.priors import PRIORS
from fastvae.models.resnet import ResNetDecoder, ResNetEncoder
from fastvae.models.unet import UNetDecoder
from fastvae.models.vae import VAE
from fastvae.models.vgg import VGGDecoder, VGGEncoder
from fastvae.models.vq import VQVAE

T = TypeVar("T")

# Called with the configuration and the number of channels that the encoder sees.
ENCODERS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "conv": ConvEncoder,
    "genzoo": GenZooEncoder,
    "mlp": MLPEncoder,
    "vgg": VGGEncoder,
    "arch": ArchEncoder,
    "larsen": LarsenEncoder,
    "resnet": ResNetEncoder,
    "panels": PanelsEncoder,
}

# Called with the configuration, the length of the decoder's input, and its output channels.
DECODERS: dict[str, Callable[[ModelConfig, int, int], nn.Module]] = {
    "conv": ConvDecoder,
    "genzoo": GenZooDecoder,
    "mlp": MLPDecoder,
    "unet": UNetDecoder,
    "vgg": VGGDecoder,
    "arch": ArchDecoder,
    "larsen": LarsenDecoder,
    "resnet": ResNetDecoder,
    "panels": PanelsDecoder,
}


def _build_vae(config: ModelConfig) -> Model:
    """Encoder, prior, decoder and likelihood, any of each (Kingma and Welling 2014)."""
    channels = config.image_shape[0]
    labels = config.label_dim if config.classes else 0
    likelihood = pick(LIKELIHOODS, "likelihood", config.likelihood)(config)
    make_encoder = functools.partial(pick(ENCODERS, "encoder", config.encoder), config)
    return VAE(
        encoder=make_encoder(channels * (1 if config.condition == "none" else 2) + labels),
        prior=pick(PRIORS, "prior", config.prior)(config, make_encoder),
        decoder=pick(DECODERS, "decoder", config.decoder)(
            config, config.latent_dim + labels, likelihood.parameters_per_value * channels
        ),
        likelihood=likelihood,
        config=config,
    )


def _build_vq(config: ModelConfig) -> Model:
    """Latents from a codebook, with a counted prior (van den Oord et al. 2017)."""
    return VQVAE(config, pick(LIKELIHOODS, "likelihood", config.likelihood)(config))


def _build_hvae(config: ModelConfig) -> Model:
    """Groups of latents from coarse to fine, in the manner of VDVAE (Child 2021)."""
    return HVAE(config, pick(LIKELIHOODS, "likelihood", config.likelihood)(config))


KINDS: dict[str, Callable[[ModelConfig], Model]] = {
    "vae": _build_vae,
    "vq": _build_vq,
    "hvae": _build_hvae,
}


def build_model(config: ModelConfig) -> Model:
    """Assemble the model; a UserError names an unknown part and the nearest known ones."""
    return pick(KINDS, "kind", config.kind)(config)


def pick(table: dict[str, T], kind: str, name: str) -> T:
    """The entry of a table, or a UserError with the nearest names."""
    try:
        return table[name]
    except KeyError:
        raise UserError(f"unknown model.{kind} {name!r}{nearest(name, table)}") from None


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
