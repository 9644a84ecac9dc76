"""Activations computed again in the backward pass: the same training, with less memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastvae import ops
from fastvae.config import ModelConfig, replace
from fastvae.engine.distributed import World
from fastvae.errors import UserError
from fastvae.models import Inputs, build_model
from fastvae.models.blocks import set_recompute
from fastvae.objective import Objective
from fastvae.presets import get_preset
from fastvae.trainer import build

RESNET = ModelConfig(
    encoder="resnet",
    decoder="resnet",
    image_shape=(1, 16, 16),
    channels=(4, 8),
    encoder_blocks=1,
    decoder_blocks=1,
    norm="batch",
    dropout=0.3,
    latent_dim=3,
)
CONV = dataclasses.replace(RESNET, encoder="conv", decoder="conv")


@pytest.mark.parametrize("config", [CONV, RESNET], ids=["conv", "resnet"])
def test_the_same_gradients_and_batch_statistics(config: ModelConfig) -> None:
    """Dropout draws the same again; a batch norm counts a batch once."""
    x = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = build_model(config).train()
        if recompute:
            assert set_recompute(model)
        torch.manual_seed(7)
        loss, _ = Objective(model)(Inputs(x), ops.rng_state(3), 0, torch.ones(()))
        loss.backward()
        buffers = [b for name, b in model.named_buffers() if "num_batches" not in name]
        results.append((loss, [p.grad for p in model.parameters()], buffers))
    for have, want in zip(*results, strict=True):
        torch.testing.assert_close(have, want)


def test_fewer_activations_are_kept() -> None:
    kept = []
    for recompute in (False, True):
        model = build_model(CONV).train()
        if recompute:
            set_recompute(model)
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            if len(tensor) == 11:  # not a weight
                sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            model(Inputs(torch.rand(11, 1, 16, 16)), ops.rng_state(3))
        kept.append(sum(sizes))
    assert kept[1] < 0.8 * kept[0]


def test_a_model_without_levels_is_an_error() -> None:
    world = World(rank=0, size=1, device=torch.device("cpu"))
    with pytest.raises(UserError, match=r"recompute.*encoder 'mlp', decoder 'mlp'"):
        build(replace(get_preset("digits"), recompute=True), world)
