"""Residual networks and panels: the original's size, folding, sides that do not halve evenly."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.engine import schedules
from fastvae.errors import UserError
from fastvae.models import Inputs, build_model, count_parameters
from fastvae.models.panels import fold, unfold
from fastvae.models.resnet import ResBlock
from fastvae.objective import Objective
from fastvae.presets import get_preset

SMALL = ModelConfig(
    encoder="panels",
    decoder="panels",
    likelihood="gaussian",
    image_shape=(2, 10, 36),
    latent_dim=5,
    channels=(2, 3, 4),
    encoder_blocks=2,
    decoder_blocks=2,
    activation="relu",
    norm="batch",
)


def strips(count: int = 4, config: ModelConfig = SMALL) -> Tensor:
    return torch.rand(count, *config.image_shape, generator=torch.Generator().manual_seed(1))


def expected_parameters(z: int, c: int, blocks: int) -> int:
    """Counted from the layer list of the original."""

    def conv(before: int, after: int, kernel: int, bias: int = 0) -> int:
        return before * after * kernel**2 + bias * after

    def norm(channels: int) -> int:
        return 2 * channels

    def plain(channels: int) -> int:
        return 2 * (conv(channels, channels, 3) + norm(channels))

    def change(before: int, after: int) -> int:  # down or up, whose 1x1 skip has a bias
        main = conv(before, after, 3) + conv(after, after, 3) + 2 * norm(after)
        return main + conv(before, after, 1, bias=1)

    levels = [c, 2 * c, 4 * c, 8 * c]
    steps = list(itertools.pairwise(levels))
    flat = 22 * 25 * levels[-1]
    encoder = conv(3, c, 3) + norm(c) + blocks * plain(c)
    encoder += sum(change(a, b) + (blocks - 1) * plain(b) for a, b in steps)
    encoder += flat * 2 * z + 2 * z + norm(2 * z)  # one wide layer for a panel
    encoder += 6 * z * 2 * z + 2 * z  # over the panels
    decoder = z * 3 * z + 3 * z + z * flat + flat + blocks * plain(levels[-1])
    decoder += sum(change(b, a) + (blocks - 1) * plain(a) for a, b in steps)
    return encoder + decoder + conv(c, 3, 3)


@pytest.mark.parametrize(
    ("z", "c", "blocks", "count"), [(1024, 6, 2, 97_085_546), (750, 4, 2, 48_160_858)]
)
def test_the_originals_size(z: int, c: int, blocks: int, count: int) -> None:
    config = dataclasses.replace(
        get_preset("strips").model,
        latent_dim=z,
        channels=(c, 2 * c, 4 * c, 8 * c),
        encoder_blocks=blocks,
        decoder_blocks=blocks,
    )
    with torch.device("meta"):
        model = build_model(config)
    assert count_parameters(model) == expected_parameters(z, c, blocks) == count


def test_presets_have_the_sizes_they_state() -> None:
    with torch.device("meta"):
        sizes = [
            count_parameters(build_model(get_preset(name).model))
            for name in ("strips", "strips-small")
        ]
    assert sizes == [97_085_546, 10_098_572]


def test_kl_weights_are_those_of_the_original() -> None:
    """1e-4 of a loss averaged over N values, 4 and 16 times that later."""
    values = 3 * 176 * 200 * 3
    expected = [1e-4 * factor * values / 2 for factor in (1, 1, 4, 4, 16)]
    kl = get_preset("strips").kl
    found = [
        schedules.beta(kl, epoch * 10, total_steps=4000, steps_per_epoch=10)
        for epoch in (0, 49, 50, 99, 100)
    ]
    assert found == pytest.approx(expected)


def test_folding_puts_each_panel_in_its_place() -> None:
    x = torch.arange(2 * 1 * 2 * 6).view(2, 1, 2, 6)
    panels = fold(x)
    assert panels.shape == (6, 1, 2, 2)
    for strip in range(2):
        for panel in range(3):
            expected = x[strip, :, :, 2 * panel : 2 * panel + 2]
            assert torch.equal(panels[3 * strip + panel], expected)
    assert torch.equal(unfold(panels), x)


def test_one_call_is_three_calls() -> None:
    """In evaluation mode, where a panel knows nothing of the others."""
    model = build_model(SMALL).eval()
    encoder, decoder = model.encoder, model.decoder
    x = strips()
    parts = [encoder.panel(encoder.convs(p).flatten(1)) for p in x.chunk(3, dim=3)]
    expected = encoder.head(torch.cat(parts, dim=1))
    torch.testing.assert_close(torch.cat(encoder(x), dim=1), expected)
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    pieces = [decoder.convs(decoder.panel(p)) for p in decoder.spread(z).chunk(3, dim=1)]
    torch.testing.assert_close(decoder(z), torch.cat(pieces, dim=3))


def test_batch_statistics_are_of_all_panels() -> None:
    model = build_model(SMALL).train()
    seen: list[Tensor] = []
    conv, norm = model.encoder.convs[0][0], model.encoder.convs[0][1]
    conv.register_forward_hook(lambda module, args, out: seen.append(out))
    model(Inputs(strips()), ops.rng_state(0))
    (maps,) = seen
    assert len(maps) == 12
    torch.testing.assert_close(norm.running_mean, 0.1 * maps.mean(dim=(0, 2, 3)))


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("family", ["panels", "resnet"])
def test_shapes_and_gradients(family: str, norm: str) -> None:
    # Not relu: so few features without a norm may all be off.
    config = dataclasses.replace(
        SMALL, encoder=family, decoder=family, norm=norm, activation="silu"
    )
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():  # wake what starts at zero
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    loss, _ = Objective(model)(Inputs(strips()), ops.rng_state(0), 0, torch.ones(()))
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.any() or name.endswith(("0.bias", "panel.0.bias")), name  # before a norm
    model.eval()
    alone = model.reconstruct(strips()[:1])
    assert alone.shape == (1, 2, 10, 36)
    torch.testing.assert_close(alone, model.reconstruct(strips())[:1], rtol=1e-4, atol=1e-5)


def test_blocks_keep_halve_and_double() -> None:
    x = torch.randn(2, 3, 7, 9)
    assert ResBlock(SMALL, 3, 3)(x).shape == (2, 3, 7, 9)
    assert isinstance(ResBlock(SMALL, 3, 3).skip, nn.Identity)
    assert ResBlock(SMALL, 3, 5, down=True)(x).shape == (2, 5, 4, 5)
    assert ResBlock(SMALL, 3, 5, up=(14, 17))(x).shape == (2, 5, 14, 17)


def test_halving_has_no_strided_1x1_convolution() -> None:
    """Its gradient crashes the process on CPUs, channels last, with fewer than 16 channels."""
    block = ResBlock(SMALL, 6, 12, down=True).eval()
    assert block.skip.stride == (1, 1)  # before the gradient, which would end the tests
    x = torch.randn(4, 6, 19, 25, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.conv2d(x, block.skip.weight, block.skip.bias, stride=2)
    torch.testing.assert_close(block(x), torch.relu(block.main(x) + expected))
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        block = block.to(memory_format=layout)
        out = block(x.contiguous(memory_format=layout))
        gradients.append(torch.autograd.grad(out.square().mean(), block.skip.weight)[0])
    torch.testing.assert_close(gradients[1], gradients[0].clone(), rtol=1e-4, atol=1e-6)


def test_widths_that_are_not_three_panels() -> None:
    with pytest.raises(UserError, match=r"\[2, 10, 35\].*divisible by 3"):
        build_model(dataclasses.replace(SMALL, image_shape=(2, 10, 35)))
    with pytest.raises(UserError, match="decoder 'panels' cannot see an image"):
        build_model(dataclasses.replace(SMALL, condition="image", conditioning="concat"))
