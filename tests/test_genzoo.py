"""The GenZoo networks: the original's size, order of layers, starting values, affine decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvae import ops
from fastvae.config import ModelConfig, replace
from fastvae.errors import UserError
from fastvae.models import Inputs, build_model, count_parameters
from fastvae.models.blocks import set_recompute
from fastvae.models.model import Model
from fastvae.objective import Objective
from fastvae.presets import get_preset

ONE = torch.ones(())


def make(**fields: Any) -> Model:
    torch.manual_seed(0)
    changes = {f"model__{name}": value for name, value in fields.items()}
    return build_model(replace(get_preset("mnist-genzoo"), **changes).model)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def train_a_little(model: Model, steps: int) -> list[float]:
    """Take some steps on one batch, which also gives the norms statistics of their own."""
    x = images(8, *model.config.image_shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        loss, _ = Objective(model)(Inputs(x), ops.rng_state(1, counter=8 * step), 0, ONE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_size_of_the_original() -> None:
    model = make()
    assert count_parameters(model) == 1_133_833
    assert count_parameters(model.encoder) == 553_560
    params = model(Inputs(images(3, 1, 28, 28)), ops.rng_state(0)).params
    assert params.shape == (3, 1, 28, 28)
    assert count_parameters(make(latent_dim=2)) == 1_133_833 - 18 * (2 * 257 + 256)


def test_order_of_the_layers() -> None:
    kinds = [type(m) for m in make().modules() if not list(m.children())]
    level = [nn.Conv2d, nn.LeakyReLU, nn.MaxPool2d, nn.BatchNorm2d]
    hidden = [nn.Linear, nn.LeakyReLU, nn.Dropout]
    encoder = [*level, *level, nn.Conv2d, nn.Dropout, *hidden, *hidden, nn.BatchNorm1d]
    up = [nn.ConvTranspose2d, nn.BatchNorm2d]
    decoder = [*[nn.Linear] * 3, *up, *up, nn.ConvTranspose2d]
    assert [k for k in kinds if k.__module__.startswith("torch.nn")] == [
        *encoder,
        *[nn.Linear] * 2,
        *decoder,
    ]
    kernels = [m.kernel_size for m in make().modules() if isinstance(m, nn.ConvTranspose2d)]
    assert kernels == [(3, 3), (8, 8), (15, 15)]
    assert {m.p for m in make().modules() if isinstance(m, nn.Dropout)} == {0.2}
    assert {m.negative_slope for m in make().modules() if isinstance(m, nn.LeakyReLU)} == {0.01}


def test_starting_values() -> None:
    for layer in make().modules():
        if isinstance(layer, nn.Linear):
            assert not layer.bias.any()
            deviation = (2.0 / (layer.in_features + layer.out_features)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(deviation, rel=0.03)
        elif isinstance(layer, nn.Conv2d):
            assert (layer.bias == 0.01).all()
            deviation = (2.0 / (9 * (layer.in_channels + layer.out_channels))) ** 0.5
            assert layer.weight.std().item() == pytest.approx(deviation, rel=0.15)


def second_difference(model: Model) -> float:
    """How far the logits are from affine: their value halfway between two latents, against the
    mean of their values there, relative to the difference of these."""
    a, b = ops.philox_normal(5, torch.arange(8), model.latent_dim).double().chunk(2)
    blank = Inputs(torch.zeros(4, *model.config.image_shape))
    with torch.no_grad():
        low, high, middle = (model.generate(z, blank) for z in (a, b, (a + b) / 2.0))
    return ((middle - (low + high) / 2.0).norm() / (high - low).norm()).item()


def test_logits_are_affine_in_the_latents_in_evaluation() -> None:
    model = make()
    losses = train_a_little(model, steps=5)
    assert losses[-1] < losses[0]
    model = model.double().eval()
    assert second_difference(model) < 1e-12
    # Batch statistics in training make it nonlinear, and so does any decoder with activations.
    assert second_difference(model.train()) > 1e-3
    assert second_difference(make(decoder="conv").double().eval()) > 1e-3


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (1, 8, 8), (3, 32, 64), (2, 13, 7), (1, 4, 5)], ids=str
)
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_any_size_and_norm(shape: tuple[int, int, int], norm: str) -> None:
    model = make(image_shape=shape, norm=norm, channels=(4, 6), hidden=(12, 9), latent_dim=3)
    x = images(4, *shape)
    out = model(Inputs(x), ops.rng_state(0))
    assert out.params.shape == (4, *shape)
    assert (out.posterior.mean.shape, out.posterior.logvar.shape) == ((4, 3), (4, 3))
    Objective(model)(Inputs(x), ops.rng_state(0), 0, ONE)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    assert model.sample(1).shape == (1, *shape)
    assert model.reconstruct(x[:1]).shape == (1, *shape)


def test_three_levels_and_no_hidden_layer() -> None:
    model = make(channels=(4, 6, 8), hidden=(), latent_dim=3)
    assert model(Inputs(images(2, 1, 28, 28)), ops.rng_state(0)).params.shape == (2, 1, 28, 28)


@pytest.mark.parametrize("conditioning", ["none", "film", "concat"])
def test_given_labels_and_an_image(conditioning: str) -> None:
    model = make(classes=3, label_dim=2, condition="image", conditioning=conditioning).eval()
    y = images(2, 1, 28, 28)
    label = torch.tensor([0, 2])
    first = model.sample(2, y=y, label=label)
    assert first.shape == (2, 1, 28, 28)
    assert not torch.equal(first, model.sample(2, y=y, label=label.flip(0)))
    sees = not torch.equal(first, model.sample(2, y=1.0 - y, label=label))
    assert sees == (conditioning != "none")


def test_images_too_small() -> None:
    with pytest.raises(UserError, match="nothing is left of an image of 3x8"):
        make(image_shape=(1, 3, 8))


def test_recomputation_gives_the_same_gradients_and_statistics() -> None:
    x, results = images(6, 1, 28, 28), []
    for recompute in (False, True):
        model = make(dropout=0.0)
        if recompute:
            assert set_recompute(model)
        Objective(model)(Inputs(x), ops.rng_state(0), 0, ONE)[0].backward()
        grads = [p.grad for p in model.parameters()]
        results.append((grads, [b.clone() for b in model.buffers() if b.dim()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_preset_is_the_original() -> None:
    config = get_preset("mnist-genzoo")
    assert isinstance(config.model, ModelConfig)
    assert (config.epochs, config.batch_size, config.data.binarize) == (100, 50, "none")
    assert (config.optim.optimizer, config.optim.lr, config.kl.beta) == ("adam", 1e-3, 1.0)
    assert (config.optim.schedule, config.optim.warmup) == ("constant", 0.0)
