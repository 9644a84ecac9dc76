"""Models: every combination of parts has the right shapes, trains, and answers the user's calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from model_cases import RNG, images, make, wake
from torch import Tensor

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models import VAE, Inputs, build_model, count_parameters
from fastvae.models.blocks import ConvBlock, LinearBlock
from fastvae.models.likelihoods import LIKELIHOODS
from fastvae.objective import Objective
from fastvae.presets import get_preset

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 64)]
PLAIN = ("conv", "mlp")
PARTS = list(itertools.product(PLAIN, PLAIN, LIKELIHOODS))


def loss_of(model: VAE, x: Tensor) -> Tensor:
    return Objective(model)(Inputs(x), RNG, 0, torch.ones((), dtype=x.dtype))[0]


# ---------------------------------------------------------------------------------- combinations
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("parts", PARTS, ids="-".join)
def test_shapes_and_gradients(parts: tuple[str, str, str], shape: tuple[int, int, int]) -> None:
    model = wake(make(parts, image_shape=shape))
    x = images(shape)
    params, draw, *_ = model(Inputs(x), RNG)
    channels = model.likelihood.parameters_per_value * shape[0]
    assert params.shape == (5, channels, *shape[1:])
    assert (draw.z.shape, draw.kl_row.shape, draw.kl_dim.shape) == ((5, 4), (5,), (4,))
    assert model.likelihood.nll(params, x).shape == (5,)
    assert model.likelihood.mean(params).shape == (5, *shape)
    loss_of(model, x).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.any(), name


@pytest.mark.parametrize("parts", PARTS, ids="-".join)
def test_float64_agrees_with_float32(parts: tuple[str, str, str]) -> None:
    single = wake(make(parts, image_shape=(1, 8, 8)))
    double = make(parts, image_shape=(1, 8, 8)).double()
    double.load_state_dict(single.state_dict())
    x = images((1, 8, 8))
    narrow = loss_of(single, x)
    wide = loss_of(double, x.double())
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-4)
    wide.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float64 for p in double.parameters())


def test_gradients_match_finite_differences() -> None:
    """All of encoder, noise, KL, decoder and likelihood at once, in float64."""
    model = wake(make(image_shape=(1, 4, 4), latent_dim=2, channels=(2,), hidden=(3,))).double()
    x = images((1, 4, 4), 2).double()
    generator = torch.Generator().manual_seed(4)
    loss_of(model, x).backward()
    for name, p in model.named_parameters():
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                p.add_(direction, alpha=sign * 1e-5)
                values.append(loss_of(model, x).item())
                p.sub_(direction, alpha=sign * 1e-5)
        expected = (p.grad * direction).sum().item()
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("parts", PARTS, ids="-".join)
def test_channels_last_is_only_a_layout(
    parts: tuple[str, str, str], shape: tuple[int, int, int]
) -> None:
    model = wake(make(parts, image_shape=shape))
    other = make(parts, image_shape=shape)
    other.load_state_dict(model.state_dict())
    other = other.to(memory_format=torch.channels_last)
    x = images(shape)
    expected, draw, *_ = model(Inputs(x), RNG)
    expected_loss = loss_of(model, x)
    for m in (model, other):
        laid_out = x.contiguous(memory_format=torch.channels_last)
        params, again, *_ = m(Inputs(laid_out), RNG)
        torch.testing.assert_close(params, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.z, draw.z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss_of(m, laid_out), expected_loss, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("parts", PARTS, ids="-".join)
def test_a_step_lowers_the_loss(parts: tuple[str, str, str]) -> None:
    model = make(parts, image_shape=(1, 8, 8))
    x = images((1, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = loss_of(model, x)
    before.backward()
    optimizer.step()
    assert loss_of(model, x) < before


@pytest.mark.parametrize("parts", PARTS, ids="-".join)
def test_samples_do_not_see_each_other(parts: tuple[str, str, str]) -> None:
    model = wake(make(parts, image_shape=(1, 8, 8)))
    x = images((1, 8, 8))
    whole = model(Inputs(x), RNG).params
    alone = torch.cat([model(Inputs(x[i : i + 1]), RNG, i).params for i in range(5)])
    torch.testing.assert_close(whole, alone)


def test_sides_that_are_odd_for_the_encoder() -> None:
    model = make(("conv", "mlp", "bernoulli"), image_shape=(1, 7, 9), channels=(2, 3, 4))
    assert model(Inputs(images((1, 7, 9))), RNG).params.shape == (5, 1, 7, 9)


def test_indivisible_sides_are_an_error_of_the_conv_decoder() -> None:
    with pytest.raises(UserError, match=r"halves the side 3 times.*28x28.*divisible by 8"):
        make(channels=(2, 3, 4), image_shape=(1, 28, 28))
    with pytest.raises(UserError, match="8x10"):
        make(channels=(2, 3), image_shape=(1, 8, 10))


@pytest.mark.parametrize(
    ("field", "name", "expected"),
    [
        ("encoder", "cnov", "unknown model.encoder 'cnov'; nearest: conv"),
        ("decoder", "mpl", "unknown model.decoder 'mpl'; nearest: mlp"),
        ("likelihood", "bernouli", "unknown model.likelihood 'bernouli'; nearest: bernoulli"),
        ("prior", "standart", "unknown model.prior 'standart'; nearest: standard"),
        ("kind", "vea", "unknown model.kind 'vea'; nearest: vae"),
    ],
)
def test_unknown_part(field: str, name: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        build_model(ModelConfig(**{field: name}))
    assert expected in str(error.value)


def test_dropout_acts_in_training_only() -> None:
    model = make(image_shape=(1, 8, 8), dropout=0.5)
    x = Inputs(images((1, 8, 8)))
    assert not torch.equal(model(x, RNG).params, model(x, RNG).params)
    model.eval()
    assert torch.equal(model(x, RNG).params, model(x, RNG).params)


def test_residual_blocks_start_as_the_identity() -> None:
    model = make(image_shape=(1, 8, 8), hidden_blocks=2)
    linear_blocks = [m for m in model.modules() if isinstance(m, LinearBlock)]
    conv_blocks = [m for m in model.modules() if isinstance(m, ConvBlock)]
    assert (len(linear_blocks), len(conv_blocks)) == (4, 2)
    h, maps = torch.randn(3, 12), torch.randn(3, 6, 2, 2)
    assert all(torch.equal(block(h), h) for block in linear_blocks)
    assert all(torch.equal(block(maps), maps) for block in conv_blocks)


# ---------------------------------------------------------------------------------- sizes
def linear(before: int, after: int) -> int:
    return before * after + after


def conv(before: int, after: int, kernel: int) -> int:
    return before * after * kernel * kernel + after


def test_parameters_of_the_mnist_preset() -> None:
    encoder = conv(1, 32, 5) + conv(32, 64, 3)
    encoder += linear(64 * 7 * 7, 256) + 2 * linear(256, 256) + linear(256, 2 * 20)
    decoder = linear(20, 256) + 2 * linear(256, 256) + linear(256, 64 * 7 * 7)
    decoder += 2 * conv(64, 64, 3) + conv(64, 32, 4) + conv(32, 1, 4)
    assert count_parameters(build_model(get_preset("mnist").model)) == encoder + decoder
    assert encoder + decoder == 2_014_345


def test_parameters_of_the_digits_preset() -> None:
    encoder = linear(64, 256) + linear(256, 256) + linear(256, 2 * 10)
    decoder = linear(10, 256) + linear(256, 256) + linear(256, 64)
    assert count_parameters(build_model(get_preset("digits").model)) == encoder + decoder
    assert encoder + decoder == 172_628


def test_frozen_parameters_do_not_count() -> None:
    model = make(image_shape=(1, 8, 8))
    whole = count_parameters(model)
    model.encoder.requires_grad_(False)
    rest = sum(p.numel() for p in model.decoder.parameters())
    assert count_parameters(model) == rest < whole


def test_the_seed_decides_the_weights() -> None:
    a, b = make(), make()
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


# ---------------------------------------------------------------------------------- users' calls
@pytest.fixture
def model() -> VAE:
    return wake(make(image_shape=(3, 8, 16))).eval()


@pytest.fixture
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (6, 3, 8, 16), generator=generator).to(torch.uint8)


def test_encode(model: VAE, pixels: Tensor) -> None:
    posterior = model.encode(pixels)
    for tensor in posterior:
        assert tensor.shape == (6, 4)
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
    expected = model.encoder((pixels.float() / 255.0 - 0.5) / 0.5)
    assert torch.equal(posterior.mean, expected[0])
    assert torch.equal(posterior.logvar, expected[1])


def test_decode_and_reconstruct(model: VAE, pixels: Tensor) -> None:
    mean = model.encode(pixels).mean
    decoded = model.decode(mean)
    assert decoded.shape == (6, 3, 8, 16)
    assert not decoded.requires_grad
    assert 0.0 <= decoded.min() < decoded.max() <= 1.0
    assert torch.equal(model.reconstruct(pixels), decoded)
    assert torch.equal(decoded, torch.sigmoid(model.decoder(mean)))


def test_extreme_latents_stay_in_range(model: VAE) -> None:
    decoded = model.decode(torch.full((2, 4), 1e6))
    assert torch.isfinite(decoded).all()
    assert decoded.min() >= 0.0
    assert decoded.max() <= 1.0


def test_bytes_and_floats_are_the_same_images(model: VAE, pixels: Tensor) -> None:
    floats = pixels.float() / 255.0
    assert torch.equal(model.reconstruct(pixels), model.reconstruct(floats))
    assert torch.equal(model.encode(pixels).logvar, model.encode(floats.double()).logvar)
    assert torch.equal(model.encode(pixels > 127).mean, model.encode((pixels > 127).float()).mean)


@pytest.mark.parametrize("shape", [(3, 8, 16), (6, 1, 8, 16), (6, 3, 16, 8), (6, 384)])
def test_wrong_image_shapes(model: VAE, shape: tuple[int, ...]) -> None:
    calls: list[Callable[[Tensor], object]] = [model.encode, model.reconstruct]
    for call in calls:
        with pytest.raises(ValueError, match=r"images must be \(B, 3, 8, 16\)"):
            call(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(4,), (2, 5), (2, 3), (1, 2, 4)])
def test_wrong_latent_shapes(model: VAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents must be \(B, 4\)"):
        model.decode(torch.zeros(shape))


def test_sample(model: VAE) -> None:
    drawn = model.sample(7, seed=3)
    assert drawn.shape == (7, 3, 8, 16)
    assert not drawn.requires_grad
    assert 0.0 <= drawn.min() < drawn.max() <= 1.0
    assert torch.equal(drawn, model.sample(7, seed=3))
    assert not torch.equal(drawn, model.sample(7, seed=4))
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn[:3], model.sample(3, seed=3))


def test_sampling_leaves_torchs_generator_alone(model: VAE) -> None:
    state = torch.get_rng_state()
    model.sample(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_temperature(model: VAE) -> None:
    cold = model.sample(4, temperature=0.0)
    assert all(torch.equal(cold[0], image) for image in cold)
    torch.testing.assert_close(cold[:1], model.decode(torch.zeros(1, 4)))
    assert not torch.equal(model.sample(4, temperature=0.5), model.sample(4, temperature=1.0))


def test_empty_batches(model: VAE) -> None:
    assert model.reconstruct(torch.zeros(0, 3, 8, 16)).shape == (0, 3, 8, 16)
    assert model.sample(0).shape == (0, 3, 8, 16)
