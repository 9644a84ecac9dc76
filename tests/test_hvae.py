"""The hierarchical VAE: its KL against torch.distributions, its noise, its evidence, its calls."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models import Inputs, build_model
from fastvae.models.blocks import set_recompute
from fastvae.models.hvae import HVAE, Residual
from fastvae.objective import Objective
from fastvae.presets import get_preset

RNG = ops.rng_state(2, counter=640)


def make(**fields: Any) -> HVAE:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "image_shape": (1, 8, 8),
        "channels": (4, 6),
        "encoder_blocks": 1,
        "decoder_blocks": 2,
        "group_latents": 3,
    }
    model = build_model(ModelConfig(kind="hvae", **{**defaults, **fields}))
    assert isinstance(model, HVAE)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # some weight for the layers that start at zero
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def images(shape: tuple[int, ...] = (1, 8, 8), count: int = 5) -> Tensor:
    return (torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) > 0.6).float()


def loss_of(model: HVAE, x: Tensor, label: Tensor | None = None, **settings: Any) -> Tensor:
    objective = Objective(model, **settings)
    loss: Tensor = objective(Inputs(x, None, label), RNG, 0, torch.ones((), dtype=x.dtype))[0]
    return loss


class Recorder:
    """Takes the place of ``ops.gaussian_sample_kl`` and notes what goes in and comes out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[tuple[Normal, Normal, Tensor]] = []
        self.wrapped = ops.gaussian_sample_kl
        monkeypatch.setattr(ops, "gaussian_sample_kl", self)

    def __call__(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        mean_q, logvar_q, mean_p, logvar_p, _ = (t.double() for t in tensors)
        result = self.wrapped(*tensors, **options)
        q, p = Normal(mean_q, (0.5 * logvar_q).exp()), Normal(mean_p, (0.5 * logvar_p).exp())
        self.blocks.append((q, p, result[0].double()))
        return result


# ---------------------------------------------------------------------------------- KL and noise
def test_the_kl_is_the_sum_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    recorder = Recorder(monkeypatch)
    draw = model(Inputs(images()), RNG).draw
    each = [kl_divergence(q, p) for q, p, _ in recorder.blocks]
    assert [tuple(kl.shape[1:]) for kl in each] == [(3, 2, 2)] * 2 + [(3, 4, 4)] * 2
    flat = torch.cat([kl.flatten(1) for kl in each], dim=1)
    assert flat.shape == (5, model.latent_dim)
    torch.testing.assert_close(draw.kl_row.double(), flat.sum(dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(draw.kl_dim.double(), flat.sum(dim=0), rtol=1e-4, atol=1e-4)
    z = torch.cat([z.flatten(1) for _, _, z in recorder.blocks], dim=1)
    torch.testing.assert_close(draw.z.double(), z)


def test_blocks_have_noise_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(image_shape=(1, 8, 8), decoder_blocks=2)
    recorder = Recorder(monkeypatch)
    with torch.no_grad():
        model(Inputs(images(count=1).expand(300, -1, -1, -1)), RNG)
    noise = torch.cat([((z - q.mean) / q.stddev).flatten(1) for q, _, z in recorder.blocks], 1)
    correlation = torch.corrcoef(noise.T) - torch.eye(noise.shape[1])
    assert correlation.abs().max() < 0.3  # 5 standard deviations of chance
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)


def test_noise_belongs_to_the_sample() -> None:
    """Each row by itself, with its number, is that row of the batch."""
    model = make()
    x, rng = images(), RNG.clone()
    whole = model(Inputs(x), rng)
    for i in range(5):
        alone = model(Inputs(x[i : i + 1]), rng, i)
        torch.testing.assert_close(alone.params, whole.params[i : i + 1])
        torch.testing.assert_close(alone.draw.z, whole.draw.z[i : i + 1])
    assert torch.equal(rng, RNG)
    later = model(Inputs(x[1:]), RNG + torch.tensor([0, 1]))
    torch.testing.assert_close(later.draw.z, whole.draw.z[1:])
    assert not torch.allclose(model(Inputs(x), ops.rng_state(3)).draw.z, whole.draw.z)


def test_several_samples_of_each_image() -> None:
    model = make()
    out = model(Inputs(images()), RNG, 0, 3)
    alone = model(Inputs(images()[1:2]), RNG, 4)
    torch.testing.assert_close(out.draw.z[4:5], alone.draw.z)
    assert out.params.shape == (15, 1, 8, 8)


# ---------------------------------------------------------------------------------- evidence
def test_importance_samples_estimate_the_bound_of_training() -> None:
    """Averages over 3000 samples of log q - log p, and of the KL by its formula in each block."""
    model = make().eval()
    inputs, samples = Inputs(images(count=1)), 3000
    with torch.no_grad():
        nll, log_ratio = model.importance(
            inputs, model.infer(inputs), 7, torch.arange(samples), samples
        )
        out = model(inputs, RNG, 0, samples)
    kl, drawn = out.draw.kl_row, -log_ratio
    error = math.sqrt((kl.var() + drawn.var()).item() / samples)
    assert abs((kl.mean() - drawn.mean()).item()) < 4.0 * error
    other = model.likelihood.nll(out.params, inputs.x, samples)
    error = math.sqrt((nll.var() + other.var()).item() / samples)
    assert abs((nll.mean() - other.mean()).item()) < 4.0 * error
    bound = torch.logsumexp(log_ratio - nll, dim=0) - math.log(samples)
    assert bound > (log_ratio - nll).mean() + 0.01


def test_probabilities_of_all_images_sum_to_one() -> None:
    """Importance sampling of p(x) for every image of 2x2 pixels: the densities are normalised."""
    model = make(image_shape=(1, 2, 2), channels=(3,), group_latents=2).eval()
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).view(16, 1, 2, 2)
    samples = 2000
    with torch.no_grad():
        inputs = Inputs(every)
        nll, log_ratio = model.importance(
            inputs, model.infer(inputs), 7, torch.arange(16 * samples), samples
        )
    weight = (log_ratio - nll).double().view(16, samples).exp()
    error = math.sqrt((weight.var(dim=1) / samples).sum().item())
    assert error < 0.02
    assert weight.mean(dim=1).sum().item() == pytest.approx(1.0, abs=4.0 * error)
    assert model.exact_kl(model.infer(inputs)) is None


# ---------------------------------------------------------------------------------- shapes
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_shape": (3, 64, 64), "channels": (2, 3, 4), "likelihood": "dlogistic"},
        {"image_shape": (1, 28, 28), "channels": (2, 3, 4, 4, 4), "likelihood": "gaussian"},
        {"image_shape": (3, 7, 10), "classes": 3, "label_dim": 2, "encoder_blocks": 0},
    ],
    ids=["small", "photos", "down to 1x1", "labels"],
)
def test_shapes_gradients_and_calls(fields: dict[str, Any]) -> None:
    model = make(**fields)
    shape = model.config.image_shape
    x = images(shape)
    label = torch.tensor([0, 1, 2, 2, 1]) if model.config.classes else None
    loss_of(model, x, label, free_bits=0.01).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.any(), name
    model.eval()
    out = model(Inputs(x, None, label), RNG)
    assert out.params.shape == (5, model.likelihood.parameters_per_value * shape[0], *shape[1:])
    decoded = model.decode(out.draw.z.detach(), label=label)
    torch.testing.assert_close(decoded, model.likelihood.mean(out.params.detach()))
    inputs = Inputs(x, None, label)
    for term in model.importance(inputs, model.infer(inputs), 1, torch.arange(10), 2):
        assert term.shape == (10,)
    z = model.encode_mean(x, label=label)
    assert z.shape == (5, model.latent_dim)
    rebuilt = model.reconstruct(x, label=label)
    assert rebuilt.shape == x.shape
    torch.testing.assert_close(model.decode(z, label=label), rebuilt)
    drawn = model.sample(5, label=label, seed=1)
    assert drawn.shape == x.shape
    assert torch.equal(drawn, model.sample(5, label=label, seed=1))
    assert model.sample(0, label=None if label is None else label[:0]).shape == (0, *shape)
    if label is not None:
        assert not torch.allclose(drawn, model.sample(5, label=label.flip(0), seed=1))
        assert not torch.allclose(z, model.encode_mean(x, label=label.flip(0)))


def test_temperature_scales_the_prior() -> None:
    model = make().eval()
    cold = model.sample(4, temperature=0.0)
    assert torch.equal(cold, cold[:1].expand_as(cold))
    means: list[Tensor] = []

    def mean(block: int, h: Tensor, prior: Any) -> Tensor:
        means.append(prior.mean)
        return means[-1]

    with torch.no_grad():
        params = model.descend(1, None, mean)
    torch.testing.assert_close(cold[:1], model.likelihood.mean(params))
    spread = [model.sample(64, temperature=t).std(dim=0).mean() for t in (0.0, 0.3, 1.0)]
    assert spread[0] < 1e-6 < spread[1] < spread[2]


def test_float64_agrees_with_float32() -> None:
    single, double = make(), make().double()
    narrow, wide = loss_of(single, images()), loss_of(double, images().double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-4)


def test_bf16_networks_draw_in_float32() -> None:
    model = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(Inputs(images()), RNG)
    assert out.params.dtype == torch.bfloat16
    assert {t.dtype for t in out.draw} == {torch.float32}
    loss = loss_of(model, images(), autocast=torch.bfloat16)
    assert loss.item() == pytest.approx(loss_of(model, images()).item(), rel=0.02)


def test_gradients_match_finite_differences() -> None:
    """The whole descent at once, in float64; one direction for each parameter."""
    model = make(image_shape=(1, 4, 4), channels=(2, 3), decoder_blocks=1).double()
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
        assert p.grad is not None
        expected = (p.grad * direction).sum().item()
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-5, abs=1e-7), name


def test_recomputing_changes_nothing() -> None:
    plain, again = make(), make()
    assert set_recompute(again)
    for model in (plain, again):
        loss_of(model, images()).backward()
    for p, q in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_bounds_hold_for_posterior_and_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(clamp_mean=(-0.01, 0.01), clamp_logvar=(-0.1, 0.1))
    recorder = Recorder(monkeypatch)
    model(Inputs(images()), RNG)
    for q, p, _ in recorder.blocks:
        for gaussian in (q, p):
            assert gaussian.mean.abs().max() <= 0.01 + 1e-6
            assert gaussian.variance.log().abs().max() <= 0.1 + 1e-6


# ---------------------------------------------------------------------------------- start, sizes
def test_the_model_starts_with_a_unit_prior_and_small_branches() -> None:
    torch.manual_seed(0)
    model = build_model(get_preset("mnist-hvae").model)
    assert isinstance(model, HVAE)
    with torch.no_grad():
        mean, logvar, more = model.prior(0, model.decoder.start)
    assert not any(t.any() for t in (mean, logvar, more))
    x = torch.randn(64, 64, 4, 4)
    shallow = Residual(64, (4, 4), "silu", 1)
    deep = Residual(64, (4, 4), "silu", 16)
    with torch.no_grad():
        ratio = (deep(x) - x).std() / (shallow(x) - x).std()
    assert ratio.item() == pytest.approx(0.25, rel=0.15)


def test_latents_of_the_preset() -> None:
    model = build_model(get_preset("mnist-hvae").model)
    assert isinstance(model, HVAE)
    group = model.config.group_latents
    sides = [plan.side[0] for plan in model.plans]
    assert sides == [1, 2, 4, 7, 14]
    assert model.latent_dim == group * sum(side**2 for side in sides)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder": "mlp"}, "model.decoder = 'mlp'.*networks and a prior of its own"),
        ({"prior": "mog"}, "model.prior = 'mog'.*leave it at standard"),
        ({"condition": "image"}, "model.condition = 'image'.*no image"),
        ({"dropout": 0.1}, "model.dropout = 0.1.*set it to 0"),
        ({"decoder_blocks": 0}, "model.decoder_blocks = 0.*1 or more"),
    ],
)
def test_what_it_cannot_do(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**fields)
