"""Models with a condition: class labels and images, in every family of networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from model_cases import RNG, images, make, wake
from sklearn.datasets import load_digits
from torch import Tensor

from fastvae.config import ModelConfig
from fastvae.models import VAE, Inputs, build_model
from fastvae.models.registry import DECODERS, ENCODERS
from fastvae.objective import Objective

# What a family needs besides: small forms of those whose layers are not given by ``channels``.
FAMILY: dict[str, dict[str, Any]] = {
    "arch": {"arch_encode": ((4, 3, 2, 2), (6, 3, 2, 2))},
    "panels": {"image_shape": (1, 16, 48), "channels": (4, 6)},
    "unet": {"condition": "image", "conditioning": "skip"},
}
NAMES = sorted({*ENCODERS, *DECODERS})


def family(name: str, **fields: Any) -> VAE:
    """Encoder and decoder of one name (or conv where it has only one of them), awake."""
    parts = tuple(name if name in table else "conv" for table in (ENCODERS, DECODERS))
    shape = {"image_shape": (1, 16, 16)}
    return wake(make((*parts, "bernoulli"), **{**shape, **FAMILY.get(name, {}), **fields})).eval()


@pytest.mark.parametrize("name", NAMES)
def test_every_family_sees_the_label(name: str) -> None:
    """In the posterior, and in pictures of the same latents."""
    model = family(name, classes=3, label_dim=4)
    x = images(model.config.image_shape, 1).expand(3, -1, -1, -1)
    y = x if model.config.condition == "image" else None
    label = torch.arange(3)
    mean, logvar = model.encode(x, y=y, label=label)
    drawn = model.sample(3, y=y, label=label, temperature=0.0)
    for rows in (mean, logvar, model.reconstruct(x, y=y, label=label), drawn):
        assert not torch.allclose(rows[0], rows[1], rtol=1e-5, atol=1e-7)
        assert not torch.allclose(rows[1], rows[2], rtol=1e-5, atol=1e-7)
    loss, _ = Objective(model)(Inputs(x, y, label), RNG, 0, torch.ones(()))
    loss.backward()
    assert model.label is not None
    assert model.label.weight.grad.abs().sum(dim=1).min() > 0.0
    # Rows do not see each other, so a label belongs to its row.
    swapped = model.encode(x, y=y, label=label.flip(0)).mean
    torch.testing.assert_close(swapped, mean.flip(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_takes_an_image_as_condition(name: str) -> None:
    model = family(name, condition="image", prior="conditional", classes=2, label_dim=4)
    shape = model.config.image_shape
    x, label = images(shape, 3), torch.tensor([0, 1, 0])
    y = x * (torch.arange(shape[2]) < shape[2] // 2)
    out = model(Inputs(x, y, label), RNG)
    assert out.params.shape == (3, *shape)
    other = model(Inputs(x, 1.0 - y, label), RNG)
    assert not torch.allclose(out.posterior.mean, other.posterior.mean)
    # The prior does not see x, and sees y and the label.
    priors = [
        model.prior(Inputs(*given), model).mean
        for given in ((x, y, label), (1.0 - x, y, label), (x, 1.0 - y, label), (x, y, 1 - label))
    ]
    assert torch.equal(priors[0], priors[1])
    assert not torch.allclose(priors[0], priors[2], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(priors[0], priors[3], rtol=1e-5, atol=1e-7)
    assert model.sample(3, y=y, label=label).shape == x.shape


def test_a_prior_for_each_class() -> None:
    model = make(image_shape=(1, 8, 8), classes=3, prior="conditional")
    label = torch.arange(3)
    start = model.prior(Inputs(torch.zeros(3, 1, 8, 8), label=label), model)
    assert not start.mean.any(), "it does not start at the unit Gaussian"
    assert not start.logvar.any()
    with torch.no_grad():
        model.prior.table.weight.copy_(torch.arange(24.0).view(3, 8) / 10)
    inputs = Inputs(torch.zeros(3, 1, 8, 8), label=label)
    cold = model.prior_latents(inputs, seed=0, temperature=0.0)
    assert torch.equal(cold, model.prior.table.weight[:, :4])
    drawn = model.prior_latents(
        Inputs(torch.zeros(6000, 1, 8, 8), label=label[1:2].expand(6000)), 0, 1.0
    )
    torch.testing.assert_close(drawn.mean(dim=0), cold[1], rtol=0.0, atol=0.15)
    spread = (model.prior.table.weight[1, 4:] / 2).exp()
    torch.testing.assert_close(drawn.std(dim=0), spread, rtol=0.05, atol=0.0)


@pytest.fixture
def labelled() -> VAE:
    fields = {"image_shape": (1, 8, 8), "classes": 3, "condition": "image"}
    return wake(make(prior="conditional", **fields)).eval()


def test_one_condition_for_all(labelled: VAE) -> None:
    y, label = images((1, 8, 8), 1), torch.tensor([2])
    many = labelled.sample(4, y=y, label=label, seed=5)
    each = labelled.sample(4, y=y.expand(4, -1, -1, -1), label=label.expand(4), seed=5)
    assert torch.equal(many, each)
    assert not torch.equal(many[0], many[1])
    assert labelled.sample(0, y=y, label=label).shape == (0, 1, 8, 8)
    z = torch.zeros(1, 4)
    assert labelled.decode(z, y=y, label=label).shape == (1, 1, 8, 8)
    assert labelled.decode(z, y=(255 * y).to(torch.uint8), label=label.int()).shape == y.shape


def test_what_a_model_does_not_look_at_is_left_out() -> None:
    model, x = make(image_shape=(1, 8, 8)), images((1, 8, 8))
    plain = model.reconstruct(x)
    assert torch.equal(model.reconstruct(x, y=torch.zeros(2, 2), label=torch.ones(9)), plain)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"label": torch.zeros(2).long()}, ValueError, "needs a condition: y"),
        ({"y": torch.zeros(2, 1, 8, 8)}, ValueError, r"needs labels: label, \(B,\) of 0 to 2"),
        ({"y": torch.zeros(2, 1, 8, 8), "label": 1}, TypeError, "label must be a torch tensor"),
        ({"y": torch.zeros(2, 1, 8, 8), "label": torch.zeros(2)}, ValueError, "must be integers"),
        (
            {"y": torch.zeros(2, 1, 8, 8), "label": torch.zeros(2, 1).long()},
            ValueError,
            r"integers \(B,\), got \(2, 1\)",
        ),
        (
            {"y": torch.zeros(2, 1, 8, 8), "label": torch.tensor([0, 3])},
            ValueError,
            "labels must be 0 to 2",
        ),
        (
            {"y": torch.zeros(2, 1, 8, 8), "label": torch.tensor([0, 1, 2])},
            ValueError,
            "label has 3 rows for 2 images",
        ),
        (
            {"y": torch.zeros(3, 1, 8, 8), "label": torch.tensor([0, 1])},
            ValueError,
            "y has 3 rows for 2 images",
        ),
        (
            {"y": torch.zeros(2, 8, 8), "label": torch.tensor([0, 1])},
            ValueError,
            r"y must be \(B, 1, 8, 8\), got \(2, 8, 8\)",
        ),
    ],
)
def test_wrong_conditions(
    labelled: VAE, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    calls = (
        lambda: labelled.encode(torch.zeros(2, 1, 8, 8), **given),
        lambda: labelled.reconstruct(torch.zeros(2, 1, 8, 8), **given),
        lambda: labelled.decode(torch.zeros(2, 4), **given),
        lambda: labelled.sample(2, **given),
    )
    for call in calls:
        with pytest.raises(error, match=message):
            call()


def test_several_samples_of_each_image(labelled: VAE) -> None:
    """K samples are K passes whose noise is numbered image by image."""
    x, label = images((1, 8, 8), 3), torch.arange(3)
    inputs = Inputs(x, 1.0 - x, label)
    many = labelled(inputs, RNG, 10, samples=2)
    assert many.params.shape == (6, 1, 8, 8)
    for row in range(6):
        one = Inputs(*(t[row // 2 : row // 2 + 1] for t in inputs))
        alone = labelled(one, RNG, 10 + row)
        torch.testing.assert_close(alone.params[0], many.params[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.draw.kl_row[0], many.draw.kl_row[row])


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, black and white, (N, 1, 8, 8), and their labels."""
    data = load_digits()
    pixels = torch.from_numpy(data.images.astype(np.float32) / 16.0)[:, None]
    return (pixels > 0.4).float(), torch.from_numpy(data.target.astype(np.int64))


@pytest.mark.parametrize("prior", ["standard", "conditional"])
def test_a_trained_model_draws_what_the_label_says(prior: str) -> None:
    """Nearest class means of the data recognise most of the samples of each class."""
    torch.manual_seed(0)
    config = ModelConfig(
        encoder="mlp",
        decoder="mlp",
        prior=prior,
        image_shape=(1, 8, 8),
        latent_dim=6,
        hidden=(64,),
        classes=10,
        label_dim=8,
    )
    model = build_model(config)
    objective = Objective(model)
    x, label = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(250):
        rows = torch.randint(0, len(x), (128,), generator=generator)
        optimizer.zero_grad()
        inputs = Inputs(x[rows], label=label[rows])
        objective(inputs, RNG, step * 128, torch.ones(()))[0].backward()
        optimizer.step()
    wanted = torch.arange(10).repeat_interleave(20)
    drawn = model.eval().sample(200, label=wanted, seed=1)
    means = torch.stack([x[label == c].mean(dim=0) for c in range(10)])
    nearest = torch.cdist(drawn.flatten(1), means.flatten(1)).argmin(dim=1)
    correct = (nearest == wanted).float().view(10, 20).mean(dim=1)
    real = torch.cdist(x.flatten(1), means.flatten(1)).argmin(dim=1)
    assert (real == label).float().mean() > 0.85
    assert correct.mean() > 0.9
    assert correct.min() > 0.6
    # Told the wrong class, it explains images less well.
    right, _ = model.importance(*_given(model, x, label), samples=1)
    wrong, _ = model.importance(*_given(model, x, (label + 1) % 10), samples=1)
    assert wrong.mean() > right.mean() + 2.0


def _given(model: VAE, x: Tensor, label: Tensor) -> tuple[Any, ...]:
    inputs = Inputs(x, label=label)
    with torch.no_grad():
        return inputs, model.infer(inputs), 0, torch.arange(len(x))
