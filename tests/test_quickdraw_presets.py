"""The Quick, Draw! networks: sizes, what sees what, the learned prior."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastvae import ops
from fastvae.config import Config, ModelConfig, replace
from fastvae.errors import UserError
from fastvae.models import VAE, Inputs, build_model, count_parameters
from fastvae.models.blocks import set_recompute
from fastvae.objective import Objective
from fastvae.presets import get_preset

NAMES = ("quickdraw-vae", "quickdraw-cvae", "quickdraw-cvae-z", "quickdraw-cvae-large")
CONDITIONAL = NAMES[1:]


# ---------------------------------------------------------------------------------- sizes
def encoder_size(side: int, latents: int, seen: int) -> int:
    """Weights and biases of the original's encoder, layer by layer."""
    convs = [(seen, 32), (32, 32), (32, 64), (64, 64), (64, 128)]
    flat = 128 * (side // 4) ** 2
    return sum(9 * i * o + o for i, o in convs) + 2 * (flat * latents + latents)


def decoder_size(side: int, latents: int, first: int = 128) -> int:
    flat = 128 * (side // 4) ** 2
    doubling = (16 * first * 64 + 64) + (16 * 64 * 32 + 32)
    convs = (9 * 64 * 64 + 64) + (9 * 32 * 32 + 32) + (9 * 32 + 1)
    return latents * flat + flat + doubling + convs


FILM = (16 * 128 + 128) + (16 * 128 * 128 + 128) + (9 * 128 * 256 + 256)


def on_meta(name: str, **changes: Any) -> int:
    with torch.device("meta"):
        return count_parameters(build_model(replace(get_preset(name), **changes).model))


@pytest.mark.parametrize(
    ("latents", "side", "millions", "digits"),
    [
        (32, 64, 3.53, 2),
        (128, 64, 12.97, 2),
        (256, 64, 25.55, 2),
        (512, 64, 50.7, 1),
        (200, 256, 315.4, 1),
    ],
)
def test_size_of_the_vae(latents: int, side: int, millions: float, digits: int) -> None:
    expected = encoder_size(side, latents, 1) + decoder_size(side, latents)
    assert round(expected / 1e6, digits) == millions
    count = on_meta("quickdraw-vae", model__latent_dim=latents, model__image_shape=(1, side, side))
    assert count == expected


@pytest.mark.parametrize(
    ("latents", "millions", "digits"),
    [(32, 5.76, 2), (128, 21.49, 2), (256, 42.47, 2), (512, 84.4, 1)],
)
def test_size_of_the_conditional_vae(latents: int, millions: float, digits: int) -> None:
    encoders = encoder_size(64, latents, 1) + encoder_size(64, latents, 2)
    expected = encoders + decoder_size(64, latents)
    assert round(expected / 1e6, digits) == millions
    assert on_meta("quickdraw-cvae-z", model__latent_dim=latents) == expected
    assert round(FILM / 1e6, 2) == 0.56
    assert on_meta("quickdraw-cvae", model__latent_dim=latents) == expected + FILM
    concat = on_meta("quickdraw-cvae", model__latent_dim=latents, model__conditioning="concat")
    assert concat == encoders + decoder_size(64, latents, first=129)


def test_presets_have_the_sizes_they_state() -> None:
    sizes = {name: on_meta(name) for name in NAMES}
    assert sizes == {
        "quickdraw-vae": 12_965_185,
        "quickdraw-cvae": 6_323_777,
        "quickdraw-cvae-z": 42_465_217,
        "quickdraw-cvae-large": 9_711_019,
    }
    at_256 = [on_meta(name, model__image_shape=(1, 256, 256)) for name in NAMES[2:]]
    assert at_256[1] < 0.1 * at_256[0]


# ---------------------------------------------------------------------------------- behaviour
def small(name: str, **changes: Any) -> tuple[Config, VAE]:
    torch.manual_seed(0)
    fields = {"model__image_shape": (1, 16, 16), "model__latent_dim": 4, "model__hidden": (8,)}
    config = replace(get_preset(name), **{**fields, "model__channels": (4, 6), **changes})
    model = build_model(config.model)
    assert isinstance(model, VAE)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # layers that start at zero take part
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return config, model


def drawings(config: Config, count: int = 5) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(count, *config.model.image_shape, generator=generator) > 0.7).float()
    shown = torch.rand(x.shape, generator=generator) > 0.5
    return Inputs(x, x * shown if config.model.condition == "image" else None)


def loss_of(model: VAE, inputs: Inputs) -> Tensor:
    return Objective(model)(inputs, ops.rng_state(2), 0, torch.ones(()))[0]


CASES = [(name, {}) for name in NAMES]
CASES += [("quickdraw-cvae", {"model__conditioning": "concat"})]
CASES += [("quickdraw-cvae", {"model__channels": (4,)})]
CASES += [("quickdraw-cvae", {"model__channels": (4, 6, 3, 5), "model__image_shape": (1, 16, 24)})]
CASES += [("quickdraw-cvae-large", {"model__channels": (4, 6, 5, 3)})]


@pytest.mark.parametrize(("name", "changes"), CASES, ids=str)
def test_shapes_and_gradients(name: str, changes: dict[str, Any]) -> None:
    config, model = small(name, **changes)
    inputs = drawings(config)
    out = model(inputs, ops.rng_state(2))
    assert out.params.shape == inputs.x.shape
    assert out.draw.z.shape == (5, 4)
    loss_of(model, inputs).backward()
    for part, p in model.named_parameters():
        assert p.grad is not None, part
        assert torch.isfinite(p.grad).all(), part
        assert p.grad.any(), part


@pytest.mark.parametrize(("name", "changes"), CASES, ids=str)
def test_recomputed_gradients_are_the_same(name: str, changes: dict[str, Any]) -> None:
    config, model = small(name, **changes)
    inputs = drawings(config)
    loss_of(model, inputs).backward()
    kept = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert set_recompute(model)
    loss_of(model, inputs).backward()
    again = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(again, kept)


def test_pooling_is_the_one_asked_for() -> None:
    x = drawings(small("quickdraw-vae")[0])
    means = [
        small("quickdraw-vae", model__pool=pool)[1].posterior(x).mean for pool in ("max", "average")
    ]
    assert not torch.allclose(*means)
    _, model = small("quickdraw-cvae")
    kinds = {type(m).__name__ for m in model.modules()}
    assert "AvgPool2d" in kinds
    assert "MaxPool2d" not in kinds


@pytest.mark.parametrize("conditioning", ["film", "concat"])
def test_the_decoder_sees_the_condition(conditioning: str) -> None:
    config, model = small("quickdraw-cvae", model__conditioning=conditioning)
    _sees(config, model, True)


def test_every_pixel_of_the_condition_reaches_the_large_ones_output() -> None:
    config, model = small("quickdraw-cvae-large")
    _sees(config, model, True)
    y = torch.zeros(1, *config.model.image_shape)
    y[0, 0, 5, 9] = 1.0
    z = torch.zeros(1, 4)
    change = (model.decoder(z, y) - model.decoder(z, torch.zeros_like(y))).abs()[0, 0]
    assert change[5, 9] > 0.0
    assert change[4:7, 8:11].min() > 0.0


def test_the_decoder_of_cvae_z_does_not_see_the_condition() -> None:
    _sees(*small("quickdraw-cvae-z"), False)


def _sees(config: Config, model: VAE, expected: bool) -> None:
    inputs = drawings(config)
    z = torch.randn(5, 4)
    other = inputs._replace(y=inputs.x)
    same = torch.equal(model.generate(z, inputs), model.generate(z, other))
    assert same is not expected


def test_film_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    config = get_preset("quickdraw-cvae").model
    film = build_model(config).decoder.conditioning  # type: ignore[union-attr, operator]
    h = torch.randn(2, 128, 16, 16)
    changed = film(h, torch.zeros(2, 1, 64, 64))
    assert torch.corrcoef(torch.stack((h.flatten(), changed.flatten())))[0, 1] > 0.9


@pytest.mark.parametrize("name", CONDITIONAL)
def test_the_kl_teaches_both_encoders(name: str) -> None:
    config, model = small(name)
    inputs = drawings(config)
    out = model(inputs, ops.rng_state(2))
    assert out.posterior is not None
    out.draw.kl_row.sum().backward()
    for part in (model.encoder, model.prior):
        assert all(p.grad is not None and p.grad.any() for p in part.parameters())
    # KL(q || p) of two diagonal Gaussians, as torch has it.
    mean, logvar = model.prior.encoder(model.see(None, inputs.y, None))  # type: ignore[operator, union-attr]
    q = torch.distributions.Normal(out.posterior.mean, (0.5 * out.posterior.logvar).exp())
    p = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(q, p).sum(dim=1)
    torch.testing.assert_close(out.draw.kl_row, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_samples_come_from_the_learned_prior(name: str) -> None:
    config, model = small(name)
    y = drawings(config).y
    assert y is not None
    mean, logvar = model.prior.encoder(model.see(None, y, None))  # type: ignore[operator, union-attr]
    at_mean = model.sample(5, y=y, temperature=0.0, seed=1)
    torch.testing.assert_close(at_mean, model.decode(mean, y))
    assert torch.equal(at_mean, model.sample(5, y=y, temperature=0.0, seed=2))
    # 4000 latents for one partial drawing have the prior's mean and, at half the temperature, half
    # its deviation.
    many = Inputs(y[:1].expand(4000, -1, -1, -1), y[:1].expand(4000, -1, -1, -1))
    z = model.prior_latents(many, seed=3, temperature=0.5)
    deviation = 0.5 * (0.5 * logvar[0]).exp()
    assert ((z.mean(dim=0) - mean[0]).abs() < 5.0 * deviation / 4000**0.5).all()
    torch.testing.assert_close(z.std(dim=0), deviation, rtol=0.06, atol=0.0)


def test_likelihoods_by_option() -> None:
    grey = {"model__likelihood": "continuous_bernoulli", "data__binarize": "none"}
    for likelihood in (grey, {"model__likelihood": "dlogistic"}):
        config, model = small("quickdraw-cvae", **likelihood)
        inputs = drawings(config)
        assert torch.isfinite(loss_of(model, inputs))
    with pytest.raises(UserError, match=r"data\.binarize none"):
        replace(get_preset("quickdraw-vae"), model__likelihood="continuous_bernoulli")


# ---------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": "vgg", "image_shape": (1, 30, 30)}, "not divisible by 4"),
        ({"decoder": "vgg", "image_shape": (1, 30, 30)}, "not divisible by 4"),
        ({"decoder": "unet"}, "--model.conditioning skip"),
        ({"decoder": "unet", "conditioning": "skip", "image_shape": (1, 36, 36)}, "divisible by 8"),
        ({"decoder": "vgg", "conditioning": "skip"}, "--model.decoder unet"),
        ({"decoder": "conv", "conditioning": "skip"}, "--model.decoder unet"),
        ({"decoder": "mlp", "conditioning": "film"}, "cannot see an image"),
    ],
    ids=str,
)
def test_what_does_not_work_out_is_named(fields: dict[str, Any], message: str) -> None:
    base = {"image_shape": (1, 32, 32), "channels": (4, 6, 8), "condition": "image"}
    with pytest.raises(UserError, match=message), torch.device("meta"):
        build_model(ModelConfig(**{**base, **fields}))
