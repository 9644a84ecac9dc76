"""Priors and their distributions against torch.distributions, in float64, and how they draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models import VAE, Inputs, Posterior, build_model
from fastvae.models.distributions import (
    DiagonalGaussian,
    GaussianMixture,
    LatentDistribution,
    UnitGaussian,
)
from fastvae.models.priors import PRIORS

RNG = ops.rng_state(3)
Z = 3


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def normal(mean: Tensor, logvar: Tensor) -> Independent:
    return Independent(Normal(mean, (logvar / 2).exp()), 1)


POSTERIOR = Posterior(randn(5, Z, seed=1), randn(5, Z, seed=2))


def mixture(components: int = 4, spread: float = 2.0) -> tuple[GaussianMixture, MixtureSameFamily]:
    """One of ours, and torch's."""
    logits = randn(components, seed=3)
    mean, logvar = randn(components, Z, seed=4, scale=spread), randn(components, Z, seed=5)
    truth = MixtureSameFamily(Categorical(logits=logits), normal(mean, logvar))
    return GaussianMixture(logits, mean, logvar), truth


def truth_of(distribution: LatentDistribution) -> Any:
    if isinstance(distribution, UnitGaussian):
        return normal(torch.zeros(5, Z).double(), torch.zeros(5, Z).double())
    assert isinstance(distribution, DiagonalGaussian)
    return normal(distribution.mean, distribution.logvar)


GAUSSIANS = [UnitGaussian(), DiagonalGaussian(randn(5, Z, seed=6), randn(5, Z, seed=7))]
gaussians = pytest.mark.parametrize("prior", GAUSSIANS, ids=["unit", "diagonal"])


# ---------------------------------------------------------------------------------- Gaussians
@gaussians
def test_kl_of_gaussians(prior: LatentDistribution) -> None:
    expected = kl_divergence(normal(*POSTERIOR), truth_of(prior))
    per_latent = prior.kl(POSTERIOR)
    assert per_latent is not None
    assert per_latent.shape == (5, Z)
    torch.testing.assert_close(per_latent.sum(dim=1), expected, rtol=1e-12, atol=1e-12)
    draw = prior.draw(POSTERIOR, RNG, 0)
    torch.testing.assert_close(draw.kl_row, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(draw.kl_dim, per_latent.sum(dim=0), rtol=1e-12, atol=1e-12)


@gaussians
def test_densities_of_gaussians(prior: LatentDistribution) -> None:
    z = randn(5, Z, seed=8)
    expected = truth_of(prior).log_prob(z)
    torch.testing.assert_close(prior.log_prob(z), expected, rtol=1e-12, atol=1e-12)
    again = POSTERIOR.log_prob(z)
    torch.testing.assert_close(again, normal(*POSTERIOR).log_prob(z), rtol=1e-12, atol=1e-12)


@gaussians
def test_draws_are_of_the_posterior(prior: LatentDistribution) -> None:
    z = prior.draw(POSTERIOR, RNG, 7).z
    eps = ops.philox_normal(3, torch.arange(7, 12), Z)
    torch.testing.assert_close(z, POSTERIOR.mean + (POSTERIOR.logvar / 2).exp() * eps)


def test_repeat_is_row_by_row() -> None:
    diagonal = DiagonalGaussian(randn(2, Z), randn(2, Z, seed=1)).repeat(3)
    assert torch.equal(diagonal.mean, randn(2, Z).repeat_interleave(3, dim=0))
    assert torch.equal(diagonal.logvar, randn(2, Z, seed=1).repeat_interleave(3, dim=0))
    assert POSTERIOR.repeat(1) is POSTERIOR
    assert torch.equal(POSTERIOR.repeat(2).mean[1::2], POSTERIOR.mean)


def test_a_prior_of_another_dtype_than_the_posterior() -> None:
    """Under autocast networks give bfloat16, and a table of classes float32."""
    q = Posterior(*(t.bfloat16() for t in POSTERIOR))
    p = DiagonalGaussian(*(t.float() for t in (GAUSSIANS[1].mean, GAUSSIANS[1].logvar)))
    draw = p.draw(q, RNG, 0)
    wide = p.draw(Posterior(*(t.float() for t in q)), RNG, 0)
    assert draw.kl_row.dtype == torch.float32
    assert torch.equal(draw.kl_row, wide.kl_row)


# ---------------------------------------------------------------------------------- mixtures
@pytest.mark.parametrize("components", [1, 4, 50])
def test_density_of_a_mixture(components: int) -> None:
    ours, truth = mixture(components)
    z = randn(200, Z, seed=9, scale=3.0)
    torch.testing.assert_close(ours.log_prob(z), truth.log_prob(z), rtol=1e-11, atol=1e-11)


def test_density_of_narrow_components_in_float32() -> None:
    """Squares of 10^5 nearly cancel; that must not cost the digits of the difference."""
    mean = randn(20, 40, seed=1)
    logvar = torch.full_like(mean, -9.0)
    z = mean + (logvar / 2).exp() * randn(20, 40, seed=2)
    truth = MixtureSameFamily(Categorical(logits=torch.zeros(20).double()), normal(mean, logvar))
    singles = (torch.zeros(20), mean.float(), logvar.float())
    # z itself rounds to float32: compare where it does.
    expected = MixtureSameFamily(
        Categorical(logits=torch.zeros(20).double()),
        normal(mean.float().double(), logvar.float().double()),
    ).log_prob(z.float().double())
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            have = GaussianMixture(*singles).log_prob(z.float())
        assert have.dtype == torch.float32
        torch.testing.assert_close(have.double(), expected, rtol=1e-6, atol=1e-5)
    assert (truth.log_prob(z) - expected).abs().max() < 1.0


def test_density_gradients_of_a_mixture() -> None:
    def density(logits: Tensor, mean: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        return GaussianMixture(logits, mean, logvar).log_prob(z)

    tensors = (randn(4, seed=1), randn(4, 2, seed=2), randn(4, 2, seed=3), randn(3, 2, seed=4))
    assert torch.autograd.gradcheck(density, [t.requires_grad_() for t in tensors])


def test_kl_of_a_mixture_is_estimated_from_its_draw() -> None:
    ours, truth = mixture()
    draw = ours.draw(POSTERIOR, RNG, 0)
    expected = normal(*POSTERIOR).log_prob(draw.z) - truth.log_prob(draw.z)
    torch.testing.assert_close(draw.kl_row, expected, rtol=1e-10, atol=1e-10)
    assert draw.kl_dim.numel() == 0
    assert ours.kl(POSTERIOR) is None
    # The mean over many draws is the KL that torch's own samples give.
    q = Posterior(*(t[:1].expand(40_000, Z) for t in POSTERIOR))
    many = ours.draw(q, RNG, 0).kl_row
    torch.manual_seed(0)
    z = normal(*q).sample()
    other = normal(*q).log_prob(z) - truth.log_prob(z)
    error = (many.var() / len(many) + other.var() / len(other)).sqrt()
    assert (many.mean() - other.mean()).abs() < 4.0 * error
    assert error < 0.02


def test_gradients_of_the_estimated_kl() -> None:
    def kl(*tensors: Tensor) -> Tensor:
        return GaussianMixture(*tensors[2:]).draw(Posterior(*tensors[:2]), RNG, 0).kl_row

    leaves = (randn(3, 2, seed=1), randn(3, 2, seed=2), randn(4), randn(4, 2), randn(4, 2, seed=5))
    assert torch.autograd.gradcheck(kl, [t.requires_grad_() for t in leaves])


def test_samples_of_a_mixture() -> None:
    ours, truth = mixture()
    count = 40_000
    eps = ops.philox_normal(1, torch.arange(count), Z).double()
    pick = (torch.arange(count).double() + 0.5) / count
    z = ours.sample(eps, pick, 1.0)
    torch.testing.assert_close(z.mean(dim=0), truth.mean, rtol=0.0, atol=0.04)
    torch.testing.assert_close(z.var(dim=0), truth.variance, rtol=0.03, atol=0.0)
    cold = ours.sample(eps, pick, 0.0)
    where = (cold[:, None] == ours.mean).all(dim=2)
    assert where.sum(dim=1).eq(1).all(), "temperature 0 does not give components' means"
    shares = where.double().mean(dim=0)
    torch.testing.assert_close(shares, ours.log_weight.exp(), rtol=0.0, atol=2.0 / count)


def test_components_without_weight_are_not_picked() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf])
    ours = GaussianMixture(logits, torch.tensor([[0.0], [1.0], [2.0]]), torch.zeros(3, 1))
    pick = torch.tensor([0.0, 0.5, 1.0 - 2.0**-24])
    assert ours.sample(torch.zeros(3, 1), pick, 1.0).flatten().tolist() == [1.0, 1.0, 1.0]


# ---------------------------------------------------------------------------------- in a model
def make(prior: str, **fields: Any) -> VAE:
    torch.manual_seed(0)
    config = ModelConfig(
        encoder="mlp",
        decoder="mlp",
        prior=prior,
        image_shape=(1, 4, 4),
        latent_dim=Z,
        hidden=(8,),
        components=6,
        input_mean=0.2,
        **fields,
    )
    return build_model(config)


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_vamp_prior_is_the_mixture_of_posteriors_of_its_pseudo_inputs() -> None:
    model = make("vamp").double()
    pseudo = model.prior.pseudo.sigmoid()
    assert pseudo.shape == (6, 1, 4, 4)
    assert 0.0 < pseudo.min() < pseudo.max() < 1.0
    assert pseudo.mean().item() == pytest.approx(0.2, abs=0.08)
    mean, logvar = model.encoder((pseudo - 0.2) / 0.5)
    truth = MixtureSameFamily(Categorical(logits=torch.zeros(6).double()), normal(mean, logvar))
    z = randn(20, Z)
    have = model.prior(Inputs(images().double()), model).log_prob(z)
    torch.testing.assert_close(have, truth.log_prob(z), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prior", ["mog", "vamp"])
def test_learned_mixtures_get_gradients(prior: str) -> None:
    model = make(prior)
    draw = model(Inputs(images()), RNG).draw
    draw.kl_row.mean().backward()
    for name, p in model.prior.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0.0, name


def test_a_batch_sees_one_mixture() -> None:
    """The prior of each image is the same, whatever batch it is in."""
    model = make("vamp")
    whole = model(Inputs(images()), RNG).draw.kl_row
    alone = [model(Inputs(images()[i : i + 1]), RNG, i).draw.kl_row for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-4, atol=1e-5)


def test_samples_of_models_with_mixtures() -> None:
    for prior in ("mog", "vamp"):
        model = make(prior).eval()
        inputs = Inputs(torch.zeros(4000, 1, 4, 4))
        z = model.prior_latents(inputs, seed=1, temperature=1.0)
        truth = model.prior(inputs, model)
        weight = truth.log_weight.exp()[:, None]
        expected = (weight * truth.mean).sum(dim=0)
        torch.testing.assert_close(z.mean(dim=0), expected, rtol=0.0, atol=0.1)
        cold = model.prior_latents(inputs, seed=1, temperature=0.0)
        assert len(cold.unique(dim=0)) == 6
        assert model.sample(3).shape == (3, 1, 4, 4)
        torch.testing.assert_close(model.sample(8)[:3], model.sample(3))


@pytest.mark.parametrize("prior", ["mog", "vamp"])
@pytest.mark.parametrize("given", [{"classes": 3}, {"condition": "image"}], ids=str)
def test_mixtures_take_no_condition(prior: str, given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot depend on a condition or a label"):
        make(prior, **given)


def test_a_conditional_prior_needs_a_condition() -> None:
    with pytest.raises(UserError, match="needs something to depend on"):
        make("conditional")


def test_vamp_refuses_batch_norms_in_the_encoder() -> None:
    class Normed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(1)

    config = ModelConfig(prior="vamp")
    parts = build_model(config)
    with pytest.raises(UserError, match="batch statistics would be counted"):
        VAE(
            encoder=Normed(),
            prior=parts.prior,
            decoder=parts.decoder,
            likelihood=parts.likelihood,
            config=config,
        )


def test_every_prior_says_where_it_is_from() -> None:
    for part in PRIORS.values():
        assert "20" in (part.__doc__ or "")
