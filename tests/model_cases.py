"""Small models for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.models import VAE, build_model

RNG = ops.rng_state(2)


def make(parts: tuple[str, str, str] = ("conv", "conv", "bernoulli"), **fields: Any) -> VAE:
    encoder, decoder, likelihood = parts
    torch.manual_seed(0)
    return build_model(
        ModelConfig(
            **{
                "encoder": encoder,
                "decoder": decoder,
                "likelihood": likelihood,
                "latent_dim": 4,
                "channels": (4, 6),
                "encoder_blocks": 1,
                "hidden": (16, 12),
                **fields,
            }
        )
    )


def images(shape: tuple[int, ...], count: int = 5) -> Tensor:
    """Binary images: targets of every likelihood."""
    return (torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) > 0.6).float()


def wake(model: VAE) -> VAE:
    """Give the layers that start at zero some weight, so that they take part."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return model
