"""The COCO system's network: its size, its start, its batch norms, and what its loss amounts to."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models import Inputs, build_model
from fastvae.objective import Objective
from fastvae.presets import get_preset

SMALL = ModelConfig(
    encoder="larsen",
    decoder="larsen",
    likelihood="gaussian",
    gaussian_std=0.5,
    image_shape=(3, 16, 24),
    latent_dim=4,
    channels=(4, 6, 8),
    hidden=(10,),
    norm="batch",
)


def test_the_originals_size() -> None:
    """From its list of layers: no biases before batch norms, two heads with them."""
    convs = 25 * (3 * 64 + 64 * 128 + 128 * 256) + 2 * (64 + 128 + 256)
    encoder = convs + 16384 * 1024 + 2 * 1024 + 2 * (1024 * 128 + 128)
    up = 25 * (256 * 256 + 256 * 128 + 128 * 32) + 2 * (256 + 128 + 32)
    decoder = 128 * 16384 + 2 * 16384 + up + 25 * 32 * 3 + 3
    with torch.device("meta"):
        model = build_model(get_preset("coco64").model)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert counts == [encoder, decoder] == [18_071_360, 4_693_155]


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_shapes_and_gradients(norm: str) -> None:
    model = build_model(dataclasses.replace(SMALL, norm=norm))
    x = torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    out = model(Inputs(x), ops.rng_state(0))
    assert out.params.shape == (5, 3, 16, 24)
    loss, _ = Objective(model)(Inputs(x), ops.rng_state(0), 0, torch.ones(()))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    assert model.reconstruct(x[:1]).shape == (1, 3, 16, 24)


def test_the_start_is_glorots_and_running_statistics_move_slowly() -> None:
    model = build_model(get_preset("coco64").model)
    for part in model.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            fans = nn.init._calculate_fan_in_and_fan_out(part.weight)
            assert part.weight.std().item() == pytest.approx((2.0 / sum(fans)) ** 0.5, rel=0.1)
            assert part.bias is None or not part.bias.any()
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert part.momentum == 0.1  # the original's 0.9 kept little but the last batch


def test_the_likelihood_is_half_the_squared_error_between_minus_one_and_one() -> None:
    """Up to its constant, which does not depend on the model."""
    model = build_model(SMALL).double()
    x = torch.rand(3, 3, 16, 24, dtype=torch.float64)
    params = torch.randn(3, 3, 16, 24, dtype=torch.float64)
    mean = 2.0 * model.likelihood.mean(params) - 1.0
    half = 0.5 * (2.0 * x - 1.0 - mean).square().sum(dim=(1, 2, 3))
    gap = model.likelihood.nll(params, x) - half
    torch.testing.assert_close(gap, gap[:1].expand(3))


def test_indivisible_sides() -> None:
    with pytest.raises(UserError, match=r"halves the side 3 times.*20x24.*divisible by 8"):
        build_model(dataclasses.replace(SMALL, image_shape=(3, 20, 24)))
