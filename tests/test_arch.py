"""The arch networks: TensorFlow's 'same' padding, parameter counts, files, and the two stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from fastvae.arch_file import with_arch
from fastvae.config import Config, ModelConfig
from fastvae.engine import schedules
from fastvae.errors import UserError
from fastvae.models import build_model
from fastvae.models.arch import SameConv, SameConvTranspose
from fastvae.presets import get_preset
from fastvae.presets.faces128 import kl_plan

Layer = tuple[int, int, int, int]
F64 = npt.NDArray[np.float64]
# kernel, stride down, stride across, height, width: the usual one, and every other rounding.
CASES = [
    (3, 2, 2, 8, 8),
    (3, 1, 1, 5, 4),
    (3, 2, 1, 6, 5),
    (4, 2, 2, 8, 6),
    (5, 2, 2, 8, 10),
    (5, 3, 2, 9, 8),
    (2, 2, 2, 6, 4),
    (1, 2, 2, 6, 4),
    (2, 3, 3, 9, 6),
    (1, 1, 1, 3, 3),
    (6, 4, 3, 8, 9),
]


def taps(size: int, kernel: int, stride: int) -> list[tuple[int, int, int]]:
    """(output, input, tap) of a 'same' convolution over ``size`` pixels, from the definition:
    ceil(size / stride) outputs, and of the zeros they need the smaller half comes first."""
    outputs = -(-size // stride)
    before = max((outputs - 1) * stride + kernel - size, 0) // 2
    found = [(o, o * stride + t - before, t) for o in range(outputs) for t in range(kernel)]
    return [(o, i, t) for o, i, t in found if 0 <= i < size]


def convolve(x: F64, w: F64, layer: tuple[int, int, int]) -> F64:
    """x (C, H, W), w (F, C, k, k) -> (F, h, w): a sum over taps, one at a time."""
    kernel, down, across = layer
    out = np.zeros((len(w), -(-x.shape[1] // down), -(-x.shape[2] // across)))
    for oy, iy, ty in taps(x.shape[1], kernel, down):
        for ox, ix, tx in taps(x.shape[2], kernel, across):
            out[:, oy, ox] += w[:, :, ty, tx] @ x[:, iy, ix]
    return out


def scatter(g: F64, w: F64, layer: tuple[int, int, int]) -> F64:
    """The transpose of ``convolve``: g (F, h, w), w (F, C, k, k) -> (C, h * down, w * across)."""
    kernel, down, across = layer
    height, width = g.shape[1] * down, g.shape[2] * across
    out = np.zeros((w.shape[1], height, width))
    for oy, iy, ty in taps(height, kernel, down):
        for ox, ix, tx in taps(width, kernel, across):
            out[:, iy, ix] += w[:, :, ty, tx].T @ g[:, oy, ox]
    return out


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution_is_tensorflows(case: tuple[int, int, int, int, int]) -> None:
    kernel, down, across, height, width = case
    for sides in ((height, width), (height + 1, width + 1), (height + 1, width)):
        layer = SameConv(3, (2, kernel, down, across), sides).double()
        x = drawn(1, 3, *sides)
        weight = layer.weight.detach().numpy()
        expected = convolve(x[0].numpy(), weight, (kernel, down, across))
        np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_transposed_convolution_is_tensorflows(case: tuple[int, int, int, int, int]) -> None:
    kernel, down, across, height, width = case
    layer = SameConvTranspose(2, (3, kernel, down, across)).double()
    torch.nn.init.constant_(layer.bias, 0.25)
    g = drawn(1, 2, height, width)
    weight = layer.weight.detach().numpy()
    expected = scatter(g[0].numpy(), weight, (kernel, down, across)) + 0.25
    np.testing.assert_allclose(layer(g)[0].detach().numpy(), expected, atol=1e-12)


def test_even_sides_are_padded_at_the_bottom_and_right_only() -> None:
    layer = SameConv(1, (1, 3, 2, 2), (4, 4))
    torch.nn.init.ones_(layer.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert layer(x).tolist() == [[[[45.0, 39.0], [66.0, 50.0]]]]


def test_the_start_is_glorots() -> None:
    layer = SameConv(16, (32, 3, 2, 2), (8, 8))
    limit = (6 / (9 * 16 + 9 * 32)) ** 0.5
    assert 0.97 * limit < layer.weight.abs().max() <= limit
    assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)
    assert not layer.bias.any()


# ---------------------------------------------------------------------------------- networks
def model_config(
    shape: tuple[int, int, int], latents: int, filters: tuple[int, ...], **more: Any
) -> ModelConfig:
    layers = tuple((count, 3, 2, 2) for count in filters)
    return ModelConfig(
        encoder="arch",
        decoder="arch",
        image_shape=shape,
        latent_dim=latents,
        arch_encode=layers,
        **more,
    )


@pytest.mark.parametrize(
    ("shape", "latents", "filters", "encoder", "decoder"),
    [
        ((3, 512, 512), 512, (32, 64, 128, 256, 512, 1024, 1024), 32_504_640, 16_283_971),
        ((3, 128, 128), 512, (16, 32, 64, 128, 256, 512, 1024), 7_341_984, 6_448_051),
        ((3, 128, 128), 128, (32, 64, 128, 256), 4_582_976, 726_339),
        ((3, 512, 512), 2048, (32, 64, 128, 256, 512, 1024, 2048), 159_386_432, 26_803_523),
        ((1, 28, 28), 12, (32, 64), 94_104, 57_633),
    ],
)
def test_parameters(
    shape: tuple[int, int, int],
    latents: int,
    filters: tuple[int, ...],
    encoder: int,
    decoder: int,
) -> None:
    with torch.device("meta"):
        model = build_model(model_config(shape, latents, filters))
    counts = [sum(p.numel() for p in m.parameters()) for m in (model.encoder, model.decoder)]
    assert counts == [encoder, decoder]


def test_presets_have_these_sizes() -> None:
    for name, total in (("arch", 151_737), ("faces128", 13_790_035), ("faces512", 48_788_611)):
        with torch.device("meta"):
            model = build_model(get_preset(name).model)
        assert sum(p.numel() for p in model.parameters()) == total


@pytest.mark.parametrize("conditioning", ["none", "film", "concat"])
def test_mirrored_and_given_decoders(conditioning: str) -> None:
    given = {"condition": "none" if conditioning == "none" else "image"}
    given["conditioning"] = conditioning
    mirrored = model_config((3, 8, 16), 4, (6, 5), likelihood="gaussian", **given)
    explicit = model_config((3, 8, 16), 4, (6, 5), **given, arch_decode=((7, 5, 4, 4),))
    x = torch.rand(2, 3, 8, 16)
    for config, features in ((mirrored, 6 * 2 * 4), (explicit, 6 * 2 * 4)):
        model = build_model(config)
        assert model.decoder.spread[0].out_features == features
        out = model.reconstruct(x, x)
        assert out.shape == x.shape
        assert 0 < out.min() < out.max() < 1
    assert build_model(explicit).decoder.convs[0][0].weight.shape[1:] == (7, 5, 5)


def test_strides_may_differ_along_the_axes() -> None:
    config = ModelConfig(
        encoder="arch",
        decoder="arch",
        image_shape=(1, 6, 5),
        latent_dim=3,
        arch_encode=((4, 3, 2, 1), (6, 3, 3, 5)),
    )
    model = build_model(config)
    assert model.encoder.head.in_features == 6
    assert model.reconstruct(torch.rand(2, 1, 6, 5)).shape == (2, 1, 6, 5)


def test_recomputation_changes_nothing() -> None:
    from fastvae.models.blocks import set_recompute

    model = build_model(model_config((1, 8, 8), 3, (4, 6)))
    x = torch.rand(3, 1, 8, 8)
    grads = []
    for _ in range(2):
        model.zero_grad()
        mean, logvar = model.encoder(x)
        model.decoder(mean + logvar).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert set_recompute(model)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------------------------- errors, files
GOOD: dict[str, Any] = {
    "input": [28, 20, 3],
    "latent": 12,
    "encode": [(32, 3, (2, 1)), [64, [3, 3], 2]],
    "decode": None,
    "name": "small",
}


def test_a_definition_becomes_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    (tmp_path / "a.toml").write_text(
        'input = [28, 20, 3]\nlatent = 12\nname = "small"\n'
        "encode = [[32, 3, [2, 1]], [64, [3, 3], 2]]\n"
    )
    base = get_preset("arch")
    expected = ((32, 3, 2, 1), (64, 3, 2, 2))
    for definition in (GOOD, tmp_path / "a.json", tmp_path / "a.toml"):
        config = with_arch(base, definition)
        assert config.name == "small"
        assert config.model.image_shape == (3, 28, 20)
        assert config.model.latent_dim == 12
        assert config.model.arch_encode == expected
        assert config.model.arch_decode == ()
    decode = with_arch(base, GOOD | {"decode": [[8, 5, 4]], "name": None})
    assert decode.model.arch_decode == ((8, 5, 4, 4),)
    assert decode.name == base.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": [28, 18, 3], "encode": [[8, 3, 2]] * 2}, "encode, layer 2: width 18 of input "),
        ({"encode": [[8, 3, 2]] * 3}, "encode, layer 3: height 28 of input is not divisible by 8,"),
        ({"decode": [[8, 3, 4], [8, 3, 2]]}, "decode, layer 1: height 28 of input is not divisi"),
        ({"input": [28, 28]}, "input = [28, 28]: expected three positive integers"),
        ({"latent": "many"}, "latent = 'many': expected a positive integer"),
        ({"latent": True}, "latent = True: expected a positive integer"),
        ({"encode": []}, "encode = []: expected a list"),
        ({"encode": [[8, 3, 2], [8, 3]]}, "encode, layer 2 = [8, 3]: expected [filters, kernel, s"),
        ({"encode": [[8, 3, 2], [0, 3, 2]]}, "encode, layer 2, filters = 0: expected a positive"),
        ({"encode": [[8, [3, 5], 2]]}, "encode, layer 1, kernel = [3, 5]: kernels are square"),
        ({"encode": [[8, 3, [2, 2, 2]]]}, "encode, layer 1, stride = [2, 2, 2]: expected a pos"),
        ({"decode": 3}, "decode = 3: expected a list"),
        ({"name": "a/b"}, "name = 'a/b': expected a folder name"),
        ({"encod": []}, "unknown key encod; nearest: encode"),
    ],
)
def test_errors_name_file_key_and_layer(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(GOOD | changes))
    with pytest.raises(UserError) as error:
        with_arch(Config(), path)
    assert str(error.value).startswith(f"{path}: {message}")
    with pytest.raises(UserError) as error:
        with_arch(Config(), GOOD | changes)
    assert str(error.value).startswith(message)


def test_files_that_are_no_definition(tmp_path: Path) -> None:
    for name, text, message in (
        ("a.json", '{"input": [', r"a\.json is not valid JSON: .*line 1 column 12"),
        ("b.json", "[1]", r"b\.json: expected an object"),
        ("c.toml", "input = [", r"c\.toml is not valid TOML"),
        ("d.yaml", "", r"d\.yaml: an architecture is a \.toml or \.json file"),
        ("e.json", '{"input": [8, 8, 1], "latent": 2}', r"e\.json: key encode is missing"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            with_arch(Config(), tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        with_arch(Config(), tmp_path / "not-there.json")


def test_models_without_layers_or_with_sides_that_do_not_divide() -> None:
    with pytest.raises(UserError, match=r"model\.arch_encode is empty.*--arch FILE"):
        build_model(ModelConfig(encoder="arch"))
    with pytest.raises(UserError, match=r"model\.arch_encode, layer 3: height 28 of model\.image"):
        build_model(model_config((1, 28, 28), 2, (2, 2, 2)))
    # An encoder alone rounds up, as TensorFlow does.
    config = ModelConfig(
        encoder="arch",
        decoder="mlp",
        image_shape=(1, 7, 5),
        arch_encode=((2, 3, 2, 2), (3, 3, 2, 2)),
    )
    model = build_model(config)
    assert model.encoder.head.in_features == 3 * 2 * 2
    assert model.reconstruct(torch.rand(1, 1, 7, 5)).shape == (1, 1, 7, 5)


# ---------------------------------------------------------------------------------- stages
def test_the_documented_weights() -> None:
    table = {499: 0, 500: 0, 550: 0.5, 600: 1, 799: 1, 800: 2, 1000: 3, 1200: 4, 1400: 5, 1499: 5}
    plan = kl_plan(1500, weight=1.0)
    for epoch, expected in table.items():
        value = schedules.beta(plan, epoch * 100, total_steps=150_000, steps_per_epoch=100)
        assert value == pytest.approx(expected, abs=1e-9), epoch


@pytest.mark.parametrize("name", ["faces128", "faces512"])
def test_the_two_stages(name: str) -> None:
    config = get_preset(name)
    first, second = config.stages
    assert (first.lr, first.freeze, second.lr, second.freeze) == (1e-4, (), 1e-5, ("encoder",))
    assert (second.kl.beta, second.kl.schedule, second.load) == (0.0, "constant", "last")
    # Per unit deviation half the squared error is the loss; the original took a third of it.
    for epoch, expected in ((49, 0), (55, 0.75), (60, 1.5), (80, 3), (140, 7.5)):
        value = schedules.beta(first.kl, epoch * 7, total_steps=1050, steps_per_epoch=7)
        assert value == pytest.approx(expected, abs=1e-9)
